"""Spherical harmonics: waves on a sphere, with no seam and no special point."""

from __future__ import annotations

import torch
from torch import nn


class SphericalHarmonics(nn.Module):
    """Real orthonormal spherical harmonics of the degrees 0 to L - 1: degrees `[B, 2]` -> `[B, L^2]`.

    By degree, and within a degree by order from -degree to degree; without the Condon-Shortley phase. They
    are computed with 64 bits where the device has them, by the recurrence for fully normalised Legendre
    functions (Holmes & Featherstone 2002), in which nothing grows.

    Args:
        degrees: L.
    """

    def __init__(self, degrees: int) -> None:
        super().__init__()
        self.degrees = degrees
        self.size = degrees**2
        found = [(degree, order) for degree in range(degrees) for order in range(-degree, degree + 1)]
        self.register_buffer("_of", torch.tensor(found).T.contiguous(), persistent=False)  # [2, L^2]
        self._of: torch.Tensor
        # No buffers: these keep their 64 bits whatever the network is converted to.
        self._factors = _recurrence(degrees)

    def forward(self, coordinates: torch.Tensor) -> torch.Tensor:
        device = coordinates.device
        wide = torch.float32 if device.type == "mps" else torch.float64  # which has no other
        east, north = torch.deg2rad(coordinates.to(wide)).unsqueeze(1).unbind(-1)  # [B, 1] each
        of_last, of_before, sectoral = self._factors.to(device, wide)  # [L, L] each
        orders = torch.arange(self.degrees, device=device, dtype=wide)
        height, powers = torch.sin(north), torch.cos(north) ** orders  # [B, 1], [B, L]
        before = last = torch.zeros_like(powers)
        rows = []
        for degree in range(self.degrees):
            row = of_last[degree] * height * last - of_before[degree] * before + sectoral[degree] * powers
            rows.append(row)
            before, last = last, row
        legendre = torch.stack(rows, dim=1)  # [B, degree, order]
        angles = east * orders[1:]
        waves = torch.cat(  # [B, 2 L - 1], by order
            [2**0.5 * torch.sin(angles).flip(1), torch.ones_like(east), 2**0.5 * torch.cos(angles)], dim=1
        )
        degree_of, order_of = self._of
        return (legendre[:, degree_of, order_of.abs()] * waves[:, order_of + self.degrees - 1]).float()


def _recurrence(degrees: int) -> torch.Tensor:
    """Returns `[3, L, L]`, by degree and order: factors of the degree before, of the one before that, of cos^order."""
    degree = torch.arange(degrees, dtype=torch.float64)[:, None]
    order = torch.arange(degrees, dtype=torch.float64)[None, :]
    squares = torch.where(order < degree, degree**2 - order**2, torch.inf)
    of_last = ((4 * degree**2 - 1).clamp(min=0) / squares).sqrt()
    earlier = ((degree - 1) ** 2 - order**2).clamp(min=0) / (4 * (degree - 1) ** 2 - 1)
    steps = (1 + 1 / (2 * degree[1:, 0])).sqrt()
    sectoral = torch.cat([torch.ones(1, dtype=torch.float64), steps.cumprod(0)]) / (4 * torch.pi) ** 0.5
    return torch.stack([of_last, of_last * earlier.clamp(min=0).sqrt(), sectoral.diag()])
