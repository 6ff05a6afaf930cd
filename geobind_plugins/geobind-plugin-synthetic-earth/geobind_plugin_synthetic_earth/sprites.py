"""Cut-outs that stand in a ground photo: trees, houses, cars."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from geobind_plugin_synthetic_earth.canvas import Image, Map


@dataclass(frozen=True)
class CutOut:
    """A shape to paste.

    Attributes:
        cover: How opaque each pixel is, ``[H, W, 1]``.
        shade: Brightness of the given colour, ``[H, W, 1]``.
        fixed: Colour that is the shape's own (a trunk), times its opacity, ``[H, W, 3]``.
    """

    cover: Map
    shade: Map
    fixed: Image


_TRUNK = np.array((84, 62, 44), dtype=np.float32)


@lru_cache(maxsize=512)
def tree(kind: str, height: int) -> CutOut:
    """A tree.

    Args:
        kind: ``conifer`` (a dark cone) or ``broadleaf`` (a round crown on a trunk).
        height: In pixels.
    """
    width = max(3, round(height * (0.55 if kind == "conifer" else 0.8))) | 1
    down = ((np.arange(height) + 0.5) / height)[:, None]
    right = ((np.arange(width) + 0.5) / width * 2.0 - 1.0)[None, :]
    if kind == "conifer":
        # Three tiers, each a little wider than the one above.
        tiers = down * 0.75 + 0.25 * (down * 3.0 % 1.0)
        crown = (np.abs(right) < tiers) & (down < 0.88)
    else:
        crown = (right**2 + ((down - 0.36) / 0.36) ** 2) < 1.0
    trunk = (np.abs(right) < max(0.16, 1.0 / width)) & ~crown & (down > 0.4)
    shade = 0.95 - 0.30 * right - 0.35 * (down - 0.4)
    return CutOut(
        cover=(crown | trunk)[..., None].astype(np.float32),
        shade=np.where(crown, shade, 0.0)[..., None].astype(np.float32),
        fixed=trunk[..., None] * _TRUNK,
    )


@lru_cache(maxsize=1024)
def house(height: int, width: int, tall: bool) -> CutOut:
    """A building: a block with rows of windows, or a cottage with a red roof.

    Args:
        height: In pixels.
        width: In pixels.
        tall: Windows up to a flat top; otherwise a gable.
    """
    down = (np.arange(height) + 0.5)[:, None] + np.zeros((1, width))
    right = (np.arange(width) + 0.5)[None, :] + np.zeros((height, 1))
    roof = np.zeros((height, width), dtype=bool)
    cover = np.ones((height, width), dtype=bool)
    pane = max(2.0, width / 5.0)
    window = (right % pane < pane * 0.5) & (down % pane > pane * 0.5)
    if not tall:
        slope = np.abs(right - width / 2.0) / (width / 2.0)
        roof = down < height * 0.45
        cover = ~roof | (down > slope * height * 0.45)
        window &= down > height * 0.5
    shade = np.where(right > width * 0.66, 0.72, 1.0) * np.where(window, 0.38, 1.0)
    fixed = (roof & cover)[..., None] * np.array((168, 70, 50), dtype=np.float32)
    return CutOut(
        cover=cover[..., None].astype(np.float32),
        shade=np.where(roof | ~cover, 0.0, shade)[..., None].astype(np.float32),
        fixed=fixed.astype(np.float32),
    )


def paste(image: Image, cut_out: CutOut, colour: Image, foot: int, middle: int) -> None:
    """Stands a cut-out in a picture, clipped at the edges.

    Args:
        image: Changed in place, ``[S, S, 3]``.
        cut_out: The shape.
        colour: Colour of what has none of its own, ``[3]``.
        foot: Row of its lower edge.
        middle: Column of its middle.
    """
    height, width = cut_out.cover.shape[:2]
    top, left = foot - height, middle - width // 2
    first_row, first_column = max(0, -top), max(0, -left)
    last_row = min(height, image.shape[0] - top)
    last_column = min(width, image.shape[1] - left)
    if first_row >= last_row or first_column >= last_column:
        return
    part = (slice(first_row, last_row), slice(first_column, last_column))
    target = image[top + first_row : top + last_row, left + first_column : left + last_column]
    target *= 1.0 - cut_out.cover[part]
    target += cut_out.shade[part] * colour + cut_out.fixed[part]
