"""What a cell of a table is known by in the cache: 16 bytes that are others when the cell is another."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import math
import os
import struct
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geobind_core.data.cache_entries import ID_BYTES
from geobind_core.data.paired import PairedData, Rows
from geobind_core.errors import DataError
from geobind_core.plugins.source import Reference

Ids = npt.NDArray[np.void]
"""`[N]` of numpy's type `V16`."""

_THREADS = 16  # that wait for a file system at a time
_BLOCK = 256  # rows of one of their tasks
_NAN = float("nan")  # one of many; values that are not numbers are all the same


def cell_ids(data: PairedData, modality: str, rows: Rows, *, is_file: bool, view: int = 0) -> Ids:
    """Returns what the cells of a modality are known by, the same in every process and on every Python.

    A file is known by its absolute path, its size and when it was last changed; it is not opened. One
    that is missing has an id as well. A member of a shard is known by the shard and its place there, a file
    at an address by the address. Anything else is known by its value.

    Args:
        data: The data set.
        modality: One of its `fields`.
        rows: `[N]` row numbers.
        is_file: Whether strings are paths.
        view: Which of several augmented views of the cells.

    Returns:
        `[N]` ids. Rows with equal cells have equal ids.

    Raises:
        DataError: A cell has a type that cannot be told from others for certain.
    """

    def of_block(block: Rows) -> bytes:
        return b"".join(_identity(data, modality, row, is_file=is_file) for row in block.tolist())

    if is_file:
        blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
        with ThreadPoolExecutor(_THREADS) as pool:
            digests = b"".join(pool.map(of_block, blocks))
    else:
        digests = of_block(rows)
    return view_ids(np.frombuffer(digests, dtype=f"V{ID_BYTES}"), view)


def view_ids(ids: Ids, view: int) -> Ids:
    """Returns the ids of another view of the same cells.

    Args:
        ids: `[N]` ids of view 0, as `cell_ids` returns them.
        view: The view's number; 0 changes nothing.
    """
    if view == 0:
        return ids
    # Ids are evenly spread, so that a pattern of each view's own makes new ones that meet no others.
    pattern = hashlib.blake2b(f"view {view}".encode(), digest_size=ID_BYTES).digest()
    words = np.ascontiguousarray(ids).view(np.uint64).reshape(-1, 2) ^ np.frombuffer(pattern, dtype=np.uint64)
    return words.view(f"V{ID_BYTES}").reshape(-1)


def _identity(data: PairedData, modality: str, row: int, *, is_file: bool) -> bytes:
    cell = data.unread_cell(modality, row, is_file=is_file)
    if is_file:
        # One column gives a cell, several a tuple of them.
        cell = tuple(map(_as_file, cell)) if isinstance(cell, tuple) else _as_file(cell)
    try:
        return hashlib.blake2b(encode(cell), digest_size=ID_BYTES).digest()
    except TypeError as error:
        raise DataError(
            f"row '{data.key(row)}': {error}.",
            place=f"{data.place}.fields.{modality}",
            hint="Without the cache (`anchor_cache: off` in the stage) any type will do.",
        ) from None


def _as_file(value: Any) -> Any:
    """Returns a file as Hugging Face writes it with its path as a `Path`, unless its bytes are in the table."""
    if isinstance(value, dict) and value.get("bytes") is None and isinstance(value.get("path"), str):
        return {**value, "path": Path(value["path"])}
    return value


def encode(value: Any) -> bytes:
    """Writes a value as bytes, different ones for values that differ in type or content.

    Raises:
        TypeError: There is no rule for its type.
    """
    if isinstance(value, str):  # first, because most cells are
        return _sized(b"s", value.encode("utf-8", "surrogatepass"))
    if isinstance(value, Path):
        return _file(value)
    if isinstance(value, Reference):
        return _sized(b"r", value.identity())
    if value is None:
        return b"N"
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, np.generic):
        return encode(value.item())
    if isinstance(value, list | tuple):
        return _sequence(value)
    if isinstance(value, Mapping):
        pairs = sorted((encode(key), encode(item)) for key, item in value.items())
        return b"m%d:" % len(pairs) + b"".join(key + item for key, item in pairs)
    return _scalar(value)


def _scalar(value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return _sized(b"b", bytes(value))
    if isinstance(value, bool):
        return b"T" if value else b"F"
    if isinstance(value, int):
        return _sized(b"i", str(value).encode())
    if isinstance(value, float):
        return b"f" + struct.pack("<d", value if value == value else _NAN)
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return _sized(b"d", value.isoformat().encode())
    if isinstance(value, datetime.timedelta):
        return _sized(b"e", f"{value.days} {value.seconds} {value.microseconds}".encode())
    if isinstance(value, decimal.Decimal):
        return _sized(b"n", str(value).encode())
    if isinstance(value, uuid.UUID):
        return _sized(b"u", value.bytes)
    raise TypeError(f"a cell of type {type(value).__name__} has no identity")


def _sequence(value: list[Any] | tuple[Any, ...]) -> bytes:
    kind = b"t" if isinstance(value, tuple) else b"l"
    if value and all(type(item) is float for item in value):  # a vector; many times as fast
        plain = [x if x == x else _NAN for x in value] if math.isnan(sum(value)) else value
        return kind + b"f%d:" % len(value) + struct.pack(f"<{len(value)}d", *plain)
    return kind + b"%d:" % len(value) + b"".join(map(encode, value))


def _array(value: npt.NDArray[Any]) -> bytes:
    if value.dtype.kind not in "biufc":
        return b"A" + encode(list(value.shape)) + encode(value.reshape(-1).tolist())
    little = value.astype(value.dtype.newbyteorder("<"), copy=False)
    content = _floats(little) if value.dtype.kind == "f" else little.tobytes()
    return b"a" + encode(little.dtype.str) + encode(list(value.shape)) + content


def _floats(value: npt.NDArray[Any]) -> bytes:
    return np.where(np.isnan(value), value.dtype.type("nan"), value).astype(value.dtype.newbyteorder("<")).tobytes()


def _file(path: Path) -> bytes:
    # Not resolved: `..` after a link leads elsewhere than its text says, and links may be set anew.
    located = os.fsencode(path.absolute())
    try:
        found = os.stat(path)  # noqa: PTH116 - twice as fast as Path.stat
    except (OSError, ValueError):  # missing, not to be reached, or no name that a file can have
        return _sized(b"P", located)
    return _sized(b"p", located) + b"%d:%d" % (found.st_size, found.st_mtime_ns)


def _sized(kind: bytes, content: bytes) -> bytes:
    """Writes how long it is as well, so that neighbours in a list cannot be cut in another way."""
    return kind + b"%d:" % len(content) + content
