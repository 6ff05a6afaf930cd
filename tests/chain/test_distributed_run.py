"""Chains that two processes run together: the same losses, one run folder, every line said once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from geobind_core import Space

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
ACCELERATE += ["--num_machines", "1", "--dynamo_backend", "no", "--mixed_precision", "no", "--main_process_port", "0"]
GEOBIND = ["-m", "geobind_core"]
# Accelerate has FSDP on accelerators only; so it is made to believe in one, and works on the CPU.
FORCED_FSDP = """
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from geobind_core.cli import main

torch.distributed.init_process_group("gloo")
PartialState._prepare_backend = lambda self, *_: ("gloo", DistributedType.MULTI_GPU)
main()
"""


def chain_document(earth: Path) -> dict[str, Any]:
    """The default chain, small, and a stage that aligns to a network with batch normalisation."""
    chain: dict[str, Any] = yaml.safe_load((ROOT / "stages.yaml").read_text(encoding="utf-8"))
    chain["data"]["earth"] |= {"places": 160, "held_out": 40, "root": str(earth), "satellite_pixels": 32}
    chain["data"]["earth"] |= {"ground_pixels": 32, "seconds": 1.0, "fields": {"sound_text": "sound_text"}}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    for name in ("ground_image", "text", "satellite"):
        chain["modalities"][name]["model"] = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    chain["modalities"]["audio"]["seconds"] = 1
    chain["modalities"]["sound_text"] = {**chain["modalities"]["text"], "plugin": "text"}
    chain["stages"].append({**chain["stages"][2], "name": "words", "train": "sound_text", "anchor": "audio"})
    for stage in chain["stages"]:
        stage |= {"batch_size": 41, "epochs": 4}  # an odd number: the two have different numbers of rows
    for asks_for_more in ("compose", "zero_shot", "maps"):  # which one process does alone
        del chain["evaluate"][asks_for_more]
    return chain


@dataclass(frozen=True)
class Command:
    """Starts `geobind run` of a chain, by itself or by a launcher."""

    chain: Path
    prefix: Sequence[str] = (sys.executable, *GEOBIND)
    environment: tuple[tuple[str, str], ...] = ()

    def start(self, out: Path, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.prefix, "run", str(self.chain), "--out", str(out), *options],
            env={**os.environ, "OMP_NUM_THREADS": "1", **dict(self.environment)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
        process = self.start(out, *options)
        stdout, stderr = process.communicate(timeout=400)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def interrupt(self, out: Path, *options: str) -> int:
        """Ends a run after the first checkpoint; returns the step of the last."""
        process = self.start(out, *options)
        state = out / "stages/01-clip/checkpoint/stage_state.json"
        deadline = time.monotonic() + 200
        while not state.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=100)
        assert stderr.count("stopped by SIGTERM") == 1, stderr
        assert process.returncode != 0
        step: int = json.loads(state.read_text())["step"]
        assert f"the checkpoint of step {step} " in stderr
        return step


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    (folder / "chain.yaml").write_text(yaml.safe_dump(chain_document(folder / "earth")), encoding="utf-8")
    return folder / "chain.yaml"


@pytest.fixture(scope="module")
def one(chain: Path) -> Path:
    """The run folder of one process."""
    done = Command(chain).run(chain.parent / "one")
    assert done.returncode == 0, done.stderr
    return chain.parent / "one"


@pytest.fixture(scope="module")
def two(chain: Path, one: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The run folder of two, and what they said."""
    done = Command(chain, [*TORCHRUN, *GEOBIND]).run(chain.parent / "two")
    assert done.returncode == 0, done.stderr
    return chain.parent / "two", done


@pytest.fixture
def forced_fsdp(chain: Path, tmp_path: Path) -> Command:
    script = tmp_path / "forced_fsdp.py"
    script.write_text(FORCED_FSDP)
    environment = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_TORCH_DEVICE": "cpu"}
    return Command(chain, [*TORCHRUN, str(script)], tuple(environment.items()))


def log(out: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"stages/{stage}/log.jsonl").read_text().splitlines()]


def losses(out: Path, stage: str) -> dict[int, float]:
    lines = log(out, stage)
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps)), "a step is logged twice"
    return {line["step"]: line["loss"] for line in lines}


def hashes(out: Path) -> dict[str, str]:
    modalities = json.loads((out / "space/space.json").read_text())["modalities"]
    return {name: record["content_hash"] for name, record in modalities.items()}


def files(out: Path) -> set[str]:
    # The names of events tell the time and the process.
    return {str(p.relative_to(out)).split(".tfevents")[0] for p in out.rglob("*") if p.name != ".lock"}


def test_two_processes_have_the_losses_of_one(one: Path, two: tuple[Path, Any]) -> None:
    for stage in ("01-clip", "02-satellite"):
        assert losses(two[0], stage) == pytest.approx(losses(one, stage), rel=1e-5)
    for stage in ("03-audio", "04-words"):  # batch normalisation sees half the rows at a time
        assert losses(two[0], stage) == pytest.approx(losses(one, stage), rel=0.1)


