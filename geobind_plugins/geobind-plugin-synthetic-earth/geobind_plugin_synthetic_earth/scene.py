"""What is there: the one thing that all views of a place share."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from datetime import datetime

COVERS = (
    "water",
    "beach",
    "desert",
    "forest",
    "grassland",
    "cropland",
    "wetland",
    "rock",
    "snow",
    "built",
)
"""Names of the land covers, in the order of :attr:`Scene.covers`."""

WATER, BEACH, DESERT, FOREST, GRASSLAND, CROPLAND, WETLAND, ROCK, SNOW, BUILT = range(len(COVERS))


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that a view of a place may show.

    A view gets this and a random generator of its own, nothing else: what is in here is all that
    two views of one place have in common.

    Attributes:
        longitude: Degrees east, WGS 84.
        latitude: Degrees north, WGS 84.
        time: Moment of the observation, UTC.
        elevation: Metres above the sea.
        temperature: Degrees Celsius.
        moisture: 0 (arid) to 1 (soaked).
        population: Persons per square kilometre.
        covers: Share of the area under each of :data:`COVERS`; sums to 1.
        trees: Density of single trees, 0 to 1.
        conifers: Share of conifers among the trees, 0 to 1.
        greenness: How green the plants are, 0 (parched) to 1 (lush).
        building_height: 0 (huts) to 1 (towers).
        traffic: Roads and the cars on them, 0 to 1.
        relief: 0 (flat) to 1 (mountains).
        wind: 0 (calm) to 1 (storm).
        rain: 0 (clear sky) to 1 (downpour).
        silt: 0 (clear water) to 1 (muddy water).
        sun: Sine of the sun's height above the horizon, 0 (low) to 1 (overhead).
        soil_red: Hue of bare ground, 0 (grey) over brown to 1 (red). This and what follows changes over
            thousands of kilometres and tells the parts of the planet apart.
        soil_dark: 0 (chalky) to 1 (black earth).
        leaf_gold: Hue of the plants, 0 (silvery) to 1 (golden).
        dust: What is in the air, 0 (violet haze) over nothing to 1 (yellow dust).
    """

    longitude: float
    latitude: float
    time: datetime
    elevation: float
    temperature: float
    moisture: float
    population: float
    covers: tuple[float, ...]
    trees: float
    conifers: float
    greenness: float
    building_height: float
    traffic: float
    relief: float
    wind: float
    rain: float
    silt: float
    sun: float
    soil_red: float
    soil_dark: float
    leaf_gold: float
    dust: float

    @property
    def land_cover(self) -> str:
        """Name of the land cover that has the largest share."""
        return COVERS[self.covers.index(max(self.covers))]

    def cover(self, name: str) -> float:
        """The share of one land cover, by name."""
        return self.covers[COVERS.index(name)]


FACTORS = tuple(field.name for field in fields(Scene) if field.name not in ("longitude", "latitude", "time", "covers"))
"""Names of the single numbers of a scene, the environment first."""


def amount(fraction: float) -> float:
    """A share of area on a scale where small amounts count.

    Loudness and counts of things follow this and not the share itself: a pond of 2 % of the area is
    a fact about a place, and would be lost in a linear scale.

    Args:
        fraction: Share of area, 0 to 1.

    Returns:
        0 at half a percent and below, 1 at the whole area, logarithmic in between.
    """
    if fraction <= 0.005:
        return 0.0
    return min(1.0, 1.0 - math.log(fraction) / math.log(0.005))
