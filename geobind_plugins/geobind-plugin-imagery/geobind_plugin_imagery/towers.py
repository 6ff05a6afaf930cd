"""The image and the text tower of an open_clip model, each as an encoder of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import open_clip
import torch
from open_clip.factory import load_checkpoint
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg
from torch import nn

from geobind_core import WeightsError, require_hub_files
from geobind_plugin_imagery.config import ClipConfig, ImageConfig

ConfigT = TypeVar("ConfigT", bound=ClipConfig)

_OWN_MODELS = Path(__file__).parent / "models"
_HUB = "hf-hub:"
_CONFIG_FILE = "open_clip_config.json"
_WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class Resolved:
    """What a configuration comes to.

    Attributes:
        architecture: The open_clip model configuration.
        mean, std: Of the pixels, in [0, 1], per channel.
        weights: A file to load, or None.
    """

    architecture: dict[str, Any]
    mean: tuple[float, ...] = open_clip.OPENAI_DATASET_MEAN
    std: tuple[float, ...] = open_clip.OPENAI_DATASET_STD
    weights: str | None = None


class ImageTower(nn.Module):
    """Bytes to embeddings: `[B, 3, H, W]` uint8 -> `[B, D]`."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, visual: nn.Module, resolved: Resolved) -> None:
        super().__init__()
        self.visual = visual
        self.architecture = resolved.architecture
        self.embed_dim = int(resolved.architecture["embed_dim"])
        # Buffers, so that a saved encoder normalises as it was trained to.
        self.register_buffer("mean", torch.tensor(resolved.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(resolved.std).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        channels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        embedding = self.visual((channels / 255 - self.mean) / self.std)
        # Some towers return (pooled, tokens).
        pooled: torch.Tensor = embedding[0] if isinstance(embedding, tuple) else embedding
        return pooled


class TextTower(nn.Module):
    """Tokens to embeddings: `[B, T]` -> `[B, D]`."""

    def __init__(self, clip: Any, resolved: Resolved) -> None:
        super().__init__()
        # What encode_text does not use would be saved, hashed and weighed for nothing.
        for unused in ("visual", "logit_scale", "logit_bias", "text_decoder"):
            if getattr(clip, unused, None) is not None:
                delattr(clip, unused)
        self.clip = clip
        self.architecture = resolved.architecture
        self.embed_dim = int(resolved.architecture["embed_dim"])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = self.clip.encode_text(tokens)
        return embedding


def build_image_tower(config: ImageConfig, name: str) -> ImageTower:
    """Builds the image tower that a configuration describes, with its weights."""
    resolved = resolve(config)
    return ImageTower(_build(resolved, name).visual, resolved)


def build_text_tower(config: ClipConfig, name: str) -> TextTower:
    """Builds the text tower that a configuration describes, with its weights, and its tokenizer."""
    resolved = resolve(config)
    tower = TextTower(_build(resolved, name), resolved)
    tokenizer_of(config)  # so that a tokenizer that cannot be had is known now
    return tower


def rebuilt(config: ConfigT, encoder: nn.Module) -> ConfigT:
    """Returns settings that rebuild a tower with nothing to look up."""
    return config.model_copy(update={"model": encoder.architecture, "pretrained": None, "init_from": None})


def image_size(config: ImageConfig) -> int:
    """Returns the side of the square that the tower sees, in pixels."""
    size = _architecture(config)["vision_cfg"].get("image_size", 224)
    return int(size[0] if isinstance(size, list | tuple) else size)


def tokenizer_of(config: ClipConfig) -> Any:
    """Returns the tokenizer of a model: a list of strings -> `[B, T]`."""
    return _tokenizer(json.dumps(_architecture(config)["text_cfg"], sort_keys=True))


@lru_cache(maxsize=8)
def _tokenizer(text_config: str) -> Any:
    settings = json.loads(text_config)
    context_length = settings.get("context_length", 77)
    name = settings.get("hf_tokenizer_name")
    if not name:
        return open_clip.SimpleTokenizer(context_length=context_length)
    if not Path(name).is_dir():
        require_hub_files(name, ("tokenizer.json", "vocab.txt", "tokenizer_config.json"))
    return open_clip.HFTokenizer(name, context_length=context_length, **settings.get("tokenizer_kwargs", {}))


# ---------------------------------------------------------------------- what is meant


def resolve(config: ClipConfig) -> Resolved:
    """Finds out which architecture, pixel statistics and weights a configuration means.

    Raises:
        WeightsError: There are none by that name, or they cannot be had.
    """
    found = Resolved(_architecture(config))
    pretrained = config.pretrained
    if pretrained is None:
        return found
    if Path(pretrained).is_dir():
        preprocess = _folder_config(Path(pretrained)).get("preprocess_cfg", {})
        return _with_pixels(replace(found, weights=_weights_in(Path(pretrained))), preprocess)
    if Path(pretrained).is_file():
        return replace(found, weights=pretrained)
    if isinstance(config.model, str) and config.model.startswith(_HUB):
        raise WeightsError(
            f"'{config.model}' names its weights itself; found pretrained: {pretrained}.",
            hint=f"Use pretrained: {config.model} to start from them.",
        )
    if pretrained.startswith(_HUB):
        repository = pretrained.removeprefix(_HUB)
        require_hub_files(repository, _WEIGHT_FILES)
        weights = _fetched(lambda: download_pretrained_from_hf(repository), repository)
        return _with_pixels(replace(found, weights=weights), _hub_config(repository).get("preprocess_cfg", {}))
    tag = get_pretrained_cfg(config.model, pretrained) if isinstance(config.model, str) else None
    if not tag:
        tags = open_clip.list_pretrained_tags_by_model(config.model) if isinstance(config.model, str) else []
        raise WeightsError(
            f"pretrained: '{pretrained}' is neither a file or folder nor a tag of {_called(config)}. "
            f"Tags: {', '.join(tags) or 'none'}."
        )
    repository, filename = os.path.split(tag.get("hf_hub") or "")
    if repository:
        files = [filename, filename.replace(".bin", ".safetensors").replace("pytorch_", "")] if filename else []
        require_hub_files(repository, [*files, *_WEIGHT_FILES])
    architecture = {**found.architecture, "quick_gelu": bool(tag.get("quick_gelu", False))}
    weights = _fetched(lambda: download_pretrained(tag), pretrained)
    return _with_pixels(replace(found, architecture=architecture, weights=weights), tag)


def _architecture(config: ClipConfig) -> dict[str, Any]:
    if isinstance(config.model, dict):
        architecture = deepcopy(config.model)
    elif config.pretrained is not None and Path(config.pretrained).is_dir():
        architecture = dict(_folder_config(Path(config.pretrained))["model_cfg"])
    else:
        architecture = _named_architecture(
            config.pretrained if (config.pretrained or "").startswith(_HUB) else config.model
        )
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in architecture]
    if missing:
        raise WeightsError(f"the model that is written out has no {', '.join(missing)}.")
    wanted = getattr(config, "image_size", None)
    if wanted:
        architecture["vision_cfg"] = {**architecture["vision_cfg"], "image_size": wanted}
    return architecture


def _named_architecture(name: str | None) -> dict[str, Any]:
    own = _OWN_MODELS / f"{name}.json"
    if own.is_file():
        return dict(json.loads(own.read_text(encoding="utf-8")))
    if name is not None and name.startswith(_HUB):
        return dict(_hub_config(name.removeprefix(_HUB))["model_cfg"])
    architecture = open_clip.get_model_config(name)
    if architecture is None:
        from difflib import get_close_matches

        names = [*open_clip.list_models(), *(path.stem for path in _OWN_MODELS.glob("*.json"))]
        near = get_close_matches(str(name), names, 3)
        raise WeightsError(
            f"open_clip knows no model '{name}'."
            + (f" Did you mean {', '.join(near)}?" if near else " `open_clip.list_models()` lists them.")
        )
    return dict(architecture)


def _hub_config(repository: str) -> dict[str, Any]:
    require_hub_files(repository, (_CONFIG_FILE,))
    path = _fetched(lambda: download_pretrained_from_hf(repository, _CONFIG_FILE), repository)
    return _folder_config(Path(path).parent)


def _fetched(download: Callable[[], str], name: str) -> str:
    try:
        return download()
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"'{name}' cannot be fetched: {error}") from error


