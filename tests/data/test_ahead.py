"""Blocks are fetched before their rows are needed, and batches stay what they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from geobind_core.data.ahead import FetchedAhead
from geobind_core.data.loading import BatchRequest, SequentialBatches, TrainingBatches
from geobind_core.data.mixed import MixedData
from geobind_core.data.order import ANYWHERE, Blocks, epoch_order
from geobind_core.data.paired import PairedData
from geobind_core.plugins.source import Observations, SourceConfig, SplitConfig

BLOCKS, ROWS = 8, 6


class Recorder:
    """Notes which blocks are asked for; fails for some."""

    def __init__(self, fails: tuple[int, ...] = ()) -> None:
        self.asked: list[int] = []
        self.fails = fails

    def __call__(self, block: int) -> None:
        self.asked.append(block)
        if block in self.fails:
            raise ValueError("no such block")

    def wait_for(self, count: int) -> set[int]:
        end = time.monotonic() + 20
        while len(self.asked) < count and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(0.02)  # for what should not come
        return set(self.asked)


def blocks_of(fetch: Recorder, ahead: int, *, at_once: int = 1) -> Blocks:
    return Blocks(np.repeat(np.arange(BLOCKS, dtype=np.int32), ROWS), at_once, ahead, fetch)


def delivered(fetched: FetchedAhead) -> Iterator[BatchRequest]:
    """Yields the batches as a loader does that has read each before it hands it over."""
    for request in fetched:
        fetched.is_delivered()
        yield request


def same(one: BatchRequest, other: BatchRequest) -> bool:
    return (one.epoch, one.step) == (other.epoch, other.step) and np.array_equal(one.rows, other.rows)


@pytest.mark.parametrize("ahead", [1, 3, BLOCKS + 2])
def test_batches_are_what_they_were(ahead: int) -> None:
    blocks = blocks_of(Recorder(fails=(2,)), ahead)
    rows = np.arange(BLOCKS * ROWS)
    plain = TrainingBatches(rows, 4, 3, seed=1, order=lambda r, s, e: epoch_order(r, s, e, blocks))
    fetched = FetchedAhead(plain, blocks)
    assert len(fetched) == len(plain)
    assert all(same(one, other) for one, other in zip(plain, delivered(fetched), strict=True))
    assert blocks.fetch.wait_for(3 * BLOCKS) == set(range(BLOCKS))  # type: ignore[union-attr]


def test_so_many_blocks_ahead_and_no_more() -> None:
    fetch = Recorder()
    batches = delivered(FetchedAhead(SequentialBatches(np.arange(BLOCKS * ROWS), ROWS), blocks_of(fetch, 2)))
    for block in range(BLOCKS):
        assert np.array_equal(next(batches).rows, np.arange(block * ROWS, (block + 1) * ROWS))
        coming = min(block + 3, BLOCKS)
        assert fetch.wait_for(coming) == set(range(coming))
    assert next(batches, None) is None


def test_not_more_than_there_is_room_for() -> None:
    """Batches are handed out to loader workers that have read none yet."""
    fetch = Recorder()
    fetched = FetchedAhead(SequentialBatches(np.arange(BLOCKS * ROWS), ROWS), blocks_of(fetch, 2))
    assert len(list(fetched)) == BLOCKS
    assert fetch.wait_for(2) == {0, 1}
    for read in range(3):
        fetched.is_delivered()
        assert fetch.wait_for(3 + read) == set(range(3 + read))
    fetched.end()


def test_rows_that_are_there_already_need_nothing() -> None:
    fetch = Recorder()
    blocks = Blocks(np.array([ANYWHERE, ANYWHERE, 0, ANYWHERE], dtype=np.int32), 1, 1, fetch)
    assert len(list(delivered(FetchedAhead(SequentialBatches(np.arange(4), 1), blocks)))) == 4
    assert fetch.wait_for(1) == {0}


def test_mixed_data_sets_fetch_their_own() -> None:
    def part(name: str, fetch: Recorder | None, ahead: int) -> PairedData:
        table = pa.table({"key": list(range(4)), "x": [1.0] * 4, "block": [0, 0, 1, 1]})
        remote = fetch is not None
        observations = Observations(
            table, Path(), {"x": "x"}, blocks="block" if remote else None, blocks_ahead=ahead, fetch_block=fetch
        )
        return PairedData(name, observations, SourceConfig(source="memory", split=SplitConfig(by="none")))

    one, other = Recorder(), Recorder()
    mixed = MixedData({"one": part("one", one, 3), "here": part("here", None, 0), "other": part("other", other, 2)})
    assert mixed.blocks is not None
    assert mixed.blocks.ahead == 2
    assert mixed.blocks.numbers.tolist() == [0, 0, 1, 1, *[ANYWHERE] * 4, 2, 2, 3, 3]
    assert mixed.blocks.fetch is not None
    for block in (1, 2, 3):
        mixed.blocks.fetch(block)
    assert (one.asked, other.asked) == ([1], [0, 1])
