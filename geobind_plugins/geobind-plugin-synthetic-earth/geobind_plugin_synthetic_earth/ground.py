"""The photographer's view: a picture of a place from the ground, in perspective."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

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
    FOREST,
    SNOW,
    WATER,
    WETLAND,
    Scene,
    amount,
)
from geobind_plugin_synthetic_earth.standing import stand_things

BANK_SEED = 202
HORIZON = 0.40  # of the picture's height, from the top

_GRAIN = np.zeros(len(COVERS), dtype=np.float32)
_GRAIN[:] = (3, 6, 9, 18, 14, 6, 16, 26, 4, 9)


@dataclass(frozen=True)
class Camera:
    """Where each pixel below the horizon meets the ground; the same for all photos of a size.

    Attributes:
        pixels: Side of the picture.
        horizon: First row of the ground.
        side: Metres to the right of the camera, in units of its height, ``[G, S]``.
        distance: Metres ahead of the camera, likewise, ``[G, S]``.
        nearness: 0 at the horizon to 1 at the lower edge, ``[G, S]``.
    """

    pixels: int
    horizon: int
    side: Map
    distance: Map
    nearness: Map


@lru_cache(maxsize=2)
def _camera(pixels: int) -> Camera:
    horizon = round(HORIZON * pixels)
    nearness = (np.arange(pixels - horizon, dtype=np.float32)[:, None] + 1.0) / (pixels - horizon)
    across = np.linspace(-1.0, 1.0, pixels, dtype=np.float32)[None, :]
    distance = np.asarray(1.0 / (nearness + 0.06), dtype=np.float32)
    shape = (pixels - horizon, pixels)
    return Camera(
        pixels,
        horizon,
        side=np.asarray(across * distance, dtype=np.float32),
        distance=np.broadcast_to(distance, shape),
        nearness=np.broadcast_to(nearness, shape),
    )


@lru_cache(maxsize=2)
def _bank(pixels: int) -> NoiseBank:
    return make_noise_bank(BANK_SEED, pixels)


def render_ground_image(scene: Scene, generator: np.random.Generator, pixels: int) -> Image:
    """Takes the photo of a place.

    Args:
        scene: What is there.
        generator: Decides the layout, and only the layout.
        pixels: Side of the photo.

    Returns:
        Colours 0 to 255, ``[pixels, pixels, 3]``.
    """
    bank, camera = _bank(pixels), _camera(pixels)
    image = np.empty((pixels, pixels, 3), dtype=np.float32)
    _paint_sky(image, bank, camera, generator, scene)
    _paint_mountains(image, bank, camera, generator, scene)
    _paint_tree_line(image, bank, camera, generator, scene)
    image[: camera.horizon] = veil(image[: camera.horizon], scene, 0.4)
    labels = _paint_ground(image[camera.horizon :], bank, camera, generator, scene)
    road = _paint_road(image[camera.horizon :], labels, camera, generator, scene)
    stand_things(image, labels, road, generator, scene)
    image *= daylight(scene)
    image = veil(image, scene, 0.2)
    return _in_rain(image, generator, scene)


def _paint_sky(image: Image, bank: NoiseBank, camera: Camera, generator: np.random.Generator, scene: Scene) -> None:
    """Blue by day, orange when the sun is low, grey when it rains."""
    height = np.linspace(1.0, 0.0, camera.horizon, dtype=np.float32)[:, None, None]
    overhead = blend((92, 84, 128), (64, 130, 216), scene.sun)
    below = blend((255, 158, 84), (190, 216, 240), scene.sun)
    sky = below + height * (overhead - below)
    sky = blend(sky, (146, 150, 156), min(1.0, 1.6 * scene.rain))
    clouds = bank.cut(bank.smooth, generator)[: camera.horizon, :, None]
    thickness = np.clip(clouds - np.float32(1.1 - 1.3 * scene.rain), 0.0, 0.8)
    white = blend((255, 250, 244), (112, 114, 120), scene.rain)
    image[: camera.horizon] = sky + thickness * (white - sky)


def _paint_mountains(
    image: Image, bank: NoiseBank, camera: Camera, generator: np.random.Generator, scene: Scene
) -> None:
    """A ridge as high as the relief, with snow on top where there is snow."""
    # Folding smooth noise over at zero gives valleys that are round and peaks that are not.
    peaks = 1.3 - 0.65 * np.abs(bank.cut(bank.smooth, generator)[0])
    crags = bank.cut(bank.smooth, generator)[0] * np.float32(0.12)
    height = np.float32(0.27 * scene.relief * camera.pixels) * np.clip(peaks + crags, 0.15, None)
    above = camera.horizon - np.arange(camera.horizon, dtype=np.float32)[:, None]
    inside = (above <= height[None, :])[..., None]
    stone = blend((112, 108, 124), (206, 138, 84), scene.covers[DESERT])
    stone = blend(stone, tree_colour(scene), 0.7 * scene.covers[FOREST])
    snow_line = 1.0 - amount(scene.covers[SNOW])
    capped = (above > height[None, :] * snow_line)[..., None]
    colour = np.where(capped, np.float32(238.0), stone)
    slope = np.gradient(height)[None, :, None] * np.float32(12.0)
    grain = bank.cut(bank.rough, generator)[: camera.horizon, :, None] * np.float32(5.0)
    image[: camera.horizon] = np.where(inside, colour + slope + grain, image[: camera.horizon])


def _paint_tree_line(
    image: Image, bank: NoiseBank, camera: Camera, generator: np.random.Generator, scene: Scene
) -> None:
    """The edge of the wood along the horizon, as high as the share of forest."""
    wood = amount(scene.covers[FOREST])
    if wood <= 0.0:
        return
    jagged = bank.cut(bank.rough, generator)[0] * np.float32(0.14 + 0.12 * scene.conifers)
    height = np.float32(0.15 * wood * camera.pixels) * np.clip(1.0 + jagged, 0.4, 1.6)
    above = camera.horizon - np.arange(camera.horizon, dtype=np.float32)[:, None]
    inside = (above <= height[None, :])[..., None]
    grain = bank.cut(bank.rough, generator)[: camera.horizon, :, None] * np.float32(12.0)
    colour = palette(scene)[FOREST] * np.float32(0.8) + grain
    image[: camera.horizon] = np.where(inside, colour, image[: camera.horizon])


def _paint_ground(
    ground: Image, bank: NoiseBank, camera: Camera, generator: np.random.Generator, scene: Scene
) -> Labels:
    """The ground plane: the place's mixture, laid out anew. Returns the land covers, ``[G, S]``."""
    scale = np.float32(camera.pixels / 5.0)
    columns = (camera.side * scale).astype(np.int32)
    rows = (camera.distance * scale).astype(np.int32)
    shore, height, patches = (_project(bank.smooth, rows, columns, generator) for _ in range(3))
    # Water gathers on one side or lies ahead, as it does in pictures of a coast.
    lean = generator.normal(size=2).astype(np.float32)
    shore = shore + lean[0] * camera.side / (1.0 + camera.distance) + lean[1] * camera.nearness
    labels = lay_out(scene, shore, height, patches)
    # Where there is water, some of it is seen along the horizon, however little lies before the camera.
    labels[: round(0.2 * amount(scene.covers[WATER]) * len(labels))] = WATER
    grain = _project(bank.rough, rows * 3, columns * 3, generator)
    ground[:] = palette(scene)[labels] + (grain * _GRAIN[labels])[..., None]
    haze = veil(np.array((196, 206, 214), dtype=np.float32), scene, 0.5)
    _paint_water(ground, labels, grain, camera, scene)
    _paint_patterns(ground, labels, grain, camera, generator, scene)
    ground += np.clip(0.35 - camera.nearness, 0.0, 1.0)[..., None] * (haze - ground)
    return labels


