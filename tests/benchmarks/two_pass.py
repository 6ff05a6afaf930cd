"""A step in four slices against a step of the whole batch: time, and what it keeps in memory."""

from __future__ import annotations

from typing import Any

from geobind_core import StageContext
from geobind_core.config.models import AlignConfig

from .data import small_clip, table_source, tiny_clip, write_table, write_weights
from .measure import KeptForBackward, Settings, interleaved, median
from .results import Goal, Row
from .stage import copies, train_copies, with_stage

NAME = "two_pass"
_SLICES = 4


def run(settings: Settings) -> list[Row]:
    """The same stage with and without `micro_batch_size`."""
    architecture = tiny_clip() if settings.quick else small_clip()
    batch_size, steps = (16, 2) if settings.quick else (128, 6)
    weights = write_weights(architecture, settings.folder / "weights")
    modalities = ("satellite", "ground_image")
    table = write_table(settings.folder / "table.csv", dict.fromkeys(modalities, range(batch_size * 2)))
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
                "epochs": steps // 2,
            }
        ],
    }
    return with_stage(document, settings.folder, lambda config, context: _compare(config, context, settings))


def _compare(config: AlignConfig, context: StageContext, settings: Settings) -> list[Row]:
    micro = config.batch_size // _SLICES
    steps: dict[str, list[float]] = {"two passes": [], "one pass": []}

    def seconds(side: str, **changes: Any) -> float:
        found = train_copies(config, context, **changes).step_seconds()
        steps[side] += found
        return median(found)

    interleaved(
        {
            "two passes": lambda: seconds("two passes", micro_batch_size=micro),
            "one pass": lambda: seconds("one pass"),
        },
        settings.repeats,
    )
    ours, plain = median(steps["two passes"]), median(steps["one pass"])
    kept = {
        "two passes": _kept(config, context, epochs=1, micro_batch_size=micro),
        "one pass of a slice": _kept(config, context, epochs=1, batch_size=micro),
    }
    two, one = kept["two passes"], kept["one pass of a slice"]
    return [
        Row(
            NAME,
            f"a step of {config.batch_size} in {_SLICES} slices",
            "ms",
            ours * 1e3,
            plain * 1e3,
            "in one pass",
            ours / plain,
            Goal("<=", 1.30),
            raw=steps,
        ),
        Row(
            NAME,
            "kept for the backward pass",
            "MiB",
            two,
            one,
            f"a plain step of {micro}",
            two / one,
            Goal("<=", 1.1),
            f"batch {config.batch_size} in slices of {micro}; tensors that autograd holds at one time",
            {side: [value] for side, value in kept.items()},
        ),
    ]


def _kept(config: AlignConfig, context: StageContext, **changes: Any) -> float:
    networks = copies(context)
    with KeptForBackward(networks.values()).counting() as count:
        train_copies(config, context, networks, **changes)
    return count.peak / 2**20
