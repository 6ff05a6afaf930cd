"""What the exporters share: which towers go together, and linear projections folded into them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from geobind_core import ExportError, ExportPart, Modality
from geobind_plugin_imagery.images import Image
from geobind_plugin_imagery.text import Text

USUAL_SCALE = 100.0
"""The logit scale that CLIP's own training ends at."""

UNKNOWN_SCALE = f"logit scale {USUAL_SCALE:g}, as CLIP's: the lineage has none; embeddings do not depend on it"


def preprocessing_notes(part: ExportPart) -> list[str]:
    """Returns what other libraries do not do before a picture reaches the tower, and the tower has been used to."""
    settings = part.modality.config.model_dump(mode="json", include={"bands", "scale"}, exclude_none=True)
    said = " and ".join(f"`{name}: {json.dumps(value)}`" for name, value in settings.items())
    return [f"'{part.name}' has {said}: give the other library pictures that are made like this"] if said else []


@dataclass(frozen=True)
class Tower:
    """One tower, ready to be written.

    Attributes:
        part: The modality.
        architecture: The open_clip model configuration that it was built from.
        state: Its tensors, by the names that they have in an open_clip model; the space's linear projection is
            folded into the last one.
        prefix: What the network of the space has before these names.
    """

    part: ExportPart
    architecture: Mapping[str, Any]
    state: dict[str, torch.Tensor]
    prefix: str

    @property
    def is_text(self) -> bool:
        """Whether it reads text."""
        return isinstance(self.part.modality, Text)


def together(
    wanted: Sequence[str], modalities: Mapping[str, Modality[Any]], library: str, *, needs_text: bool
) -> list[str]:
    """Returns an image modality and a text modality, the image first, or one alone where that is enough.

    Args:
        wanted: The names that were asked for.
        modalities: All of the space.
        library: Who is to read the folder, for messages.
        needs_text: Whether an image tower alone cannot be read, nor a text tower.

    Raises:
        ExportError: There are two of a kind, or one is missing.
    """
    images = [name for name in wanted if isinstance(modalities[name], Image)]
    texts = [name for name in wanted if isinstance(modalities[name], Text)]
    if len(images) > 1 or len(texts) > 1 or len(images) + len(texts) < len(wanted):
        raise ExportError(
            f"a folder for {library} holds one image tower and one text tower; found {', '.join(wanted)}.",
            hint="Export them one by one, each into a folder of its own.",
        )
    if images and not texts:
        others = [name for name, modality in modalities.items() if isinstance(modality, Text)]
        if len(others) > 1:
            raise ExportError(
                f"the space has several text modalities: {', '.join(others)}.",
                hint=f"Say which goes with '{images[0]}': --modality {images[0]} --modality {others[0]}",
            )
        texts = others
    if needs_text and not (images and texts):
        kind = "text" if images else "image"
        others = [name for name, modality in modalities.items() if isinstance(modality, Image)]
        raise ExportError(
            f"{library} loads an image tower and a text tower together; there is no {kind} tower to go with "
            f"'{wanted[0]}'.",
            hint=f"Name one as well: --modality {others[0]}"
            if others and not images
            else "`--to transformers` and `--to onnx` take one tower.",
        )
    return [*images, *texts]


def tower_of(part: ExportPart) -> Tower:
    """Returns the tower of a modality, with the space's projection folded in.

    Raises:
        ExportError: The tower does not end with a linear map, so nothing can be folded into it.
    """
    prefix = "clip." if isinstance(part.modality, Text) else ""
    own = part.encoder.state_dict()
    state = {
        name.removeprefix(prefix): tensor.detach().clone()
        for name, tensor in own.items()
        if prefix or name.startswith("visual.")
    }
    if part.projection is not None:
        _fold(state, part)
    return Tower(part, part.encoder.architecture, state, prefix)  # type: ignore[arg-type]


def pixel_statistics(part: ExportPart) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation of the pixels, per channel, in [0, 1]."""
    state = part.encoder.state_dict()
    return state["mean"].flatten().tolist(), state["std"].flatten().tolist()


_MATRICES = ("visual.proj", "text_projection", "text.text_projection")  # [width, D], used from the right
_LAYERS = (  # [D, width], and a bias
    "visual.attnpool.c_proj",  # of a ResNet
    "visual.head.proj",  # of timm
    "text_projection",
    "text.text_projection",
    "text.proj",  # of a text model of transformers
)


def _fold(state: dict[str, torch.Tensor], part: ExportPart) -> None:
    """Multiplies the last linear map of a tower by the projection: two linear maps in a row are one."""
    assert part.projection is not None
    projection = part.projection.double()  # [D, raw]
    for name in _MATRICES:
        if name in state:
            state[name] = (state[name].double() @ projection.T).float()
            return
    for name in _LAYERS:
        if f"{name}.weight" in state:
            for tensor in (f"{name}.weight", f"{name}.bias"):
                if tensor in state:
                    state[tensor] = (projection @ state[tensor].double()).float()
            return
    raise ExportError(
        f"the space has a linear projection after '{part.name}', and the network does not end with a linear map that "
        "it could be made one with.",
        hint="`--to hub` and `--to onnx` take it as it is.",
    )


def as_pictures(samples: Sequence[Any]) -> list[Any]:
    """Returns samples `[3, H, W]` uint8 as PIL images, which is what other libraries preprocess."""
    from PIL.Image import fromarray

    return [fromarray(sample.permute(1, 2, 0).contiguous().numpy()) for sample in samples]