def test_two_processes_write_one_run_folder(one: Path, two: tuple[Path, Any]) -> None:
    out = two[0]
    assert files(out) == files(one)
    assert len(list(out.rglob("*.tfevents*"))) == 4
    Space.load(out).verify()
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, out)]
    assert metrics[0]["pairs"].keys() == metrics[1]["pairs"].keys()
    summaries = [{s["name"]: s["summary"]["steps"] for s in m["stages"]} for m in metrics]
    assert summaries[0] == summaries[1]


def test_everything_is_said_once(two: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    done = two[1]
    assert done.stdout.count("query -> gallery") == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("  done in")]
    assert len(lines) == len(set(lines)), done.stderr
    assert [line for line in lines if line.startswith("stage ")] == [
        f"stage {n}/4 {name}: has not been run" for n, name in enumerate(("clip", "satellite", "audio", "words"), 1)
    ]
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "'audio' has batch normalisation, which sees 21 rows at a time and not 41" in warnings[0]


def assert_said_once(done: subprocess.CompletedProcess[str], error: str) -> None:
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert f"error: {error}" in done.stderr
    assert "[rank" not in done.stderr, "a traceback"


def test_what_all_find_wrong_is_said_once(chain: Path, tmp_path: Path) -> None:
    done = Command(chain, [*TORCHRUN, *GEOBIND]).run(tmp_path / "run", "--set=stages.clip.epochs=none")
    assert_said_once(done, "--set stages.clip.epochs=none")


def test_what_the_first_finds_wrong_is_said_once(chain: Path, tmp_path: Path) -> None:
    """The others wait for it, and see that it is gone."""
    done = Command(chain, [*TORCHRUN, *GEOBIND]).run(tmp_path / "run", "--set=data.earth.held_out=159")
    assert_said_once(done, "data.earth")


# ---------------------------------------------------------------------- interrupted

LONGER = ["--until", "clip", "--set", "stages.clip.epochs=20", "--set", "stages.clip.checkpoint.steps=2"]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_weights(chain: Path, tmp_path: Path) -> None:
    together, alone = Command(chain, [*TORCHRUN, *GEOBIND]), Command(chain)
    undisturbed = tmp_path / "undisturbed"
    assert together.run(undisturbed, *LONGER).returncode == 0

    interrupted = tmp_path / "interrupted"
    assert together.interrupt(interrupted, *LONGER) < 40, "it was over"
    done = together.run(interrupted, *LONGER)
    assert done.returncode == 0, done.stderr
    assert "was interrupted; goes on from step" in done.stderr
    assert hashes(interrupted) == hashes(undisturbed)

    for name, before, after in (("fewer", together, alone), ("more", alone, together)):
        assert before.interrupt(tmp_path / name, *LONGER) < 40, "it was over"
        done = after.run(tmp_path / name, *LONGER)
        assert done.returncode == 0, done.stderr
        assert "was interrupted; goes on from step" in done.stderr
        assert losses(tmp_path / name, "01-clip") == pytest.approx(losses(undisturbed, "01-clip"), rel=1e-4)


@pytest.mark.slow
def test_a_second_run_of_two_processes_trains_nothing(chain: Path, two: tuple[Path, Any]) -> None:
    out = two[0]
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.suffix in (".safetensors", ".jsonl", ".html")}
    done = Command(chain, [*TORCHRUN, *GEOBIND]).run(out)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("measured already; nothing changed since") == 1
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.slow
def test_accelerate_launches_it_as_well(chain: Path, two: tuple[Path, Any], tmp_path: Path) -> None:
    done = Command(chain, [*ACCELERATE, *GEOBIND]).run(tmp_path / "run", "--until", "clip")
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run", "01-clip") == losses(two[0], "01-clip")


@pytest.mark.slow
def test_fsdp_gives_the_same_run(forced_fsdp: Command, two: tuple[Path, Any], tmp_path: Path) -> None:
    done = forced_fsdp.run(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for stage in ("01-clip", "02-satellite", "03-audio", "04-words"):
        assert losses(tmp_path / "run", stage) == pytest.approx(losses(two[0], stage), rel=1e-5)
    assert files(tmp_path / "run") == files(two[0])
    Space.load(tmp_path / "run").verify()


@pytest.mark.slow
def test_fsdp_goes_on_to_the_same_weights(forced_fsdp: Command, tmp_path: Path) -> None:
    assert forced_fsdp.run(tmp_path / "undisturbed", *LONGER).returncode == 0
    assert forced_fsdp.interrupt(tmp_path / "interrupted", *LONGER) < 40, "it was over"
    done = forced_fsdp.run(tmp_path / "interrupted", *LONGER)
    assert done.returncode == 0, done.stderr
    assert "was interrupted; goes on from step" in done.stderr
    assert hashes(tmp_path / "interrupted") == hashes(tmp_path / "undisturbed")


@pytest.mark.slow
def test_fsdp_may_not_leave_processes_without_weights(forced_fsdp: Command, tmp_path: Path) -> None:
    environment = (*forced_fsdp.environment, ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true"))
    done = Command(forced_fsdp.chain, forced_fsdp.prefix, environment).run(tmp_path / "run", "--until", "clip")
    assert done.returncode != 0
    assert done.stderr.count("error: fsdp_cpu_ram_efficient_loading leaves all processes but the first") == 1
