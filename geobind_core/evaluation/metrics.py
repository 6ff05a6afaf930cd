"""Figures beside the ranks: the core's own metric, and what plugins' metrics say of one pair."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

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

        Chance is exact up to 100,000 pairs of a query and an item, and else by as many drawn at random.
        Queries whose own place or whose answer's is not known do not count; where none is left there
        are no figures.
        """
        distances = _distances(retrieval)
        if distances is None:
            return {}
        found, by_chance = distances
        return {"median_km": float(np.nanmedian(found)), "chance_median_km": float(np.nanmedian(by_chance))}


class WithinKmConfig(MetricConfig):
    """Settings of the shares within a distance; the defaults are those of Im2GPS without street level."""

    km: list[Annotated[float, Field(gt=0)]] = Field(
        [25, 200, 750, 2500], min_length=1, description="Distances: a city, a region, a country, a continent."
    )


class WithinKm(Metric[WithinKmConfig]):
    """How often what came first is no further from where the query is than some distances."""

    name = "within_km"
    Config = WithinKmConfig

    def compute(self, retrieval: Retrieval) -> Mapping[str, float]:
        """Returns `within_25_km`, … in [0, 1], and `chance_within_25_km`, …; of the queries that `median_km` counts."""
        distances = _distances(retrieval)
        if distances is None:
            return {}
        return {
            f"{of}within_{km:g}_km": float((known <= km).mean())
            for of, some in zip(("", "chance_"), distances, strict=True)
            for known in (some[~np.isnan(some)],)
            for km in self.config.km
        }


def _distances(retrieval: Retrieval) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Returns the km from queries to what came first, and from queries to any of the gallery; None if none is known."""
    if retrieval.query_places is None or retrieval.gallery_places is None:
        return None
    queries, gallery = _places(retrieval.query_places), _places(retrieval.gallery_places)
    distances = great_circle_km(queries, gallery.take(retrieval.nearest))
    if np.isnan(distances).all():
        return None
    if (pairs := len(queries) * len(gallery)) <= _GUESSES:
        asked, guessed = np.divmod(np.arange(pairs), len(gallery))
    else:  # those of all pairs of 10,000 places would take minutes
        rng = np.random.default_rng(0)
        asked, guessed = (rng.integers(0, len(side), _GUESSES) for side in (queries, gallery))
    return distances, great_circle_km(queries.take(asked), gallery.take(guessed))


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
        except (Exception, SystemExit) as error:  # after hours of training nobody wants to lose the ranks over it
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
