"""The planet: which places there are, and what is at each of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from geobind_plugin_synthetic_earth.fields import (
    Floats,
    SphereField,
    fibonacci_sphere,
    sphere_field,
    to_degrees,
    uncorrelated,
)
from geobind_plugin_synthetic_earth.scene import COVERS, Scene

SEA_SHARE = 0.10  # of the places; the rest is land and coast
SEA_SURFACE = 0.55  # of the planet
BLOCK = 4096  # candidate places drawn at a time; a constant, so that place 7 is the same in any set

CONTINENTS = (1.8, 0.9, 0.45, 0.22)  # wavelengths in radians of arc
CLIMATE = (1.4, 0.6)
REGIONS = (0.5, 0.2)
# 2,500 km for the habit of a region; 130 and 30 km so that no two places are alike.
LOCALITY = (0.4, 0.02, 0.005)
FACTOR_FIELDS = (
    "trees",
    "conifers",
    "greenness",
    "building_height",
    "traffic",
    "relief",
    "wind",
    "rain",
    "silt",
)
REGIONAL = (2.5,)  # 16,000 km from crest to crest: who sees these colours knows the part of the planet
REGIONAL_FIELDS = ("soil_red", "soil_dark", "leaf_gold", "dust")
REGIONAL_INDIVIDUALITY = 0.25  # how much of these is the place's own
COVER_CONTRAST = 1.1  # higher: fewer covers per place
LEAST_SHARE = 0.01  # of a tile; what has less is not there
LEAST_WATER = 0.03  # a lake, or none
INDIVIDUALITY = 1.15  # how much of a place is its own and not its region's


@dataclass(frozen=True)
class Planet:
    """The fields of one planet.

    Attributes:
        seed: Where everything comes from.
        elevation: Large forms of the land; compare with ``sea_level``.
        sea_level: Value of ``elevation`` at the shore.
        moisture: Rain over the year.
        warmth: Departure from the temperature of the latitude.
        settlement: Where people like to live.
        local: Fine fields by name, one per land cover and per factor.
        regional: Fields by name that change over thousands of kilometres.
    """

    seed: int
    elevation: SphereField
    sea_level: float
    moisture: SphereField
    warmth: SphereField
    settlement: SphereField
    local: dict[str, SphereField]
    regional: dict[str, SphereField]


def make_planet(seed: int) -> Planet:
    """Draws the planet of a seed."""
    generator = np.random.default_rng([seed, 1])
    elevation = sphere_field(generator, CONTINENTS)
    moisture, warmth = sphere_field(generator, CLIMATE), sphere_field(generator, CLIMATE)
    settlement = sphere_field(generator, REGIONS)
    local = {
        name: sphere_field(generator, LOCALITY, persistence=1.0, waves_per_octave=10)
        for name in (*COVERS, *FACTOR_FIELDS, *REGIONAL_FIELDS)
    }
    regional = [sphere_field(generator, REGIONAL) for _ in REGIONAL_FIELDS]
    return Planet(
        seed=seed,
        elevation=elevation,
        sea_level=float(np.quantile(elevation(fibonacci_sphere(BLOCK)), SEA_SURFACE)),
        moisture=moisture,
        warmth=warmth,
        settlement=settlement,
        local=local,
        regional=dict(zip(REGIONAL_FIELDS, uncorrelated(regional), strict=True)),
    )


def scatter_places(planet: Planet, count: int) -> Floats:
    """Spreads places uniformly over land and coast, with some sea.

    The order is that of the draw, so a place's number says nothing about it, and the first places
    of a large set are the places of a small one.

    Args:
        planet: The planet.
        count: Number of places.

    Returns:
        Unit vectors, ``[count, 3]``.
    """
    generator = np.random.default_rng([planet.seed, 2])
    land_surface = 1.0 - SEA_SURFACE
    sea_kept = SEA_SHARE / (1.0 - SEA_SHARE) * land_surface / SEA_SURFACE
    kept: list[Floats] = []
    while sum(map(len, kept)) < count:
        points = generator.normal(size=(BLOCK, 3))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        height = planet.elevation(points) - planet.sea_level
        # The shore itself is where land and sea meet in one tile: never thinned out.
        kept.append(points[(height > -0.05) | (generator.random(BLOCK) < sea_kept)])
    return np.concatenate(kept)[:count]


def observe(planet: Planet, points: Floats) -> list[Scene]:
    """Says what is at each place.

    Args:
        planet: The planet.
        points: Unit vectors of the places, ``[N, 3]``.

    Returns:
        One scene per place.
    """
    longitude, latitude = to_degrees(points)
    local = {name: field(points) for name, field in planet.local.items()}
    height = planet.elevation(points) - planet.sea_level
    highland = np.clip(height - 0.5, 0.0, 1.5)
    moments = np.random.default_rng([planet.seed, 3]).random((len(points), 2))
    day = np.floor(365.0 * moments[:, 0])
    hour = 6.5 + 11.0 * moments[:, 1]  # local solar time: photos want light
    season = np.cos(2.0 * np.pi * (day - 196) / 365.0) * np.sin(np.radians(latitude))
    temperature = (
        29.0
        - 42.0 * np.abs(np.sin(np.radians(latitude))) ** 1.6
        + 4.0 * planet.warmth(points)
        - 14.0 * highland
        + 8.0 * season
    )
    moisture = planet.moisture(points) + 0.4 * np.cos(np.radians(4.0 * latitude))
    settlement = planet.settlement(points) - 0.8 * highland
    covers = _covers(local, height, highland, temperature, moisture, settlement)
    factors = _factors(local, covers, highland, temperature, moisture, settlement)
    factors["elevation"] = np.maximum(0.0, 1500.0 * height + 60.0 * local["relief"])
    factors["temperature"] = temperature
    factors["moisture"] = _squash(moisture)
    factors["population"] = 4000.0 * covers[:, COVERS.index("built")] * (0.3 + factors["building_height"])
    factors["sun"] = _sun(latitude, day, hour)
    for name, field in planet.regional.items():
        factors[name] = _squash(field(points) + REGIONAL_INDIVIDUALITY * local[name])
    seconds = ((hour - longitude / 15.0) * 3600.0 + day * 86400.0).astype(np.int64)
    rows = zip(*(values.tolist() for values in factors.values()), strict=True)
    return [
        Scene(
            longitude=float(longitude[place]),
            latitude=float(latitude[place]),
            time=datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=int(seconds[place])),
            covers=tuple(covers[place].tolist()),
            **dict(zip(factors, row, strict=True)),
        )
        for place, row in enumerate(rows)
    ]


def _covers(
    local: dict[str, Floats],
    height: Floats,
    highland: Floats,
    temperature: Floats,
    moisture: Floats,
    settlement: Floats,
) -> Floats:
    """The land-cover mixture, ``[N, 10]``: a soft competition that the climate sets up."""
    warmth = (temperature - 14.0) / 12.0
    frost = np.clip(-(temperature - 2.0) / 6.0, 0.0, 2.5)
    shore = np.exp(-((height / 0.12) ** 2))
    preference = {
        "water": 0.5 + 2.2 * np.tanh(-5.0 * height) + 1.2 * shore + 0.3 * moisture,
        "beach": -0.8 + 1.5 * shore,
        "desert": -0.9 - 1.8 * moisture + 0.9 * warmth - 1.2 * frost,
        "forest": 0.6 + 1.1 * moisture - 0.4 * warmth**2,
        "grassland": 0.5 - 0.3 * np.abs(moisture) - 0.3 * warmth**2,
        "cropland": 0.1 - 0.7 * (warmth - 0.3) ** 2 + 0.7 * settlement - 1.5 * highland,
        "wetland": -0.7 + 1.0 * moisture - 2.0 * highland,
        "rock": -1.2 + 2.2 * highland,
        "snow": -1.9 + 2.0 * frost + 0.6 * highland - 1.5 * np.clip(warmth + 0.5, 0.0, 2.0),
        "built": -0.6 + 1.6 * settlement - 0.6 * frost,
    }
    open_sea = np.clip(-height - 0.1, 0.0, 0.6)
    scores = np.stack(
        [
            preference[name] + INDIVIDUALITY * local[name] - (0.0 if name == "water" else 2.0) * open_sea
            for name in COVERS
        ],
        axis=1,
    )
    scores = np.exp(COVER_CONTRAST * (scores - scores.max(axis=1, keepdims=True)))
    shares = scores / scores.sum(axis=1, keepdims=True)
    water, beach = (COVERS.index(name) for name in ("water", "beach"))
    shares[shares[:, water] < LEAST_WATER, water] = 0.0
    # There is no beach without water, and not more than goes with it.
    shares[:, beach] *= np.clip(4.0 * shares[:, water], 0.0, 1.0)
    shares[shares < LEAST_SHARE] = 0.0
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def _factors(
    local: dict[str, Floats],
    covers: Floats,
    highland: Floats,
    temperature: Floats,
    moisture: Floats,
    settlement: Floats,
) -> dict[str, Floats]:
    """The continuous things, each ``[N]`` from 0 to 1: what the region does and what the place."""
    share = dict(zip(COVERS, covers.T, strict=True))
    plants = share["forest"] + share["grassland"] + share["cropland"] + share["wetland"]
    bare = share["water"] + share["snow"] + share["desert"]
    return {
        "trees": _squash(1.4 * local["trees"] + 2.0 * share["forest"] - 0.8)
        * np.clip(0.15 + 1.3 * plants + 0.6 * share["built"], 0.0, 1.0),
        "conifers": _squash(1.6 * local["conifers"] - (temperature - 12.0) / 7.0),
        "greenness": _squash(1.4 * local["greenness"] + 1.0 * moisture),
        "building_height": _squash(1.3 * local["building_height"] + 1.2 * settlement + 3.5 * share["built"] - 1.3),
        "traffic": _squash(1.5 * local["traffic"] + 1.1 * settlement + 2.0 * share["built"] - 1.0)
        * np.clip(1.3 - 1.3 * bare, 0.0, 1.0),
        "relief": _squash(1.4 * local["relief"] + 2.5 * highland + 2.0 * share["rock"] - 0.8),
        "wind": _squash(0.6 * local["wind"] + 3.0 * (bare + share["rock"]) - 1.5),
        "rain": np.clip(0.35 * local["rain"] + 0.25 * moisture + 0.15, 0.0, 1.0),
        "silt": _squash(1.6 * local["silt"]),
    }


def _sun(latitude: Floats, day: Floats, hour: Floats) -> Floats:
    """Sine of the height of the sun, ``[N]``: the days of the Earth's year, by local solar time; 0 in polar night."""
    declination = np.radians(-23.44) * np.cos(2.0 * np.pi * (day + 10.0) / 365.0)
    north, turn = np.radians(latitude), np.pi * (hour - 12.0) / 12.0
    height = np.sin(north) * np.sin(declination) + np.cos(north) * np.cos(declination) * np.cos(turn)
    return np.asarray(np.clip(height, 0.0, 1.0))


def _squash(values: Floats) -> Floats:
    """From any number to 0..1."""
    return np.asarray(1.0 / (1.0 + np.exp(-1.6 * values)))
