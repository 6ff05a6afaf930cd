"""Folders that `open_clip.create_model_and_transforms("local-dir:...")` opens."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from geobind_core import Exporter, ExportError, ExportPart, Modality, Stored, Written
from geobind_plugin_imagery.clip_parts import (
    UNKNOWN_SCALE,
    USUAL_SCALE,
    Tower,
    as_pictures,
    pixel_statistics,
    preprocessing_notes,
    together,
    tower_of,
)

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_ITS_OWN_ACTIVATION = ("timm_model_name", "hf_model_name")


class OpenClipExporter(Exporter):
    """An image tower and a text tower as one CLIP of open_clip."""

    library = "open_clip"

    def choose(self, wanted: Sequence[str], modalities: Mapping[str, Modality[Any]]) -> Sequence[str]:
        return together(wanted, modalities, self.library, needs_text=True)

    def write(self, parts: Sequence[ExportPart], folder: Path, *, logit_scale: float | None) -> Written:
        from safetensors.torch import save

        image, text = (tower_of(part) for part in parts)
        architecture = _architecture(image, text)
        mean, std = pixel_statistics(image.part)
        preprocess = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "shortest"}
        described = {"model_cfg": architecture, "preprocess_cfg": preprocess}
        (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        scale = torch.tensor(math.log(logit_scale or USUAL_SCALE))
        state = {**image.state, **text.state, "logit_scale": scale}
        (folder / WEIGHTS).write_bytes(save(state, metadata={"format": "pt"}))
        tokenizer = architecture["text_cfg"].get("hf_tokenizer_name")
        if tokenizer:
            from geobind_plugin_imagery.towers import tokenizer_of

            # open_clip looks for the tokenizer of such a model in the folder itself.
            tokenizer_of(text.part.modality.config).save_pretrained(str(folder))
        notes = [f"the image tower is '{image.part.name}', the text tower '{text.part.name}'"]
        notes += preprocessing_notes(image.part)
        if logit_scale is None:
            notes.append(UNKNOWN_SCALE)
        tensors = {
            tower.part.name: {tower.prefix + name: Stored(WEIGHTS, (name,)) for name in tower.state}
            for tower in (image, text)
        }
        return Written(tensors, 'open_clip.create_model_and_transforms("local-dir:{folder}")', notes)

    def embed(self, folder: Path, part: ExportPart, samples: Sequence[Any]) -> torch.Tensor:
        import open_clip

        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        model.eval()
        if isinstance(samples[0], str):
            tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
            embedding: torch.Tensor = model.encode_text(tokenizer(list(samples)))
            return embedding
        found = model.encode_image(torch.stack([preprocess(picture) for picture in as_pictures(samples)]))
        pooled: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return pooled


def _architecture(image: Tower, text: Tower) -> dict[str, Any]:
    """Returns the model configuration of an image tower and a text tower that may come from two models."""
    vision, words = (dict(deepcopy(tower.architecture)) for tower in (image, text))
    for tower in (image, text):
        if "multimodal_cfg" in tower.architecture:
            raise ExportError(
                f"'{tower.part.name}' is a part of a CoCa, whose text decoder the space does not have.",
                hint="`--to onnx` and `--to hub` take it.",
            )
    # One setting for both: what does not look at it has no say.
    wanted = {bool(tower.architecture.get("quick_gelu", False)) for tower in (image, text) if _looks_at_it(tower)}
    if len(wanted) > 1:
        raise ExportError(
            f"of '{image.part.name}' and '{text.part.name}' one has QuickGELU and the other GELU; open_clip has one "
            "activation for both towers.",
            hint="`--to transformers` writes each with its own.",
        )
    architecture: dict[str, Any] = {
        "embed_dim": image.part.embed_dim,
        "vision_cfg": vision["vision_cfg"],
        "text_cfg": words["text_cfg"],
        "quick_gelu": wanted == {True},
    }
    if words.get("custom_text"):
        architecture["custom_text"] = True
    if "timm_model_name" in architecture["vision_cfg"]:
        architecture["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in architecture["text_cfg"]:
        architecture["text_cfg"]["hf_model_pretrained"] = False
    return architecture


def _looks_at_it(tower: Tower) -> bool:
    settings = tower.architecture["text_cfg" if tower.is_text else "vision_cfg"]
    is_resnet = not tower.is_text and isinstance(settings.get("layers"), list | tuple)
    return not is_resnet and not any(key in settings for key in _ITS_OWN_ACTIVATION)
