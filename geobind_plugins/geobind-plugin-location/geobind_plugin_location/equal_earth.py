"""The Equal Earth map projection."""

from __future__ import annotations

import math

import torch

_A = (1.340264, -0.081106, 0.000893, 0.003796)
"""Of the polynomial that defines it (Šavrič, Patterson & Jenny 2018), of the degrees 1, 3, 7 and 9."""

HALF_EQUATOR = 2 * math.pi / (math.sqrt(3) * _A[0])
"""Length of half of the equator on the map of a sphere of radius 1."""


def equal_earth(coordinates: torch.Tensor) -> torch.Tensor:
    """Projects longitude and latitude: degrees `[B, 2]` -> `[B, 2]`, the equator from -1 to 1.

    With 64 bits where the device has them. The map has a seam at the antimeridian, and poles as long as six
    tenths of the equator.
    """
    wide = torch.float32 if coordinates.device.type == "mps" else torch.float64  # which has no other
    east, north = torch.deg2rad(coordinates.to(wide)).unbind(-1)
    theta = torch.asin(math.sqrt(3) / 2 * torch.sin(north))  # a third of a right angle away from where asin is steep
    square = theta**2
    slope = _A[0] + square * (3 * _A[1] + square**2 * (7 * _A[2] + 9 * _A[3] * square))
    x = 2 / math.sqrt(3) * east * torch.cos(theta) / slope
    y = theta * (_A[0] + square * (_A[1] + square**2 * (_A[2] + _A[3] * square)))
    return torch.stack([x, y], dim=-1) / HALF_EQUATOR
