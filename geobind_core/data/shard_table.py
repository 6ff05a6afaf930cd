"""One shard as a table: a row is a key, a column an extension, a cell says where the file lies in the shard."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from io import FileIO
from typing import Any

import numpy as np
import pyarrow as pa

from geobind_core.data.tar_headers import DamagedTarError, Kind, Member, members
from geobind_core.errors import DataError

KEY = "__key__"
PLACE_IN_SHARD = pa.struct([("offset", pa.int64()), ("size", pa.int64())])
NUMBERS = ("cls", "cls2", "class", "count", "index", "inx")
"""Extensions of files that hold a whole number, as `webdataset` has them. Their values are in the table."""

_NAMED = 3
_MOST_EXTENSIONS = 256
_MOST_FIELDS = 256
_LONGEST_JSON = 2**20
_LONGEST_NUMBER = 64
_INT64 = 2**63

# As `webdataset` divides names: the folder belongs to the key, all from the first dot on to the extension.
_KEY_AND_EXTENSION = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]*)$", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")  # what `webdataset` leaves out without a word
_OF_KIND: Mapping[Kind, str] = {
    "link": "links",
    "device": "devices and pipes",
    "sparse": "sparse files, whose content is not in one piece",
    "other": "members of an unknown kind",
}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass
class Remarks:
    """What is to be known of a shard besides its rows.

    Attributes:
        state: What is wrong with it as a whole, such as that it is cut off; empty if nothing.
        skipped: Reason -> how many members were left out, and the names of the first.
    """

    state: str = ""
    skipped: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def skip(self, reason: str, name: str) -> None:
        """Counts one member."""
        count, names = self.skipped.get(reason, (0, []))
        self.skipped[reason] = count + 1, names if len(names) == _NAMED else [*names, name]


def read_shard(file: FileIO, name: str) -> tuple[pa.Table, Remarks]:
    """Reads the headers of a shard, its JSON files and its numbers.

    Args:
        file: The tar file, open.
        name: What to call it in an error.

    Returns:
        A table with the column `__key__`, one of `PLACE_IN_SHARD` for each extension, one of numbers for each
        of `NUMBERS`, and one for each field of a JSON file; and what was left out. Rows come in the order in
        which their keys come first.

    Raises:
        DataError: It is compressed, or its names make no table.
        OSError: It cannot be read.
    """
    start = os.pread(file.fileno(), 8, 0)
    for magic, program in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(
                f"the shard is compressed with {program}; a compressed file cannot be read from the middle.",
                place=name,
                hint="Unpack it once (`gunzip` and the like); images and sounds inside are compressed already.",
            )
    return _Shard(name, file.fileno()).read()


class _Shard:
    def __init__(self, name: str, handle: int) -> None:
        self.name = name
        self.handle = handle
        self.size = os.fstat(handle).st_size
        self.remarks = Remarks()
        self.rows: dict[str, int] = {}
        self.places: dict[str, dict[int, tuple[int, int]]] = {}
        self.values: dict[str, dict[int, Any]] = {}

    def read(self) -> tuple[pa.Table, Remarks]:
        found = 0
        try:
            for member in members(self.handle, self.size):
                found += 1
                if member.kind != "folder":
                    self._take(member)
        except DamagedTarError as error:
            used = f"; the {found} members before that are used"
            self.remarks.state = f"{error}{used}" if found else f"it is no tar file: {error}"
            if self.size == 0:
                self.remarks.state = "it is empty, 0 bytes"
        columns = {KEY: pa.array(self.rows, pa.string())}
        columns |= {name: self._placed(cells) for name, cells in sorted(self.places.items())}
        for name, cells in sorted(self.values.items()):
            if name in columns:
                self.remarks.skip("fields of JSON files that have the name of an extension", name)
            else:
                columns[name] = _plain(cells, len(self.rows))
        return pa.table(columns), self.remarks

    def _take(self, member: Member) -> None:
        try:
            name = member.name.decode("utf-8")
        except UnicodeDecodeError:
            self.remarks.skip("names that are not UTF-8", member.name.decode("utf-8", "backslashreplace"))
            return
        if _META.match(name):
            return
        match = _KEY_AND_EXTENSION.match(name)
        if member.kind != "file":
            self.remarks.skip(_OF_KIND[member.kind], name)
        elif name.startswith("/") or ".." in name.split("/"):
            self.remarks.skip("names that lead out of the archive", name)
        elif match is None or not match[2] or match[2].lower() == KEY:
            self.remarks.skip("names without a key and an extension", name)
        else:
            self._put(match[1], match[2].lower(), name, member)

    def _put(self, key: str, extension: str, name: str, member: Member) -> None:
        row = self.rows.get(key)
        is_number = extension in NUMBERS
        cells: dict[int, Any] = (self.values if is_number else self.places).setdefault(extension, {})
        if row is not None and row in cells:
            self.remarks.skip("names given twice in a shard, of which the first is used", name)
            return
        if row is None:
            row = self.rows[key] = len(self.rows)
        if is_number:
            cells[row] = self._number(name, member)
            return
        cells[row] = member.offset, member.size
        if len(self.places) > _MOST_EXTENSIONS:
            raise DataError(
                f"more than {_MOST_EXTENSIONS} different extensions, such as '{extension}' of '{name}'. All from the "
                "first dot of a file's name on is its extension, and names a column.",
                place=self.name,
                hint="Keys must not have dots: write `48_85.jpg`, not `48.85.jpg`.",
            )
        if extension == "json" or extension.endswith(".json"):
            for field_name, value in self._fields(name, member).items():
                self._put_field(f"{extension.removesuffix('.json')}.{field_name}", row, value)

    def _put_field(self, column: str, row: int, value: Any) -> None:
        if column not in self.values and len(self.values) >= _MOST_FIELDS:
            self.remarks.skip(f"fields of JSON files beyond the first {_MOST_FIELDS}", column)
        else:
            self.values.setdefault(column, {})[row] = value

    def _number(self, name: str, member: Member) -> int | None:
        text = os.pread(self.handle, min(member.size, _LONGEST_NUMBER), member.offset)
        try:
            value = int(text)
            if -_INT64 <= value < _INT64:
                return value
        except ValueError:
            pass
        self.remarks.skip("files that should hold a whole number and do not", name)
        return None

    def _fields(self, name: str, member: Member) -> dict[str, Any]:
        if member.size > _LONGEST_JSON:
            self.remarks.skip("JSON files of more than 1 MiB, whose fields are not looked at", name)
            return {}
        try:
            content = json.loads(os.pread(self.handle, member.size, member.offset))
        except (ValueError, RecursionError):
            self.remarks.skip("JSON files that cannot be read", name)
            return {}
        fields = content if isinstance(content, dict) else {}
        return {_whole(k): v for k, v in fields.items() if isinstance(v, str | int | float)}

    def _placed(self, cells: Mapping[int, tuple[int, int]]) -> pa.StructArray:
        places = np.zeros((len(self.rows), 2), dtype=np.int64)
        missing = np.ones(len(self.rows), dtype=bool)
        rows = np.fromiter(cells, dtype=np.int64, count=len(cells))
        places[rows] = np.array(list(cells.values()), dtype=np.int64).reshape(-1, 2)
        missing[rows] = False
        return pa.StructArray.from_arrays(
            [pa.array(places[:, 0]), pa.array(places[:, 1])], fields=list(PLACE_IN_SHARD), mask=pa.array(missing)
        )


def _whole(text: str) -> str:
    """Returns a text without halves of characters, which JSON may hold and Arrow may not."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _plain(cells: Mapping[int, Any], length: int) -> pa.Array:
    """Returns a column of booleans, whole numbers, numbers, or else texts."""
    kinds = {type(value) for value in cells.values() if value is not None}
    column: list[Any] = [None] * length
    for row, value in cells.items():
        column[row] = value
    if kinds == {bool}:
        return pa.array(column, pa.bool_())
    if kinds <= {int} and all(-_INT64 <= value < _INT64 for value in column if value is not None):
        return pa.array(column, pa.int64())
    if kinds <= {int, float} and all(_is_double(value) for value in column if value is not None):
        return pa.array([None if value is None else float(value) for value in column], pa.float64())
    return pa.array([None if value is None else as_text(value) for value in column], pa.string())


def _is_double(value: float) -> bool:
    try:
        float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False
    return True


def as_text(value: Any) -> str:
    """Returns a value of a JSON file as text, a text as it is."""
    return _whole(value) if isinstance(value, str) else json.dumps(value)


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Returns tables of several shards as one; what one of them has not is null.

    Where a column is of files in one shard and of values in another, the files stay. Where values are of types that do
    not go together, they become texts.
    """
    kinds: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for column in table.schema:
            kinds.setdefault(column.name, set()).add(column.type)
    mixed = {name for name, types in kinds.items() if len(types) > 1}
    placed = {name for name in mixed if any(pa.types.is_struct(kind) for kind in kinds[name])}
    texts = {name for name in mixed - placed if not kinds[name] <= {pa.int64(), pa.float64()}}
    return pa.concat_tables([_fitted(table, placed, texts) for table in tables], promote_options="permissive")


def _fitted(table: pa.Table, placed: Set[str], texts: Set[str]) -> pa.Table:
    for number, column in enumerate(table.schema):
        if column.name in texts:
            table = table.set_column(number, column.name, table[number].cast(pa.string()))
    return table.drop_columns([c.name for c in table.schema if c.name in placed and not pa.types.is_struct(c.type)])
