"""The loss and the gradients depend on the batch alone, not on how many processes and slices share it."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from geobind_core.plugins.modality import EncoderOutput
from geobind_core.space.encoder import SpaceEncoder
from geobind_core.training.step import StageModel

pytestmark = pytest.mark.usefixtures("one_thread")

WORKER = Path(__file__).with_name("distributed_worker.py")


def load_worker() -> Any:
    spec = importlib.util.spec_from_file_location("distributed_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


worker = load_worker()
Figures = Mapping[str, torch.Tensor]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def started(folder: Path) -> list[subprocess.Popen[str]]:
    """Starts the worker twice, as a launcher does."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    common |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder)],
            env={**os.environ, **common, "RANK": str(index), "LOCAL_RANK": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]


@dataclass(frozen=True)
class Found:
    """What one of two processes found: case -> figure -> tensor; and what it heard."""

    cases: dict[str, dict[str, torch.Tensor]]
    heard: dict[str, Any]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    folder = tmp_path_factory.mktemp("processes")
    processes = started(folder)
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    found = []
    for index in range(2):
        cases: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(folder / f"{index}.safetensors").items():
            case, figure = key.split("|")
            cases.setdefault(case, {})[figure] = tensor
        found.append(Found(cases, json.loads((folder / f"{index}.json").read_text())))
    return found


def in_one_process(case: Any) -> Figures:
    """The whole batch at once; with dropout, in one graph under the random states of the case's slices."""
    found: Figures = worker.one_graph(case) if case.dropout else worker.alone(case, Accelerator())
    return found


def deviation(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the largest difference, as a share of the largest number."""
    if not expected.is_floating_point() or not expected.numel():
        return float(not torch.equal(found, expected))
    return float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-3)


def assert_same(found: Figures, expected: Figures, bound: float) -> None:
    assert set(found) == set(expected)
    off = {name: deviation(found[name], tensor) for name, tensor in expected.items()}
    assert {name: d for name, d in off.items() if not d <= bound} == {}


def bound_of(case: Any) -> float:
    return 1e-10 if case.dtype == torch.float64 else 1e-5


@pytest.mark.parametrize("name", worker.CASES)
def test_two_processes_have_the_gradients_of_one(name: str, two: list[Found]) -> None:
    case = worker.CASES[name]
    expected = in_one_process(replace(case, divided=False))
    assert any(figure.endswith("loss") for figure in expected)
    for process in two:
        assert_same(process.cases[name], expected, bound_of(case))


@pytest.mark.parametrize("name", [name for name, case in worker.CASES.items() if case.micro and not case.divided])
def test_slices_in_one_process_have_the_gradients_of_the_batch(name: str) -> None:
    case = worker.CASES[name]
    case = replace(case, sizes=(sum(case.sizes),), random=(sum(case.random),), lengths=(max(case.lengths),))
    assert_same(worker.alone(case, Accelerator(), case.micro), in_one_process(case), bound_of(case))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_get_the_weights_of_one(kind: str, two: list[Found], tmp_path: Path) -> None:
    """With gradients clipped, a schedule, and parameters that take no part; and from a checkpoint as well."""
    expected = worker.trained(worker.Processes(), tmp_path)
    assert any("log_logit_scale" in figure for figure in expected)
    for process in two:
        found = process.cases[kind]
        assert_same(found, expected, 1e-10)
        again = {figure.removeprefix("restored "): t for figure, t in found.items() if figure.startswith("restored")}
        assert all(torch.equal(tensor, found[figure]) for figure, tensor in again.items())
        assert {figure for figure in again if figure.startswith("4 ")}


def test_processes_hear_the_same(two: list[Found]) -> None:
    first, second = (process.heard for process in two)
    shares, main = (first.pop("share"), second.pop("share")), (first.pop("main"), second.pop("main"))
    assert first == second
    assert first == {
        "rows": [0, 1, 2, 0, 1, 2, 3],
        "sizes": [3, 4],
        "flags": [True, False],
        "nobody": False,
        "somebody": True,
        "objects": ["from 0", "from 1"],
    }
    assert (shares, main) == (([0, 1], [2, 3, 4]), (True, False))


class Reports(nn.Module):
    """Has a part that only its variance comes from."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.variance = nn.Linear(3, 6), nn.Linear(6, 6)

    def forward(self, batch: torch.Tensor) -> EncoderOutput:
        embedding = self.embedding(batch)
        return EncoderOutput(embedding, batch[:, None], None, self.variance(embedding))


def test_only_what_losses_need_comes_out_of_the_networks() -> None:
    """DDP would wait for the gradients of the rest."""
    encoders = {"one": SpaceEncoder(Reports(), 6, 6, projected=False)}
    everything, some = StageModel(encoders), StageModel(encoders, {"one": ("mask", "tokens")})
    outputs = [model({"one": torch.randn(2, 3)})["one"] for model in (everything, some)]
    assert [output.log_variance is None for output in outputs] == [False, True]
    assert all(output.tokens is not None for output in outputs)
