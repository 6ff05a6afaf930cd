"""Images of any kind through the image tower of a CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from geobind_core import DataError, Modality
from geobind_plugin_imagery.config import ImageConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn


class Image(Modality[ImageConfig]):
    """RGB images. A sample is a uint8 tensor `[3, H, W]`; a batch `[B, 3, size, size]` uint8.

    Pixels stay bytes until they are on the accelerator: the encoder scales and normalises them.
    """

    Config = ImageConfig
    reads_files: ClassVar[bool] = True
    augmentations: ClassVar[Mapping[str, str]] = {
        "randaugment": "randaugment(operations, magnitude=9 of 30): Cubuk et al. 2020",
        "flips": "each image mirrored left to right with probability one half",
        "dihedral": "one of the eight rotations and reflections; for images taken from above",
        "random_resized_crop": "random_resized_crop(least share of the area = 0.9), as CLIP was trained",
    }

    @cached_property
    def _size(self) -> int:
        from geobind_plugin_imagery.towers import image_size

        return image_size(self.config)

    def build_encoder(self) -> nn.Module:
        """Builds the image tower `[B, 3, H, W]` uint8 -> `[B, D]`."""
        from geobind_plugin_imagery.towers import build_image_tower

        return build_image_tower(self.config, self.name)

    def rebuild_config(self, encoder: nn.Module) -> ImageConfig:
        """Returns settings in which the tower's architecture is written out."""
        from geobind_plugin_imagery.towers import rebuilt

        return rebuilt(self.config, encoder)

    def read(self, cell: Any) -> torch.Tensor:
        """Decodes a path, bytes, a PIL image, or an array `[H, W, 3]` of uint8.

        Photos are turned upright as their EXIF data says; of 16 bits the upper 8 are kept, and of
        pixels with transparency the colour.
        """
        import numpy as np
        import torch
        from PIL import Image as Pillow

        from geobind_plugin_imagery.pixels import to_rgb

        if isinstance(cell, dict) and "bytes" in cell:  # an image column as Hugging Face writes it
            cell = cell["bytes"] if cell["bytes"] is not None else cell["path"]
        if isinstance(cell, np.ndarray):
            if cell.dtype != np.uint8 or cell.ndim not in (2, 3):
                raise DataError(f"expected an array [H, W, 3] of uint8, found {cell.shape} of {cell.dtype}.")
            cell = Pillow.fromarray(cell)
        if isinstance(cell, bytes | bytearray | memoryview):
            cell = BytesIO(cell)
        if isinstance(cell, str | Path | BytesIO):
            with Pillow.open(cell) as opened:
                pixels = to_rgb(opened)
        elif isinstance(cell, Pillow.Image):
            pixels = to_rgb(cell)
        else:
            raise DataError(f"expected a path, bytes, a PIL image or an array, found {type(cell).__name__}.")
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def transform(self, sample: torch.Tensor, *, train: bool, rng: np.random.Generator) -> torch.Tensor:
        """Resizes and crops to the tower's size, and augments when training."""
        from geobind_plugin_imagery import pixels

        size = self._size
        steps = self.augment if train else ()
        crop = next((step for step in steps if step.name == "random_resized_crop"), None)
        sized = pixels.random_resized_crop(sample, size, crop, rng) if crop else pixels.resize_and_crop(sample, size)
        for step in steps:
            if step is not crop:
                sized = pixels.augment(sized, step, rng)
        return sized.contiguous()


class Satellite(Image):
    """Images taken from above."""

    name: ClassVar[str] = "satellite"


class GroundImage(Image):
    """Photos taken on the ground."""

    name: ClassVar[str] = "ground_image"
