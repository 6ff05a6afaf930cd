"""Figures beside the ranks: the core's own metric, and what plugins' metrics say of one pair."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geobind_core.data.geography import Places, great_circle_km
from geobind_core.plugins.metric import Metric, MetricConfig, Retrieval

if TYPE_CHECKING:
    from geobind_core.progress import Reporter

_GUESSES = 100_000


class MedianKm(Metric[MetricConfig]):
    """How far what came first is from where the query is: the median of great-circle distances in km."""

    name = "median_km"

    def compute(self, retrieval: Retrieval) -> Mapping[str, float]:
        """Returns `median_km`, and `chance_median_km`: that of an item of the gallery taken at random.

        Queries whose own place or whose answer's is not known do not count; where none is left there
        are no figures.
        """
        if retrieval.query_places is None or retrieval.gallery_places is None:
            return {}
        queries, gallery = _places(retrieval.query_places), _places(retrieval.gallery_places)
        distances = great_circle_km(queries, gallery.take(retrieval.nearest))
        if np.isnan(distances).all():
            return {}
        # The same pairs for all: with 10,000 places, those of all pairs would take minutes.
        rng = np.random.default_rng(0)
        asked, guessed = (rng.integers(0, len(side), _GUESSES) for side in (queries, gallery))
        by_chance = great_circle_km(queries.take(asked), gallery.take(guessed))
        return {"median_km": float(np.nanmedian(distances)), "chance_median_km": float(np.nanmedian(by_chance))}


def _places(degrees: npt.NDArray[np.float64]) -> Places:
    return Places.of(degrees[:, 0], degrees[:, 1])


def further_figures(
    metrics: Mapping[str, Metric[Any]], retrieval: Retrieval, taken: Collection[str], reporter: Reporter
) -> dict[str, float]:
    """Returns what metrics say of a retrieval. One that fails costs its own figures and not the others'.

    Args:
        metrics: By what messages call them.
        retrieval: How one modality found another.
        taken: Names of figures that exist already.
        reporter: Is told what is left out.
    """
    figures: dict[str, float] = {}
    for known_as, metric in metrics.items():
        place = f"{known_as}, {retrieval.query}_to_{retrieval.gallery}"
        try:
            found = {str(name): float(value) for name, value in metric.compute(retrieval).items()}
        except Exception as error:  # after hours of training nobody wants to lose the ranks over it
            reporter.warn(f"{place}: {type(error).__name__}: {error}; its figures are left out")
            continue
        for name, value in found.items():
            if name in taken or name in figures:
                reporter.warn(f"{place}: there is a figure '{name}' already; this one is left out")
            elif not math.isfinite(value):
                reporter.warn(f"{place}: '{name}' is {value}; it is left out")
            else:
                figures[name] = value
    return figures
