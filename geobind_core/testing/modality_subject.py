"""A modality under examination: its cells, samples, batch and network, made once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import SkipTest

import numpy as np

from geobind_core.plugins.modality import EncoderOutput, Modality
from geobind_core.testing.check import require
from geobind_core.testing.packaging import PluginSubject
from geobind_core.testing.values import map_tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")
SEED = 20_260
NO_CELLS = "define example_cells(), or give cells= to modality_checks()"


class ModalitySubject(PluginSubject):
    """A modality and what the checks share of it.

    What cannot be made is reported by the check whose business it is; the others are skipped.

    Args:
        modality: The modality.
        cells: Cells to read; without them its `example_cells`, or samples that it draws.
        unreadable: Cells that must be refused.
    """

    def __init__(self, modality: Modality[Any], cells: Sequence[Any] | None, unreadable: Sequence[Any]) -> None:
        super().__init__("modality", type(modality), modality.config)
        self.modality = modality
        self.unreadable = unreadable
        self._given = cells

    @cached_property
    def cells(self) -> list[Any]:
        """The cells to read; none if nobody has said which."""
        return list(self.modality.example_cells(generator()) if self._given is None else self._given)

    @property
    def draws(self) -> bool:
        """Whether it draws observations from nowhere."""
        return self.owner.draw is not Modality.draw

    @cached_property
    def needed_decoded(self) -> list[Any]:
        """What `read` makes of the cells, for checks that are not about reading."""
        return self.need(self.decoded, "example_cells")

    def decoded(self) -> list[Any]:
        """Returns what `read` makes of the cells, or what it draws instead."""
        if self.cells or not self.draws:
            require(
                len(self.cells) > 1, f"there are {len(self.cells)} example cells, at least 2 are needed; {NO_CELLS}"
            )
            return [self.modality.read(cell) for cell in self.cells]
        return [self.modality.draw(generator(number)) for number in range(4)]

    def samples(self) -> list[Any]:
        """Returns samples as `collate` takes them, outside training."""
        return [transformed(self.modality, sample) for sample in self.decoded()]

    def need(self, make: Callable[[], T], owner: str) -> T:
        """Returns what is a check's precondition.

        Raises:
            SkipTest: It cannot be had; `owner` is the check that says why.
        """
        try:
            return make()
        except Exception as error:  # whatever it is, the owner reports it
            raise SkipTest(f"see the check {owner}") from error

    def needed_cells(self) -> list[Any]:
        """Returns the cells, for a check that cannot do without."""
        if not self.need(lambda: self.cells, "example_cells"):
            raise SkipTest(f"there are no example cells; {NO_CELLS}")
        return self.cells

    @cached_property
    def needed_samples(self) -> list[Any]:
        """Samples, for checks that are not about reading."""
        return self.need(self.samples, "example_cells")

    def batch(self) -> Any:
        """Returns a batch of all samples."""
        return self.collated(self.needed_samples)

    def collated(self, samples: Sequence[Any]) -> Any:
        """Returns a batch of samples, which has as many rows."""
        batch, rows = self.modality.collate(samples), set[int]()
        map_tensors(batch, lambda tensor: rows.add(len(tensor) if tensor.ndim else 0))
        counted = " and ".join(map(str, sorted(rows))) or "no"
        require(rows == {len(samples)}, f"{len(samples)} samples make tensors of {counted} rows")
        return batch

    @cached_property
    def needed_batch(self) -> Any:
        """A batch of all samples, for checks that are not about collating."""
        return self.need(self.batch, "collate")

    def build(self, seed: int = SEED, modality: Modality[Any] | None = None) -> nn.Module:
        """Builds a network of its own, in evaluation mode."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return (modality or self.modality).build_encoder().eval()

    def output(self) -> tuple[nn.Module, torch.Tensor]:
        """Returns a network and what it makes of the batch, `[B, D]`, which is as it should be."""
        network = self.build()
        found = outputs(network, self.needed_batch)
        require_sound(found, len(self.needed_samples), getattr(network, "embed_dim", None))
        return network, found.embedding

    @cached_property
    def needed_output(self) -> tuple[nn.Module, torch.Tensor]:
        """A network that no check changes and its output, for checks that are not about its form."""
        return self.need(self.output, "output")


def require_sound(found: EncoderOutput, rows: int, declared: Any) -> None:
    """Makes sure that losses and the space can use what a network returned.

    Raises:
        CheckError: A shape, a type or a value is not as it should be.
    """
    import torch

    value = found.embedding
    require(isinstance(value, torch.Tensor), f"the embedding is {type(value).__name__}; expected a tensor")
    shape = tuple(value.shape)
    require(len(shape) == 2 and shape[0] == rows, f"the output has shape {shape}; expected [B, D] with B = {rows}")
    require(value.dtype == torch.float32, f"the output is {value.dtype}; expected torch.float32")
    require(torch.isfinite(value).all(), "the output has NaN or infinite numbers")
    if isinstance(declared, int):
        require(declared == shape[1], f"the network says `embed_dim` {declared}, and its output has D = {shape[1]}")
    wanted = {"tokens": (rows, None, None), "mask": (rows, None), "log_variance": shape}
    for name, expected in wanted.items():
        extra = getattr(found, name)
        if extra is not None:
            fits = len(expected) == extra.ndim and all(
                e in (None, s) for e, s in zip(expected, extra.shape, strict=True)
            )
            require(fits, f"`{name}` has shape {tuple(extra.shape)}, with an embedding of shape {shape}")
            require(torch.isfinite(extra).all(), f"`{name}` has NaN or infinite numbers")


def generator(seed: int = 0) -> np.random.Generator:
    """Returns a generator of random numbers, the same for the same seed."""
    return np.random.default_rng(SEED + seed)


def transformed(modality: Modality[Any], sample: Any, *, train: bool = False, seed: int = 0) -> Any:
    """Returns what `collate` takes."""
    # A copy: whether the sample itself is left alone is a check of its own.
    return modality.transform(copy.deepcopy(sample), train=train, rng=generator(seed))


def outputs(network: nn.Module, batch: Any) -> EncoderOutput:
    """Runs a network without gradients, the same random numbers each time."""
    import torch

    from geobind_core.space.encoder import as_output

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return as_output(network(batch))


def embedding(network: nn.Module, batch: Any) -> torch.Tensor:
    """Returns a network's embeddings, `[B, D]`."""
    return outputs(network, batch).embedding
