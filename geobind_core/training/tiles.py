"""The arithmetic of contrastive losses in tiles: no `[N, N]` matrix is ever held.

Similarities are computed a tile at a time, used and overwritten; where they are needed a second time
they are computed a second time, which costs less than to keep them. Logits are in base 2, because
`exp2` is about three times as fast as `exp` on the CPU; losses are in nats.

Every product of matrices is written into a given tensor. Autocast leaves such products alone, and it
must: at a scale of 100, bfloat16 logits are off by whole units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from geobind_core.training.losses import SameLabel

NEVER = -1e30
"""The logit of an item that is left out. Finite, so that a tile may consist of such items alone."""

LOG2_E = math.log2(math.e)


def edge_of(device: torch.device) -> int:
    """Returns the rows and columns of a tile: 4 MiB of float32, for the caches of a CPU, or 16 MiB elsewhere."""
    return 1024 if device.type == "cpu" else 2048


def spans(length: int, size: int) -> list[slice]:
    """Cuts a length into slices; the last may be smaller."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def as_inputs(query: torch.Tensor, gallery: torch.Tensor, *scalars: torch.Tensor | float) -> tuple[torch.Tensor, ...]:
    """Returns embeddings and scalars as one kind of float, float32 or float64, and in `no_grad` detached.

    Detached, because a function asked for no gradient is still told that its inputs require one.
    """
    dtype = torch.promote_types(torch.promote_types(query.dtype, gallery.dtype), torch.float32)
    tensors = [torch.as_tensor(value, dtype=dtype, device=query.device) for value in (query, gallery, *scalars)]
    return tuple(tensors if torch.is_grad_enabled() else [tensor.detach() for tensor in tensors])


