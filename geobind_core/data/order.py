"""The order of the rows in an epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

Order = Callable[[Rows, int, int], Rows]
"""Called as `order(rows, seed, epoch)`; returns the rows of that epoch, always the same of the same arguments."""

ANYWHERE = -1


@dataclass(frozen=True)
class Blocks:
    """Which rows should be read at about the same time, since a file has to be fetched for them.

    Attributes:
        numbers: `[N]` the block of each row of the data set; `ANYWHERE` of a row that is there already.
        at_once: Rows of so many blocks are mixed with each other.
        ahead: So many blocks there is room for beside those in use.
        fetch: Fetches the file of a block.
    """

    numbers: npt.NDArray[np.int32]
    at_once: int
    ahead: int = 0
    fetch: Callable[[int], None] | None = None

    def typical_size(self, rows: Rows) -> int:
        """Returns how many of these rows are in a block."""
        return -(-len(rows) // max(1, len(np.unique(self.numbers[rows]))))


def epoch_order(rows: Rows, seed: int, epoch: int, blocks: Blocks | None = None) -> Rows:
    """Returns the rows in the order of an epoch: a pure function of its arguments.

    Without blocks every order is as likely as every other. With blocks these come in a random order, and a
    row of the block in place k comes at a random time from k to k + `at_once`: at any time so many files
    are in use and no more, and there is always one about to be done with and one that has just begun.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    if blocks is None:
        return generator.permutation(rows)
    numbers, block = np.unique(blocks.numbers[rows], return_inverse=True)
    if len(numbers) <= blocks.at_once:
        return generator.permutation(rows)
    delay = blocks.at_once * generator.random(len(rows))
    times = generator.permutation(len(numbers))[block] + delay
    anywhere = blocks.numbers[rows] == ANYWHERE
    times[anywhere] = (len(numbers) + blocks.at_once) / blocks.at_once * delay[anywhere]
    return rows[np.argsort(times, kind="stable")]
