"""How sure a figure is: 95 % intervals by drawing the queries anew, many times.

The gallery stays as it is. What could be drawn is drawn at once where its distribution is known: of a
share it is the binomial, of the median that of uniform order statistics (David and Nagaraja 2003,
section 2.5). Only for means the queries themselves are drawn.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_LEVELS = (2.5, 97.5)
_DRAWN_AT_ONCE = 1_000_000

Interval = list[float]


def of_share(hits: int, count: int, times: int, rng: np.random.Generator) -> Interval:
    """Returns the interval of a share: `hits` of `count` queries.

    Args:
        hits: Of how many queries it is true.
        count: How many queries there are.
        times: How often they are drawn.
        rng: Draws.
    """
    return _interval(rng.binomial(count, hits / count, times) / count)


def of_median(values: npt.NDArray[np.int64], times: int, rng: np.random.Generator) -> Interval:
    """Returns the interval of the median of `[N]` values."""
    ordered, count = np.sort(values), len(values)
    middle = (count + 1) // 2  # the lower one of an even count, from 1
    # N draws of one of N values are N uniform numbers, of which the m-th lowest is Beta(m, N - m + 1).
    place = rng.beta(middle, count - middle + 1, times)
    lower = ordered[np.minimum((place * count).astype(np.int64), count - 1)]
    if count % 2:
        return _interval(lower.astype(np.float64))
    place += (1 - place) * rng.beta(1, count - middle, times)
    upper = ordered[np.minimum((place * count).astype(np.int64), count - 1)]
    return _interval((lower + upper) / 2)


def of_mean(values: npt.NDArray[np.float64], times: int, rng: np.random.Generator) -> Interval:
    """Returns the interval of the mean of `[N]` values."""
    count, means = len(values), np.empty(times)
    height = max(1, _DRAWN_AT_ONCE // count)
    for start in range(0, times, height):
        drawn = rng.integers(0, count, (min(height, times - start), count), dtype=np.int32)
        means[start : start + height] = values[drawn].mean(axis=1)
    return _interval(means)


def _interval(drawn: npt.NDArray[np.float64]) -> Interval:
    return [float(level) for level in np.percentile(drawn, _LEVELS)]
