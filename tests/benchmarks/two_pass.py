"""A step in four slices against a step of the whole batch: time, and what it keeps in memory."""

from __future__ import annotations

from typing import Any, NamedTuple

from geobind_core import StageContext
from geobind_core.config.models import AlignConfig

from .data import Architecture, small_clip, table_source, tiny_clip, vit_b_32, write_table, write_weights
from .measure import KeptForBackward, Settings, interleaved, median
from .results import Goal, Row
from .stage import copies, train_copies, with_stage

NAME = "two_pass"
_SLICES = 4


class _Case(NamedTuple):
    name: str
    architecture: Architecture
    batch_size: int
    steps: int


def run(settings: Settings) -> list[Row]:
    """The same stage with and without `micro_batch_size`, for a network of real size and for a small one."""
    cases = [_Case("ViT-B-32", vit_b_32(), 128, 2), _Case("6 layers of width 192", small_clip(), 128, 6)]
    if settings.quick:
        cases = [_Case("tiny", tiny_clip(), 16, 2)]
    return [row for case in cases for row in _stage(case, settings)]


def _stage(case: _Case, settings: Settings) -> list[Row]:
    name, architecture, batch_size, steps = case
    folder = settings.folder / name.replace(" ", "_")
    folder.mkdir()
    weights = write_weights(architecture, folder / "weights")
    modalities = ("satellite", "ground_image")
    table = write_table(folder / "table.csv", dict.fromkeys(modalities, range(batch_size * 2)))
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
    return with_stage(document, folder, lambda config, context: _compare(name, config, context, settings))


def _compare(name: str, config: AlignConfig, context: StageContext, settings: Settings) -> list[Row]:
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
            f"{name}: a step of {config.batch_size} in {_SLICES} slices",
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
            f"{name}: kept for the backward pass",
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
