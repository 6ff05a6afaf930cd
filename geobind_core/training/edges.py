"""The edges of a stage: each pair of modalities with its own loss, scale and weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from geobind_core.data.paired import PairedData
from geobind_core.plugins.loss import Loss
from geobind_core.plugins.modality import EncoderOutput


@dataclass(frozen=True)
class Edge:
    """Two modalities drawn together."""

    first: str
    second: str
    loss: Loss[Any]
    weight: float


class EdgeLosses(nn.Module):
    """The weighted mean of the losses of all edges.

    Args:
        edges: The edges; weights are normalised to sum 1.
        data: Where labels come from.
    """

    def __init__(self, edges: Sequence[Edge], data: PairedData) -> None:
        super().__init__()
        self.edges = tuple(edges)
        self.losses = nn.ModuleList(edge.loss.build() for edge in edges)
        total = sum(edge.weight for edge in edges)
        self.weights = [edge.weight / total for edge in edges]
        self._labels = [
            [torch.from_numpy(codes) for codes in data.pair_labels(edge.first, edge.second)] for edge in edges
        ]

    def forward(
        self, outputs: Mapping[str, EncoderOutput], rows: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns the loss of a batch and what is to be logged.

        Args:
            outputs: Modality -> embeddings `[B, D]` of the same rows.
            rows: `[B]` row numbers, on the CPU.
        """
        total: torch.Tensor | None = None
        logs: dict[str, torch.Tensor] = {}
        shared: dict[str, list[torch.Tensor]] = {}
        parts = zip(self.edges, self.losses, self.weights, self._labels, strict=True)
        for edge, loss, weight, labels in parts:
            first, second = outputs[edge.first], outputs[edge.second]
            result = loss(first, second, _same_label(labels, rows, first.embedding.device))
            total = result.value * weight if total is None else total + result.value * weight
            for name, value in result.logs.items():
                shared.setdefault(name, []).append(value)
                if len(self.edges) > 1:
                    logs[f"{name}/{edge.first}_{edge.second}"] = value
        assert total is not None  # a stage has at least one edge
        return total, {name: torch.stack(values).mean() for name, values in shared.items()} | logs

    def clamp_(self) -> None:
        """Brings whatever has bounds back between them, after a step of the optimizer."""
        for module in self.modules():
            clamp = getattr(module, "clamp_", None)
            if module is not self and callable(clamp):
                clamp()


def _same_label(labels: list[torch.Tensor], rows: torch.Tensor, device: torch.device) -> torch.Tensor | None:
    if not labels:
        return None
    same = torch.zeros(len(rows), len(rows), dtype=torch.bool)
    for codes in labels:
        own = codes[rows]
        same |= (own[:, None] == own[None, :]) & (own >= 0)[:, None]
    return same.to(device)
