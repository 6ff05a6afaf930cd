"""A data set as the stages see it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from geobind_core.data.paired import PairedData
from geobind_core.errors import DataError
from geobind_core.plugins.source import Observations, SourceConfig, SplitConfig

ROOT = Path("/somewhere")


def paired(columns: dict[str, Any], fields: dict[str, Any], config: dict[str, Any] | None = None, **more: Any) -> Any:
    """Makes a data set whose rows are all for training, unless `config` says otherwise."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    settings = SourceConfig.model_validate({"source": "memory", "split": {"by": "none"}, **(config or {})})
    return PairedData("mine", Observations(table, ROOT, fields, **more), settings)


def test_cells() -> None:
    columns = {
        "key": ["a", "b"],
        "photo": ["x.jpg", "/elsewhere/y.jpg"],
        "bytes": pa.array([b"12", b"34"]),
        "lon": [1.5, 2.5],
        "lat": [3.5, 4.5],
        "hub": [{"bytes": None, "path": "z.jpg"}, {"bytes": b"56", "path": None}],
    }
    fields = {"photo": "photo", "raw": "bytes", "location": ("lon", "lat"), "hub": "hub"}
    data = paired(columns, fields)
    assert data.cell("photo", 0, is_file=True) == ROOT / "x.jpg"
    assert data.cell("photo", 1, is_file=True) == Path("/elsewhere/y.jpg")
    assert data.cell("photo", 0, is_file=False) == "x.jpg"
    assert data.cell("raw", 1, is_file=True) == b"34"
    assert data.cell("location", 1, is_file=False) == (2.5, 4.5)
    assert data.cell("hub", 0, is_file=True) == {"bytes": None, "path": "/somewhere/z.jpg"}
    assert data.cell("hub", 1, is_file=True) == {"bytes": b"56", "path": None}
    assert [data.key(i) for i in range(len(data))] == ["a", "b"]


def test_rows_have_something_for_every_modality() -> None:
    columns = {
        "key": [1, 2, 3, 4, 5],
        "text": ["a", "", None, "  ", "b"],
        "value": [1.0, 2.0, 3.0, 4.0, float("nan")],
        "other": pa.array([b"x", None, b"x", b"x", b"x"]),
    }
    data = paired(columns, {"text": "text", "value": "value", "both": ("value", "other")})
    assert data.rows("train", ["text"]).tolist() == [0, 4]
    assert data.rows("train", ["value"]).tolist() == [0, 1, 2, 3]
    assert data.rows("train", ["both"]).tolist() == [0, 2, 3]
    assert data.rows("train", ["text", "value"]).tolist() == [0]
    assert data.rows("test", ["text"]).tolist() == []
    assert data.count("train") == 5
    assert data.rows("train", ["text"]).dtype == np.int64


def test_gaps_between_several_columns() -> None:
    columns = {"key": [1, 2, 3, 4], "value": [1.0, float("nan"), None, 4.0], "other": pa.array([1, 2, None, None])}
    fields = {"gappy": ("value", "other"), "whole": ("value", "other"), "empty": ("none", "other")}
    observations = Observations(pa.table({**columns, "none": pa.nulls(4)}), ROOT, fields)
    data = PairedData("mine", observations, SourceConfig(source="memory", split=SplitConfig(by="none")), {"gappy"})
    assert data.rows("train", ["gappy"]).tolist() == [0, 1, 3]
    assert data.rows("train", ["whole"]).tolist() == [0]
    assert data.cell("gappy", 3, is_file=False) == (4.0, None)
    assert not data.column_has_values("empty")


def test_a_column_of_nothing() -> None:
    columns = {"key": ["a", "b"], "none": pa.array([None, None], pa.string()), "some": ["x", None]}
    data = paired(columns, {"none": "none", "some": "some"})
    assert not data.column_has_values("none")
    assert data.column_has_values("some")


def test_more_bytes_than_an_array_can_hold() -> None:
    """3 GiB of images, as a Parquet file may have them; here all in the same megabyte."""
    chunk = pa.array([b"x" * 2**20])
    images = pa.chunked_array([chunk] * 3072)
    data = paired(pa.table({"key": list(range(3072)), "image": images}), {"image": "image"})
    assert len(data.rows("train", ["image"])) == 3072
    assert len(data.cell("image", 3071, is_file=True)) == 2**20


