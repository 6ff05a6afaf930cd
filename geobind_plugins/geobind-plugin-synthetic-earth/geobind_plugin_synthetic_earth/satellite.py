"""The satellite's view: a top-down picture of a place."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from geobind_plugin_synthetic_earth.canvas import (
    Image,
    Labels,
    Map,
    NoiseBank,
    blend,
    daylight,
    lay_out,
    make_noise_bank,
    palette,
    road_colour,
    soil_colour,
    tree_colour,
    veil,
)
from geobind_plugin_synthetic_earth.scene import (
    BUILT,
    COVERS,
    CROPLAND,
    DESERT,
    ROCK,
    SNOW,
    WATER,
    WETLAND,
    Scene,
)

BANK_SEED = 101
TREE_DOTS = 0.055  # dots per pixel of a 64-pixel tile, where trees are densest

_GRAIN = np.zeros((len(COVERS), 1), dtype=np.float32)  # roughness of each cover, in grey levels
_GRAIN[:, 0] = (3, 5, 9, 13, 8, 5, 14, 20, 3, 6)


@lru_cache(maxsize=2)
def _bank(pixels: int) -> NoiseBank:
    return make_noise_bank(BANK_SEED, pixels)


def render_satellite(scene: Scene, generator: np.random.Generator, pixels: int) -> Image:
    """Draws the tile of a place.

    Args:
        scene: What is there.
        generator: Decides the layout, and only the layout.
        pixels: Side of the tile.

    Returns:
        Colours 0 to 255, ``[pixels, pixels, 3]``.
    """
    bank = _bank(pixels)
    relief, grain = bank.cut(bank.smooth, generator), bank.cut(bank.rough, generator)
    across, _along = _rotated_grid(generator, pixels)
    # A coast runs through a tile from side to side more often than it encloses a lake.
    shore = bank.cut(bank.smooth, generator) + np.float32(0.5 + 2.5 * generator.random()) * across
    patches = bank.cut(bank.smooth, generator)
    labels = lay_out(scene, shore, relief, patches)
    image = palette(scene)[labels] + (grain * _GRAIN[labels, 0])[..., None]
    _paint_fields(image, labels, generator, scene)
    _paint_town(image, labels, generator, scene)
    _paint_water(image, labels, grain, across, scene)
    _paint_dunes(image, labels, relief, scene)
    _paint_trees(image, labels, generator, scene)
    _paint_roads(image, labels, generator, scene)
    image *= _hill_shade(relief, labels, scene)[..., None]
    image *= daylight(scene)
    image = veil(image, scene, 0.25)
    return _under_clouds(image, bank.cut(bank.smooth, generator), scene)


def _rotated_grid(generator: np.random.Generator, pixels: int) -> tuple[Map, Map]:
    """Coordinates -1 to 1 along two random perpendicular directions, each ``[S, S]``."""
    angle = generator.uniform(0.0, 2.0 * np.pi)
    axis = np.linspace(-1.0, 1.0, pixels, dtype=np.float32)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    across = axis[None, :] * cosine + axis[:, None] * sine
    along = axis[:, None] * cosine - axis[None, :] * sine
    return across, along


def _paint_fields(image: Image, labels: Labels, generator: np.random.Generator, scene: Scene) -> None:
    """Cropland: parcels of different crops, ploughed in rows."""
    where = np.nonzero(labels == CROPLAND)
    if where[0].size == 0:
        return
    across, along = _rotated_grid(generator, labels.shape[0])
    across, along = across[where], along[where]
    parcel = np.floor(across * 3.3 + 8.0).astype(int) * 16 + np.floor(along * 2.3 + 8.0).astype(int)
    crops = generator.normal(0.0, 1.0, size=(256, 1)).astype(np.float32)
    rows = np.sign(np.sin(along * np.float32(58.0)))[:, None]
    stripes = np.array((14.0, 13.0, 6.0), dtype=np.float32)
    image[where] += crops[parcel] * np.array((20.0, 8.0, -6.0), dtype=np.float32) + rows * stripes
    furrow = rows[:, 0] < 0.0
    rows_of, columns_of = where[0][furrow], where[1][furrow]
    image[rows_of, columns_of] = blend(image[rows_of, columns_of], soil_colour(scene), 0.45)


def _paint_town(image: Image, labels: Labels, generator: np.random.Generator, scene: Scene) -> None:
    """Built-up land: streets, roofs, and the shadows of what is tall."""
    where = np.nonzero(labels == BUILT)
    if where[0].size == 0:
        return
    across, along = _rotated_grid(generator, labels.shape[0])
    # Towers stand on large blocks, huts on small ones.
    blocks = np.float32(9.0 - 4.5 * scene.building_height)
    column, row = across[where] * blocks + 32.0, along[where] * blocks + 32.0
    house = np.floor(column).astype(int) % 64 * 64 + np.floor(row).astype(int) % 64
    inside_column, inside_row = column % 1.0, row % 1.0
    roofs = np.array(((188, 92, 70), (208, 206, 202), (160, 98, 78), (110, 112, 120)))
    low = roofs[generator.integers(0, 3, size=4096)]
    high = np.array((214, 218, 226)) + generator.normal(0.0, 16.0, size=(4096, 1))
    colours = blend(low, high, scene.building_height)[house]
    shadow = inside_row < 0.10 + 0.38 * scene.building_height
    colours[shadow] *= np.float32(0.42)
    street = (inside_column < 0.24) | (inside_row > 0.80)
    colours[street] = blend(soil_colour(scene), (106, 104, 106), 0.4 + 0.6 * scene.building_height)
    image[where] = colours


def _paint_water(image: Image, labels: Labels, grain: Map, across: Map, scene: Scene) -> None:
    """Whitecaps and swell, by the wind."""
    where = np.nonzero(labels == WATER)
    if where[0].size == 0:
        return
    swell = np.sin(across[where] * np.float32(30.0)) * np.float32(14.0 * scene.wind)
    caps = np.where(grain[where] > 2.6 - 1.5 * scene.wind, np.float32(110.0), np.float32(0.0))
    image[where] += (swell + caps)[:, None]


def _paint_dunes(image: Image, labels: Labels, relief: Map, scene: Scene) -> None:
    """Ripples of sand, open water in wetland, blue hollows in snow."""
    sand = np.nonzero(labels == DESERT)
    if sand[0].size:
        image[sand] += (np.sin(relief[sand] * np.float32(22.0)) * np.float32(13.0))[:, None]
    bog = np.nonzero(labels == WETLAND)
    if bog[0].size:
        pools = np.sin(relief[bog] * np.float32(40.0)) > 0.45
        image[bog[0][pools], bog[1][pools]] = (48, 58, 44)
    snow = np.nonzero(labels == SNOW)
    if snow[0].size:
        hollows = np.clip(np.sin(relief[snow] * np.float32(5.0)), 0.0, None)[:, None]
        image[snow] -= hollows * np.array((24.0, 16.0, 6.0), dtype=np.float32)


def _paint_trees(image: Image, labels: Labels, generator: np.random.Generator, scene: Scene) -> None:
    """Single trees: a dark crown with a darker shadow beside it."""
    pixels = labels.shape[0]
    radius = max(1, round(pixels / 64))
    count = round(scene.trees**0.8 * TREE_DOTS * 4096)
    rows, columns = generator.integers(0, pixels - 2 * radius, size=(2, count))
    growing = ~np.isin(labels[rows, columns], (WATER, SNOW, ROCK, DESERT))
    # A few stand anywhere, so that an oasis has its palms.
    growing |= (np.arange(count) % 5 == 0) & (labels[rows, columns] != WATER)
    rows, columns = rows[growing], columns[growing]
    crown = tree_colour(scene) * np.float32(0.85)
    for down in range(2 * radius):
        for right in range(2 * radius):
            if (down + 0.5 - radius) ** 2 + (right + 0.5 - radius) ** 2 > radius**2:
                continue
            lit = down + right < 2 * radius
            image[rows + down, columns + right] = crown if lit else crown * np.float32(0.45)


def _paint_roads(image: Image, labels: Labels, generator: np.random.Generator, scene: Scene) -> None:
    """Up to three roads across the tile, as wide as the traffic asks for."""
    pixels = labels.shape[0]
    if scene.traffic < 0.08:
        return
    half_width = (0.35 + 1.5 * scene.traffic) / 64.0
    colour = road_colour(scene)
    for _ in range(1 + int(scene.traffic > 0.4) + int(scene.traffic > 0.75)):
        across, _along = _rotated_grid(generator, pixels)
        distance = np.abs(across - np.float32(generator.uniform(-0.6, 0.6)))
        cover = np.clip((half_width * 2.0 - distance) * pixels / 2.0 + 0.5, 0.0, 1.0)
        cover *= labels != WATER  # a road ends at the shore
        image += cover[..., None] * (colour - image)


def _hill_shade(relief: Map, labels: Labels, scene: Scene) -> Map:
    """Light and shadow of the slopes; water is level."""
    slope = np.zeros_like(relief)
    slope[1:, 1:] = relief[1:, 1:] - relief[:-1, :-1]
    strength = np.float32(scene.relief * 1.1 * labels.shape[0] / 64.0)
    shade = np.clip(1.0 + strength * slope, 0.4, 1.5)
    return np.where(labels == WATER, np.float32(1.0), shade).astype(np.float32)


def _under_clouds(image: Image, clouds: Map, scene: Scene) -> Image:
    """Haze everywhere and white clouds over part of the tile, by the rain."""
    if scene.rain <= 0.02:
        return image
    image = blend(image, (168.0, 172.0, 178.0), 0.22 * scene.rain)
    thickness = np.clip((clouds - np.float32(2.3 - 1.9 * scene.rain)) * 1.3, 0.0, 0.9)[..., None]
    return np.asarray(image + thickness * (np.float32(236.0) - image), dtype=np.float32)
