"""The networks, images and tables of the benchmarks: drawn from fixed seeds, in a temporary folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

Architecture = dict[str, Any]

_TOKENS = {"context_length": 32, "vocab_size": 49408}
_PHOTOS = 32
_WORDS = "river forest harbour field road town coast desert lake market bridge quarry orchard glacier railway farm"


def small_clip() -> Architecture:
    """A CLIP of real shape, small enough for a processor: 6 layers of width 192 on 96 x 96 pixels."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 96, "layers": 6, "width": 192, "head_width": 64, "patch_size": 16},
        "text_cfg": {**_TOKENS, "width": 128, "heads": 4, "layers": 4},
    }


def light_clip() -> Architecture:
    """A CLIP beside which reading an image takes most of the time: 2 layers, and 9 patches of 96 x 96 pixels."""
    small = small_clip()
    return {**small, "vision_cfg": {**small["vision_cfg"], "layers": 2, "patch_size": 32}}


def tiny_clip() -> Architecture:
    """A CLIP for `--quick`."""
    return {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {**_TOKENS, "width": 16, "heads": 1, "layers": 1},
    }


def vit_b_32() -> Architecture:
    """The image tower of open_clip's ViT-B-32; the text tower, which is not used, is small."""
    import open_clip

    architecture = dict(open_clip.get_model_config("ViT-B-32"))
    return {**architecture, "text_cfg": {**_TOKENS, "width": 64, "heads": 1, "layers": 1}}


def write_weights(architecture: Architecture, folder: Path) -> Path:
    """Writes random weights as open_clip's `push_to_hf_hub` does; anchors must have some."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    torch.manual_seed(1)
    network = open_clip.CLIP(**json.loads(json.dumps(architecture)))
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": architecture}))
    return folder


def write_photos(folder: Path, name: str, count: int, side: int, grain: float = 6) -> list[Path]:
    """Writes JPEG files of `side` x `side` pixels that take as long to decode as photos do.

    There are 32 different ones at most, under as many names as asked for. Of 800 x 800 pixels, those with the usual
    grain have 200 kB; with a grain of 2 they have half of that.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    encoded = []
    for i in range(min(count, _PHOTOS)):
        rng = np.random.default_rng([3, i])
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.float32)
        pixels += rng.normal(0, grain, (side, side, 1)).astype(np.float32)
        file = BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    paths = [folder / f"{name}_{i}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(encoded[i % len(encoded)])
    return paths


def captions(count: int) -> list[str]:
    """Returns texts of eight to fourteen words."""
    rng, words = np.random.default_rng(4), _WORDS.split()
    return [" ".join(rng.choice(words, rng.integers(8, 15))) + f" {i}" for i in range(count)]


def write_table(path: Path, columns: Mapping[str, Sequence[Any]], held_out: int = 4) -> Path:
    """Writes a CSV with keys and splits; the first rows once more are what is held out."""
    count = len(next(iter(columns.values())))
    rows = [(f"train{i}", "train", *(column[i] for column in columns.values())) for i in range(count)]
    rows += [(f"test{i}", "test", *(column[i] for column in columns.values())) for i in range(min(held_out, count))]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "split", *columns])
        writer.writerows(rows)
    return path


def table_source(path: Path, modalities: Sequence[str]) -> dict[str, Any]:
    """Returns the settings of such a table, as an entry of `data`."""
    return {
        "source": "table",
        "path": str(path),
        "fields": {name: name for name in modalities},
        "split": {"by": "column", "column": "split"},
    }
