"""A location encoder that `geobind export --to safetensors` wrote, in plain PyTorch: needs torch and safetensors only.

embed = load("folder")
embeddings = embed(torch.tensor([[8.54, 47.37]]))  # longitude, latitude in degrees, WGS 84 -> [N, D], unit norm
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def load(folder: str | Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns what embeds places: degrees `[N, 2]` -> `[N, D]` of unit norm."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(Path(folder) / "model.safetensors")
    encode = {"spherical_harmonics": _siren, "random_fourier": _fourier}[config["encoder"]]

    def embed(places: torch.Tensor) -> torch.Tensor:
        east, north = places.double().unbind(-1)
        east = torch.where(east >= 180, east - 360, east)  # a place has one pair of numbers only
        east = torch.where(north.abs() == 90, 0.0, east)
        embeddings = encode(torch.stack([east, north], dim=-1), tensors, config)
        if "projection.weight" in tensors:
            embeddings = embeddings @ tensors["projection.weight"].T
        return torch.nn.functional.normalize(embeddings, dim=-1)

    return embed


def _linear(x: torch.Tensor, tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return torch.nn.functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def _siren(places: torch.Tensor, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> torch.Tensor:
    x = _harmonics(places, config["legendre_polys"]).float()
    for layer in range(config["depth"]):
        x = torch.sin((config["first_frequency"] if layer == 0 else 1.0) * _linear(x, tensors, f"layers.{layer}"))
    return _linear(x, tensors, "last")


def _harmonics(places: torch.Tensor, degrees: int) -> torch.Tensor:
    """Real orthonormal spherical harmonics `[N, degrees^2]`: by degree n, and within it by order m from -n to n."""
    east, north = torch.deg2rad(places).unbind(-1)
    legendre = {(0, 0): torch.full_like(north, math.sqrt(1 / (4 * math.pi)))}  # of sin(latitude), normalised
    waves = {0: torch.ones_like(east)}
    for n in range(1, degrees):
        legendre[n, n] = math.sqrt(1 + 1 / (2 * n)) * torch.cos(north) * legendre[n - 1, n - 1]
        for m in range(n):
            before = legendre.get((n - 2, m), torch.zeros_like(north))
            share = math.sqrt(((n - 1) ** 2 - m * m) / (4 * (n - 1) ** 2 - 1))
            legendre[n, m] = torch.sin(north) * legendre[n - 1, m] - share * before
            legendre[n, m] *= math.sqrt((4 * n * n - 1) / (n * n - m * m))
        waves[n], waves[-n] = math.sqrt(2) * torch.cos(n * east), math.sqrt(2) * torch.sin(n * east)
    orders = [(n, m) for n in range(degrees) for m in range(-n, n + 1)]
    return torch.stack([legendre[n, abs(m)] * waves[m] for n, m in orders], dim=-1)


def _fourier(places: torch.Tensor, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> torch.Tensor:
    points, total = _equal_earth(places), torch.zeros(())
    for scale in range(len(config["sigmas"])):
        angles = 2 * math.pi * points @ tensors[f"scales.{scale}.waves"].double().T  # [N, frequencies]
        x = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1).float()
        for layer in range(config["depth"]):
            x = torch.relu(_linear(x, tensors, f"scales.{scale}.layers.{layer}"))
        total = total + _linear(x, tensors, f"scales.{scale}.last")
    return total


def _equal_earth(places: torch.Tensor) -> torch.Tensor:
    """The Equal Earth map (Šavrič, Patterson & Jenny 2018), the equator from -1 to 1."""
    a, b, c, d = 1.340264, -0.081106, 0.000893, 0.003796
    east, north = torch.deg2rad(places).unbind(-1)
    t = torch.asin(math.sqrt(3) / 2 * torch.sin(north))
    x = 2 / math.sqrt(3) * east * torch.cos(t) / (a + 3 * b * t**2 + 7 * c * t**6 + 9 * d * t**8)
    y = t * (a + b * t**2 + c * t**6 + d * t**8)
    return torch.stack([x, y], dim=-1) * (math.sqrt(3) * a / (2 * math.pi))
