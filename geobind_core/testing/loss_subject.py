"""A loss under examination, called as a stage calls it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from geobind_core.plugins.loss import LocalPair, Loss, LossOutput
from geobind_core.plugins.modality import EncoderOutput
from geobind_core.testing.packaging import PluginSubject

if TYPE_CHECKING:
    import torch
    from torch import nn

ROWS, DIMENSION, TOKENS = 8, 16, 5
SEED = 20_260


@dataclass(frozen=True)
class Pair:
    """Embeddings of both sides of the same rows, and what the data says of the rows.

    Attributes:
        first: Raw values `[N, D]`; what a loss gets of them has unit norm.
        second: The same of the other modality.
        labels: `[N, 1]` numbers of labels, -1 for none, or None.
    """

    first: torch.Tensor
    second: torch.Tensor
    labels: torch.Tensor | None = None


class LossSubject(PluginSubject):
    """A loss and what the checks share of it."""

    def __init__(self, loss: Loss[Any]) -> None:
        super().__init__("loss", type(loss), loss.config)
        self.loss = loss

    def pair(self, *, labelled: bool = False, double: bool = False) -> Pair:
        """Returns a batch of N rows, drawn at random; the sides have something in common."""
        import torch

        dtype = torch.float64 if double else torch.float32
        generator = torch.Generator().manual_seed(SEED)
        first = torch.randn(ROWS, DIMENSION, generator=generator, dtype=torch.float64)
        second = first + torch.randn(ROWS, DIMENSION, generator=generator, dtype=torch.float64)
        labels = torch.tensor([0, 0, 1, 2, -1, 1, -1, 3])[:, None] if labelled else None
        return Pair(first.to(dtype), second.to(dtype), labels)

    def outputs(self, raw: torch.Tensor) -> EncoderOutput:
        """Returns raw values as an encoder's output, with the further fields that the loss needs."""
        import torch

        generator, rows = torch.Generator().manual_seed(SEED), len(raw)
        # The same for a row wherever it stands in a batch: made of its own values.
        tokens = raw[:, None, :] * torch.rand(TOKENS, 1, generator=generator, dtype=torch.float64).to(raw.dtype)
        fields = {
            "tokens": tokens,
            "mask": torch.ones(rows, TOKENS, dtype=torch.bool),
            "log_variance": raw.tanh(),
        }
        needed = set(self.owner.needs) | ({"mask"} if "tokens" in self.owner.needs else set())
        unit = torch.nn.functional.normalize(raw, dim=-1)
        return EncoderOutput(unit, **{name: fields[name] for name in needed})

    def value(self, module: nn.Module, pair: Pair, share: slice | None = None) -> LossOutput:
        """Calls a module as a stage does.

        Args:
            module: What `build` returned.
            pair: The whole batch.
            share: The rows of one of several processes; by default all.
        """
        import torch

        first, second = self.outputs(pair.first), self.outputs(pair.second)
        forward_local = getattr(module, "forward_local", None)
        if not callable(forward_local):
            same_label = None
            if pair.labels is not None:
                same_label = (pair.labels == pair.labels.T) & (pair.labels >= 0)
            result: LossOutput = module(first, second, same_label)
            return result
        rows = torch.arange(len(pair.first))
        own = (first, second) if share is None else (_rows(first, share), _rows(second, share))
        offset = 0 if share is None else share.start
        share_of_loss: LossOutput = forward_local(
            LocalPair(*own, first, second, offset=offset, rows=rows, labels=pair.labels)
        )
        return share_of_loss


def _rows(output: EncoderOutput, rows: slice) -> EncoderOutput:
    changed = {name: value[rows] for name, value in vars(output).items() if value is not None}
    return replace(output, **changed)
