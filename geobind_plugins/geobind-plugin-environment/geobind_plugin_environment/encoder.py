"""The network: a residual MLP over standardised numbers and what is missing of them."""

from __future__ import annotations

import torch
from torch import nn

from geobind_plugin_environment.config import EnvironmentConfig


class ResidualBlock(nn.Module):
    """Two layers beside a shortcut, `[B, W]` -> `[B, W]`."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.ReLU()
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = inputs + self.layers(inputs)
        return outputs


class EnvironmentEncoder(nn.Module):
    """`[B, V]` numbers, NaN where missing, -> `[B, D]`. Residual blocks, as TaxaBind has them.

    With `mean` and `std` numbers are standardised; without, large ones are squashed by `asinh`, which leaves
    those between -1 and 1 about as they are. Neither depends on a batch, so that results do not depend on
    how batches are divided. What is missing is set to 0, the mean, and flagged in V further inputs.
    """

    def __init__(self, config: EnvironmentConfig) -> None:
        super().__init__()
        count, width = len(config.variables), config.width
        self.embed_dim = config.embed_dim
        self.squashed = config.mean is None
        self.register_buffer("mean", torch.tensor(config.mean or [0.0] * count))  # [V]
        self.register_buffer("std", torch.tensor(config.std or [1.0] * count))  # [V]
        self.mean: torch.Tensor
        self.std: torch.Tensor
        blocks = [ResidualBlock(width, config.dropout) for _ in range(config.depth)]
        self.network = nn.Sequential(
            nn.Linear(2 * count, width), nn.ReLU(), *blocks, nn.Linear(width, config.embed_dim)
        )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        missing = values.isnan()
        numbers = (torch.where(missing, self.mean, values) - self.mean) / self.std
        if self.squashed:
            numbers = torch.asinh(numbers)
        embedding: torch.Tensor = self.network(torch.cat([numbers, missing.to(numbers.dtype)], dim=1))
        return embedding
