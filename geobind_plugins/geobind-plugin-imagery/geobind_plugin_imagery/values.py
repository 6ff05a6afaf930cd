"""From what a file stores in a pixel to a byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from geobind_core import DataError

Range = tuple[float, float]
"""The values that become 0 and 255."""

_REFLECTANCE = 10_000  # of a surface that reflects all light, as Sentinel-2 and others store it
_UNIT: Range = (0, 1)


def to_bytes(values: npt.NDArray[Any], ranges: Sequence[Range]) -> npt.NDArray[np.uint8]:
    """Maps values `[C, H, W]` linearly to 0..255 and clips them; what is no finite number becomes 0.

    Args:
        values: The values.
        ranges: One range for all bands, or one for each.

    Raises:
        DataError: The values are complex or too small for the ranges, or there is another number of ranges than of
            bands.
    """
    if values.dtype.kind == "c":
        raise DataError("expected real values, found complex ones.")
    if len(ranges) not in (1, len(values)):
        raise DataError(f"`scale` has {len(ranges)} pairs, and the number of bands that are read is {len(values)}.")
    largest = max(high for _, high in ranges)
    if values.dtype == np.uint8 and largest > np.iinfo(np.uint8).max:
        # Nearly black, and nobody would notice.
        raise DataError(
            f"the image has 8 bits a band, and `scale` says that {largest:g} is white.",
            hint="`scale` is for all images of a modality: keep those of another kind in a column of their own.",
        )
    low, high = np.asarray(ranges, dtype=np.float32).T[:, :, None, None]
    scaled = (values.astype(np.float32) - low) * (255 / (high - low))
    scaled[~np.isfinite(scaled)] = 0
    mapped: npt.NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    return mapped


def usual_range(values: npt.NDArray[Any], *, bits: int | None = None, georeferenced: bool = False) -> Range:
    """Returns the range that is assumed where no `scale` is given.

    Args:
        values: The values that were read, those that are missing left out.
        bits: How many bits of an integer are in use, where a file says so.
        georeferenced: Whether the file says where on Earth it lies.

    Raises:
        DataError: There is none that could be assumed of such values.
    """
    kind = values.dtype
    if kind in (np.uint16, np.int16):
        largest = 2**bits - 1 if bits else int(np.iinfo(kind).max)
        return (0, min(largest, _REFLECTANCE) if georeferenced else largest)
    if kind == np.uint8:
        return (0, 2**bits - 1 if bits else 255)
    finite = values[np.isfinite(values)]
    if kind.kind == "f" and (not finite.size or np.mean((finite >= 0) & (finite <= 1)) >= 0.5):
        return _UNIT
    found = f" from {finite.min():g} to {finite.max():g}" if finite.size else ""
    raise DataError(f"found {kind} values{found}, and no `scale` that says which of them are black and white.")
