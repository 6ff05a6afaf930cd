"""What maps of queries say of the synthetic Earth: rank correlation with what is really there, at held-out places.

What is judged is no speed. The default chain is run; tiles of held-out places are embedded, and each query is
drawn as a map of them. The values of the GeoTIFF at the places are compared with the truth that the planet keeps
to itself. The peer is a linear probe: a ridge regression from the same embeddings to the same truth, fitted on four
fifths of the held-out places and judged on the rest. It is told the truth, and a query is not: what it does not
find, the embeddings of the tiles hardly have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import rasterio
import soundfile
import yaml
from geobind_plugin_synthetic_earth.sounds import SOUNDS, make_loop
from rich.console import Console
from scipy.stats import spearmanr

from geobind_core import Space
from geobind_core.chain.builtin import plugin_manager
from geobind_core.chain.execute import run_chain
from geobind_core.chain.resolve import load_chain
from geobind_core.chain.run_folder import RunFolder
from geobind_core.data.paired import PairedData
from geobind_core.maps.extent import Extent
from geobind_core.maps.geotiff import Band, write_geotiff
from geobind_core.maps.grid import WGS_84, Resolution, make_grid
from geobind_core.maps.points import Points
from geobind_core.progress import Reporter

from .measure import ROOT, Settings, median
from .results import Goal, Row

NAME = "zero_shot_map"
TEXTS: dict[str, tuple[tuple[str, float | None], ...]] = {
    "water": (("waves on a beach", 0.6), ("the open sea", None), ("a wide stretch of water", None)),
    "forest": (("a forest", 0.5), ("a dense forest", None), ("a large forest", None)),
    "built": (("a town", 0.5), ("a busy town", None), ("a city", None)),
}
"""Cover -> what is asked for, and the rank correlation that it is to reach; None only informs."""

SOUND_OF = {"water": "surf", "forest": "leaves", "built": "voices"}
_MOST = 20
_TOGETHER, _DRAWS = 5, 40
_BANDS_AT_A_TIME = 16
_ALONE_DECIBELS = -22.0  # the loudest that a source is on the planet
_PROBE = "linear probe"
Floats = npt.NDArray[np.float64]


def run(settings: Settings) -> list[Row]:
    """Runs the default chain, and asks it."""
    document = yaml.safe_load((ROOT / "stages.yaml").read_text(encoding="utf-8"))
    document["data"]["earth"]["root"] = "earth"
    if settings.quick:
        document["data"]["earth"] |= {"places": 80, "held_out": 30, "seconds": 0.1}
        for stage in document["stages"]:
            stage |= {"batch_size": 30, "epochs": 1}
    path = settings.folder / "stages.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    chain = load_chain(path, plugin_manager())
    run_chain(chain, RunFolder(settings.folder / "run"), Reporter(Console(stderr=True, quiet=True)))
    return judge(Space.load(settings.folder / "run"), chain.sources["earth"], settings.folder)


def judge(space: Space, source: Any, folder: Path) -> list[Row]:
    """Compares maps with the truth.

    Args:
        space: The space of a run of the default chain.
        source: Its synthetic Earth.
        folder: Temporary.
    """
    data = PairedData("earth", source.observations(), source.config)
    rows = data.rows("test", ["satellite"])
    tiles, recordings = (
        space.embed(name, [data.cell(name, row, is_file=True) for row in rows.tolist()]).numpy()
        for name in ("satellite", "audio")
    )
    truth = pq.read_table(source.folder() / "truth.parquet").take(rows)
    assert data.places is not None
    places = data.places.take(rows)

    def on_map(queries: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Returns `[Q, N]`: of each query, the values that its map has at the places."""
        found = []
        for start in range(0, len(queries), _BANDS_AT_A_TIME):
            values = queries[start : start + _BANDS_AT_A_TIME] @ tiles.T
            grid = make_grid(Extent(-180, -90, 180, 90), WGS_84, Resolution(0.25))
            bands = [Band(str(start + number), "cosine similarity") for number in range(len(values))]
            write_geotiff(folder / "map.tif", grid, bands, Points(places, values, "nearest"), {})
            with rasterio.open(folder / "map.tif") as dataset:
                found += np.array(list(dataset.sample(zip(places.longitude, places.latitude, strict=True)))).T.tolist()
        return np.array(found, dtype=np.float32)

    def correlations(queries: npt.NDArray[np.float32], share: Floats, own: npt.NDArray[np.int64]) -> list[float]:
        """Returns the rank correlation of each query, without the places `[Q, P]` that it was recorded at."""
        pairs = zip(on_map(queries), own.tolist(), strict=True)
        return [_correlation(found, share, without) for found, without in pairs]

    figures: list[Row] = []
    generator = np.random.default_rng(0)
    for cover, texts in TEXTS.items():
        share = truth[cover].to_numpy()
        probe = _probe(tiles, share)
        note = f"{len(rows)} held-out places, {(share > 0).mean():.0%} of which have any"
        values = on_map(space.embed("text", [text for text, _ in texts]).numpy())
        for (text, goal), found in zip(texts, values, strict=True):
            told = f"{note}; area under the ROC curve of more than a third: {_roc(found, share > 1 / 3):.2f}"
            figures.append(_row(f"'{text}' and {cover}", _correlation(found, share), probe, goal, told))
        name = SOUND_OF[cover]
        by_share = np.argsort(-share, kind="stable")
        mostly = by_share[: max(_TOGETHER, int((share > 0.5).sum()))]
        each = correlations(recordings[mostly], share, mostly[:, None])
        low, high = np.quantile(each, [0.25, 0.75])
        extreme = each[:_MOST]
        told = (
            f"median of the {len(mostly)} held-out places that are {cover} for more than half, quartiles {low:.2f} and "
            f"{high:.2f}; median of the {len(extreme)} with most {cover}: {median(extreme):.2f}"
        )
        figures.append(_row(f"a recording with {name} and {cover}", median(each), probe, 0.5, told))
        tiles_as_queries = correlations(tiles[mostly], share, mostly[:, None])
        told = "the same places, asked for by their tiles"
        figures.append(_row(f"a tile of {cover} and {cover}", median(tiles_as_queries), probe, None, told))
        chosen = np.stack([generator.choice(mostly, _TOGETHER, replace=False) for _ in range(_DRAWS)])
        together = correlations(recordings[chosen].mean(axis=1), share, chosen)
        told = f"median of {_DRAWS} draws of {_TOGETHER} such recordings as one query, as `a.flac + b.flac`"
        figures.append(_row(f"recordings with {name} and {cover}", median(together), probe, None, told))
        alone = space.embed("audio", [_alone(name, source.config.sample_rate, folder)]).numpy()
        told = f"nothing but {name}, as no recording of the planet is"
        figures.append(_row(f"{name} alone and {cover}", _correlation(on_map(alone)[0], share), probe, None, told))
    return figures


