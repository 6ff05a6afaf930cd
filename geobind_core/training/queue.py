"""Past embeddings, kept as further negatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from geobind_core.plugins.loss import ExtraItems


class NegativeQueue(nn.Module):
    """The last `size` embeddings of one modality, oldest overwritten first (Sat2Cap keeps 9,000).

    Its content is part of a checkpoint, and the same on all processes.

    Args:
        size: How many are kept.
        embed_dim: D of an embedding.
        label_columns: K of the labels; 0 without.
    """

    def __init__(self, size: int, embed_dim: int, label_columns: int) -> None:
        super().__init__()
        self.size = size
        self.pushed = 0  # on the CPU: how full it is decides on shapes
        self.embedding: torch.Tensor
        self.rows: torch.Tensor
        self.labels: torch.Tensor
        self.register_buffer("embedding", torch.zeros(size, embed_dim))
        self.register_buffer("rows", torch.full((size,), -1, dtype=torch.long))
        self.register_buffer("labels", torch.full((size, label_columns), -1, dtype=torch.long))

    def items(self) -> ExtraItems | None:
        """Returns what is in it."""
        filled = min(self.pushed, self.size)
        if filled == 0:
            return None
        labels = self.labels[:filled].clone() if self.labels.shape[1] else None
        # A copy: losses may keep it for their gradient, and by then `push` has overwritten the original.
        return ExtraItems(self.embedding[:filled].clone(), self.rows[:filled].clone(), labels)

    @torch.no_grad()
    def push(self, embedding: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor | None) -> None:
        """Adds embeddings `[N, D]` of rows `[N]` with labels `[N, K]`."""
        new = slice(max(0, len(embedding) - self.size), None)
        count = len(embedding[new])
        at = (torch.arange(count) + self.pushed) % self.size
        at = at.to(self.rows.device, non_blocking=True)
        self.embedding[at] = embedding[new].detach().to(self.embedding.dtype)
        self.rows[at] = rows[new]
        if labels is not None:
            self.labels[at] = labels[new]
        self.pushed += count

    def get_extra_state(self) -> dict[str, Any]:
        """Returns what the state has beside tensors."""
        return {"pushed": self.pushed}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes it back."""
        self.pushed = state["pushed"]
