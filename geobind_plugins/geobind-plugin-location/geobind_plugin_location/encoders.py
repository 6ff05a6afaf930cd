"""The networks, by their names in `stages.yaml`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from geobind_plugin_location.config import LocationConfig
from geobind_plugin_location.equal_earth import equal_earth
from geobind_plugin_location.harmonics import SphericalHarmonics

FIRST_FREQUENCY = 30.0  # of the first sine layer, as Sitzmann et al. 2020 and SatCLIP have it
DEFAULT_SIGMAS = (1.0, 16.0, 256.0)  # as GeoCLIP has them
_SEED = 0


class SineLayer(nn.Module):
    """A layer of a SIREN (Sitzmann et al. 2020): `sin(frequency * (W x + b))`, with the initial weights given there."""

    def __init__(self, inputs: int, outputs: int, *, frequency: float, first: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.frequency = frequency
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / frequency
        nn.init.uniform_(self.linear.weight, -bound, bound)
        nn.init.uniform_(self.linear.bias, -bound, bound)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.frequency * self.linear(inputs))


class HarmonicsEncoder(nn.Module):
    """SatCLIP's location encoder: spherical harmonics, then a SIREN. Degrees `[B, 2]` -> `[B, D]`."""

    def __init__(self, config: LocationConfig) -> None:
        super().__init__()
        width, depth = config.width or 512, config.depth or 2
        self.embed_dim = config.embed_dim or 256
        self.harmonics = SphericalHarmonics(config.legendre_polys or 10)
        layers: list[nn.Module] = []
        for number in range(depth):
            inputs, frequency = (width, 1.0) if number else (self.harmonics.size, FIRST_FREQUENCY)
            layers += [
                SineLayer(inputs, width, frequency=frequency, first=not number),
                nn.Dropout(config.dropout),
            ]
        self.network = nn.Sequential(*layers, nn.Linear(width, self.embed_dim))

    def forward(self, coordinates: torch.Tensor) -> torch.Tensor:
        # The 8 bits of bfloat16 are no phase of a wave.
        with torch.autocast(coordinates.device.type, enabled=False):
            embedding: torch.Tensor = self.network(self.harmonics(coordinates))
        return embedding


class FourierFeatures(nn.Module):
    """Cosines and sines of random waves over a map (Tancik et al. 2020): `[B, 2]` -> `[B, 2 * frequencies]`.

    Args:
        sigma: Standard deviation of the wave numbers, in waves per unit of the map.
        frequencies: How many waves.
        generator: Draws them.
    """

    def __init__(self, sigma: float, frequencies: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("waves", sigma * torch.randn(frequencies, 2, generator=generator))  # [F, 2]
        self.waves: torch.Tensor

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        angles = 2 * math.pi * (points[:, None] * self.waves.to(points.dtype)).sum(-1)  # [B, F]
        return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1).float()


class FourierEncoder(nn.Module):
    """GeoCLIP's location encoder: waves of several scales over an Equal Earth map, a network for each, summed.

    Degrees `[B, 2]` -> `[B, D]`. The waves are not trained, and are the same whatever seed the chain has.
    """

    def __init__(self, config: LocationConfig) -> None:
        super().__init__()
        width, depth, count = config.width or 1024, config.depth or 3, config.frequencies or 256
        self.embed_dim = config.embed_dim or 512
        generator = torch.Generator().manual_seed(_SEED)
        self.scales = nn.ModuleList()
        for sigma in config.sigmas or DEFAULT_SIGMAS:
            layers: list[nn.Module] = [FourierFeatures(sigma, count, generator)]
            for number in range(depth):
                layers += [nn.Linear(width if number else 2 * count, width), nn.ReLU(), nn.Dropout(config.dropout)]
            self.scales.append(nn.Sequential(*layers, nn.Linear(width, self.embed_dim)))

    def forward(self, coordinates: torch.Tensor) -> torch.Tensor:
        points = equal_earth(coordinates)
        return torch.stack([scale(points) for scale in self.scales]).sum(dim=0)


ENCODERS: dict[str, Callable[[LocationConfig], nn.Module]] = {
    "spherical_harmonics": HarmonicsEncoder,
    "random_fourier": FourierEncoder,
}


def build(config: LocationConfig) -> nn.Module:
    """Builds the encoder that a configuration names."""
    return ENCODERS[config.encoder](config)
