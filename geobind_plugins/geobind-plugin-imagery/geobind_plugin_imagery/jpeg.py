"""JPEG files, decoded at a half, a quarter or an eighth of their size where that is enough."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import simplejpeg

from geobind_plugin_imagery.needs import Need

START = b"\xff\xd8\xff"
_SMALLEST = 8  # of a block of 8 x 8 pixels, one is left
_APPLICATION_1 = 0xE1  # EXIF or XMP
_SCAN = 0xDA
_COLOURS = ("YCbCr", "RGB", "Gray")


def decode_jpeg(data: bytes, need: Need, most_pixels: int) -> tuple[npt.NDArray[np.uint8], int, int, int] | None:
    """Decodes a JPEG as it lies in the file; at a smaller size where enough is left.

    A block of 8 x 8 pixels is stored as 64 frequencies. To leave the upper half of them out is to shrink it, and
    faster than to decode all of it and then to shrink that.

    Args:
        data: The content of the file.
        need: How much of it is needed.
        most_pixels: A larger image is left alone.

    Returns:
        `[H, W, 3]`, the height and the width that it has in the file, and by how much it was shrunk. None for what
        is better left to Pillow: CMYK, what is too large, and all that libjpeg finds fault with.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in _COLOURS or height * width > most_pixels:
            return None
        reduction = min(need.reduction(width, height), _SMALLEST)
        # The smallest size that libjpeg can make and that is not below this one.
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB", min_height=-(-height // reduction), min_width=-(-width // reduction)
        )
    except ValueError:
        return None
    return pixels, height, width, reduction


def may_be_turned(data: bytes) -> bool:
    """Whether a JPEG has a segment that may say how the camera was held; Pillow takes 25 times as long to look."""
    position = len(START) - 1
    while position + 4 <= len(data) and data[position + 1] != _SCAN:
        if data[position] != START[0] or data[position + 1] in (START[0], _APPLICATION_1):
            return True
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return False
