"""Timing and memory: interleaved runs, peaks in a process of their own, what autograd keeps."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Settings:
    """How a benchmark is to run.

    Attributes:
        quick: Tiny sizes, to see that it works; the figures mean nothing.
        repeats: How often each side runs.
        folder: A temporary folder of the benchmark's own.
    """

    quick: bool
    repeats: int
    folder: Path

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronise() -> None:
    """Waits until the accelerator, if there is one, has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], object]) -> float:
    """Returns the seconds that some work takes."""
    synchronise()
    started = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - started


def interleaved(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Runs the sides in turn, A B A B …, so that a machine that slows down slows all of them.

    Args:
        sides: Name -> a run, which returns its own figure.
        repeats: Runs of each side.

    Returns:
        Name -> figures, in the order taken.
    """
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            figures[name].append(run())
    return figures


def median(values: Iterable[float]) -> float:
    """Returns the median."""
    return statistics.median(values)


# ---------------------------------------------------------------------- peak memory


def peak_memory(target: str, arguments: Mapping[str, Any]) -> int:
    """Returns the bytes that some work takes at its peak, on top of what was there before it.

    Args:
        target: `module:function`. In a fresh process it is called with the arguments, to allocate
            the input and to warm up, and returns the work.
        arguments: JSON.
    """
    done = subprocess.run(
        [sys.executable, "-m", __name__, target, json.dumps(arguments)],
        cwd=ROOT,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout.splitlines()[-1])


def _measure_in_this_process(target: str, arguments: Mapping[str, Any]) -> int:
    from importlib import import_module

    module, function = target.split(":")
    work = getattr(import_module(module), function)(**arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return int(torch.cuda.max_memory_allocated() - before)
    Path("/proc/self/clear_refs").write_text("5")  # lets the peak start again from what is resident now
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    """Returns what the system says of this process, in bytes: `VmRSS` now, `VmHWM` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) * 1024


# ---------------------------------------------------------------------- activations


class KeptForBackward:
    """Counts what autograd keeps for the backward pass: `peak` in bytes, each storage once.

    Args:
        networks: Their parameters are there anyway and do not count.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self.peak = 0
        self._now = 0
        self._held: Counter[int] = Counter()
        self._networks = list(networks)

    @contextmanager
    def counting(self) -> Iterator[KeptForBackward]:
        """Counts while the block runs."""
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Kept(tensor, self), lambda kept: kept.tensor):
            yield self

    def add(self, tensor: torch.Tensor) -> int | None:
        """Counts a tensor; returns what to remove it by."""
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if any(place == p.untyped_storage().data_ptr() for network in self._networks for p in network.parameters()):
            return None
        self._held[place] += 1
        if self._held[place] == 1:
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
        return place

    def remove(self, place: int, size: int) -> None:
        self._held[place] -= 1
        if self._held[place] == 0:
            self._now -= size


class _Kept:
    """A tensor that autograd keeps; when it lets go of it, so does this."""

    def __init__(self, tensor: torch.Tensor, count: KeptForBackward) -> None:
        self.tensor = tensor
        self._count = count
        self._place = count.add(tensor)

    def __del__(self) -> None:
        if self._place is not None:
            self._count.remove(self._place, self.tensor.untyped_storage().nbytes())


if __name__ == "__main__":
    sys.stdout.write(f"{_measure_in_this_process(sys.argv[1], json.loads(sys.argv[2]))}\n")
