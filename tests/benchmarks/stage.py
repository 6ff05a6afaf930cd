"""Stages as the engine sets them up, run as often as a benchmark needs, and looked at step by step.

A chain is loaded and run as `geobind run` does it. Its stage is of a kind that, instead of training once,
hands its settings and its context to the benchmark, which trains copies of the networks.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count, pairwise
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import yaml
from geobind_plugin_audio.audio import Audio
from geobind_plugin_imagery.images import Satellite
from rich.console import Console

from geobind_core import StageContext, StageResult, hookimpl
from geobind_core.chain import builtin
from geobind_core.chain.execute import run_chain
from geobind_core.chain.resolve import load_chain
from geobind_core.chain.run_folder import RunFolder
from geobind_core.config.models import AlignConfig
from geobind_core.plugins.manager import PluginManager
from geobind_core.progress import Reporter
from geobind_core.training.align import Align

from .measure import synchronise

ResultT = TypeVar("ResultT")
KIND = "lent"

# ---------------------------------------------------------------------- samples from memory


class MemoryImage(Satellite):
    """Images that are in memory: a cell is their number. Other cells are read as `satellite` reads them."""

    name: ClassVar[str] = "memory_image"

    def read(self, cell: Any) -> torch.Tensor:
        if isinstance(cell, int):
            images = _images(self._size)
            return images[cell % len(images)]
        return super().read(cell)


class MemoryRecording(Audio):
    """Recordings that are in memory: a cell is their number."""

    name: ClassVar[str] = "memory_recording"

    def read(self, cell: Any) -> torch.Tensor:
        recordings = _recordings(round(self.config.seconds * self.config.sample_rate))
        return recordings[cell % len(recordings)]


@lru_cache(maxsize=2)
def _images(size: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (256, 3, size, size), dtype=np.uint8))


@lru_cache(maxsize=1)
def _recordings(samples: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(6).normal(0, 0.1, (64, samples)).astype(np.float32))


# ---------------------------------------------------------------------- a stage, lent


class _Lent(Exception):
    """Ends the chain when the benchmark is done with its stage."""


class _Plugin:
    __name__ = "geobind-benchmarks"

    def __init__(self, work: Callable[[AlignConfig, StageContext], None]) -> None:
        class Lent(Align):
            name: ClassVar[str] = KIND

            def run(self, context: StageContext) -> StageResult:
                work(self.config, context)
                raise _Lent

        self._kind = Lent

    @hookimpl
    def geobind_register_modalities(self) -> list[Any]:
        return [MemoryImage, MemoryRecording]

    @hookimpl
    def geobind_register_stage_kinds(self) -> list[Any]:
        return [self._kind]


def with_stage(
    document: Mapping[str, Any], folder: Path, work: Callable[[AlignConfig, StageContext], ResultT]
) -> ResultT:
    """Runs a chain of one stage up to its training, and lets `work` do that.

    Args:
        document: `stages.yaml`, without the stage's `kind`.
        folder: Where the chain and its run folder are written.
        work: Takes the resolved settings and the context that the engine made.
    """
    stage = {**document["stages"][0], "kind": KIND}
    path = folder / "chain.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    # The first rows once more are what is held out; nothing is measured on them.
    chain = {"identical_files": "off", **document, "stages": [stage]}
    path.write_text(yaml.safe_dump(chain), encoding="utf-8")
    results: list[ResultT] = []
    plugins = PluginManager(builtin=[builtin, _Plugin(lambda config, context: results.append(work(config, context)))])
    try:
        run_chain(load_chain(path, plugins), RunFolder(folder / "run"), Reporter(Console(stderr=True, quiet=True)))
    except _Lent:
        return results[0]
    raise AssertionError("the chain ended before its stage ran")


# ---------------------------------------------------------------------- step by step


@dataclass
class Trace:
    """What one run of a stage was like.

    Attributes:
        summary: Of `StageResult`.
        seconds: The whole of `train`.
        every: How many steps lie between two moments.
        moments: When the loss of every such step was taken, in seconds.
        losses: The loss of each step.
    """

    every: int
    summary: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    moments: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def step_seconds(self) -> list[float]:
        """Returns the time of a step between each two moments; what comes before the first has started up."""
        return [(later - earlier) / self.every for earlier, later in pairwise(self.moments)]


_numbers = count()


def copies(context: StageContext) -> dict[str, Any]:
    """Returns copies of a stage's networks, as it found them."""
    return {name: copy.deepcopy(encoder) for name, encoder in context.encoders.items()}


def train_copies(
    config: AlignConfig,
    context: StageContext,
    networks: Mapping[str, Any] | None = None,
    *,
    on_step: Callable[[int], None] = lambda step: None,
    every: int = 1,
    **changes: Any,
) -> Trace:
    """Trains copies of the stage's networks.

    Args:
        config: The stage's settings.
        context: The stage's context.
        networks: The copies; made here if not given.
        on_step: Called with the number of the step, from 1, whenever a loss has been taken.
        every: Steps between two moments. The accelerator is waited for at each, which has its price.
        **changes: Settings of the stage that differ.
    """
    from geobind_core.training.loop import train

    folder = context.folder.parents[1] / f"copy{next(_numbers)}" / "stages" / "01-copy"
    folder.mkdir(parents=True)
    trace = Trace(every)
    taken: list[torch.Tensor] = []

    def note(loss: torch.Tensor) -> None:
        taken.append(loss.detach().clone())
        if len(taken) % every == 0:
            synchronise()
            trace.moments.append(time.perf_counter())
        on_step(len(taken))

    own = replace(
        context,
        folder=folder,
        encoders=networks or copies(context),
        make_loss=lambda settings: _watched(context.make_loss(settings), note),
    )
    settings = type(config).model_validate({**config.model_dump(), **changes})
    started = time.perf_counter()
    trace.summary = train(settings, own).summary
    synchronise()
    trace.seconds = time.perf_counter() - started
    trace.losses = [float(loss) for loss in taken]
    return trace


def _watched(loss: Any, note: Callable[[torch.Tensor], None]) -> Any:
    """Returns a loss whose module says each value that it returns."""
    build = loss.build

    def built() -> torch.nn.Module:
        module = build()
        name = "forward_local" if hasattr(module, "forward_local") else "forward"
        setattr(module, name, _said(getattr(module, name), note))
        return module

    loss.build = built
    return loss


def _said(method: Callable[..., Any], note: Callable[[torch.Tensor], None]) -> Callable[..., Any]:
    def said(*arguments: Any, **named: Any) -> Any:
        output = method(*arguments, **named)
        note(output.value)
        return output

    return said
