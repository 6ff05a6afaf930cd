"""The tensors of an open_clip tower by the names that CLIPModel of transformers has for them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from geobind_core import ExportError, Stored
from geobind_plugin_imagery.clip_parts import Tower

WEIGHTS = "model.safetensors"

_BLOCK = {
    "ln_1.weight": "layer_norm1.weight",
    "ln_1.bias": "layer_norm1.bias",
    "attn.out_proj.weight": "self_attn.out_proj.weight",
    "attn.out_proj.bias": "self_attn.out_proj.bias",
    "ln_2.weight": "layer_norm2.weight",
    "ln_2.bias": "layer_norm2.bias",
    "mlp.c_fc.weight": "mlp.fc1.weight",
    "mlp.c_fc.bias": "mlp.fc1.bias",
    "mlp.c_proj.weight": "mlp.fc2.weight",
    "mlp.c_proj.bias": "mlp.fc2.bias",
}
_SPLIT = {"attn.in_proj_weight": "weight", "attn.in_proj_bias": "bias"}
_IMAGE = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
}
_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_PROJECTIONS = {"proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def stored_as(tower: Tower) -> dict[str, Stored]:
    """Returns where each tensor of a tower goes: other names, and queries, keys and values apart."""
    before, side, known = ("", "text_model", _TEXT) if tower.is_text else ("visual.", "vision_model", _IMAGE)
    if any(name.startswith("text.") for name in tower.state):
        before = "text."  # of a CustomTextCLIP
    found: dict[str, Stored] = {}
    names: tuple[str, ...]
    for name in tower.state:
        own = name.removeprefix(before)
        layer = own.removeprefix("transformer.resblocks.")
        if own in known:
            names, transposed = (known[own],), False
        elif own in _PROJECTIONS or own == "text_projection.weight":
            names, transposed = (_PROJECTIONS[own.removesuffix(".weight")],), own in _PROJECTIONS
        elif layer != own and layer.partition(".")[2] in _BLOCK:
            number, _, rest = layer.partition(".")
            names, transposed = (f"{side}.encoder.layers.{number}.{_BLOCK[rest]}",), False
        elif layer != own and layer.partition(".")[2] in _SPLIT:
            number, _, rest = layer.partition(".")
            attention = f"{side}.encoder.layers.{number}.self_attn"
            names, transposed = tuple(f"{attention}.{part}_proj.{_SPLIT[rest]}" for part in "qkv"), False
        else:
            raise ExportError(f"CLIP of transformers has no tensor for {name} of '{tower.part.name}'.")
        found[tower.prefix + name] = Stored(WEIGHTS, names, transposed)
    return found


def converted(tower: Tower, stored: Mapping[str, Stored]) -> dict[str, torch.Tensor]:
    """Returns the tensors of a tower as they are written."""
    found = {}
    for name, tensor in tower.state.items():
        where = stored[tower.prefix + name]
        whole = tensor.T if where.transposed else tensor
        for target, part in zip(where.tensors, whole.chunk(len(where.tensors)), strict=True):
            found[target] = part.contiguous().clone()
    return found
