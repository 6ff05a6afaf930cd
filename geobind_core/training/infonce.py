"""InfoNCE, one-way and symmetric, with a learnable scale and label-aware positives."""

from __future__ import annotations

import torch
from torch import nn

from geobind_core.plugins.loss import LogitScaleConfig, LossOutput
from geobind_core.plugins.modality import EncoderOutput
from geobind_core.training.losses import InfoNCEConfig, SameLabel


def info_nce(
    query: torch.Tensor,
    gallery: torch.Tensor,
    logit_scale: torch.Tensor | float,
    same_label: torch.Tensor | None = None,
    treat_as: SameLabel = "negative",
) -> torch.Tensor:
    """One-way InfoNCE: each query picks its own item out of the gallery (the paper's eq. 1).

    Args:
        query: `[B, D]`, unit norm; row i belongs to row i of the gallery.
        gallery: `[B, D]`, unit norm.
        logit_scale: Inverse temperature.
        same_label: `[B, B]` boolean, true where two rows have the same label.
        treat_as: What such rows are to each other: `negative` ignores labels; `ignore` takes them
            out of the denominator; `positive` makes all of them right answers of equal weight.

    Returns:
        The mean over the queries, in nats.
    """
    # float32 also under autocast: at a scale of 100, bfloat16 logits are off by whole units.
    with torch.autocast(query.device.type, enabled=False):
        logits = logit_scale * query.float() @ gallery.float().T
        own = torch.arange(len(query), device=query.device)
        if same_label is None or treat_as == "negative":
            return nn.functional.cross_entropy(logits, own)
        own_mask = torch.eye(len(query), dtype=torch.bool, device=query.device)
        if treat_as == "ignore":
            return nn.functional.cross_entropy(logits.masked_fill(same_label & ~own_mask, -torch.inf), own)
        right = (same_label | own_mask).float()
        return nn.functional.cross_entropy(logits, right / right.sum(dim=1, keepdim=True))


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

    def forward(
        self, first: EncoderOutput, second: EncoderOutput, same_label: torch.Tensor | None = None
    ) -> LossOutput:
        scale = self.logit_scale()
        directions = []
        if self.config.direction != "second_to_first":
            directions.append((first.embedding, second.embedding))
        if self.config.direction != "first_to_second":
            directions.append((second.embedding, first.embedding))
        parts = [info_nce(q, g, scale, same_label, self.config.same_label) for q, g in directions]
        return LossOutput(torch.stack(parts).mean(), {"logit_scale": scale.detach()})
