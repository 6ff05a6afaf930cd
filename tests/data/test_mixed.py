"""Several data sets in one stage."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from geobind_core.data.mixed import MixedData
from geobind_core.data.order import Rows
from geobind_core.data.paired import PairedData
from geobind_core.plugins.source import Observations, SourceConfig


def part(name: str, count: int, *, held_out: int = 0, **columns: Any) -> PairedData:
    table = pa.table(
        {
            "key": [str(i) for i in range(count)],
            "value": [f"{name}{i}" for i in range(count)],
            "split": ["test" if i < held_out else "train" for i in range(count)],
            **columns,
        }
    )
    given = {name: name for name in ("kind", "extra") if name in columns}
    labels = {"value": "kind"} if "kind" in columns else {}
    coordinates = {"longitude": "lon", "latitude": "lat"} if "lon" in columns else {}
    made = Observations(table, Path("/"), {"value": "value", **given}, labels=labels, split="split", **coordinates)
    return PairedData(name, made, SourceConfig(source="memory"))


def names(data: MixedData, rows: Rows) -> list[str]:
    return [data.cell("value", row, is_file=False) for row in rows.tolist()]


def test_rows_of_all() -> None:
    data = MixedData({"a": part("a", 5, held_out=2), "b": part("b", 4, held_out=1, extra=list("wxyz"))})
    assert len(data) == 9
    assert set(data.fields) == {"value"}, "what only one has cannot be trained"
    assert names(data, data.rows("train", ["value"])) == ["a2", "a3", "a4", "b1", "b2", "b3"]
    assert names(data, data.rows("test", ["value"])) == ["a0", "a1", "b0"]
    assert data.count("train") == 6
    assert data.split_names() == ["test"] * 2 + ["train"] * 3 + ["test"] + ["train"] * 3
    assert data.filled("value").tolist() == [True] * 9
    assert [data.key(row) for row in (4, 5)] == ["a/4", "b/0"]


def test_labels_and_places_of_all() -> None:
    first = part("a", 3, kind=["oak", "elm", None], lon=[1.0, 2.0, 3.0], lat=[4.0, 5.0, 6.0])
    data = MixedData({"a": first, "b": part("b", 1), "c": part("c", 2, kind=["elm", "fir"])})
    labels = data.labels("value")
    assert labels is not None
    assert labels[1] == labels[4], "the same word in another data set"
    assert labels[[2, 3]].tolist() == [-1, -1]
    assert len({*labels.tolist()}) == 4
    assert data.places is not None
    assert data.places.known.tolist() == [True] * 3 + [False] * 3
    assert MixedData({"a": part("a", 1), "b": part("b", 1)}).labels("value") is None


def test_without_weights_every_row_comes_once() -> None:
    data = MixedData({"a": part("a", 30), "b": part("b", 10)})
    rows = data.rows("train", ["value"])
    orders = [data.order(rows, 7, epoch) for epoch in range(3)]
    assert all(sorted(order.tolist()) == rows.tolist() for order in orders)
    assert orders[0].tolist() != orders[1].tolist()
    assert orders[1].tolist() == data.order(rows, 7, 1).tolist()


@pytest.mark.parametrize("weights", [{"a": 3, "b": 1}, {"a": 1, "b": 3}, {"a": 0.001, "b": 1}])
def test_with_weights_epochs_have_the_shares_and_leave_no_row_out(weights: dict[str, float]) -> None:
    counts = {"a": 30, "b": 10}
    data = MixedData({name: part(name, count) for name, count in counts.items()}, weights)
    rows, epochs = data.rows("train", ["value"]), 12
    seen: dict[str, Counter[str]] = {name: Counter() for name in counts}
    for epoch in range(epochs):
        order = data.order(rows, 0, epoch)
        assert len(order) == len(rows)
        read = names(data, order)
        for name, share in weights.items():
            of_part = [value for value in read if value.startswith(name)]
            seen[name].update(of_part)
            assert abs(len(of_part) - share / sum(weights.values()) * len(rows)) <= 0.5
        # Mixed, not one after the other.
        assert read != sorted(read)
    for name, count in counts.items():
        # Passes follow each other: no row is read again before all others have been.
        often = [seen[name][f"{name}{i}"] for i in range(count)]
        assert max(often) - min(often) <= 1


def test_an_epoch_is_a_pure_function_of_its_arguments() -> None:
    data = MixedData({"a": part("a", 7), "b": part("b", 5)}, {"a": 1, "b": 2})
    rows = data.rows("train", ["value"])
    fresh = MixedData({"a": part("a", 7), "b": part("b", 5)}, {"a": 1, "b": 2})
    assert fresh.order(rows, 3, 5).tolist() == data.order(rows, 3, 5).tolist()
    assert fresh.order(rows, 4, 5).tolist() != data.order(rows, 3, 5).tolist()
    some = rows[np.arange(len(rows)) != 3]  # a row that cannot be read is left out
    assert 3 not in data.order(some, 3, 5)