def tiles(
    query: torch.Tensor, gallery: torch.Tensor, factor: torch.Tensor
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Yields the queries and items of each tile, and their similarities times a factor, to be overwritten.

    Args:
        query: `[B, D]`.
        gallery: `[G, D]`.
        factor: Scalar.
    """
    edge = edge_of(query.device)
    buffer = query.new_empty(min(edge, len(query)), min(edge, len(gallery)))
    for queries in spans(len(query), edge):
        scaled = query[queries] * factor
        for items in spans(len(gallery), edge):
            part = gallery[items]
            yield queries, items, torch.mm(scaled, part.T, out=buffer[: len(scaled), : len(part)])


@dataclass(frozen=True)
class Relations:
    """What the items of a gallery are to the queries.

    Attributes:
        offset: Query i's own item is `offset + i`.
        treat_as: What items with a query's label are to it, beside its own.
        query_labels: `[B, K]` numbers of labels, -1 for none, or None without labels. Two rows have
            the same label if they agree in any of the K columns.
        gallery_labels: `[G, K]`.
        query_rows: `[B]` row numbers, -1 for none, or None.
        gallery_rows: `[G]`. An item with the query's row number that is not its own is the same thing
            once more, and left out.
    """

    offset: int = 0
    treat_as: SameLabel = "negative"
    query_labels: torch.Tensor | None = None
    gallery_labels: torch.Tensor | None = None
    query_rows: torch.Tensor | None = None
    gallery_rows: torch.Tensor | None = None

    def own(self, tile: torch.Tensor, queries: slice, items: slice) -> torch.Tensor:
        """Returns a view of the own items in a tile, empty where it has none."""
        return tile.diagonal(self.offset + queries.start - items.start)

    def apply_to(self, tile: torch.Tensor, queries: slice, items: slice) -> torch.Tensor | None:
        """Leaves out of a tile of logits what is to be left out.

        Returns:
            The right answers, a mask as large as the tile, or None if the own item is the only one.
        """
        same_label = same_row = None
        if self.treat_as != "negative" and self.query_labels is not None and self.gallery_labels is not None:
            same_label = _agree(self.query_labels[queries], self.gallery_labels[items])
            self.own(same_label, queries, items).fill_(self.treat_as == "positive")
        if self.query_rows is not None and self.gallery_rows is not None:
            same_row = _agree(self.query_rows[queries, None], self.gallery_rows[items, None])
            self.own(same_row, queries, items).fill_(False)
            tile.masked_fill_(same_row, NEVER)
        if same_label is None:
            return None
        if self.treat_as == "ignore":
            tile.masked_fill_(same_label, NEVER)
            return None
        return same_label if same_row is None else same_label & ~same_row


def _agree(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Returns `[B, G]`: whether rows of `[B, K]` and `[G, K]` agree in any column, -1 aside."""
    found = torch.zeros(len(first), len(second), dtype=torch.bool, device=first.device)
    for a, b in zip(first.T, second.T, strict=True):
        found |= torch.where(a < 0, -2, a)[:, None] == b
    return found


class OneWay(torch.autograd.Function):
    """InfoNCE in one direction: the sum over the queries over `total`.

    A stripe of some queries against the whole gallery is held at a time, so that one product of
    similarities is enough for the loss and both gradients. They are computed on the way forward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        gallery: torch.Tensor,
        logit_scale: torch.Tensor,
        relations: Relations,
        total: int,
    ) -> torch.Tensor:
        edge = edge_of(query.device)
        height = max(1, min(len(query), max(edge // 16, 8 * edge * edge // len(gallery))))
        buffer = query.new_empty(height, len(gallery))
        items, losses, factor = slice(0, len(gallery)), query.new_empty(len(query), 1), logit_scale * LOG2_E
        query_needs, gallery_needs, scale_needs = ctx.needs_input_grad[:3]
        query_gradient = torch.empty_like(query) if query_needs or scale_needs else None
        gallery_gradient = torch.zeros_like(gallery) if gallery_needs else None
        for queries in spans(len(query), height):
            asking = query[queries]
            stripe = torch.mm(asking * factor, gallery.T, out=buffer[: len(asking)])
            right = relations.apply_to(stripe, queries, items)
            if right is None:
                aim = relations.own(stripe, queries, items)[:, None].clone()
            else:
                share = right.to(stripe.dtype) / right.sum(1, keepdim=True)
                aim = (stripe * share).sum(1, keepdim=True)
            largest = stripe.amax(1, keepdim=True)
            sums = stripe.sub_(largest).exp2_().sum(1, keepdim=True)
            losses[queries] = largest.sub_(aim).add_(sums.log2())

            # From here on, the stripe holds the gradient of the logits.
            stripe /= sums
            if right is None:
                relations.own(stripe, queries, items).sub_(1)
            else:
                stripe -= share
            if query_gradient is not None:
                torch.mm(stripe, gallery, out=query_gradient[queries])
            if gallery_gradient is not None:
                gallery_gradient.addmm_(stripe.T, asking)
        ctx.total = total
        ctx.save_for_backward(query, logit_scale, query_gradient, gallery_gradient)
        return losses.sum() / (total * LOG2_E)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, logit_scale, query_gradient, gallery_gradient = ctx.saved_tensors
        query_needs, _, scale_needs = ctx.needs_input_grad[:3]
        outer = outer / ctx.total
        factor = outer * logit_scale
        return (
            query_gradient * factor if query_needs else None,
            None if gallery_gradient is None else gallery_gradient * factor,
            torch.dot(query.reshape(-1), query_gradient.reshape(-1)) * outer if scale_needs else None,
            None,
            None,
        )


class Symmetric(torch.autograd.Function):
    """The mean of InfoNCE in both directions, for a batch without further items.

    The gradient of a similarity depends on two sums, over its row and over its column. So the tiles
    are passed over twice: forward for the sums, and backward for the gradients. One product of
    similarities serves both directions.
    """

    @staticmethod
    def forward(
        ctx: Any, first: torch.Tensor, second: torch.Tensor, logit_scale: torch.Tensor, relations: Relations
    ) -> torch.Tensor:
        sums = first.new_full((2, len(first)), -torch.inf)  # their binary logarithms, by row and by column
        aims, answers = torch.zeros_like(sums), first.new_zeros(len(first))
        for rows, columns, tile in tiles(first, second, logit_scale * LOG2_E):
            right = relations.apply_to(tile, rows, columns)
            if right is not None:
                answers[rows] += right.sum(1)
                aims[0, rows] += (tile * right).sum(1)
                aims[1, columns] += (tile * right).sum(0)
            elif rows == columns:
                aims[:, rows] = tile.diagonal()
                answers[rows] = 1
            for row_or_column, part, dim in ((0, rows, 1), (1, columns, 0)):
                largest = tile.amax(dim, keepdim=True)
                found = (tile - largest).exp2_().sum(dim).log2_().add_(largest.squeeze(dim))
                known = sums[row_or_column, part]
                torch.logaddexp2(known, found, out=known)
        ctx.relations = relations
        ctx.save_for_backward(first, second, logit_scale, sums, answers)
        return (sums - aims / answers).mean() / LOG2_E

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        first, second, logit_scale, sums, answers = ctx.saved_tensors
        first_needs, second_needs = ctx.needs_input_grad[:2]
        # The loss is the same with the sides exchanged: the query is one that needs a gradient.
        query, gallery = (first, second) if first_needs else (second, first)
        row_sums, column_sums = sums if first_needs else sums.flip(0)
        query_gradient = torch.zeros_like(query)
        gallery_gradient = torch.zeros_like(gallery) if first_needs and second_needs else None
        for rows, columns, tile in tiles(query, gallery, logit_scale * LOG2_E):
            right = ctx.relations.apply_to(tile, rows, columns)
            gradient = (tile - row_sums[rows, None]).exp2_()
            gradient += tile.sub_(column_sums[columns]).exp2_()
            if right is not None:
                gradient -= right * (1 / answers[rows, None] + 1 / answers[columns])
            elif rows == columns:
                gradient.diagonal().sub_(2)
            query_gradient[rows].addmm_(gradient, gallery[columns])
            if gallery_gradient is not None:
                gallery_gradient[columns].addmm_(gradient.T, query[rows])
        outer = outer / (2 * len(query))
        scale_gradient = torch.dot(query.reshape(-1), query_gradient.reshape(-1)) * outer
        query_gradient *= outer * logit_scale
        if gallery_gradient is not None:
            gallery_gradient *= outer * logit_scale
        if first_needs:
            return query_gradient, gallery_gradient, scale_gradient, None
        return None, query_gradient, scale_gradient, None
