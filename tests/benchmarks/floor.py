"""Real stages on an accelerator: how close they come to what its arithmetic allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from geobind_core import StageContext
from geobind_core.config.models import AlignConfig

from .data import Architecture, table_source, tiny_clip, vit_b_32, write_table, write_weights
from .measure import Settings, median, timed
from .results import Goal, Row
from .stage import train_copies, with_stage

FIRST, SECOND = "gpu_stage_1", "gpu_stage_2"
_EVERY = 10
_TINY_HTSAT = {
    "num_mel_bins": 32,
    "spec_size": 64,
    "patch_size": 4,
    "patch_stride": [4, 4],
    "window_size": 4,
    "patch_embeds_hidden_size": 16,
    "hidden_size": 32,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
}


@dataclass(frozen=True)
class _Case:
    """A stage with a cached anchor and samples from memory.

    Attributes:
        name: The benchmark's.
        what: The trained network and the batch.
        train: The trained modality: its name and settings.
        anchor: The frozen image tower.
        batch_size: Rows of a batch.
        rows: Rows of the data set.
        gflop: Forward and backward of one sample through the trained network, in GFLOP.
    """

    name: str
    what: str
    train: tuple[str, dict[str, Any]]
    anchor: Architecture
    batch_size: int
    rows: int
    gflop: float


def run_first(settings: Settings) -> list[Row]:
    """Stage 1: ViT-B-32 at batch 1,024."""
    tiny = settings.quick
    architecture, batch_size = (tiny_clip(), 8) if tiny else (vit_b_32(), 1024)
    train = ("satellite", {"plugin": "memory_image", "model": architecture})
    return _run(
        _Case(FIRST, f"ViT-B-32, batch {batch_size:,}", train, architecture, batch_size, 4 * batch_size, 25.9), settings
    )


def run_second(settings: Settings) -> list[Row]:
    """Stage 2: CLAP's HTSAT at batch 256, which fits into one pass, on 10 s of sound."""
    tiny = settings.quick
    batch_size = 8 if tiny else 256
    audio: dict[str, Any] = {"plugin": "memory_recording"}
    if tiny:
        features = {"fft_window": 512, "hop_length": 160, "max_hz": 7000.0}
        audio |= {"model": _TINY_HTSAT, "features": features, "sample_rate": 16_000, "seconds": 1.0}
    anchor = tiny_clip() if tiny else vit_b_32()
    case = _Case(SECOND, f"CLAP HTSAT, batch {batch_size}", ("audio", audio), anchor, batch_size, 4 * batch_size, 35.4)
    return _run(case, settings)


def _run(case: _Case, settings: Settings) -> list[Row]:
    measured = torch.cuda.is_available() and not settings.quick
    rate_name, share_name = f"{case.what}, bf16: rate", f"{case.what}, bf16: share of the floor"
    if not measured and not settings.quick:
        note = "no CUDA device"
        return [
            Row(case.name, rate_name, "samples/s", note=note),
            Row(case.name, share_name, "", goal=Goal(">=", 0.5), note=note),
        ]
    document = _document(case, settings)
    raw = with_stage(document, settings.folder, lambda config, context: _rates(config, context, case, settings))
    ours, matmul = median(raw["samples/s"]), median(raw["matmul TFLOP/s"])
    floor = matmul * 1e3 / case.gflop
    if not measured:  # the code has run, on networks that the figures of the floor are not meant for
        note = "rehearsed with a tiny network"
        return [
            Row(case.name, rate_name, "samples/s", note=note, raw=raw),
            Row(case.name, share_name, "", goal=Goal(">=", 0.5), note=note),
        ]
    note = f"{case.gflop} GFLOP a sample; torch.matmul in bf16 does {matmul:.0f} TFLOP/s here"
    return [
        Row(case.name, rate_name, "samples/s", ours, floor, "floor", raw=raw),
        Row(case.name, share_name, "", ours / floor, goal=Goal(">=", 0.5), note=note),
    ]


def _document(case: _Case, settings: Settings) -> dict[str, Any]:
    name, modality = case.train
    weights = write_weights(case.anchor, settings.folder / "weights")
    modalities = (name, "ground_image")
    table = write_table(settings.folder / "table.csv", dict.fromkeys(modalities, range(case.rows)))
    steps_per_epoch = case.rows // case.batch_size
    return {
        "binding": "ground_image",
        "mixed_precision": "bf16",
        "modalities": {
            name: modality,
            "ground_image": {"plugin": "memory_image", "model": case.anchor, "pretrained": str(weights)},
        },
        "data": {"pairs": table_source(table, modalities)},
        "stages": [
            {
                "name": "stage",
                "train": name,
                "data": "pairs",
                "batch_size": case.batch_size,
                "epochs": -(-4 * _EVERY // steps_per_epoch),
            }
        ],
    }


def _rates(config: AlignConfig, context: StageContext, case: _Case, settings: Settings) -> dict[str, list[float]]:
    """Returns the rates of the stage and of the matrix unit, taken in turn."""
    raw: dict[str, list[float]] = {"samples/s": [], "matmul TFLOP/s": []}
    for _ in range(settings.repeats):
        raw["matmul TFLOP/s"].append(_matmul_rate(settings))
        steps = train_copies(config, context, every=_EVERY).step_seconds()
        raw["samples/s"] += [case.batch_size / seconds for seconds in steps]
    return raw


def _matmul_rate(settings: Settings) -> float:
    """Returns the TFLOP/s of large bf16 products."""
    side, count = (8192, 50) if settings.device.type == "cuda" else (256, 2)
    a, b = (torch.randn(side, side, device=settings.device, dtype=torch.bfloat16) for _ in range(2))

    def work() -> None:
        for _ in range(count):
            torch.matmul(a, b)

    timed(work)
    return 2 * side**3 * count / timed(work) / 1e12
