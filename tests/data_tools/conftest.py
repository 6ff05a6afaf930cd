"""A chain over a small data set, and the command line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from geobind_core.cli import main

CHAIN = """\
    binding: satellite
    modalities:
      satellite: {model: geobind-tiny}
      audio: {model: geobind-tiny, sample_rate: 16000, seconds: 1}
      caption: {plugin: text, model: geobind-tiny}
    data:
      world:
        source: table
        path: world/table.csv
        fields: {satellite: satellite, audio: audio, caption: text}
        labels: {caption: label}
        split: {by: column, column: split}
      other: {source: table, path: other.csv, fields: {satellite: satellite}}
    stages:
      - {name: one, train: [satellite, audio], anchor: [], data: world}
    """

Done = subprocess.CompletedProcess[str]
Geobind = Callable[..., Done]


@pytest.fixture
def geobind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Geobind:
    """Calls the command line in a folder with a chain, beside `own_world`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chain.yaml").write_text(dedent(CHAIN))

    def geobind(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["geobind", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        written = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(caught.value.code or 0), written.out, written.err)

    return geobind
