"""Which rows are held out."""

import numpy as np
import pyarrow as pa
import pytest

from geobind_core.data.geography import Places, equal_area_cells, nearest_km
from geobind_core.data.splits import CODES, assign
from geobind_core.errors import DataError
from geobind_core.plugins.source import SplitConfig

KEYS = [f"place-{i}" for i in range(6000)]


def by_hash(keys: list[str], **settings: float) -> dict[str, int]:
    found = assign(pa.chunked_array([keys]), None, SplitConfig.model_validate({"by": "hash", **settings}))
    return dict(zip(keys, found.tolist(), strict=True))


def test_a_row_keeps_its_split_whatever_else_the_table_holds() -> None:
    all_rows = by_hash(KEYS, validation=0.1, test=0.2)
    shuffled = np.random.default_rng(0).permutation(KEYS)[:2500].tolist()
    assert by_hash(shuffled, validation=0.1, test=0.2) == {key: all_rows[key] for key in shuffled}
    more = [*shuffled, *(f"new-{i}" for i in range(1000))]
    assert {k: s for k, s in by_hash(more, validation=0.1, test=0.2).items() if k in all_rows} == {
        key: all_rows[key] for key in shuffled
    }


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.1), (0.1, 0.2), (0.3, 0.0), (0.0, 0.0)])
def test_shares(validation: float, test: float) -> None:
    codes = list(by_hash(KEYS, validation=validation, test=test).values())
    for name, share in {"validation": validation, "test": test, "train": 1 - validation - test}.items():
        found = codes.count(CODES[name]) / len(codes)
        # Four standard deviations of a binomial draw; nothing at all where nothing is asked for.
        assert abs(found - share) <= 4 * (share * (1 - share) / len(codes)) ** 0.5


def test_a_larger_share_only_adds_rows() -> None:
    small, large = by_hash(KEYS, test=0.1), by_hash(KEYS, test=0.3, validation=0.2)
    assert all(large[key] == CODES["test"] for key, code in small.items() if code == CODES["test"])


def test_another_seed_makes_another_division() -> None:
    one, two = by_hash(KEYS, test=0.5), by_hash(KEYS, test=0.5, seed=1)
    agree = sum(one[key] == two[key] for key in KEYS) / len(KEYS)
    assert 0.45 < agree < 0.55


def test_a_column_of_words() -> None:
    words = ["train", "Training", " val ", "validation", "dev", "TEST", "testing", None]
    config = SplitConfig(by="column", column="split")
    column = pa.chunked_array([words[:3], words[3:]])
    found = assign(pa.chunked_array([[str(i) for i in range(8)]]), column, config)
    assert found.tolist() == [0, 0, 1, 1, 1, 2, 2, -1]


def test_a_word_that_is_no_split() -> None:
    config = SplitConfig(by="column", column="split")
    with pytest.raises(DataError, match="'holdout' is none of train, validation, test") as raised:
        assign(pa.chunked_array([["a", "b"]]), pa.chunked_array([["train", "holdout"]]), config)
    assert "by: hash" in raised.value.hint


def test_no_split() -> None:
    assert assign(pa.chunked_array([["a", "b"]]), None, SplitConfig(by="none")).tolist() == [0, 0]


def test_shares_that_leave_nothing_to_train_on() -> None:
    with pytest.raises(ValueError, match="leave nothing to train on"):
        SplitConfig(validation=0.5, test=0.5)


def by_blocks(places: Places, **settings: float) -> np.ndarray:
    keys = pa.chunked_array([[str(i) for i in range(len(places))]])
    return assign(keys, None, SplitConfig.model_validate({"by": "blocks", **settings}), places)


def some_places(count: int = 4000) -> Places:
    rng = np.random.default_rng(3)
    # In Europe, in clusters, across the antimeridian and around the pole.
    centres = np.array([[5, 50], [12, 45], [179.9, -17], [0, 89]])[rng.integers(0, 4, count)]
    return Places.of(*(centres + rng.normal(0, 2, (count, 2))).T)


def test_blocks_keep_neighbours_together_and_shares() -> None:
    places = some_places()
    codes = by_blocks(places, test=0.3, validation=0.1, block_km=50)
    cells = equal_area_cells(places, 50)
    assert all(len(set(codes[cells == cell].tolist())) == 1 for cell in np.unique(cells))
    shares = [np.mean([codes[cells == cell][0] == CODES[s] for cell in np.unique(cells)]) for s in CODES]
    assert np.allclose(shares, [0.6, 0.1, 0.3], atol=0.05)
    half = np.arange(0, len(places), 2)
    assert by_blocks(places.take(half), test=0.3, validation=0.1, block_km=50).tolist() == codes[half].tolist()


def test_a_buffer_keeps_training_places_away() -> None:
    places = some_places()
    settings = {"test": 0.2, "validation": 0.2, "block_km": 50}
    without, codes = by_blocks(places, **settings), by_blocks(places, **settings, buffer_km=5)
    train, validation, test = (places.take(codes == CODES[s]) for s in CODES)
    assert nearest_km(train, test).min() >= 5
    assert nearest_km(train, validation).min() >= 5
    assert nearest_km(validation, test).min() >= 5
    assert nearest_km(places.take(without == CODES["train"]), test).min() < 5
    assert (codes[without == CODES["test"]] == CODES["test"]).all()
    assert 0 < (codes == -1).sum() < len(places) / 2


def test_blocks_without_coordinates() -> None:
    places = Places.of([0, np.nan, 400], [0, 0, 0])
    assert by_blocks(places, test=0).tolist() == [0, -1, -1]
    for nowhere in (None, Places.of([np.nan], [1])):
        with pytest.raises(DataError, match="needs coordinates"):
            assign(pa.chunked_array([["a"]]), None, SplitConfig(by="blocks"), nowhere)
