"""Whole runs over shards: the same weights as over the files of a table, also after `kill -9`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset
import yaml

from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.execute import run_chain
from geobind_core.chain.resolve import load_chain
from geobind_core.chain.run_folder import RunFolder
from geobind_core.progress import Reporter

FIELDS = {"satellite": "satellite.jpg", "text": "txt"}


@pytest.fixture(scope="module")
def folder(world: Any, clip_architecture: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of the world's places, and a chain for them and one for the table."""
    found = tmp_path_factory.mktemp("shards")
    with webdataset.ShardWriter(str(found / "%d.tar"), maxcount=9, verbose=0) as writer:
        for row in world.rows:
            image = (world.folder / row["satellite"]).read_bytes()
            about = {"split": row["split"]}
            writer.write({"__key__": row["key"], "satellite.jpg": image, "txt": row["text"], "json": about})
    shards = {"source": "webdataset", "shards": "{0..2}.tar", "fields": FIELDS}
    table = {"source": "table", "path": str(world.table), "fields": {"satellite": "satellite", "text": "text"}}
    for name, data, split in (("shards", shards, "json.split"), ("table", table, "split")):
        stage = {"name": "one", "train": ["satellite", "text"], "anchor": [], "data": "d", "batch_size": 8, "epochs": 3}
        chain = {
            "binding": "satellite",
            "modalities": {m: {"model": clip_architecture} for m in FIELDS},
            "data": {"d": {**data, "split": {"by": "column", "column": split}}},
            "stages": [{**stage, "augment": {"satellite": "dihedral"}, "checkpoint": {"steps": 4}}],
            "evaluate": {"recall_at": [1]},
        }
        (found / f"{name}.yaml").write_text(yaml.safe_dump(chain))
    return found


def run(folder: Path, name: str, out: Path, *assignments: str) -> dict[str, str]:
    chain = load_chain(folder / f"{name}.yaml", plugin_manager(), assignments)
    run_chain(chain, RunFolder(out), Reporter(quiet=True))
    modalities = json.loads((out / "space/space.json").read_text())["modalities"]
    return {modality: record["content_hash"] for modality, record in modalities.items()}


def test_the_weights_are_those_of_the_table(folder: Path, tmp_path: Path) -> None:
    table = run(folder, "table", tmp_path / "table")
    assert run(folder, "shards", tmp_path / "shards") == table
    assert run(folder, "shards", tmp_path / "workers", "loader.workers=2") == table


@pytest.mark.slow
def test_kill_9_goes_on_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    longer = "stages.one.epochs=15"
    undisturbed = run(folder, "shards", tmp_path / "undisturbed", longer)
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "geobind_core", "run", "shards.yaml", "--out", str(killed), f"--set={longer}"],
        cwd=folder,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    state = killed / "stages/01-one/checkpoint/stage_state.json"
    deadline = time.monotonic() + 120
    while not state.is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert state.is_file()
    assert run(folder, "shards", killed, longer) == undisturbed