def _project(
    texture: Map,
    rows: NDArray[np.int32],
    columns: NDArray[np.int32],
    generator: np.random.Generator,
) -> Map:
    """Lays a periodic texture on the ground at a random offset, ``[G, S]``."""
    side = texture.shape[0]
    down, right = generator.integers(0, side, size=2)
    return np.asarray(texture[(rows + down) % side, (columns + right) % side])


def _paint_water(ground: Image, labels: Labels, grain: Map, camera: Camera, scene: Scene) -> None:
    """Waves that roll in, white where the wind is strong."""
    water = labels == WATER
    if not water.any():
        return
    wave = np.sin(camera.distance[water] * np.float32(9.0) + grain[water])
    crest = np.where(wave > 1.0 - 0.8 * scene.wind, np.float32(95.0), wave * np.float32(8.0))
    ground[water] += crest[:, None]


def _paint_patterns(
    ground: Image, labels: Labels, grain: Map, camera: Camera, generator: np.random.Generator, scene: Scene
) -> None:
    """What the ground looks like close by: rows of crops, ripples of sand, pools, paving."""
    crops = labels == CROPLAND
    turn = generator.uniform(-0.5, 0.5)
    rows = np.sin((camera.side[crops] + turn * camera.distance[crops]) * np.float32(16.0))
    ground[crops] += np.sign(rows)[:, None] * np.array((20, 20, 8), dtype=np.float32)
    furrows = crops.copy()
    furrows[crops] = rows < 0.0
    ground[furrows] = blend(ground[furrows], soil_colour(scene), 0.45)
    sand = labels == DESERT
    ripples = np.sin(camera.distance[sand] * np.float32(14.0) + 2.0 * grain[sand])
    ground[sand] += ripples[:, None] * np.float32(13.0)
    bog = labels == WETLAND
    ground[bog] = np.where((grain[bog] > 0.55)[:, None], np.array((48, 58, 44), dtype=np.float32), ground[bog])
    paving = labels == BUILT
    across, ahead = np.sin(camera.side[paving] * 12.0), np.sin(camera.distance[paving] * 9.0)
    ground[paving] -= (np.maximum(across, ahead) > 0.8)[:, None] * np.float32(34.0)
    drifts = labels == SNOW
    blue = np.clip(np.sin(camera.distance[drifts] * np.float32(4.0) + grain[drifts]), 0.0, 1.0)
    ground[drifts] -= blue[:, None] * np.array((34, 22, 8), dtype=np.float32)


