"""What stands on the ground of a photo: trees, houses and cars."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geobind_plugin_synthetic_earth import sprites
from geobind_plugin_synthetic_earth.canvas import Image, Labels, blend, tree_colour
from geobind_plugin_synthetic_earth.scene import (
    BUILT,
    COVERS,
    CROPLAND,
    FOREST,
    GRASSLAND,
    WATER,
    WETLAND,
    Scene,
    amount,
)

MOST_TREES = 22
MOST_HOUSES = 12
MOST_CARS = 6

_GROWS = np.isin(np.arange(len(COVERS)), (FOREST, GRASSLAND, CROPLAND, WETLAND))
_CARS = np.array(((190, 40, 40), (40, 70, 160), (230, 230, 230), (40, 40, 44)), dtype=np.float32)


def stand_things(
    image: Image,
    labels: Labels,
    road: NDArray[np.bool_],
    generator: np.random.Generator,
    scene: Scene,
) -> None:
    """Stands trees, houses and cars in a photo, the far ones first.

    Args:
        image: The photo, changed in place, ``[S, S, 3]``.
        labels: Land covers below the horizon, ``[G, S]``.
        road: Where the road is, ``[G, S]``.
        generator: Decides where things stand.
        scene: What is there.
    """
    pixels, horizon = image.shape[0], image.shape[0] - labels.shape[0]
    trees = round(MOST_TREES * scene.trees**0.8)
    houses = round(MOST_HOUSES * amount(scene.covers[BUILT]))
    cars = round(MOST_CARS * scene.traffic)
    dry = labels != WATER
    growing = _GROWS[labels] & ~road
    places = [
        *(("tree", *spot) for spot in _spots(growing, dry, trees, generator)),
        *(("house", *spot) for spot in _spots((labels == BUILT) & ~road, dry, houses, generator)),
        *(("car", *spot) for spot in _spots(road, road, cars, generator)),
    ]
    dice = generator.random((len(places), 3)).tolist()
    for (kind, row, column), (first, second, third) in sorted(
        zip(places, dice, strict=True), key=lambda entry: entry[0][1]
    ):
        size = pixels * (0.06 + 0.34 * (row + 1) / labels.shape[0])
        light = 0.85 + 0.3 * third
        foot = horizon + row + 1
        if kind == "tree":
            shape = sprites.tree(
                "conifer" if first < scene.conifers else "broadleaf",
                max(3, round(size * (0.7 + 0.5 * second))),
            )
            colour = tree_colour(scene)
        elif kind == "house":
            height = size * (0.45 + 1.4 * scene.building_height) * (0.8 + 0.4 * second)
            width = max(3, round(size * (0.5 + 0.3 * first)))
            shape = sprites.house(max(3, round(height)), width, scene.building_height > 0.4)
            colour = blend((214, 196, 164), (168, 180, 196), scene.building_height)
        else:
            shape = sprites.house(max(2, round(0.22 * size)), max(3, round(0.5 * size)), True)
            colour = _CARS[int(first * len(_CARS))]
        sprites.paste(image, shape, colour * np.float32(light), foot, column)


def _spots(
    suitable: NDArray[np.bool_],
    otherwise: NDArray[np.bool_],
    count: int,
    generator: np.random.Generator,
) -> list[tuple[int, int]]:
    """Random spots where it is suitable, or else where it will do; none if there is neither."""
    if count == 0:
        return []
    # What stands at the lower edge would hide the rest of the picture.
    limit = int(suitable.size * 0.7)
    spots = np.flatnonzero(suitable.ravel()[:limit])
    if spots.size == 0:
        spots = np.flatnonzero(otherwise.ravel()[:limit])
    if spots.size == 0:
        return []
    chosen = spots[generator.integers(0, spots.size, size=count)]
    return [divmod(spot, suitable.shape[1]) for spot in chosen.tolist()]