def _folder_config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8"))
        return {**found, "model_cfg": found["model_cfg"]}
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"no usable {_CONFIG_FILE}: {error}",
            place=str(folder),
            hint="Expected a folder as open_clip's push_to_hf_hub writes it.",
        ) from error


def _weights_in(folder: Path) -> str:
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return str(folder / name)
    raise WeightsError(f"none of {', '.join(_WEIGHT_FILES)} here.", place=str(folder))


def _with_pixels(resolved: Resolved, preprocess: dict[str, Any]) -> Resolved:
    mean, std = preprocess.get("mean"), preprocess.get("std")
    return replace(resolved, mean=tuple(mean or resolved.mean), std=tuple(std or resolved.std))


def _called(config: ClipConfig) -> str:
    return f"'{config.model}'" if isinstance(config.model, str) else "a model that is written out"


def _build(resolved: Resolved, name: str) -> Any:
    architecture = deepcopy(resolved.architecture)
    # Weights come from one checkpoint or not at all; the parts must not fetch their own.
    if "timm_model_name" in architecture["vision_cfg"]:
        architecture["vision_cfg"]["timm_model_pretrained"] = False
    hugging_face_text = "hf_model_name" in architecture["text_cfg"]
    if hugging_face_text:
        architecture["text_cfg"]["hf_model_pretrained"] = False
    custom = architecture.pop("custom_text", False) or hugging_face_text
    network = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    if "multimodal_cfg" in architecture:
        network = open_clip.CoCa
    try:
        model = network(**architecture)
    except Exception as error:  # open_clip asserts, and passes unknown settings on to whatever raises
        raise WeightsError(
            f"open_clip cannot build the network of '{name}': {type(error).__name__}: {error}",
            hint="`model` must be a model configuration as open_clip's own files have it.",
        ) from error
    if resolved.weights is not None:
        try:
            load_checkpoint(model, resolved.weights, weights_only=True)
        except Exception as error:  # torch, safetensors and pickle each have their own
            raise WeightsError(
                f"the weights do not fit the network of '{name}' or are damaged: {error}",
                place=resolved.weights,
                hint="`model` must be the architecture that the weights were trained with.",
            ) from error
    return model
