"""The whole stage against open_clip's own training script, with one of the two towers locked."""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from geobind_core import StageContext
from geobind_core.config.models import AlignConfig

from .data import Architecture, captions, small_clip, table_source, tiny_clip, write_photos, write_table, write_weights
from .measure import Settings, interleaved, median
from .results import Goal, Row
from .stage import train_copies, with_stage

NAME = "open_clip_train"
_MODEL = "geobind-benchmark"
_WORKERS = 2


@dataclass(frozen=True)
class _Case:
    """A comparison.

    Attributes:
        train: `text` with the image tower locked, or `satellite` with the text tower locked.
        epochs: Epochs of our stage, the pass that embeds the anchor counted. Those of open_clip are
            all alike, so two of them tell its rate.
    """

    what: str
    train: str
    pairs: int
    side: int
    epochs: int
    batch_size: int
    goal: Goal | None = None


def run(settings: Settings) -> list[Row]:
    """The same pairs, network, batch size, optimizer, precision, threads and loader processes for both."""
    architecture = tiny_clip() if settings.quick else small_clip()
    weights = write_weights(architecture, settings.folder / "weights")
    return [
        _compare(case, architecture, weights, replace(settings, folder=settings.folder / str(i)))
        for i, case in enumerate(_cases(settings))
    ]


def _cases(settings: Settings) -> list[_Case]:
    if settings.quick:
        return [
            _Case("text, image tower locked", "text", 16, 64, 2, 8, Goal(">=", 1.4)),
            _Case("image, text tower locked", "satellite", 16, 64, 2, 8),
        ]
    return [
        _Case("text, image tower locked, 96 x 96 JPEG", "text", 768, 96, 10, 64, Goal(">=", 1.4)),
        _Case("text, image tower locked, 800 x 800 JPEG", "text", 384, 800, 10, 64, Goal(">=", 2.0)),
        _Case("image, text tower locked, 96 x 96 JPEG", "satellite", 512, 96, 2, 64),
    ]


def _compare(case: _Case, architecture: Architecture, weights: Path, settings: Settings) -> Row:
    photos = write_photos(settings.folder / "photos", "photo", case.pairs, case.side)
    texts = captions(case.pairs)
    document = _document(case, architecture, weights, settings.folder, photos, texts)
    theirs = _OpenClip(case, architecture, weights, settings.folder, photos, texts)

    def compare(config: AlignConfig, context: StageContext) -> dict[str, list[float]]:
        ours = _ours(config, context, case, settings.folder)
        for side in (ours, theirs):
            side(epochs=1)
        return interleaved(
            {"geobind": lambda: ours(epochs=case.epochs), NAME: lambda: theirs(epochs=2)}, settings.repeats
        )

    raw = with_stage(document, settings.folder, compare)
    ours, peer = median(raw["geobind"]), median(raw[NAME])
    note = f"{case.pairs} pairs, batch {case.batch_size}, fp32, {_WORKERS} workers each; {case.epochs} epochs, " + (
        "embedding the anchor counted" if case.goal else "for information"
    )
    return Row(NAME, case.what, "samples/s", ours, peer, NAME, ours / peer, case.goal, note, raw)


def _document(
    case: _Case, architecture: Architecture, weights: Path, folder: Path, photos: list[Path], texts: list[str]
) -> dict[str, Any]:
    anchor = "text" if case.train == "satellite" else "satellite"
    modality = {"model": architecture, "pretrained": str(weights)}
    table = write_table(folder / "table.csv", {"satellite": photos, "text": texts})
    return {
        "binding": "satellite",
        "modalities": {"satellite": modality, "text": modality},
        "data": {"pairs": table_source(table, ("satellite", "text"))},
        "mixed_precision": "no",
        "loader": {"workers": _WORKERS},
        "stages": [
            {
                "name": "stage",
                "train": case.train,
                "anchor": anchor,
                "data": "pairs",
                "batch_size": case.batch_size,
                "epochs": case.epochs,
                # What open_clip's script does to every image that it trains on.
                "augment": {"satellite": "random_resized_crop(0.9)"} if case.train == "satellite" else {},
                "optimizer": {"lr": 5e-4, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.2},
            }
        ],
    }


def _ours(config: AlignConfig, context: StageContext, case: _Case, folder: Path) -> Callable[..., float]:
    """Returns a run of our stage, which returns its samples per second; anchors are never cached before."""
    runs = iter(range(10**6))

    def rate(epochs: int) -> float:
        with mock.patch.dict(os.environ, GEOBIND_CACHE=str(folder / f"cache{next(runs)}")):
            trace = train_copies(config, context, epochs=epochs)
        return len(trace.losses) * case.batch_size / trace.seconds

    return rate


class _OpenClip:
    """`python -m open_clip_train.main`, in this process and with a clock around its epochs.

    Called, it returns samples per second. What comes before the first epoch and after the last is not
    counted: building networks, reading the table, writing the checkpoint.
    """

    def __init__(
        self,
        case: _Case,
        architecture: Architecture,
        weights: Path,
        folder: Path,
        photos: list[Path],
        texts: list[str],
    ) -> None:
        import open_clip

        self._case, self._folder, self._runs = case, folder, 0
        described = folder / f"{_MODEL}.json"
        described.write_text(json.dumps(architecture))
        open_clip.add_model_config(described)
        self._weights = weights / "open_clip_model.safetensors"
        self._table = write_table(folder / "open_clip.csv", {"filepath": photos, "title": texts}, held_out=0)

    def __call__(self, epochs: int) -> float:
        from open_clip_train import main as script

        self._runs += 1
        seconds: list[float] = []
        train_one_epoch = script.train_one_epoch

        def clocked(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = train_one_epoch(*arguments, **named)
            seconds.append(time.perf_counter() - started)
            return result

        level, handlers = logging.root.level, list(logging.root.handlers)
        logging.root.handlers = [logging.NullHandler()]
        logging.root.setLevel(logging.INFO)  # lines are made, as its own set-up has it, and shown to nobody
        try:
            with (
                mock.patch.object(script, "train_one_epoch", clocked),
                mock.patch.object(script, "setup_logging"),
                warnings.catch_warnings(action="ignore"),  # its loaders ask for pinned memory, on a CPU too
            ):
                script.main(self._arguments(epochs))
        finally:
            logging.root.handlers = handlers
            logging.root.setLevel(level)
        steps = self._case.pairs // self._case.batch_size
        return epochs * steps * self._case.batch_size / sum(seconds)

    def _arguments(self, epochs: int) -> list[str]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        text_locked = self._case.train == "satellite"
        lock = ["--lock-text", "--lock-text-freeze-layer-norm"] if text_locked else ["--lock-image"]
        options = {
            "--model": _MODEL,
            "--pretrained": self._weights,
            "--train-data": self._table,
            "--dataset-type": "csv",
            "--csv-separator": ",",
            "--batch-size": self._case.batch_size,
            "--epochs": epochs,
            "--workers": _WORKERS,
            "--precision": "fp32",
            "--device": device,
            "--lr": 5e-4,
            "--beta1": 0.9,
            "--beta2": 0.98,
            "--eps": 1e-6,
            "--wd": 0.2,
            "--lr-scheduler": "const",
            "--warmup": 1,
            "--save-frequency": 0,
            "--logs": self._folder / "logs",
            "--name": f"run{self._runs}",
        }
        return [*lock, *(str(part) for pair in options.items() for part in pair)]
