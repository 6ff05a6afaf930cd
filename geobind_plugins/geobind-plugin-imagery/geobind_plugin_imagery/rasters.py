"""GeoTIFF and the like, through GDAL: many bands, other numbers than bytes, and scenes of any size read in part."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window

from geobind_core import DataError
from geobind_plugin_imagery.decoding import head_of, require_bands
from geobind_plugin_imagery.needs import Need
from geobind_plugin_imagery.pixels import Picture
from geobind_plugin_imagery.values import Range, to_bytes, usual_range

_FORMATS = {"GTiff": "TIFF", "JP2OpenJPEG": "JPEG2000", "PNG": "PNG"}
_OPTIONS = {
    "GDAL_PAM_ENABLED": False,  # neither reads nor writes .aux.xml files
    "GDAL_DISABLE_READDIR_ON_OPEN": True,  # asks for the overviews beside a file instead of listing its folder
    "GDAL_CACHEMAX": 256,  # MiB; of a large machine GDAL would take a twentieth, in each process of a loader
}
_MOST_AT_ONCE = 178_956_970  # pixels, as Pillow has it
_MOST_DECODED = 2**30  # pixels: some 30,000 x 30,000, and some ten seconds
_AT_A_TIME = 2**24  # numbers, of all bands
_ORIENTATION = 274

# An image without coordinates is as good as any here, and what GDAL has to report becomes an error where it matters.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
logging.getLogger("rasterio").setLevel(logging.CRITICAL + 1)


def read_raster(
    source: Path | bytes, driver: str, need: Need, bands: Sequence[int] | None, scale: Sequence[Range] | None
) -> Picture:
    """Reads a raster at about the size that is needed, from overviews where it has some.

    Args:
        source: The file or its content.
        driver: GDAL's driver for it; others, some of which open further files, get no chance.
        need: How much of it is needed.
        bands: Which bands, from 1. None: the first three, or the first.
        scale: The values that become 0 and 255; None: `usual_range`.

    Returns:
        An image of one or three bands, upright. Pixels without a value are 0.

    Raises:
        DataError: It is damaged, or has not what is asked for, or would take too long to read.
    """
    with _opened(source, driver) as dataset:
        if bands is not None:
            require_bands(bands, dataset.count)
        palette = bands is None and dataset.colorinterp[0] == ColorInterp.palette
        numbers = list(bands or _first_bands(dataset))
        reduction = need.reduction(dataset.width, dataset.height)
        level = _overview(dataset, numbers[0], reduction)
        if level is None:
            values, extent = _read(dataset, need, numbers, mix=not palette)
        else:
            with _opened(source, driver, overview_level=level) as overview:
                values, extent = _read(overview, need, numbers, mix=not palette)
        planes, missing = values.data, np.ma.getmaskarray(values)
        if palette:
            planes = _coloured(planes[0], dataset.colormap(1))
        as_it_is = planes.dtype == np.uint8 and (palette or _bits(dataset) in (None, 8))
        if scale is not None or not as_it_is:
            planes = to_bytes(planes, scale or (_assumed(dataset, planes[:, ~missing.any(0)]),))
        image = torch.from_numpy(np.where(missing, np.uint8(0), planes))
        return Picture(image, extent).upright(_orientation(dataset, source))


def describe_raster(source: Path | bytes, driver: str) -> dict[str, str | int | float]:
    """Returns what the header says: format, width, height, channels, bits, and where it lies."""
    with _opened(source, driver) as dataset:
        found: dict[str, str | int | float] = {
            "format": _FORMATS[dataset.driver],
            "width": dataset.width,
            "height": dataset.height,
            "channels": dataset.count,
            "bits": _bits(dataset) or np.dtype(dataset.dtypes[0]).itemsize * 8,
        }
        if _orientation(dataset, source) >= 5:
            found["width"], found["height"] = dataset.height, dataset.width
        if dataset.crs is not None:
            found["crs"] = dataset.crs.to_string()
            with suppress(CRSError):  # of a plan of a building, say
                found["longitude"], found["latitude"] = (round(degrees, 6) for degrees in dataset.lnglat())
        return found


@contextmanager
def _opened(source: Path | bytes, driver: str, **options: Any) -> Iterator[Any]:
    try:
        with rasterio.Env(**_OPTIONS):
            if isinstance(source, Path):
                with rasterio.open(source, driver=driver, **options) as dataset:
                    yield dataset
            else:
                with MemoryFile(source) as file, file.open(driver=driver, **options) as dataset:
                    yield dataset
    except DataError:
        raise
    except (RasterioError, ValueError, MemoryError, OSError) as error:
        raise DataError(f"the image is damaged or not complete: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Returns what GDAL said first; what rasterio raises of it may say no more than that there is a reason."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def _overview(dataset: Any, band: int, reduction: int) -> int | None:
    """Returns the number of the smallest overview that is no smaller than what is asked for, if there is one."""
    levels = [(factor, level) for level, factor in enumerate(dataset.overviews(band)) if factor <= reduction]
    return max(levels)[1] if levels else None


def _read(
    dataset: Any, need: Need, bands: list[int], *, mix: bool
) -> tuple[np.ma.MaskedArray[Any, Any], tuple[float, float]]:
    """Reads bands, some rows at a time, each cell of several pixels as their mean, or else as the first of them.

    Returns:
        `[C, H, W]`, and height and width as `Picture.extent` has them.
    """
    width, height = dataset.width, dataset.height
    reduction = need.reduction(width, height)
    if reduction > 1 and need.square:
        width = height = min(width, height)
    left, top = (dataset.width - width) // 2, (dataset.height - height) // 2
    _require_bearable(dataset, width, height, width * height // reduction**2)
    step = reduction * max(1, _AT_A_TIME // (len(bands) * width * reduction))
    parts = []
    for start in range(0, height, step):
        window = Window(left, top + start, width, min(step, height - start))
        values = dataset.read(bands, window=window, masked=True)
        if values.dtype.kind == "f":
            values = np.ma.masked_invalid(values, copy=False)
        parts.append(_mean(values, reduction) if mix else values[:, ::reduction, ::reduction])
    values = parts[0] if len(parts) == 1 else np.ma.concatenate(parts, axis=1)  # type: ignore[no-untyped-call]
    return values, (height / reduction, width / reduction)


def _mean(values: np.ma.MaskedArray[Any, Any], size: int) -> np.ma.MaskedArray[Any, Any]:
    """Returns the mean of each cell of `size` x `size` pixels, of those that have a value.

    GDAL can do that as well, and takes five times as long.
    """
    if size == 1:
        return values
    missing = np.ma.getmaskarray(values)
    is_whole = not missing.any() and not any(side % size for side in values.shape[1:])
    there = np.full((1, 1, 1), size * size, np.float32) if is_whole else _sums(~missing, size)
    mean = _sums(values.filled(0), size) / np.maximum(there, 1)
    rounded = np.rint(mean) if values.dtype.kind in "iu" else mean
    return np.ma.MaskedArray(rounded.astype(values.dtype), np.broadcast_to(there == 0, mean.shape))


def _sums(values: npt.NDArray[Any], size: int) -> npt.NDArray[np.float32]:
    """Returns the sums of cells of `[C, H, W]`; at the edges they may have fewer pixels."""
    bands, height, width = values.shape
    if height % size or width % size:
        values = np.pad(values, ((0, 0), (0, -height % size), (0, -width % size)))
    rows = values.reshape(bands, -(-height // size), size, -1).sum(axis=2, dtype=np.float32)  # the fast one first
    sums: npt.NDArray[np.float32] = rows.reshape(bands, rows.shape[1], -1, size).sum(axis=3)
    return sums


def _require_bearable(dataset: Any, width: int, height: int, wanted: int) -> None:
    at_once = max(*(rows * columns for rows, columns in dataset.block_shapes), wanted)
    if at_once > _MOST_AT_ONCE:
        raise DataError(
            f"the image is too large to be decoded: {at_once} pixels have to be in memory at once, and "
            f"{_MOST_AT_ONCE} may; write it in tiles (gdal_translate -co TILED=YES)."
        )
    if width * height > _MOST_DECODED:
        raise DataError(
            f"the image is too large to be decoded: {width} x {height} pixels have to be read, and {_MOST_DECODED} "
            "in all may; give the file overviews (gdaladdo -r average)."
        )


def _first_bands(dataset: Any) -> tuple[int, ...]:
    colours = sum(meaning != ColorInterp.alpha for meaning in dataset.colorinterp)
    return (1, 2, 3) if colours >= 3 else (1,)


def _coloured(numbers: npt.NDArray[Any], colormap: dict[int, tuple[int, ...]]) -> npt.NDArray[np.uint8]:
    table = np.zeros((int(np.iinfo(numbers.dtype).max) + 1, 3), np.uint8)
    for number, colour in colormap.items():
        table[number] = colour[:3]
    coloured: npt.NDArray[np.uint8] = table[numbers].transpose(2, 0, 1)
    return coloured


def _assumed(dataset: Any, values: npt.NDArray[Any]) -> Range:
    return usual_range(values, bits=_bits(dataset), georeferenced=_is_georeferenced(dataset))


def _bits(dataset: Any) -> int | None:
    """Returns how many bits are in use, where that is not all of a number."""
    bits = dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
    return None if bits is None else int(bits)


def _is_georeferenced(dataset: Any) -> bool:
    return dataset.crs is not None or not dataset.transform.is_identity or bool(dataset.gcps[0])


def _orientation(dataset: Any, source: Path | bytes) -> int:
    """Returns how a TIFF of a camera or scanner was held, which GDAL does not say."""
    if dataset.driver != "GTiff" or _is_georeferenced(dataset):
        return 1
    head = head_of(source)
    try:
        directory = ImageFileDirectory_v2(head[:16] if head[2:4].strip(b"\0") == b"+" else head[:8])
        with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            file.seek(directory.next)
            directory.load(file)
        return int(directory.get(_ORIENTATION, 1))
    except Exception:  # Pillow does not know all that GDAL does; such a file is no camera's
        return 1
