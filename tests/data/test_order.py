"""The order of an epoch: a pure function; with blocks, few of them are in use at a time."""

import numpy as np
import pytest

from geobind_core.data.loading import TrainingBatches
from geobind_core.data.order import ANYWHERE, Blocks, epoch_order

BLOCKS, SIZE = 40, 50


def blocks(at_once: int = 4) -> Blocks:
    return Blocks(np.repeat(np.arange(BLOCKS, dtype=np.int32), SIZE), at_once)


ROWS = np.arange(BLOCKS * SIZE)


def spans(order: np.ndarray, found: Blocks) -> dict[int, tuple[int, int]]:
    """Block -> the first and the last place in which it comes."""
    numbers = found.numbers[order]
    return {b: (int(w[0]), int(w[-1])) for b in range(BLOCKS) if len(w := np.flatnonzero(numbers == b))}


def test_with_blocks_it_is_a_pure_function_too() -> None:
    first = epoch_order(ROWS, 3, 5, blocks())
    np.random.seed(1)
    np.testing.assert_array_equal(first, epoch_order(ROWS, 3, 5, blocks()))
    np.testing.assert_array_equal(np.sort(first), ROWS)
    for other in (epoch_order(ROWS, 3, 6, blocks()), epoch_order(ROWS, 4, 5, blocks())):
        assert not np.array_equal(first, other)
        assert list(spans(other, blocks())) != list(spans(first, blocks())) or spans(other, blocks()) != spans(
            first, blocks()
        )


@pytest.mark.parametrize("at_once", [1, 4, 12])
def test_few_blocks_are_in_use_at_a_time(at_once: int) -> None:
    found = spans(epoch_order(ROWS, 0, 0, blocks(at_once)), blocks(at_once))
    in_use = [sum(first <= place <= last for first, last in found.values()) for place in range(len(ROWS))]
    assert max(in_use) <= at_once + 1
    assert np.mean(in_use) > 0.6 * at_once


def test_neighbours_in_a_block_come_apart() -> None:
    place = np.argsort(epoch_order(ROWS, 0, 0, blocks()))
    apart = np.abs(np.diff(place.reshape(BLOCKS, SIZE), axis=1))
    assert np.median(apart) > SIZE  # of 4 blocks that are mixed


def test_few_blocks_make_a_full_shuffle() -> None:
    np.testing.assert_array_equal(epoch_order(ROWS, 1, 2, blocks(BLOCKS)), epoch_order(ROWS, 1, 2))


def test_rows_that_are_there_already_come_at_any_time() -> None:
    numbers = blocks().numbers.copy()
    numbers[::2] = ANYWHERE
    order = epoch_order(ROWS, 0, 0, Blocks(numbers, 4))
    places = np.argsort(order)[::2]
    counts, _ = np.histogram(places, bins=10, range=(0, len(ROWS)))
    assert counts.min() > 60  # of 100 each
    np.testing.assert_array_equal(np.sort(order), ROWS)


@pytest.mark.parametrize("start", [0, 1, 7, 20, 41])
def test_batches_go_on_where_they_stopped(start: int) -> None:
    def found(at: int) -> list[tuple[int, int, list[int], list[int]]]:
        own = blocks()
        sampler = TrainingBatches(
            ROWS, 128, 3, 9, at, random={"a": 16}, near=own.typical_size(ROWS),
            order=lambda rows, seed, epoch: epoch_order(rows, seed, epoch, own),
        )  # fmt: skip
        return [(r.epoch, r.step, r.rows.tolist(), r.random["a"].tolist()) for r in sampler]

    assert found(start) == found(0)[start:]


def test_random_rows_come_from_blocks_that_are_in_use() -> None:
    own = blocks()
    order = lambda rows, seed, epoch: epoch_order(rows, seed, epoch, own)  # noqa: E731
    where = spans(epoch_order(ROWS, 9, 0, own), own)
    sampler = TrainingBatches(ROWS, 50, 1, 9, random={"a": 40}, near=own.typical_size(ROWS), order=order)
    for request in sampler:
        here = range(request.step * 50 - 50, request.step * 50 + 100)
        for block in own.numbers[request.random["a"]].tolist():
            assert where[block][0] <= here[-1]
            assert where[block][1] >= here[0]
