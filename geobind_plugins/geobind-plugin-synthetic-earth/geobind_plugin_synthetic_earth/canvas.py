"""What the two cameras have in common: colours, noise to paint with, exact shares of area, JPEG."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geobind_plugin_synthetic_earth.scene import (
    BEACH,
    BUILT,
    CROPLAND,
    DESERT,
    FOREST,
    GRASSLAND,
    ROCK,
    SNOW,
    WATER,
    WETLAND,
    Scene,
)

Image = NDArray[np.float32]
Map = NDArray[np.float32]
Labels = NDArray[np.int8]

JPEG_QUALITY = 90

_BASE = np.array(
    [
        (34, 84, 138),  # water
        (242, 228, 190),  # beach
        (212, 160, 106),  # desert
        (34, 82, 38),  # forest
        (134, 168, 78),  # grassland
        (206, 184, 84),  # cropland
        (84, 92, 58),  # wetland
        (124, 116, 112),  # rock
        (240, 244, 250),  # snow
        (152, 146, 144),  # built
    ],
    dtype=np.float32,
)
_PARCHED = {FOREST: (84, 82, 36), GRASSLAND: (190, 172, 100), CROPLAND: (222, 186, 92)}
_LUSH = {FOREST: (22, 84, 34), GRASSLAND: (92, 178, 60), CROPLAND: (140, 182, 64)}
_MUDDY = (104, 118, 104)
_CLEAR = (22, 96, 168)
_PINE = (18, 58, 56)
# How much of a cover's colour is that of the ground below it.
_EARTH = {DESERT: 0.8, BEACH: 0.6, ROCK: 0.5, BUILT: 0.5, CROPLAND: 0.3, WETLAND: 0.25, GRASSLAND: 0.15}
_ASPHALT = (74, 72, 82)
_PLANTS = [FOREST, GRASSLAND, CROPLAND, WETLAND]
_BARE = list(_EARTH)
_BARENESS = np.array(list(_EARTH.values()), dtype=np.float32)[:, None]


def palette(scene: Scene) -> Image:
    """Colours of the land covers at a place, 0 to 255, ``[10, 3]``."""
    colours = _BASE.copy()
    for cover, parched in _PARCHED.items():
        colours[cover] = blend(parched, _LUSH[cover], scene.greenness)
    colours[FOREST] = blend(colours[FOREST], _PINE, 0.8 * scene.conifers)
    colours[WETLAND] = blend(colours[WETLAND], (62, 112, 70), 0.6 * scene.greenness)
    colours[_PLANTS] += _leaf_tint(scene)
    soil = soil_colour(scene)
    colours[_BARE] += _BARENESS * (soil - colours[_BARE])
    colours[WATER] = blend(_CLEAR, blend(_MUDDY, soil, 0.4), 0.5 * scene.silt)
    return colours


def soil_colour(scene: Scene) -> Image:
    """Colour of bare ground, ``[3]``: chalk, black earth, and the red ones."""
    light = blend((226, 214, 184), (226, 124, 68), scene.soil_red)
    dark = blend((72, 68, 68), (112, 40, 26), scene.soil_red)
    return blend(light, dark, scene.soil_dark)


def road_colour(scene: Scene) -> Image:
    """Colour of a road, ``[3]``: asphalt where there is traffic, or else the earth it runs on."""
    return blend(soil_colour(scene), _ASPHALT, 0.25 + 0.75 * scene.traffic)


def _leaf_tint(scene: Scene) -> Image:
    """What is added to the colour of plants, ``[3]``."""
    return blend((28, 20, 52), (44, 2, -38), scene.leaf_gold)


def tree_colour(scene: Scene) -> Image:
    """Colour of a tree's crown, ``[3]``."""
    broadleaf = blend((112, 104, 40), (38, 120, 40), scene.greenness)
    return blend(broadleaf, (16, 66, 60), scene.conifers) + np.float32(0.8) * _leaf_tint(scene)


def daylight(scene: Scene) -> Image:
    """What the light does to a colour: warm when the sun is low, dull under clouds; ``[3]``."""
    tint = blend((1.0, 0.8, 0.64), (1.04, 1.02, 1.0), scene.sun)
    return np.asarray(tint * (1.0 - 0.22 * scene.rain), dtype=np.float32)


def veil(image: Image, scene: Scene, strength: float) -> Image:
    """Violet haze or yellow dust before a picture; nothing in between the two."""
    colour = (178, 148, 216) if scene.dust < 0.5 else (236, 184, 96)
    return blend(image, colour, strength * abs(2.0 * scene.dust - 1.0))


def blend(first: object, second: object, share: float) -> Image:
    """A mixture of two colours (or images): ``share`` of the second."""
    start = np.asarray(first, dtype=np.float32)
    return np.asarray(start + np.float32(share) * (np.asarray(second, dtype=np.float32) - start), dtype=np.float32)


