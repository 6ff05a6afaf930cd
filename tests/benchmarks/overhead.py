"""What the engine adds to a step: a stage against a bare PyTorch loop over the same batches."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from geobind_core import StageContext
from geobind_core.config.models import AlignConfig
from geobind_core.data.loading import TrainingBatches, batches
from geobind_core.data.samples import SampleReader

from .data import small_clip, table_source, tiny_clip, write_table, write_weights
from .measure import Settings, median, synchronise, timed
from .results import Goal, Row
from .stage import train_copies, with_stage

NAME = "overhead"
_KEPT_MIB = 1024


def run(settings: Settings) -> list[Row]:
    """A step of the stage, a step of the bare loop, and so on, in one process.

    The bare loop goes on whenever the stage has taken a loss, so that whatever else the machine does
    slows both. It has copies of the same encoders, the same frozen embeddings, AdamW with the same
    settings, cross-entropy both ways, and either the same loader or batches that are ready. The
    engine writes to its log every ten steps, so ten steps make one figure.
    """
    architecture = tiny_clip() if settings.quick else small_clip()
    batch_size, block, blocks = (8, 2, 2) if settings.quick else (32, 10, 2 + settings.repeats)
    rows = batch_size * block
    weights = write_weights(architecture, settings.folder / "weights")
    modalities = ("satellite", "ground_image")
    table = write_table(settings.folder / "table.csv", dict.fromkeys(modalities, range(rows)))
    memory_image = {"plugin": "memory_image", "model": architecture}
    document = {
        "binding": "satellite",
        "modalities": {"satellite": memory_image, "ground_image": {**memory_image, "pretrained": str(weights)}},
        "data": {"pairs": table_source(table, modalities)},
        "stages": [
            {
                "name": "satellite",
                "train": "satellite",
                "anchor": "ground_image",
                "data": "pairs",
                "batch_size": batch_size,
                "epochs": 2 + blocks,  # the first is for warming up; a step is whole when the next one begins
            }
        ],
    }
    raw = with_stage(document, settings.folder, lambda config, context: _alternate(config, context, block, settings))
    ours, same_loader, ready = (median(raw[side]) for side in ("engine", "bare, same loader", "bare, batches ready"))
    return [
        Row(
            NAME,
            "a step, data read alike",
            "ms",
            ours * 1e3,
            same_loader * 1e3,
            "bare loop, same loader",
            ours / same_loader,
            Goal("<=", 1.03),
            f"batch {batch_size}, anchors cached, trackers and log at their defaults",
            raw,
        ),
        Row(
            NAME,
            "a step, reading counted",
            "ms",
            ours * 1e3,
            ready * 1e3,
            "bare loop, batches ready",
            ours / ready,
            note="for information: what transforming and collating in the same process costs",
            raw=raw,
        ),
    ]


def _alternate(config: AlignConfig, context: StageContext, block: int, settings: Settings) -> dict[str, list[float]]:
    loaded = _loader(config, context, settings.device)
    bare = {
        "bare, same loader": _bare_loop(config, context, loaded, settings.device),
        "bare, batches ready": _bare_loop(
            config, context, list(_loader(config, context, settings.device)), settings.device
        ),
    }
    for steps in bare.values():
        next(steps)  # as the engine has done, by then
    steps_of: dict[str, list[float]] = {"engine": [], **{side: [] for side in bare}}
    since: list[float] = []

    def on_step(step: int) -> None:
        if since:
            steps_of["engine"].append(_clock() - since.pop())
            for side, steps in bare.items():
                steps_of[side].append(timed(lambda steps=steps: next(steps)))
        since.append(_clock())

    train_copies(config, context, on_step=on_step)
    return {side: _means(seconds, block) for side, seconds in steps_of.items()}


def _means(seconds: list[float], block: int) -> list[float]:
    """Returns the mean of each block of steps but the first, in which all sides warm up."""
    return [sum(seconds[i : i + block]) / block for i in range(block, len(seconds) - block + 1, block)]


def _clock() -> float:
    synchronise()
    return time.perf_counter()


def _loader(config: AlignConfig, context: StageContext, device: torch.device) -> Iterable[dict[str, Any]]:
    """Returns the batches of the stage, as the engine reads them."""
    assert context.data is not None
    name = config.train[0]
    reader = SampleReader(context.data, name, context.modalities[name], train=True, seed=0)
    reader.keep_up_to(_KEPT_MIB * 2**20)
    order = TrainingBatches(context.data.rows("train", [name]), config.batch_size, 3 * config.epochs, seed=0)
    return batches({name: reader}, order, workers=0, pin_memory=device.type == "cuda")


def _bare_loop(
    config: AlignConfig, context: StageContext, loaded: Iterable[dict[str, Any]], device: torch.device
) -> Iterator[None]:
    """Trains a copy of the encoder as one would without an engine; a step for each `next`."""
    name, anchor = config.train[0], (config.anchor or [""])[0]
    encoder = copy.deepcopy(context.encoders[name]).to(device)
    encoder.unfreeze()
    frozen = _embeddings(context, anchor, device)
    log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07), device=device))
    parameters = [*encoder.parameters(), log_scale]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.optimizer.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=config.optimizer.lr,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
    )
    for batch in loaded:
        embedded = encoder(batch["inputs"][name].to(device, non_blocking=True)).embedding
        logits = log_scale.exp() * embedded @ frozen[batch["rows"]].to(device).T
        own = torch.arange(len(logits), device=device)
        loss = (nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.T, own)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            log_scale.clamp_(0, math.log(100))
        yield


def _embeddings(context: StageContext, anchor: str, device: torch.device) -> torch.Tensor:
    """Returns `[N, D]` of all rows of the data set, in main memory, as the engine keeps them."""
    assert context.data is not None
    modality, encoder = context.modalities[anchor], copy.deepcopy(context.encoders[anchor]).to(device)
    encoder.freeze()
    reader = SampleReader(context.data, anchor, modality, train=False, seed=0)
    samples = [reader.finish(reader.read(row), row, 0) for row in range(len(context.data))]
    with torch.no_grad():
        parts = [
            encoder(modality.collate(samples[i : i + 64]).to(device)).embedding.cpu()
            for i in range(0, len(samples), 64)
        ]
    return torch.cat(parts)
