"""InfoNCE of a large batch: against open_clip's ClipLoss, in time, memory and gradients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geobind_core import EncoderOutput
from geobind_core.plugins.loss import LocalPair
from geobind_core.training.losses import InfoNCE, InfoNCEConfig

from .measure import Settings, interleaved, median, peak_memory, timed
from .results import Goal, Row

NAME = "tiled_infonce"
_PEER = "ClipLoss"
_SCALE = 1 / 0.07


class _Side(ABC):
    """One loss on its own copy of the same embeddings; called, it goes forward and backward once."""

    def __init__(self, size: int, dimension: int, *, second_frozen: bool) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        generator = torch.Generator().manual_seed(7)
        first = torch.randn(size, dimension, generator=generator)
        # Pairs are alike, as they are after some training: a loss near chance has flat gradients.
        second = first + 2 * torch.randn(size, dimension, generator=generator)
        self.first, self.second = (nn.functional.normalize(e, dim=-1).to(device) for e in (first, second))
        self.first.requires_grad_(True)
        self.second.requires_grad_(not second_frozen)

    def __call__(self) -> None:
        for leaf in self.leaves():
            leaf.grad = None
        self.loss().backward()

    @abstractmethod
    def loss(self) -> torch.Tensor: ...

    def leaves(self) -> list[torch.Tensor]:
        return [leaf for leaf in (self.first, self.second, self.scale()) if leaf.requires_grad]

    @abstractmethod
    def scale(self) -> torch.Tensor: ...

    def gradients(self) -> list[torch.Tensor]:
        return [leaf.grad for leaf in (self.first, self.second) if leaf.grad is not None]


class _Ours(_Side):
    def __init__(self, size: int, dimension: int, *, second_frozen: bool) -> None:
        super().__init__(size, dimension, second_frozen=second_frozen)
        self.module: Any = InfoNCE(InfoNCEConfig()).build().to(self.first.device)
        first, second = EncoderOutput(self.first), EncoderOutput(self.second)
        rows = torch.arange(size, device=self.first.device)
        pair = LocalPair(first, second, all_first=first, all_second=second, offset=0, rows=rows)
        self._call: Callable[[], Any] = lambda: self.module(first, second)
        if hasattr(self.module, "forward_local"):
            self._call = lambda: self.module.forward_local(pair)

    def loss(self) -> torch.Tensor:
        return self._call().value

    def scale(self) -> torch.Tensor:
        return self.module.logit_scale.log_logit_scale


class _Peer(_Side):
    def __init__(self, size: int, dimension: int, *, second_frozen: bool) -> None:
        super().__init__(size, dimension, second_frozen=second_frozen)
        self.module = _clip_loss()
        self._log_scale = nn.Parameter(torch.tensor(math.log(_SCALE), device=self.first.device))

    def loss(self) -> torch.Tensor:
        return self.module(self.first, self.second, self._log_scale.exp())

    def scale(self) -> torch.Tensor:
        return self._log_scale


def _clip_loss() -> Any:
    """Returns open_clip's loss, of its own file: importing all of open_clip takes seconds in each process."""
    package = find_spec("open_clip")
    assert package is not None
    spec = spec_from_file_location("open_clip_loss", Path(str(package.origin)).parent / "loss.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ClipLoss()


_SIDES: dict[str, type[_Side]] = {"ours": _Ours, _PEER: _Peer}


def prepare(side: str, size: int, dimension: int) -> Callable[[], None]:
    """Returns one pass of a side, for `peak_memory`; threads and work spaces are there already."""
    _SIDES[side](64, dimension, second_frozen=False)()
    return _SIDES[side](size, dimension, second_frozen=False)


def run(settings: Settings) -> list[Row]:
    """Both sides trained, and one of them frozen; then memory, each in a process of its own."""
    size, dimension = (512, 32) if settings.quick else (16_384, 512)
    shape = f"{size:,} x {dimension}, forward and backward"
    rows, difference = [], 0.0
    for second_frozen, goal in ((False, 2.5), (True, 3.3)):
        sides = {name: side(size, dimension, second_frozen=second_frozen) for name, side in _SIDES.items()}
        for side in _SIDES.values():
            side(1024, dimension, second_frozen=second_frozen)()  # warms up
        raw = interleaved({n: lambda side=side: timed(side) for n, side in sides.items()}, settings.repeats)
        both = zip(sides["ours"].gradients(), sides[_PEER].gradients(), strict=True)
        difference = max(difference, *(float((a - b).abs().max() / b.abs().max()) for a, b in both))
        ours, peer = median(raw["ours"]), median(raw[_PEER])
        what = "one side frozen" if second_frozen else "both sides trained"
        rows.append(Row(NAME, what, "s", ours, peer, _PEER, peer / ours, Goal(">=", goal), shape, raw))
    rows.append(
        Row(
            NAME,
            "difference of the gradients",
            "",
            difference,
            peer_name=_PEER,
            goal=Goal("<=", 1e-5),
            note="largest, as a share of the largest gradient",
        )
    )
    target = f"{__name__}:{prepare.__name__}"
    peaks = {n: peak_memory(target, {"side": n, "size": size, "dimension": dimension}) / 2**20 for n in _SIDES}
    rows.append(
        Row(
            NAME,
            "memory beside the embeddings",
            "MiB",
            peaks["ours"],
            peaks[_PEER],
            _PEER,
            peaks["ours"] / max(peaks[_PEER], 1e-9),
            Goal("<=", 1 / 30),
            f"{shape}; peak over what was there before, gradients of the embeddings counted",
            {name: [peak] for name, peak in peaks.items()},
        )
    )
    return rows
