"""From a cell of a table to pixels, and no more of them than are needed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageChops, UnidentifiedImageError

from geobind_core import DataError
from geobind_plugin_imagery.jpeg import START, decode_jpeg, may_be_turned
from geobind_plugin_imagery.needs import Need
from geobind_plugin_imagery.pixels import Picture
from geobind_plugin_imagery.values import Range, to_bytes, usual_range

# Of the formats that Pillow knows, those of images that people exchange. Others start programs, or hold no pixels.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "AVIF")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_PNG = b"\x89PNG\r\n\x1a\n"
_HEAD = 64  # bytes that tell what a file is
_ORIENTATION = 0x0112
_BITS = {"1": 1, "I": 32, "F": 32}

# Damage that matters is an error. What Pillow warns of beside that differs from file to file and would fill the log.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(cell: Any, need: Need, bands: Sequence[int] | None = None, scale: Sequence[Range] | None = None) -> Picture:
    """Decodes an image, at a smaller size where that saves work and leaves enough.

    Args:
        cell: A path, the content of a file, both as Hugging Face writes them, a Pillow image, or an array
            `[H, W, 3]` of uint8.
        need: How much of it is needed. A decoder that can shrink does, and one that can read a part
            returns the middle square if no more is needed.
        bands: Which bands to read, from 1.
        scale: The values that become 0 and 255, for all bands or for each.

    Returns:
        An image of three bands, upright.

    Raises:
        DataError: It is no image, or it is damaged, too large or has not what is asked for.
        OSError: The file cannot be opened.
    """
    source = _source(cell)
    if isinstance(source, Image.Image):
        picture = _picture(_select(_values(source), bands, scale)).upright(_orientation(source))
    elif driver := driver_of(head := head_of(source)):
        from geobind_plugin_imagery.rasters import read_raster  # GDAL takes a while to load

        picture = read_raster(source, driver, need, bands, scale)
    else:
        picture = _decode_file(source if isinstance(source, bytes) else source.read_bytes(), head, need, bands, scale)
    return picture if len(picture.pixels) == 3 else Picture(picture.pixels.expand(3, -1, -1), picture.extent)


def describe(cell: Any) -> dict[str, str | int | float]:
    """Returns what the header of an image says: format, width, height, channels, bits.

    Of a georeferenced file also `crs`, and `longitude` and `latitude` of the middle.

    Raises:
        DataError: It is no image.
        OSError: The file cannot be opened.
    """
    source = _source(cell)
    if isinstance(source, Image.Image):
        return _described(source)
    if driver := driver_of(head := head_of(source)):
        from geobind_plugin_imagery.rasters import describe_raster

        return describe_raster(source, driver)
    with _opened(BytesIO(source) if isinstance(source, bytes) else source, head) as image:
        return _described(image)


def head_of(source: Path | bytes) -> bytes:
    """Returns the first bytes of a file."""
    if isinstance(source, bytes):
        return source[:_HEAD]
    with source.open("rb") as file:
        return file.read(_HEAD)


def driver_of(head: bytes) -> str | None:
    """Returns GDAL's driver for files that may have more than 8 bits, many bands or a huge size; None for others."""
    if head.startswith(_TIFF):
        return "GTiff"
    if head.startswith(_JPEG_2000):
        return "JP2OpenJPEG"
    return "PNG" if head.startswith(_PNG) and head[24:25] == b"\x10" else None  # 16 bits


def _source(cell: Any) -> Path | bytes | Image.Image:
    if isinstance(cell, dict) and "bytes" in cell:  # an image column as Hugging Face writes it
        cell = cell["bytes"] if cell["bytes"] is not None else cell["path"]
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell)
    if isinstance(cell, str | Path):
        return Path(cell)
    if isinstance(cell, np.ndarray):
        if cell.dtype != np.uint8 or cell.ndim not in (2, 3):
            raise DataError(f"expected an array [H, W, 3] of uint8, found {cell.shape} of {cell.dtype}.")
        return Image.fromarray(cell)
    if isinstance(cell, Image.Image):
        return cell
    raise DataError(f"expected a path, bytes, a PIL image or an array, found {type(cell).__name__}.")


