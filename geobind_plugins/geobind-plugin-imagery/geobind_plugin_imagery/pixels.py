"""Resizing, cropping and augmenting images, as uint8 tensors `[3, H, W]`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import RandAugment
from torchvision.transforms.v2 import functional as transforms
from torchvision.transforms.v2.functional import InterpolationMode

from geobind_core import Augmentation, DataError

_OPERATIONS, _MAGNITUDE = 2, 9  # as torchvision has them
_LEAST_AREA = 0.9
_LARGEST_16_BIT = 2**16 - 1


def to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Returns `[H, W, 3]` of an image of any mode, upright."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        # Pillow would cut off all above 255.
        values = np.asarray(upright).astype(np.int64)
        if values.min() < 0 or values.max() > _LARGEST_16_BIT:
            raise DataError("expected pixels of 8 or 16 bits, found values of 32 bits.")
        return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    if upright.mode == "F":
        raise DataError("expected pixels of 8 or 16 bits, found floating-point values.")
    return np.asarray(upright.convert("RGB"))


def resize_and_crop(image: torch.Tensor, size: int) -> torch.Tensor:
    """Resizes the shorter side to `size`, bicubic, and cuts the middle square, as CLIP does."""
    height, width = image.shape[-2:]
    if (height, width) == (size, size):
        return image
    if min(height, width) != size:
        image = _resize(image, [size])
    middle: torch.Tensor = transforms.center_crop(image, [size, size])
    return middle


def random_resized_crop(image: torch.Tensor, size: int, step: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    """Cuts a random part with a side ratio of 3:4 to 4:3 and resizes it to a square."""
    least = step.arguments[0] if step.arguments else _LEAST_AREA
    height, width = image.shape[-2:]
    for _ in range(10):  # a drawn rectangle may not fit; torchvision also tries ten times
        area = rng.uniform(least, 1.0) * height * width
        ratio = float(np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))))
        wide, high = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            top, left = rng.integers(0, height - high + 1), rng.integers(0, width - wide + 1)
            return _resize(image[:, top : top + high, left : left + wide], [size, size])
    return resize_and_crop(image, size)


def augment(image: torch.Tensor, step: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    """Applies one augmentation to an image that has its final size."""
    if step.name == "flips":
        return image.flip(-1) if rng.random() < 0.5 else image
    if step.name == "dihedral":
        turned = torch.rot90(image, int(rng.integers(4)), dims=(-2, -1))
        return turned.flip(-1) if rng.random() < 0.5 else turned
    operations, magnitude = _randaugment_arguments(step.arguments)
    # torchvision draws from torch's global generator; it is lent a seed of ours and given back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))  # not that of an accelerator
        augmented: torch.Tensor = RandAugment(operations, magnitude)(image)
    return augmented


def _randaugment_arguments(arguments: tuple[float, ...]) -> tuple[int, int]:
    operations = arguments[0] if arguments else _OPERATIONS
    magnitude = arguments[1] if len(arguments) > 1 else _MAGNITUDE
    return int(operations), int(magnitude)


def _resize(image: torch.Tensor, size: list[int]) -> torch.Tensor:
    resized: torch.Tensor = transforms.resize(image, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized
