"""Folders that `transformers` opens: a CLIPModel, or one of its towers with its projection."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from geobind_core import Exporter, ExportError, ExportPart, Modality, Written
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
from geobind_plugin_imagery.transformers_names import WEIGHTS, converted, stored_as

# Settings of open_clip that change a transformer, with the only values that CLIPModel knows.
_ONLY: dict[str, tuple[Any, ...]] = {
    "ls_init_value": (None,),
    "attentional_pool": (False, None),
    "no_ln_pre": (False,),
    "block_type": (None, "default"),
    "qk_norm": (False,),
    "scaled_cosine_attn": (False,),
    "scale_heads": (False,),
    "scale_attn_inner": (False,),
    "scale_attn": (False,),
    "scale_fc": (False,),
    "timm_model_name": (None,),
    "hf_model_name": (None,),
    "hf_tokenizer_name": (None, ""),
    "tokenizer_kwargs": (None, {}),
    "act_kwargs": (None, {}),
    "embed_cls": (False,),
    "no_causal_mask": (False,),
    "proj_bias": (False,),
    "proj_type": ("linear",),
}
_POOLING = {"vision_cfg": "tok", "text_cfg": "argmax"}


class TransformersExporter(Exporter):
    """A vision transformer, and a text transformer where there is one, as CLIPModel of transformers."""

    library = "transformers"

    def choose(self, wanted: Sequence[str], modalities: Mapping[str, Modality[Any]]) -> Sequence[str]:
        chosen = together(wanted, modalities, self.library, needs_text=False)
        # A text tower that nobody asked for, and that CLIPModel does not know, is left out.
        return [name for name in chosen if name in wanted or not _unknown(modalities[name].config.model, "text_cfg")]

    def write(self, parts: Sequence[ExportPart], folder: Path, *, logit_scale: float | None) -> Written:
        import transformers
        from safetensors.torch import save

        towers = [tower_of(part) for part in parts]
        settings = {tower.is_text: _config(tower) for tower in towers}
        stored = {tower.part.name: stored_as(tower) for tower in towers}
        notes: list[str] = []
        state: dict[str, torch.Tensor] = {}
        for tower in towers:
            state |= converted(tower, stored[tower.part.name])
        if len(towers) == 2:
            config = transformers.CLIPConfig(
                vision_config=settings[False].to_dict(),
                text_config=settings[True].to_dict(),
                projection_dim=parts[0].embed_dim,
            )
            kind, scale = "CLIPModel", math.log(logit_scale or USUAL_SCALE)
            config.logit_scale_init_value = scale
            state["logit_scale"] = torch.tensor(scale)
            notes.append(f"a CLIPModel: the image tower is '{parts[0].name}', the text tower '{parts[1].name}'")
            if logit_scale is None:
                notes.append(UNKNOWN_SCALE)
        else:
            config = next(iter(settings.values()))
            kind = "CLIPTextModelWithProjection" if towers[0].is_text else "CLIPVisionModelWithProjection"
            notes.append(f"a {kind} of '{parts[0].name}' alone")
        for part in parts:
            notes += preprocessing_notes(part)
        config.architectures, config.dtype = [kind], torch.float32
        config.save_pretrained(folder)
        for processor in _processors(towers):
            processor.save_pretrained(folder)
        (folder / WEIGHTS).write_bytes(save(state, metadata={"format": "pt"}))
        return Written(stored, f'transformers.{kind}.from_pretrained("{{folder}}")', notes)

    def embed(self, folder: Path, part: ExportPart, samples: Sequence[Any]) -> torch.Tensor:
        import transformers

        config = transformers.AutoConfig.from_pretrained(folder)
        kind: Any = getattr(transformers, config.architectures[0])
        with _without_bars():
            model, report = kind.from_pretrained(folder, output_loading_info=True)
        # transformers makes up what a file does not have, and only says so.
        if report["missing_keys"]:
            raise ExportError(f"transformers misses {', '.join(sorted(report['missing_keys']))}.")
        model.eval()
        if isinstance(samples[0], str):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            inputs = tokenizer(list(samples), padding=True, truncation=True, return_tensors="pt")
            return _features(model.get_text_features if kind is transformers.CLIPModel else model, inputs)
        processor = transformers.CLIPImageProcessor.from_pretrained(folder)
        inputs = processor(as_pictures(samples), return_tensors="pt")
        return _features(model.get_image_features if kind is transformers.CLIPModel else model, inputs)


def _features(embed: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Returns `[B, D]`, by whatever name the model and the version of transformers have for it."""
    found = embed(**inputs)
    names = ("image_embeds", "text_embeds", "pooler_output")
    embeddings: torch.Tensor = found
    if not isinstance(found, torch.Tensor):
        embeddings = next(getattr(found, name) for name in names if getattr(found, name, None) is not None)
    return embeddings


@contextmanager
def _without_bars() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging  # some of its functions have no types
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


# ---------------------------------------------------------------------- settings


def _unknown(architecture: Any, kind: str) -> list[str]:
    """Returns what a tower has that CLIPModel has not, in words."""
    if not isinstance(architecture, Mapping):
        return []
    settings = architecture[kind]
    if settings.get("timm_model_name"):
        return [f"the timm model {settings['timm_model_name']}"]
    if settings.get("hf_model_name"):
        return [f"the text model {settings['hf_model_name']}"]
    if isinstance(settings.get("layers"), list | tuple):
        return [f"a ResNet (layers: {list(settings['layers'])})"]
    found = [f"{key}: {settings[key]}" for key, values in _ONLY.items() if settings.get(key, values[0]) not in values]
    pooling = settings.get("pool_type", _POOLING[kind])
    if pooling != _POOLING[kind]:
        found.append(f"pool_type: {pooling}")
    found += [f"norm_kwargs.{key}" for key in settings.get("norm_kwargs") or {} if key != "eps"]
    if kind == "vision_cfg":
        sizes = {key: settings.get(key) for key in ("image_size", "patch_size")}
        found += [
            f"{key}: {size}" for key, size in sizes.items() if isinstance(size, list | tuple) and len({*size}) > 1
        ]
    if "multimodal_cfg" in architecture:
        found.append("multimodal_cfg")
    return found


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, list | tuple) else size)


def _config(tower: Tower) -> Any:
    """Returns the configuration of a tower in transformers.

    Raises:
        ExportError: CLIPModel has not what the tower has.
    """
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg
    from transformers import CLIPTextConfig, CLIPVisionConfig

    kind = "text_cfg" if tower.is_text else "vision_cfg"
    unknown = _unknown(tower.architecture, kind)
    if unknown:
        raise ExportError(
            f"'{tower.part.name}' cannot be a CLIP of transformers, which does not know {', '.join(unknown)}.",
            hint="`--to open_clip`, `--to onnx` and `--to hub` take it.",
        )
    settings = (CLIPTextCfg if tower.is_text else CLIPVisionCfg)(**tower.architecture[kind])
    shared: dict[str, Any] = {
        "hidden_size": settings.width,
        "intermediate_size": int(settings.width * settings.mlp_ratio),
        "num_hidden_layers": settings.layers,
        "projection_dim": tower.part.embed_dim,
        "hidden_act": "quick_gelu" if tower.architecture.get("quick_gelu") else "gelu",
        "layer_norm_eps": (settings.norm_kwargs or {}).get("eps", 1e-5),
    }
    if not tower.is_text:
        return CLIPVisionConfig(
            **shared,
            num_attention_heads=settings.width // settings.head_width,
            image_size=_side(settings.image_size),
            patch_size=_side(settings.patch_size),
        )
    words = _words(settings.context_length)
    return CLIPTextConfig(
        **shared,
        num_attention_heads=settings.heads,
        vocab_size=settings.vocab_size,
        max_position_embeddings=settings.context_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


@lru_cache(maxsize=2)
def _words(context_length: int) -> Any:
    """Returns the tokenizer of CLIP for transformers, out of the vocabulary that comes with open_clip."""
    from open_clip import SimpleTokenizer
    from transformers import CLIPTokenizer

    words = SimpleTokenizer()
    merges = [tuple(pair) for pair, _ in sorted(words.bpe_ranks.items(), key=lambda item: item[1])]
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in words.encoder.items()}
    make: Any = CLIPTokenizer  # whose types know merges as lines of a file only
    return make(vocab=vocabulary, merges=merges, model_max_length=context_length)


def _processors(towers: Sequence[Tower]) -> list[Any]:
    """Returns what prepares pictures and words; each alone, for versions before 5, and both in one."""
    from transformers import CLIPImageProcessor, CLIPProcessor

    pair: Any = CLIPProcessor  # has no types
    made: dict[str, Any] = {}
    for tower in towers:
        if tower.is_text:
            made["tokenizer"] = _words(tower.architecture["text_cfg"].get("context_length", 77))
            continue
        side = _side(tower.architecture["vision_cfg"].get("image_size", 224))
        mean, std = pixel_statistics(tower.part)
        made["image_processor"] = CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_mean=mean, image_std=std
        )
    return [*made.values(), *([pair(**made)] if len(made) == 2 else [])]