def test_keys_may_be_numbers_but_not_missing_or_twice() -> None:
    data = paired({"id": [30, 7], "x": [1, 2]}, {"x": "x"}, key="id")
    assert [data.key(0), data.key(1)] == ["30", "7"]
    with pytest.raises(DataError, match="2 keys are given more than once: a, c") as raised:
        paired({"key": ["a", "b", "a", "c", "c"], "x": [1] * 5}, {"x": "x"})
    assert raised.value.place == "data.mine.key"
    with pytest.raises(DataError, match="1 rows have no key"):
        paired({"key": ["a", None], "x": [1, 2]}, {"x": "x"})
    with pytest.raises(DataError, match="no rows"):
        paired({"key": pa.array([], pa.string()), "x": pa.array([], pa.int64())}, {"x": "x"})


@pytest.mark.parametrize(
    ("wrong", "place", "near"),
    [
        ({"fields": {"satellite": "imgae"}}, "data.mine.fields.satellite", "image"),
        ({"labels": {"satellite": "specis"}}, "data.mine.labels.satellite", "species"),
        ({"split": {"by": "column", "column": "splt"}}, "data.mine.split.column", "split"),
    ],
)
def test_a_missing_column_is_named_with_the_nearest(wrong: dict[str, Any], place: str, near: str) -> None:
    columns = {"key": ["a"], "image": ["x"], "species": ["y"], "split": ["train"]}
    with pytest.raises(DataError, match=f"Did you mean '{near}'") as raised:
        paired(columns, {}, wrong)
    assert raised.value.place == place
    assert "image, key, species, split" in raised.value.message


def test_columns_that_a_source_names_are_checked_as_well() -> None:
    with pytest.raises(DataError, match="Did you mean 'longitude'"):
        paired({"key": ["a"], "longitude": [1.0]}, {}, longitude="longitud")
    with pytest.raises(DataError, match="no column 'fold'"):
        paired({"key": ["a"]}, {}, split="fold")


def test_two_columns_of_one_name() -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array([2])], names=["key", "x", "x"])
    with pytest.raises(DataError, match="2 columns of the table are called 'x'"):
        paired(table, {"x": "x"})


def test_labels_are_numbers_and_none_is_nobodys() -> None:
    table = pa.concat_tables(  # in two chunks, so that codes must agree between them
        [
            pa.table({"key": ["a", "b", "c"], "x": [1, 1, 1], "label": ["owl", None, "crow"]}),
            pa.table({"key": ["d", "e"], "x": [1, 1], "label": ["crow", "owl"]}),
        ]
    )
    data = paired(table, {"one": "x", "two": "x"}, {"labels": {"one": "label"}})
    codes = data.labels("one")
    assert codes[0] == codes[4] >= 0
    assert codes[2] == codes[3] >= 0
    assert codes[0] != codes[2]
    assert codes[1] == -1
    assert data.labels("two") is None
    assert len(data.pair_labels("one", "two")) == 1
    assert data.pair_labels("two", "two") == []


def test_settings_add_to_what_the_source_says() -> None:
    columns = {"key": ["a"], "x": [1], "y": [2], "label": ["z"]}
    data = paired(columns, {"one": "x", "two": "x"}, {"fields": {"two": "y", "both": ["x", "y"]}})
    assert data.fields == {"one": ("x",), "two": ("y",), "both": ("x", "y")}


def test_splits_of_the_source_and_of_the_settings() -> None:
    columns = {"key": list("abcd"), "x": [1] * 4, "fold": ["train", "val", "test", None], "other": ["test"] * 4}
    observations = Observations(pa.table(columns), ROOT, {"x": "x"}, split="fold")

    def rows(data: PairedData) -> list[list[int]]:
        return [data.rows(split, ["x"]).tolist() for split in ("train", "validation", "test")]

    assert rows(PairedData("d", observations)) == [[0], [1], [2]]
    by_column = SourceConfig(source="s", split=SplitConfig(by="column", column="other"))
    assert rows(PairedData("d", observations, by_column)) == [[], [], [0, 1, 2, 3]]
    none = SourceConfig(source="s", split=SplitConfig(by="none"))
    assert rows(PairedData("d", observations, none)) == [[0, 1, 2, 3], [], []]
    wrong = Observations(pa.table({**columns, "fold": ["train", "holdout", "x", "y"]}), ROOT, {"x": "x"}, split="fold")
    with pytest.raises(DataError, match="'holdout' is none of train, validation, test") as raised:
        PairedData("d", wrong)
    assert raised.value.place == "data.d.split"
