"""The main job as a user starts it: the default chain, with the quality that it must reach."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = {
    "satellite_to_ground_image": 0.30,
    "satellite_to_audio": 0.35,
    "satellite_to_text": 0.30,
    "audio_to_text": 0.35,
    "audio_to_ground_image": 0.25,
}


@pytest.mark.slow
def test_the_default_chain_binds_what_it_never_trained(tmp_path: Path) -> None:
    (tmp_path / "stages.yaml").write_text((ROOT / "stages.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, "-m", "geobind_core.cli", "run", "stages.yaml"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    metrics = json.loads((tmp_path / "runs/stages/metrics.json").read_text())
    assert metrics["gallery"] >= 1000
    reached = {pair: metrics["pairs"][pair]["recall@10"] for pair in FLOORS}
    assert all(reached[pair] >= floor for pair, floor in FLOORS.items()), reached
    assert metrics["pairs"]["audio_to_text"]["emergent"]

    started = time.monotonic()
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert second.stderr.count("done (nothing changed)") == 3
    assert time.monotonic() - started < 15
