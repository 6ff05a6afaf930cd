"""What cells are known by."""

import builtins
import datetime
import io
import os
import time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest

from geobind_core.data.cell_ids import cell_ids, encode, view_ids
from geobind_core.data.paired import PairedData
from geobind_core.errors import DataError
from geobind_core.plugins.source import Observations, SourceConfig

UTC = datetime.UTC


def paired(columns: dict[str, Any], fields: dict[str, Any], root: Path = Path("/nowhere")) -> PairedData:
    rows = len(next(iter(columns.values())))
    table = pa.table({"key": [str(i) for i in range(rows)], **columns})
    settings = SourceConfig.model_validate({"source": "memory", "split": {"by": "none"}})
    return PairedData("mine", Observations(table, root, fields, key="key"), settings)


def ids_of(values: Any, *, root: Path = Path("/nowhere"), is_file: bool = False) -> list[bytes]:
    """Returns the ids of the cells of one column."""
    data = paired({"cell": values}, {"cell": "cell"}, root)
    ids = cell_ids(data, "cell", np.arange(len(data)), is_file=is_file)
    assert (ids.dtype, ids.shape) == (np.dtype("V16"), (len(data),))
    return [value.tobytes() for value in ids]


class TestValues:
    @pytest.mark.parametrize(
        ("column", "expected"),
        [
            (["waves on a beach", "Küste"], "9b2d12d6808112f2a18a36ff28c866d0"),
            ([1, 2], "f1d64ea6fe8bfb28473408dc4b401082"),
            ([0.1, float("nan")], "c473da020b3d212b69fba9d47503473b"),
            ([b"\xff\xd8", b""], "4e8e959a8037a056669ee239e094e470"),
            ([[0.1, 0.2], [0.3]], "7af8090794e14090b8729cefc014347b"),
            ([{"bytes": b"1", "path": "a"}], "ce1868a493ee349b79679d4fa040246b"),
            ([datetime.datetime(2024, 5, 6, 7, tzinfo=UTC)], "e5543b3193209e6d70c1084de8307e61"),
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_the_same_on_every_machine(self, column: list[Any], expected: str) -> None:
        assert ids_of(column)[0].hex() == expected

    def test_different_values_are_told_apart(self) -> None:
        values: list[Any] = [
            *(None, True, False, 0, 1, -1, 10**30, 0.0, 1.0, -1.5, float("inf"), float("nan")),
            *("", "1", "a", "ab", "ä", b"", b"1", b"a", Path("/nowhere/a"), Path("/nowhere/ab")),
            *([], [1], [1.0], [1.0, 2.0], [[1.0], [2.0]], ["ab"], ["a", "b"], [None], [""], (), (1,), (1.0,)),
            *({}, {"a": 1}, {"a": "1"}, {"b": 1}, {"a": 1, "b": 2}, {"a": {"b": 2}}, {"bytes": b"1", "path": None}),
            datetime.date(2024, 1, 1),
            datetime.datetime(2024, 1, 1),
            datetime.datetime(2024, 1, 1, tzinfo=UTC),
            datetime.time(1, 2),
            datetime.timedelta(1),
            datetime.timedelta(0, 1),
            *(Decimal("1.0"), Decimal("1.00"), UUID(int=1), UUID(int=2)),
            *(np.zeros(2), np.zeros(3), np.zeros((1, 2)), np.zeros(2, np.float32), np.array(["a"]), np.array([True])),
        ]
        assert len({encode(value) for value in values}) == len(values)

    def test_equal_values_are_not(self) -> None:
        assert encode({"a": 1, "b": 2}) == encode({"b": 2, "a": 1})
        assert encode(np.float64(0.5)) == encode(0.5)
        assert encode(np.str_("a")) == encode("a")
        assert encode(bytearray(b"a")) == encode(memoryview(b"a")) == encode(b"a")
        assert encode(np.zeros(2, ">f4")) == encode(np.zeros(2, "<f4"))
        negative_nan = float(np.copysign(np.nan, -1))
        for value in (np.nan, [np.nan], np.array([np.nan])):
            other: Any = negative_nan if value is np.nan else [negative_nan]
            assert encode(value) == encode(np.array(other) if isinstance(value, np.ndarray) else other)

    def test_a_row_does_not_depend_on_the_others_nor_on_chunks(self) -> None:
        words = [f"place {i % 50}" for i in range(600)]
        chunked = pa.chunked_array([words[:100], words[100:101], words[101:]])
        whole = ids_of(words)
        assert ids_of(chunked) == whole
        assert len(set(whole)) == 50
        data = paired({"cell": chunked}, {"cell": "cell"})
        rows = np.array([599, 3, 100, 3])
        assert [i.tobytes() for i in cell_ids(data, "cell", rows, is_file=False)] == [whole[row] for row in rows]
        assert ids_of(pa.array(words).dictionary_encode()) == whole
        assert len(cell_ids(data, "cell", rows[:0], is_file=True)) == 0

    def test_several_columns(self) -> None:
        data = paired(
            {"lon": [1.0, 2.0, 1.0], "lat": [3.0, 3.0, 3.0], "both": [[1.0, 3.0]] * 3},
            {"place": ("lon", "lat"), "turned": ("lat", "lon"), "both": "both"},
        )
        ids = [cell_ids(data, name, np.arange(3), is_file=False) for name in ("place", "turned", "both")]
        assert ids[0][0] == ids[0][2] != ids[0][1]
        assert len({i[0].tobytes() for i in ids}) == 3

    def test_a_type_without_a_rule(self) -> None:
        data = paired({"cell": [1]}, {"cell": "cell"})
        data.unread_cell = lambda *_, **__: object()  # type: ignore[method-assign]
        with pytest.raises(DataError, match="row '0': a cell of type object has no identity") as caught:
            cell_ids(data, "cell", np.arange(1), is_file=False)
        assert caught.value.place == "data.mine.fields.cell"

    def test_a_hundred_thousand(self) -> None:
        started = time.perf_counter()
        assert len(set(ids_of([f"a photo of place {i}" for i in range(100_000)]))) == 100_000
        assert time.perf_counter() - started < 3  # a quarter of a second, on a machine with nothing else to do


class TestViews:
    def test_each_has_its_own_ids(self) -> None:
        data = paired({"cell": [str(i) for i in range(500)]}, {"cell": "cell"})
        views = [cell_ids(data, "cell", np.arange(500), is_file=False, view=view) for view in range(20)]
        assert len(np.unique(np.concatenate(views).view("S16"))) == 500 * 20
        for number, view in enumerate(views):
            assert (view_ids(views[0], number) == view).all()

    def test_the_same_on_every_machine(self) -> None:
        assert view_ids(np.zeros(1, dtype="V16"), 1).tobytes().hex() == "52410f56de20987cbc83b0681e98c3e4"


class TestFiles:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in "abc":
            (tmp_path / f"{name}.jpg").write_text(f"the same size {name}")
        return tmp_path

    def test_an_untouched_file_stays_the_same_and_is_not_opened(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> Any:
            raise AssertionError("a file was opened")

        before = ids_of(["a.jpg", "b.jpg", "a.jpg"], root=folder, is_file=True)
        for module, name in ((builtins, "open"), (io, "open"), (os, "open"), (Path, "open")):
            monkeypatch.setattr(module, name, fail)
        after = ids_of(["a.jpg", "b.jpg", "a.jpg"], root=folder, is_file=True)
        monkeypatch.undo()
        assert after == before
        assert before[0] == before[2] != before[1]

    def test_a_file_that_was_replaced(self, folder: Path) -> None:
        before = ids_of(["a.jpg", "b.jpg", "c.jpg"], root=folder, is_file=True)
        (folder / "a.jpg").write_text("of another size")
        changed = (folder / "b.jpg").stat()
        (folder / "b.jpg").write_text("the same size B")
        os.utime(folder / "b.jpg", ns=(changed.st_atime_ns, changed.st_mtime_ns + 1))
        after = ids_of(["a.jpg", "b.jpg", "c.jpg"], root=folder, is_file=True)
        assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, True]

    def test_a_link_that_was_set_anew(self, folder: Path) -> None:
        (folder / "link.jpg").symlink_to("a.jpg")
        before = ids_of(["link.jpg"], root=folder, is_file=True)
        os.utime(folder / "b.jpg", (1, 1))
        (folder / "link.jpg").unlink()
        (folder / "link.jpg").symlink_to("b.jpg")
        assert ids_of(["link.jpg"], root=folder, is_file=True) != before

    def test_a_missing_file_has_an_id_until_it_is_there(self, folder: Path) -> None:
        names = ["d.jpg", "e.jpg", "a.jpg/f", "nul\0.jpg", "x" * 5000]
        before = ids_of(names, root=folder, is_file=True)
        assert len(set(before)) == len(names)
        assert ids_of(names, root=folder, is_file=True) == before
        (folder / "d.jpg").write_text("")
        assert ids_of(names, root=folder, is_file=True)[0] != before[0]

    def test_relative_roots_are_made_absolute(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        absolute = ids_of([str(folder / "a.jpg")], is_file=True)
        assert ids_of(["a.jpg"], root=Path(), is_file=True) == absolute == ids_of(["a.jpg"], root=folder, is_file=True)

    def test_a_path_where_no_files_are_read_is_a_string(self, folder: Path) -> None:
        names = ["a.jpg", "missing.jpg"]
        assert ids_of(names, root=folder) == ids_of(names, root=Path("/elsewhere"))

    def test_files_as_hugging_face_writes_them(self, folder: Path) -> None:
        files = [{"bytes": None, "path": "a.jpg"}, {"bytes": b"1", "path": "b.jpg"}]
        before = ids_of(files, root=folder, is_file=True)
        for name in "ab":
            os.utime(folder / f"{name}.jpg", (1, 1))
        after = ids_of(files, root=folder, is_file=True)
        # Where the bytes are in the table, the file is not looked at.
        assert [old == new for old, new in zip(before, after, strict=True)] == [False, True]

    def test_a_file_and_a_number(self, folder: Path) -> None:
        data = paired({"file": ["a.jpg"] * 2, "start": [1.5, 2.5]}, {"clip": ("file", "start")}, folder)
        before = cell_ids(data, "clip", np.arange(2), is_file=True)
        assert before[0] != before[1]
        os.utime(folder / "a.jpg", (1, 1))
        assert not set(cell_ids(data, "clip", np.arange(2), is_file=True).tolist()) & set(before.tolist())

    def test_many(self, folder: Path) -> None:
        names = [f"{i}.jpg" for i in range(3000)]
        for name in names[::2]:
            (folder / name).write_text(name)
        ids = ids_of(names, root=folder, is_file=True)
        assert len(set(ids)) == 3000
        assert ids[700:701] == ids_of(names[700:701], root=folder, is_file=True)
