"""Settings of what is built on open_clip."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from geobind_core import ModalityConfig


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