# ---------------------------------------------------------------------- files that Pillow knows


def _opened(file: Path | BytesIO, head: bytes) -> Image.Image:
    """Opens an image; of its content nothing but the header has been read."""
    try:
        return Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(f"the image is too large to be decoded: {error}") from error
    except UnidentifiedImageError:
        raise DataError(_what_it_is(head)) from None
    except Exception as error:
        raise _damaged(error) from error


def _decode_file(
    data: bytes, head: bytes, need: Need, bands: Sequence[int] | None, scale: Sequence[Range] | None
) -> Picture:
    jpeg = decode_jpeg(data, need, 2 * (Image.MAX_IMAGE_PIXELS or 0)) if head.startswith(START) else None
    if jpeg is not None:
        values, height, width, reduction = jpeg
        picture = Picture(_select(values, bands, scale), (height / reduction, width / reduction))
        if not may_be_turned(data):
            return picture
    with _opened(BytesIO(data), head) as image:
        if jpeg is None:
            width, height = image.size
            reduction = need.reduction(width, height)
            try:
                image.draft(image.mode, (max(1, width // reduction), max(1, height // reduction)))
                values = _values(image)
            except Exception as error:  # a decoder raises what it likes
                raise _damaged(error) from error
            picture = _picture(_select(values, bands, scale))
        return picture.upright(_orientation(image))


def _picture(pixels: torch.Tensor) -> Picture:
    return Picture(pixels, (pixels.shape[-2], pixels.shape[-1]))


def _values(image: Image.Image) -> npt.NDArray[Any]:
    """Returns `[H, W]` of numbers of more than 8 bits, or else `[H, W, 3]`."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes every file for one of Adobe's, which hold what ink leaves
    if image.mode == "I":  # what 16 bits are to some versions of Pillow
        values = np.asarray(image)
        fits = values.min() >= 0 and values.max() < 2**16
        return values.astype(np.uint16) if fits else values
    return np.array(image if image.mode in ("RGB", "F") else image.convert("RGB"))


def _select(values: npt.NDArray[Any], bands: Sequence[int] | None, scale: Sequence[Range] | None) -> torch.Tensor:
    """Returns `[C, H, W]` uint8 of values `[H, W]` or `[H, W, C]`."""
    planes = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    if bands is not None:
        require_bands(bands, len(planes))
        planes = planes[[band - 1 for band in bands]]
    if scale is not None or planes.dtype != np.uint8:
        planes = to_bytes(planes, scale or (usual_range(planes),))
    return torch.from_numpy(planes)


def require_bands(bands: Sequence[int], count: int) -> None:
    """Makes sure that an image has these bands.

    Raises:
        DataError: It has fewer.
    """
    if max(bands) > count:
        raise DataError(f"`bands` asks for band {max(bands)} of an image that has {count}.")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data is no reason to go without the photo
        return 1


def _described(image: Image.Image) -> dict[str, str | int | float]:
    width, height = image.size if _orientation(image) < 5 else image.size[::-1]
    return {
        "format": image.format or "pixels",
        "width": width,
        "height": height,
        "channels": len(image.getbands()),
        "bits": 16 if image.mode.startswith("I;16") else _BITS.get(image.mode, 8),
    }


# ---------------------------------------------------------------------- what is no image


def _damaged(error: Exception) -> DataError:
    return DataError(f"the image is damaged or not complete: {' '.join(str(error).split()) or type(error).__name__}")


def _what_it_is(head: bytes) -> str:
    if not head:
        return "the file is empty."
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "expected an image, found a web page; a download may have failed."
    text = head.decode("utf-8", errors="ignore")
    if text and all(character.isprintable() or character.isspace() for character in text):
        return f"expected an image, found text: '{' '.join(text.split())}…'"
    known = ", ".join((*_FORMATS, "TIFF", "JPEG 2000"))
    return f"expected an image ({known}), found a file that begins with {head[:8].hex(' ')}."