@dataclass(frozen=True)
class NoiseBank:
    """Large periodic noise textures that layouts are cut from.

    Cutting a random window costs microseconds where drawing fresh noise costs milliseconds. Each
    camera has a bank of its own, so no window of one can be found in the other.

    Attributes:
        smooth: Forms as large as the picture, with detail down to the pixel, ``[P, P]``.
        rough: Forms of a few pixels, ``[P, P]``.
        pixels: Side of a picture.
    """

    smooth: Map
    rough: Map
    pixels: int

    def cut(self, texture: Map, generator: np.random.Generator) -> Map:
        """A random window of a texture, randomly turned over, ``[S, S]``."""
        limit = texture.shape[0] - self.pixels
        row, column, flip = generator.integers(0, (limit, limit, 8))
        window = texture[row : row + self.pixels, column : column + self.pixels]
        if flip & 1:
            window = window[::-1]
        if flip & 2:
            window = window[:, ::-1]
        return window.T if flip & 4 else window


def make_noise_bank(seed: int, pixels: int) -> NoiseBank:
    """Builds the textures for pictures of a given side.

    Args:
        seed: A constant of the camera; has nothing to do with the planet's seed.
        pixels: Side of a picture.

    Returns:
        The bank, each texture of mean 0 and variance 1.
    """
    generator = np.random.default_rng(seed)
    side = max(512, min(2048, 4 * pixels))
    return NoiseBank(
        smooth=_spectral_noise(generator, side, 1.8 * side / pixels, 2.5),
        rough=_spectral_noise(generator, side, side / 6.0, 1.0),
        pixels=pixels,
    )


def _spectral_noise(generator: np.random.Generator, side: int, corner: float, slope: float) -> Map:
    """Periodic noise, flat up to ``corner`` cycles per side and falling with ``slope`` beyond."""
    spectrum = np.fft.rfft2(generator.normal(size=(side, side)))
    rows = np.fft.fftfreq(side)[:, None] * side
    columns = np.fft.rfftfreq(side)[None, :] * side
    radius = np.hypot(rows, columns)
    spectrum *= (1.0 + (radius / corner) ** 2) ** (-slope / 2.0)
    values = np.fft.irfft2(spectrum, (side, side))
    values -= values.mean()
    return np.asarray(values / values.std(), dtype=np.float32)


def lay_out(scene: Scene, shore: Map, height: Map, patches: Map) -> Labels:
    """Gives every pixel a land cover so that the shares of area come out exactly.

    Water takes the lowest pixels of ``shore`` and beach the next; of the land, wetland takes the
    lowest of ``height``, snow and rock the highest; the rest is divided along ``patches``.

    Args:
        scene: Whose mixture it is.
        shore: Any map; its level lines become shorelines, ``[...]``.
        height: Likewise, for what follows the height of the land, same shape.
        patches: Likewise, for fields, woods and towns, same shape.

    Returns:
        Index into :data:`.scene.COVERS` of every pixel, of the same shape.
    """
    labels = np.empty(shore.size, dtype=np.int8)
    land = _divide(labels, np.arange(shore.size), shore, scene.covers, (WATER, BEACH, REST))
    middle = _divide(labels, land, height, scene.covers, (WETLAND, REST, ROCK, SNOW))
    _divide(labels, middle, patches, scene.covers, (DESERT, GRASSLAND, CROPLAND, BUILT, FOREST))
    return labels.reshape(shore.shape)


REST = -1
_DIVIDED_LATER = {
    WATER: (DESERT, FOREST, GRASSLAND, CROPLAND, WETLAND, ROCK, SNOW, BUILT),
    WETLAND: (DESERT, FOREST, GRASSLAND, CROPLAND, BUILT),
}


def _divide(
    labels: Labels,
    pixels: NDArray[np.intp],
    values: Map,
    covers: tuple[float, ...],
    order: tuple[int, ...],
) -> NDArray[np.intp]:
    """Labels pixels in the order of their values; returns those that fall to ``REST``."""
    rest = sum(covers[cover] for cover in _DIVIDED_LATER.get(order[0], ()))
    shares = np.array([rest if cover == REST else covers[cover] for cover in order])
    if pixels.size == 0 or shares.sum() <= 0.0:
        return pixels[:0]
    # Sorting 16-bit numbers takes a twentieth of the time of sorting floats.
    coarse = np.clip(values.ravel()[pixels] * np.float32(3200.0), -32000.0, 32000.0)
    ranking = pixels[np.argsort(coarse.astype(np.int16), kind="stable")]
    ends = np.rint(np.cumsum(shares) / shares.sum() * pixels.size).astype(int).tolist()
    remaining, start = pixels[:0], 0
    for cover, end in zip(order, ends, strict=True):
        if cover == REST:
            remaining = ranking[start:end]
        else:
            labels[ranking[start:end]] = cover
        start = end
    return remaining


def to_jpeg(image: Image) -> bytes:
    """Encodes a picture.

    Args:
        image: Colours 0 to 255 (values beyond are clipped), ``[S, S, 3]``.

    Returns:
        A JPEG file.
    """
    from PIL import Image as Pillow

    buffer = io.BytesIO()
    Pillow.fromarray(np.clip(image, 0.0, 255.0).astype(np.uint8)).save(
        buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0
    )
    return buffer.getvalue()
