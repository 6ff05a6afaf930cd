"""How well the extended example knows where things are: places for tiles, and tiles for places.

What is judged is no speed but what the chain of `examples/extend_chain` reaches on held-out places of the
synthetic Earth, against a random guess.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from geobind_plugin_location.location import Location
from rich.console import Console

from geobind_core import Space
from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.execute import run_chain
from geobind_core.chain.resolve import load_chain
from geobind_core.chain.run_folder import RunFolder
from geobind_core.data.geography import Places, great_circle_km
from geobind_core.data.paired import PairedData
from geobind_core.progress import Reporter

from .measure import ROOT, Settings, median
from .results import Goal, Row

NAME = "location"
_NEAR_KM = 5000.0
_GUESS = "random guess"


def run(settings: Settings) -> list[Row]:
    """Trains the example's stages that location needs, once; as a gallery, places uniform on the sphere."""
    path = settings.folder / "stages.yaml"
    path.write_text(yaml.safe_dump(_document(quick=settings.quick)), encoding="utf-8")
    chain = load_chain(path, plugin_manager())
    metrics = run_chain(chain, RunFolder(settings.folder / "run"), Reporter(Console(stderr=True, quiet=True)))
    assert metrics is not None
    pair = metrics["pairs"]["location_to_satellite"]
    found, chance = pair["recall@10"], pair["chance_recall@10"]
    note = f"a gallery of {pair['gallery']} held-out tiles"
    recall = Row(
        NAME, "recall@10, location to satellite", "", found, chance, _GUESS, found / chance, Goal(">=", 10), note
    )
    observations = chain.sources["earth"].observations()
    data = PairedData("earth", observations, chain.sources["earth"].config)
    return [recall, *_errors(Space.load(settings.folder / "run"), data, 1000 if settings.quick else 10_000)]


def _errors(space: Space, data: PairedData, size: int) -> list[Row]:
    """The place whose embedding is nearest to that of a held-out tile, among `size` places."""
    rng = np.random.default_rng(7)
    gallery = np.array([Location(Location.Config()).draw(rng) for _ in range(size)])
    rows = data.rows("test", ["satellite"])
    tiles = space.embed("satellite", [data.cell("satellite", row, is_file=True) for row in rows.tolist()])
    nearest = space.similarity(tiles, space.embed("location", gallery)).argmax(dim=1).numpy()
    assert data.places is not None
    truth, drawn = data.places.take(rows), Places.of(gallery[:, 0], gallery[:, 1])
    ours = great_circle_km(truth, drawn.take(nearest))
    guesses = np.concatenate(
        [great_circle_km(truth, drawn.take(rng.integers(size, size=len(rows)))) for _ in range(50)]
    )
    note = f"the nearest of {size} places uniform on the sphere, for {len(rows)} held-out tiles"
    error, guess = median(ours.tolist()), median(guesses.tolist())
    near, by_chance = float((ours < _NEAR_KM).mean()), float((guesses < _NEAR_KM).mean())
    return [
        Row(NAME, "median error, satellite to place", "km", error, guess, _GUESS, error / guess, Goal("<=", 0.5), note),
        Row(NAME, f"share of errors below {_NEAR_KM:.0f} km", "", near, by_chance, _GUESS, near / by_chance, note=note),
    ]


def _document(*, quick: bool) -> dict[str, Any]:
    """Returns the example, without the stages that location does not build on."""
    example = Path(ROOT / "examples/extend_chain/stages.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(example)
    for name in ("audio", "environment"):
        del document["modalities"][name]
    document["stages"] = [s for s in document["stages"] if s["name"] in ("clip", "satellite", "location")]
    document["data"]["earth"]["root"] = "earth"
    document["log_with"] = []
    if quick:
        document["data"]["earth"] |= {"places": 80, "held_out": 20, "seconds": 0.1}
        for stage in document["stages"]:
            stage |= {"batch_size": 30, "epochs": 1}
    return document