def _row(figure: str, ours: float, probe: float, goal: float | None, note: str) -> Row:
    return Row(NAME, f"rank correlation, {figure}", "", ours, probe, _PROBE, None, goal and Goal(">=", goal), note)


def _correlation(values: npt.NDArray[Any], share: Floats, without: Sequence[int] = ()) -> float:
    keep = ~np.isin(np.arange(len(share)), without)  # a recording is no news of its own place
    return float(spearmanr(values[keep], share[keep]).statistic)


def _roc(values: npt.NDArray[Any], there: npt.NDArray[np.bool_]) -> float:
    """Returns how often a place that has it scores above one that has not; NaN where all or none have."""
    higher = values[there][:, None] > values[~there][None]
    return float(higher.mean()) if higher.size else float("nan")


def _probe(embeddings: npt.NDArray[Any], share: Floats, folds: int = 5) -> float:
    """Returns the rank correlation that a ridge regression reaches on the fifths that it has not seen."""
    order = np.random.default_rng(0).permutation(len(share))
    target = np.log(share + 0.005)  # small shares count, as they do for ranks
    inputs = np.concatenate([embeddings, np.ones((len(share), 1))], axis=1).astype(np.float64)
    found = np.empty(len(share))
    for fold in range(folds):
        held = order[fold::folds]
        seen = np.setdiff1d(order, held)
        a = inputs[seen]
        weights = np.linalg.solve(a.T @ a + 0.01 * np.eye(a.shape[1]), a.T @ target[seen])
        found[held] = inputs[held] @ weights
    return _correlation(found, share)


def _alone(name: str, sample_rate: int, folder: Path) -> Path:
    """Writes three seconds of one source of sound by itself."""
    number = next(n for n, sound in enumerate(SOUNDS) if sound.name == name)
    wave = make_loop(SOUNDS[number], 900 + number, sample_rate, 3 * sample_rate) * 10 ** (_ALONE_DECIBELS / 20)
    path = folder / f"{name}.flac"
    soundfile.write(path, np.clip(wave, -1, 1), sample_rate)
    return path
