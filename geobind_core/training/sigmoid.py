"""The pairwise sigmoid loss of SigLIP, with a learnable scale and bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from geobind_core.plugins.loss import LocalPair, LossOutput
from geobind_core.training.infonce import LogitScale
from geobind_core.training.losses import SameLabel, SigmoidConfig
from geobind_core.training.tiles import Relations, as_inputs, tiles


def sigmoid_loss(
    query: torch.Tensor,
    gallery: torch.Tensor,
    logit_scale: torch.Tensor | float,
    logit_bias: torch.Tensor | float,
    *,
    offset: int = 0,
    total: int | None = None,
    query_labels: torch.Tensor | None = None,
    gallery_labels: torch.Tensor | None = None,
    treat_as: SameLabel = "negative",
) -> torch.Tensor:
    """Each pair by itself: does it belong together or not (Zhai et al. 2023)?

    Args:
        query: `[B, D]`, unit norm.
        gallery: `[G, D]`, unit norm.
        logit_scale: Factor of the similarities.
        logit_bias: Added to them. Most pairs do not belong together, and it starts out from that.
        offset: Query i's own item is `offset + i` of the gallery.
        total: What the sum over all pairs is divided by; by default the number of queries.
        query_labels: `[B, K]` numbers of labels, -1 for none. Two rows have the same label if they
            agree in any of the K columns.
        gallery_labels: `[G, K]`.
        treat_as: What pairs with equal labels are: `negative` ignores labels; `ignore` leaves these
            pairs out; `positive` makes them belong together.

    Returns:
        The sum over all pairs over `total`, in nats.
    """
    relations = Relations(offset, treat_as, query_labels, gallery_labels)
    inputs = as_inputs(query, gallery, logit_scale, logit_bias)
    value: torch.Tensor = PairwiseSigmoid.apply(*inputs, relations, total or len(query))  # type: ignore[no-untyped-call]
    return value


class PairwiseSigmoid(torch.autograd.Function):
    """The sum over all pairs over `total`. Gradients are computed on the way forward, tile by tile."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        gallery: torch.Tensor,
        logit_scale: torch.Tensor,
        logit_bias: torch.Tensor,
        relations: Relations,
        total: int,
    ) -> torch.Tensor:
        query_needs, gallery_needs, scale_needs = ctx.needs_input_grad[:3]
        query_gradient = torch.zeros_like(query) if query_needs or scale_needs else None
        gallery_gradient = torch.zeros_like(gallery) if gallery_needs else None
        bias_gradient, loss = torch.zeros_like(logit_bias), torch.zeros_like(logit_bias)
        for queries, items, tile in tiles(query, gallery, logit_scale):
            tile += logit_bias
            right = relations.apply_to(tile, queries, items)
            _negate_right(tile, right, relations, queries, items)
            # -logsigmoid(-x) by a faster name; the default threshold is too low for float64.
            loss += nn.functional.softplus(tile, threshold=50).sum()
            if not any(ctx.needs_input_grad):
                continue
            _negate_right(tile.sigmoid_(), right, relations, queries, items)
            bias_gradient += tile.sum()
            if query_gradient is not None:
                query_gradient[queries].addmm_(tile, gallery[items])
            if gallery_gradient is not None:
                gallery_gradient[items].addmm_(tile.T, query[queries])
        ctx.total = total
        ctx.save_for_backward(query, logit_scale, query_gradient, gallery_gradient, bias_gradient)
        return loss / total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, logit_scale, query_gradient, gallery_gradient, bias_gradient = ctx.saved_tensors
        query_needs, _, scale_needs, bias_needs = ctx.needs_input_grad[:4]
        outer = outer / ctx.total
        factor = outer * logit_scale
        return (
            query_gradient * factor if query_needs else None,
            None if gallery_gradient is None else gallery_gradient * factor,
            torch.dot(query.reshape(-1), query_gradient.reshape(-1)) * outer if scale_needs else None,
            bias_gradient * outer if bias_needs else None,
            None,
            None,
        )


def _negate_right(
    tile: torch.Tensor, right: torch.Tensor | None, relations: Relations, queries: slice, items: slice
) -> None:
    """Turns the sign of what belongs together, in place."""
    if right is None:
        relations.own(tile, queries, items).neg_()
    else:
        tile.mul_(1 - 2 * right.to(tile.dtype))


class SigmoidModule(nn.Module):
    """The pairwise sigmoid loss of one pair of modalities."""

    def __init__(self, config: SigmoidConfig) -> None:
        super().__init__()
        self.config = config
        self.logit_scale = LogitScale(config.logit_scale)
        self.logit_bias = nn.Parameter(torch.tensor(config.init_bias), requires_grad=config.learnable_bias)

    def forward_local(self, pair: LocalPair) -> LossOutput:
        """Returns this process's share: its own rows of the first modality with all of the second."""
        scale, labels = self.logit_scale(), pair.labels
        first, second = pair.first.embedding, pair.all_second.embedding
        value = sigmoid_loss(
            first,
            second,
            scale,
            self.logit_bias,
            offset=pair.offset,
            total=len(second),
            query_labels=None if labels is None else labels[pair.offset : pair.offset + len(first)],
            gallery_labels=labels,
            treat_as=self.config.same_label,
        )
        return LossOutput(value, {"logit_scale": scale.detach(), "logit_bias": self.logit_bias.detach()})
