"""Throw-away distributions: a module and a `*.dist-info` folder beside it. A small chain that needs one of them."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

Done = subprocess.CompletedProcess[str]
HEATH = """\
    import numpy as np
    from geobind_core import Modality, hookimpl

    class Heather(Modality):
        name = "heather"

        def build_encoder(self):
            from torch import nn
            return nn.Linear(2, 8)

        def transform(self, sample, *, train, rng):
            return np.float32(sample)

    class Gorse(Heather):
        name = "gorse"

    @hookimpl
    def geobind_register_modalities():
        return [Heather, Gorse]
    """
CHAIN = """\
    binding: heather
    embed_dim: 8
    log_with: []
    modalities: {heather: , gorse: }
    data:
      moor: {source: table, path: moor.csv, fields: {heather: [x, y], gorse: [y, x]}}
    stages:
      - {name: moor, train: [heather, gorse], anchor: [], data: moor, epochs: 1, batch_size: 8}
    evaluate: {recall_at: [1], metrics: [median_km]}
    """


class Installed:
    """A folder on the path into which distributions are put.

    Call it: `add("moss", source, version="1.0", entry_points={"moss": "geobind_plugin_moss"})` installs
    geobind-plugin-moss; without a source its metadata only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self, name: str, source: str | None, *, version: str = "1.0", entry_points: dict[str, str] | None = None
    ) -> None:
        module = f"geobind_plugin_{name}"
        if source is not None:
            (self.folder / f"{module}.py").write_text(dedent(source), encoding="utf-8")
        info = self.info(name, version)
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: geobind-plugin-{name}\nVersion: {version}\n")
        points = entry_points or {name: module}
        (info / "entry_points.txt").write_text("[geobind]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
        importlib.invalidate_caches()

    def info(self, name: str, version: str = "1.0") -> Path:
        """The folder with the metadata of a distribution."""
        return self.folder / f"geobind_plugin_{name}-{version}.dist-info"


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    """Installs distributions into a folder that is on the path of this process for the test."""
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield Installed(folder)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def moor(tmp_path: Path, add: Installed) -> Path:
    """A folder with a chain over numbers, and the one plugin that it needs installed."""
    add("heath", HEATH, entry_points={"heather": "geobind_plugin_heath", "gorse": "geobind_plugin_heath"})
    folder = tmp_path / "moor"
    folder.mkdir()
    (folder / "chain.yaml").write_text(dedent(CHAIN))
    rows = [f"{i},{i % 7 / 7},{i % 5 / 5},{i},{i / 2}\n" for i in range(60)]
    (folder / "moor.csv").write_text("key,x,y,longitude,latitude\n" + "".join(rows))
    return folder


@pytest.fixture
def geobind(moor: Path, in_process: Callable[[Path], Callable[..., Done]]) -> Callable[..., Done]:
    """Calls the command line in this process, which has torch already."""
    return in_process(moor)
