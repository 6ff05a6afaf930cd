"""`geobind explore`, as far as it comes before it serves: what is wrong is said, with exit code 2."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from geobind_core.chain.builtin import plugin_manager
from geobind_core.explore.opening import RunOptions, open_run
from geobind_core.files import read_json, write_json
from geobind_core.progress import Reporter

Call = Callable[[Path], Callable[..., subprocess.CompletedProcess[str]]]


def test_a_port_in_use(in_process: Call, run_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = in_process(run_folder.parent)("explore", "run", "--port", str(port), "--no-open")
    assert done.returncode == 2
    assert f"port {port} is in use" in done.stderr
    assert "0 takes any that is free" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "no run here, and no index"),
        (["run/space"], "an index of `geobind embed`"),
        (["run", "--host", "192.0.2.1"], "cannot listen here"),
        (["run", "--host", "no such host"], "cannot listen here"),
        (["run", "--split", "tset"], "Did you mean 'test'?"),
        (["run", "--data", "word"], "Did you mean 'world'?"),
        (["run", "--split", "validation"], "no row of split 'validation'"),
        (["run", "table.csv"], "no whole Parquet file"),
        (["run", "missing.parquet"], "no such index"),
        (["run", "--port", "70000"], "65535"),
    ],
)
def test_wrong_input(in_process: Call, run_folder: Path, arguments: list[str], said: str) -> None:
    port = [] if "--port" in arguments else ["--port", "0"]
    done = in_process(run_folder.parent)("explore", *arguments, *port, "--no-open")
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_index_of_another_space(in_process: Call, run_folder: Path, tmp_path: Path) -> None:
    options = RunOptions(keep=tmp_path / "kept")
    open_run(run_folder, plugin_manager(), Reporter(quiet=True), options, torch.device("cpu"))
    shutil.copytree(run_folder / "space", tmp_path / "space")
    record = read_json(tmp_path / "space/space.json")
    record["modalities"]["satellite"]["content_hash"] = "0" * 64
    write_json(tmp_path / "space/space.json", record)
    done = in_process(tmp_path)("explore", "space", "kept/world/satellite.parquet", "--port", "0", "--no-open")
    assert done.returncode == 2
    assert "belongs to another space" in done.stderr
