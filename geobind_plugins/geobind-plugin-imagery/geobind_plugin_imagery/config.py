"""Settings of what is built on open_clip."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from geobind_core import ModalityConfig

Range = tuple[float, float]


class ClipConfig(ModalityConfig):
    """Which CLIP a tower is taken from."""

    model: str | dict[str, Any] = Field(
        "ViT-B-32",
        description="Name of an open_clip model, `geobind-tiny`, `hf-hub:<repository>`, or an open_clip "
        "model configuration written out.",
    )
    pretrained: str | None = Field(
        None,
        description="Tag of open_clip weights (openai, laion2b_s34b_b79k, …), or a local file or folder "
        "in open_clip's own formats.",
    )


class ImageConfig(ClipConfig):
    """Settings of an image modality."""

    image_size: int | None = Field(
        None, ge=1, description="Side of the square that the tower sees, in pixels; default: the model's."
    )
    bands: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        description="Bands for red, green and blue, or one for all three, counted from 1; default: the first three.",
    )
    scale: tuple[Range, ...] | None = Field(
        None,
        description="[low, high]: the values that become 0 and 255; or a pair for each band. "
        "Default: by the type of the values.",
    )

    @field_validator("bands")
    @classmethod
    def _one_or_three(cls, bands: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if bands is not None and len(bands) not in (1, 3):
            raise ValueError(f"found {len(bands)} bands; the tower sees three, or one as all three")
        return bands

    @field_validator("scale", mode="before", json_schema_input_type=Range | tuple[Range, ...] | None)
    @classmethod
    def _one_pair_or_several(cls, scale: Any) -> Any:
        is_one = (
            isinstance(scale, list | tuple) and len(scale) == 2 and not any(isinstance(s, list | tuple) for s in scale)
        )
        return (tuple(scale),) if is_one else scale

    @model_validator(mode="after")
    def _usable_scale(self) -> ImageConfig:
        for low, high in self.scale or ():
            if not low < high:
                raise ValueError(f"scale: found [{low:g}, {high:g}]; the first is to be less than the second")
        expected = len(self.bands or (1, 2, 3))
        if self.scale is not None and len(self.scale) not in (1, expected):
            raise ValueError(f"scale: found {len(self.scale)} pairs; expected one, or {expected}: one for each band")
        return self
