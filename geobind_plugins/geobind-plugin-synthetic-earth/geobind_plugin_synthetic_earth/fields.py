"""Smooth random fields on the unit sphere.

A field is a sum of plane waves in three dimensions, looked at on the sphere only. There is no map
projection anywhere, so there is no seam at the antimeridian and nothing special about a pole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SphereField:
    """A smooth function on the sphere with mean near 0 and variance near 1.

    Attributes:
        waves: Wave vectors in radians per unit length, ``[K, 3]``.
        phases: Phase of each wave in radians, ``[K]``.
        amplitudes: Amplitude of each wave, ``[K]``.
    """

    waves: Floats
    phases: Floats
    amplitudes: Floats

    def __call__(self, points: Floats) -> Floats:
        """Evaluates the field.

        Args:
            points: Unit vectors, ``[N, 3]``.

        Returns:
            The value at each point, ``[N]``.
        """
        # Written as three products and not as a matrix product: the result of a row is then the
        # same to the last bit whatever rows it is computed with.
        total = np.zeros(len(points))
        for (x, y, z), phase, amplitude in zip(self.waves, self.phases, self.amplitudes, strict=True):
            total += amplitude * np.cos(points[:, 0] * x + points[:, 1] * y + points[:, 2] * z + phase)
        return total


def sphere_field(
    generator: np.random.Generator,
    wavelengths: Sequence[float],
    *,
    persistence: float = 0.6,
    waves_per_octave: int = 20,
) -> SphereField:
    """Draws a field whose detail is given by a list of wavelengths.

    Args:
        generator: Where the waves are drawn from.
        wavelengths: One per octave, in radians of arc (1 radian is 6,371 km on the Earth).
        persistence: Amplitude of an octave relative to the one before it.
        waves_per_octave: More waves look less regular and cost more.

    Returns:
        A field of variance 1 (in expectation over the draw).
    """
    directions = generator.normal(size=(len(wavelengths), waves_per_octave, 3))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    # A spread of wave numbers within the octave keeps the pattern from repeating.
    spread = generator.uniform(0.7, 1.3, size=(len(wavelengths), waves_per_octave, 1))
    numbers = 2.0 * math.pi / np.asarray(wavelengths)
    waves = directions * spread * numbers[:, None, None]
    amplitudes = persistence ** np.arange(len(wavelengths), dtype=np.float64)
    amplitudes = np.repeat(amplitudes, waves_per_octave)
    return SphereField(
        waves=waves.reshape(-1, 3),
        phases=generator.uniform(0.0, 2.0 * math.pi, size=amplitudes.size),
        amplitudes=amplitudes * math.sqrt(2.0 / float(np.sum(amplitudes**2))),
    )


def uncorrelated(fields: Sequence[SphereField]) -> list[SphereField]:
    """Mixes fields so that on the sphere each has mean 0 and variance 1, and no two are correlated.

    Short waves come close to that by themselves. A few long ones may go up and down together by chance, and
    two such fields say little more than one.

    Args:
        fields: The fields; each is mixed with those before it.

    Returns:
        As many fields.
    """
    values = np.stack([field(fibonacci_sphere(2000)) for field in fields], axis=1)  # [P, F]
    mean = values.mean(axis=0)
    # values - mean = Q R with orthonormal Q, so that the columns of (values - mean) R^-1 are uncorrelated.
    mixing = np.linalg.inv(np.linalg.qr(values - mean, mode="r")) * math.sqrt(len(values))
    mixing *= np.sign(np.diag(mixing))  # each field keeps its own sign
    mixed = []
    for number in range(len(fields)):
        weights, sources = mixing[: number + 1, number], fields[: number + 1]
        amplitudes = [weight * field.amplitudes for weight, field in zip(weights, sources, strict=True)]
        constant = -float(np.sum(weights * mean[: number + 1]))
        # A wave of length infinity is a constant.
        mixed.append(
            SphereField(
                waves=np.concatenate([*(field.waves for field in sources), np.zeros((1, 3))]),
                phases=np.concatenate([*(field.phases for field in sources), np.zeros(1)]),
                amplitudes=np.concatenate([*amplitudes, np.array([constant])]),
            )
        )
    return mixed


def to_unit_vectors(longitude: Floats, latitude: Floats) -> Floats:
    """Turns degrees into points on the unit sphere.

    Args:
        longitude: Degrees east, ``[N]``.
        latitude: Degrees north, ``[N]``.

    Returns:
        Unit vectors, ``[N, 3]``.
    """
    east, north = np.radians(longitude), np.radians(latitude)
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=1)


def to_degrees(points: Floats) -> tuple[Floats, Floats]:
    """The inverse of :func:`to_unit_vectors`: longitude and latitude in degrees, each ``[N]``."""
    longitude = np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    latitude = np.degrees(np.arcsin(np.clip(points[:, 2], -1.0, 1.0)))
    return longitude, latitude


def fibonacci_sphere(count: int) -> Floats:
    """Evenly spread unit vectors, ``[count, 3]``; the same ones every time."""
    index = np.arange(count) + 0.5
    z = 1.0 - 2.0 * index / count
    angle = math.pi * (1.0 + math.sqrt(5.0)) * index
    radius = np.sqrt(1.0 - z**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1)
