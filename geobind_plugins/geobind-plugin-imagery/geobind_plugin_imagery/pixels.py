"""Resizing, cropping and augmenting images, as uint8 tensors `[3, H, W]`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from geobind_core import Augmentation
from geobind_plugin_imagery.needs import Need, of_random_part

_OPERATIONS, _MAGNITUDE = 2, 9  # as torchvision has them
_LEAST_AREA = 0.9
_LEAST_RATIO = 3 / 4
_LONGEST = 4  # times the shorter side; of more than that, nothing is resized but what is near the middle
_QUALITY = 85


@dataclass(frozen=True)
class Picture:
    """An image as a decoder returns it.

    Attributes:
        pixels: `[1 or 3, H, W]` uint8.
        extent: Height and width in these pixels. A decoder that shrinks an image of 801 pixels to 401 has made
            the last of them of one pixel and not of two: there are 400.5.
    """

    pixels: torch.Tensor
    extent: tuple[float, float]

    def upright(self, orientation: int) -> Picture:
        """Turns it as the orientation of EXIF says, 1 to 8; any other number changes nothing."""
        if orientation not in range(2, 9):
            return self
        # A pixel that stands for less than the others may be the last one, and not the first.
        image = self.pixels[:, : max(1, int(self.extent[0])), : max(1, int(self.extent[1]))]
        if orientation in (5, 7):
            image = image.transpose(-2, -1)
        if orientation in (2, 4):
            image = image.flip({2: -1, 4: -2}[orientation])
        elif orientation != 5:
            image = torch.rot90(image, {3: 2, 6: -1, 7: 2, 8: 1}[orientation], dims=(-2, -1))
        return Picture(image, (image.shape[-2], image.shape[-1]))


def compact(image: torch.Tensor) -> torch.Tensor:
    """Returns an image `[3, H, W]` that holds on to no more memory than its own, the bytes of a pixel side by side."""
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def resize_and_crop(image: torch.Tensor, size: int, extent: tuple[float, float] | None = None) -> torch.Tensor:
    """Resizes the shorter side to `size`, bicubic, and cuts the middle square, as CLIP does.

    Args:
        image: `[3, H, W]` uint8.
        size: Side of the square.
        extent: Height and width in pixels, where those are fractions.
    """
    if image.shape[-2:] == (size, size):
        return image
    if max(image.shape[-2:]) > _LONGEST * max(min(image.shape[-2:]), 2):
        image, extent = _middle(image), None
    sides = extent or image.shape[-2:]
    shorter = min(sides)
    if shorter != size:
        # As torchvision and open_clip do, the longer side is rounded down.
        high, wide = (size if side == shorter else int(size * side / shorter) for side in sides)
        image = _resize(image, high, wide, extent)
    if image.shape[-2:] != (size, size):
        top, left = (round((side - size) / 2) for side in image.shape[-2:])  # as torchvision's center_crop
        image = image[..., top : top + size, left : left + size]
    return image


def shrink(image: torch.Tensor, need: Need) -> torch.Tensor:
    """Shrinks an image that has many more pixels than are needed, all of it."""
    height, width = image.shape[-2:]
    reduction = need.reduction(width, height)
    return _resize(image, max(1, height // reduction), max(1, width // reduction)) if reduction > 1 else image


def to_jpeg(image: torch.Tensor, size: int) -> bytes:
    """Writes an image `[3, H, W]` as a JPEG of at most `size` pixels along its longer side."""
    height, width = image.shape[-2:]
    if max(height, width) > size:
        factor = size / max(height, width)
        image = _resize(image, max(1, round(height * factor)), max(1, round(width * factor)))
    file = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def need_of_random_crop(size: int, step: Augmentation) -> Need:
    """Returns what leaves no part that `random_resized_crop` may cut with fewer than `size` pixels along a side."""
    return of_random_part(size, math.sqrt(_LEAST_RATIO * max(_least_area(step), 1e-6)))


def random_resized_crop(image: torch.Tensor, size: int, step: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    """Cuts a random part with a side ratio of 3:4 to 4:3 and resizes it to a square."""
    least = _least_area(step)
    height, width = image.shape[-2:]
    for _ in range(10):  # a drawn rectangle may not fit; torchvision also tries ten times
        area = rng.uniform(least, 1.0) * height * width
        ratio = float(np.exp(rng.uniform(np.log(_LEAST_RATIO), -np.log(_LEAST_RATIO))))
        wide, high = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            top, left = rng.integers(0, height - high + 1), rng.integers(0, width - wide + 1)
            return _resize(image[:, top : top + high, left : left + wide], size, size)
    return resize_and_crop(image, size)


def augment(image: torch.Tensor, step: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    """Applies one augmentation to an image that has its final size."""
    if step.name == "flips":
        return image.flip(-1) if rng.random() < 0.5 else image
    if step.name == "dihedral":
        turned = torch.rot90(image, int(rng.integers(4)), dims=(-2, -1))
        return turned.flip(-1) if rng.random() < 0.5 else turned
    from torchvision.transforms.v2 import RandAugment  # takes seconds to import, in every loader process

    operations, magnitude = _randaugment_arguments(step.arguments)
    # torchvision draws from torch's global generator; it is lent a seed of ours and given back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))  # not that of an accelerator
        augmented: torch.Tensor = RandAugment(operations, magnitude)(image)
    return augmented


def _least_area(step: Augmentation) -> float:
    return step.arguments[0] if step.arguments else _LEAST_AREA


def _randaugment_arguments(arguments: tuple[float, ...]) -> tuple[int, int]:
    operations = arguments[0] if arguments else _OPERATIONS
    magnitude = arguments[1] if len(arguments) > 1 else _MAGNITUDE
    return int(operations), int(magnitude)


def _middle(image: torch.Tensor) -> torch.Tensor:
    """Cuts the ends of a long strip off, so that the shape of what is resized stays within bounds."""
    height, width = image.shape[-2:]
    keep = _LONGEST * max(min(height, width), 2)
    # As many on either side, for the middle to stay where it is.
    top, left = (max(0, side - keep) // 2 for side in (height, width))
    return image[..., top : height - top, left : width - left]


def _resize(image: torch.Tensor, height: int, width: int, extent: tuple[float, float] | None = None) -> torch.Tensor:
    """Resizes an image `[3, H, W]` uint8 of some extent in pixels, bicubic and with antialiasing."""
    # The bytes of a pixel are side by side; torch has to see it to be fast.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    if extent is None or extent == tuple(image.shape[-2:]):
        return interpolate(batch, size=(height, width), mode="bicubic", antialias=True)[0]
    # The size of the result is rounded down, and may not be so by an error of arithmetic.
    factors = [wanted / there * (1 + 1e-7) for wanted, there in zip((height, width), extent, strict=True)]
    return interpolate(batch, scale_factor=factors, mode="bicubic", antialias=True)[0]
