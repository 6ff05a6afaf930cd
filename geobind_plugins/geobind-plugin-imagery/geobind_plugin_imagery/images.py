"""Images of any kind through the image tower of a CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from geobind_core import Augmentation, Modality, Preview
from geobind_plugin_imagery.config import ImageConfig
from geobind_plugin_imagery.needs import Need, of_middle_square

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from geobind_core import Exporter


class Image(Modality[ImageConfig]):
    """RGB images. A sample is a uint8 tensor `[3, H, W]`; a batch `[B, 3, size, size]` uint8.

    Pixels stay bytes, and those of a pixel side by side as decoders write them, until they are on the
    accelerator: the encoder brings them into order, scales and normalises them.
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
        if self.config.image_size is not None:  # no need to import open_clip, which takes seconds
            return self.config.image_size
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

    def exports(self) -> Mapping[str, Exporter]:
        """Returns open_clip and transformers."""
        from geobind_plugin_imagery.open_clip_export import OpenClipExporter
        from geobind_plugin_imagery.transformers_export import TransformersExporter

        return {"open_clip": OpenClipExporter(), "transformers": TransformersExporter()}

    def read(self, cell: Any) -> torch.Tensor:
        """Decodes a path, bytes, a PIL image, or an array `[H, W, 3]` of uint8, and shrinks it.

        Photos are turned upright as their EXIF data says; of pixels with transparency the colour is
        kept. What is larger than the tower sees is made as small as it can be before random crops,
        so that little has to be decoded and kept between epochs.
        """
        from geobind_plugin_imagery import pixels
        from geobind_plugin_imagery.decoding import decode

        size, crop = self._size, self._random_crop()
        if crop is not None:
            need = pixels.need_of_random_crop(size, crop)
            return pixels.compact(pixels.shrink(decode(cell, need, self.config.bands, self.config.scale).pixels, need))
        picture = decode(cell, of_middle_square(size), self.config.bands, self.config.scale)
        image = picture.pixels
        if min(image.shape[-2:]) >= size:
            image = pixels.resize_and_crop(image, size, picture.extent)
        return pixels.compact(image)

    def inspect(self, cell: Any) -> Mapping[str, str | int | float]:
        """Returns format, width, height, channels and bits, and where a georeferenced file lies."""
        from geobind_plugin_imagery.decoding import describe

        return describe(cell)

    def preview(self, cell: Any, size: int = 256) -> Preview:
        """Returns the whole image as a JPEG, upright, with the bands and the scale of the settings."""
        from geobind_plugin_imagery.decoding import decode
        from geobind_plugin_imagery.pixels import to_jpeg

        picture = decode(cell, Need(size, side="longer"), self.config.bands, self.config.scale)
        return Preview("image/jpeg", to_jpeg(picture.pixels, size))

    def example_cells(self, rng: np.random.Generator) -> list[bytes]:
        """Returns small JPEGs of noise, of several shapes."""
        import torch

        from geobind_plugin_imagery.pixels import to_jpeg

        shapes = ((48, 64), (90, 40), (33, 33))
        return [to_jpeg(torch.from_numpy(rng.integers(256, size=(3, *s), dtype="uint8")), max(s)) for s in shapes]

    def transform(self, sample: torch.Tensor, *, train: bool, rng: np.random.Generator) -> torch.Tensor:
        """Resizes and crops to the tower's size, and augments when training."""
        from geobind_plugin_imagery import pixels

        size = self._size
        crop = self._random_crop() if train else None
        sized = pixels.random_resized_crop(sample, size, crop, rng) if crop else pixels.resize_and_crop(sample, size)
        for step in self.augment if train else ():
            if step is not crop:
                sized = pixels.augment(sized, step, rng)
        return pixels.compact(sized)

    def collate(self, samples: Sequence[torch.Tensor]) -> torch.Tensor:
        """Stacks samples; in memory, the three bytes of a pixel stay together."""
        from torch.utils.data import default_collate

        batch: torch.Tensor = default_collate([sample.permute(1, 2, 0) for sample in samples])
        return batch.permute(0, 3, 1, 2)

    def _random_crop(self) -> Augmentation | None:
        return next((step for step in self.augment if step.name == "random_resized_crop"), None)


class Satellite(Image):
    """Images taken from above."""

    name: ClassVar[str] = "satellite"


class GroundImage(Image):
    """Photos taken on the ground."""

    name: ClassVar[str] = "ground_image"
