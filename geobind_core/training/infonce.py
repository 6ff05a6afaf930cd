"""InfoNCE, one-way and symmetric, with a learnable scale, label-aware positives and further negatives."""

from __future__ import annotations

import torch
from torch import nn

from geobind_core.plugins.loss import ExtraItems, LocalPair, LogitScaleConfig, LossOutput
from geobind_core.training.losses import InfoNCEConfig, SameLabel
from geobind_core.training.tiles import OneWay, Relations, Symmetric, as_inputs


def info_nce(
    query: torch.Tensor,
    gallery: torch.Tensor,
    logit_scale: torch.Tensor | float,
    *,
    offset: int = 0,
    total: int | None = None,
    query_labels: torch.Tensor | None = None,
    gallery_labels: torch.Tensor | None = None,
    query_rows: torch.Tensor | None = None,
    gallery_rows: torch.Tensor | None = None,
    treat_as: SameLabel = "negative",
) -> torch.Tensor:
    """One-way InfoNCE: each query picks its own item out of the gallery (the paper's eq. 1).

    Args:
        query: `[B, D]`, unit norm.
        gallery: `[G, D]`, unit norm.
        logit_scale: Inverse temperature.
        offset: Query i's own item is `offset + i` of the gallery.
        total: What the sum over the queries is divided by; by default their number.
        query_labels: `[B, K]` numbers of labels, -1 for none. Two rows have the same label if they
            agree in any of the K columns.
        gallery_labels: `[G, K]`.
        query_rows: `[B]` row numbers, -1 for none. An item with the query's row number that is not
            its own is the same thing once more, and always left out of the denominator.
        gallery_rows: `[G]`.
        treat_as: What items with the query's label are to it: `negative` ignores labels; `ignore`
            takes them out of the denominator; `positive` makes all of them right answers of equal
            weight.

    Returns:
        The sum over the queries over `total`, in nats.
    """
    relations = Relations(offset, treat_as, query_labels, gallery_labels, query_rows, gallery_rows)
    inputs = as_inputs(query, gallery, logit_scale)
    value: torch.Tensor = OneWay.apply(*inputs, relations, total or len(query))  # type: ignore[no-untyped-call]
    return value


def symmetric_info_nce(
    first: torch.Tensor,
    second: torch.Tensor,
    logit_scale: torch.Tensor | float,
    *,
    labels: torch.Tensor | None = None,
    treat_as: SameLabel = "negative",
) -> torch.Tensor:
    """The mean of both directions (eqs. 2-4), faster than two calls of `info_nce`.

    Args:
        first: `[N, D]`, unit norm; row i belongs to row i of `second`.
        second: `[N, D]`, unit norm.
        logit_scale: Inverse temperature.
        labels: `[N, K]` as in `info_nce`.
        treat_as: As in `info_nce`.
    """
    relations = Relations(0, treat_as, labels, labels)
    value: torch.Tensor = Symmetric.apply(*as_inputs(first, second, logit_scale), relations)  # type: ignore[no-untyped-call]
    return value


class LogitScale(nn.Module):
    """A factor kept as its logarithm, between bounds.

    Called, it returns the factor. `clamp_` brings it back between its bounds; the training loop calls
    it after every step of the optimizer, so that a forward pass never changes a parameter.
    """

    def __init__(self, config: LogitScaleConfig) -> None:
        super().__init__()
        initial = torch.tensor(1.0 / config.init_temperature).log()
        self.log_logit_scale = nn.Parameter(initial, requires_grad=config.learnable)
        self.bounds = (float(torch.tensor(config.min).log()), float(torch.tensor(config.max).log()))

    def forward(self) -> torch.Tensor:
        return self.log_logit_scale.exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Brings the parameter back between its bounds."""
        self.log_logit_scale.clamp_(*self.bounds)


class InfoNCEModule(nn.Module):
    """InfoNCE of one pair; the mean of both directions when it is symmetric (eqs. 2-4)."""

    def __init__(self, config: InfoNCEConfig) -> None:
        super().__init__()
        self.config = config
        self.logit_scale = LogitScale(config.logit_scale)

    def forward_local(self, pair: LocalPair) -> LossOutput:
        """Returns this process's share of the loss."""
        scale = self.logit_scale()
        logs = {"logit_scale": scale.detach()}
        first, second = pair.first.embedding, pair.second.embedding
        direction, treat_as = self.config.direction, self.config.same_label
        alone = pair.first is pair.all_first and pair.extra_first is None and pair.extra_second is None
        if direction == "both" and alone:
            return LossOutput(symmetric_info_nce(first, second, scale, labels=pair.labels, treat_as=treat_as), logs)
        parts = []
        if direction != "second_to_first":
            parts.append(_one_way(pair, first, pair.all_second.embedding, pair.extra_second, scale, treat_as))
        if direction != "first_to_second":
            parts.append(_one_way(pair, second, pair.all_first.embedding, pair.extra_first, scale, treat_as))
        return LossOutput(torch.stack(parts).mean(), logs)


def _one_way(
    pair: LocalPair,
    query: torch.Tensor,
    gallery: torch.Tensor,
    extra: ExtraItems | None,
    scale: torch.Tensor,
    treat_as: SameLabel,
) -> torch.Tensor:
    """Returns the share of one direction, with the further items at the end of the gallery."""
    own, total = slice(pair.offset, pair.offset + len(query)), len(gallery)
    query_rows = gallery_rows = None
    labels = gallery_labels = pair.labels
    if extra is not None:
        gallery = torch.cat([gallery, extra.embedding])
        query_rows = pair.rows[own]
        # Rows of the batch are told apart by their place in it, so that only further items are left out.
        gallery_rows = torch.cat([torch.full_like(pair.rows, -1), extra.rows])
        if labels is not None:
            further = extra.labels
            if further is None:
                further = labels.new_full((len(extra.rows), labels.shape[1]), -1)
            gallery_labels = torch.cat([labels, further])
    return info_nce(
        query,
        gallery,
        scale,
        offset=pair.offset,
        total=total,
        query_labels=None if labels is None else labels[own],
        gallery_labels=gallery_labels,
        query_rows=query_rows,
        gallery_rows=gallery_rows,
        treat_as=treat_as,
    )