def _paint_road(
    ground: Image, labels: Labels, camera: Camera, generator: np.random.Generator, scene: Scene
) -> NDArray[np.bool_]:
    """A road to the horizon, as wide as the traffic asks for. Returns where it is, ``[G, S]``."""
    dry = labels != WATER
    if scene.traffic < 0.08:
        return np.zeros_like(dry)
    half_width = 0.06 + 0.42 * scene.traffic
    middle, bend = generator.uniform(-0.5, 0.5), generator.uniform(-0.15, 0.15)
    side = camera.side - np.float32(middle) - np.float32(bend) * camera.distance
    road = dry * np.clip((half_width - np.abs(side)) * camera.pixels / camera.distance, 0.0, 1.0)
    ground += road[..., None] * (road_colour(scene) - ground)
    line = (np.abs(side) < 0.03) & (camera.distance % 1.0 < 0.6) & dry
    ground[line] = (226, 222, 200)
    return np.asarray(road > 0.5)


def _in_rain(image: Image, generator: np.random.Generator, scene: Scene) -> Image:
    """Grey air and falling streaks."""
    if scene.rain <= 0.02:
        return image
    image = blend(image, (140, 146, 152), 0.25 * scene.rain)
    pixels = image.shape[0]
    length = max(2, pixels // 16)
    count = round(60 * scene.rain)
    rows = generator.integers(0, pixels - length, size=count)
    columns = generator.integers(0, pixels, size=count)
    for step in range(length):
        image[rows + step, columns] += np.float32(34.0)
    return image
