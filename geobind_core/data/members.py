"""Cells inside shards: where a file lies in which tar file, and how it is read."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from typing import Any

import pyarrow as pa

from geobind_core.data.copies import Copies
from geobind_core.data.remote import is_url, shown
from geobind_core.data.shard_file import ShardFile
from geobind_core.errors import DataError
from geobind_core.plugins.source import Reference

MEMBER = pa.struct([("shard", pa.int32()), ("offset", pa.int64()), ("size", pa.int64())])
"""A cell of a table: 20 bytes, however large the file."""

_MOST_OPEN = 64
_TEXTS = ("txt", "text", "transcript", "json", "jsn")


class Shards:
    """The shards of a data set, opened as they are needed.

    A process has few of them open at a time. Copies in other processes, forked or not, open their own. Any number of
    threads may read.

    Args:
        files: The shards, as they were when they were indexed; members say which by its number.
        copies: Where shards at addresses are copied to.
    """

    def __init__(self, files: Sequence[ShardFile], copies: Copies | None = None) -> None:
        self.files = tuple(files)
        self.copies = copies
        self._renew()

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Returns a part of a shard.

        Raises:
            DataError: The shard is not what it was when it was indexed, or cannot be read.
        """
        file = self.files[shard]
        try:
            handle = self._opened(shard, file)
            if not is_url(file.location):
                found = os.fstat(handle.fileno())
                if (found.st_size, found.st_mtime_ns) != (file.size, file.mtime_ns):
                    self._forget(shard)
                    raise _changed(file, found.st_size)
            content = os.pread(handle.fileno(), size, offset)
        except OSError as error:
            raise DataError(
                f"the shard cannot be read: {error.strerror or error}.", place=shown(file.location)
            ) from error
        if len(content) != size:
            raise _changed(file, file.size)
        return content

    def fetch(self, shard: int) -> None:
        """Copies a shard that is at an address, unless it has been copied.

        Raises:
            DataError: It cannot be copied.
        """
        if self.files[shard].is_remote:
            self._opened(shard, self.files[shard]).close()

    def _opened(self, shard: int, file: ShardFile) -> FileIO:
        if is_url(file.location):
            if self.copies is None:
                raise ValueError("shards at addresses need a folder for copies")
            # Not kept open: a copy that was removed to make room would go on taking it.
            return self.copies.open(file)
        if self._process != os.getpid():  # forked, perhaps while a thread of the other process held the lock
            self._renew()
        with self._lock:
            handle = self._open.pop(shard, None) or FileIO(file.location)
            self._open[shard] = handle  # the one used last is the last
            if len(self._open) > _MOST_OPEN:
                # It is closed when the last thread that reads from it lets go of it.
                del self._open[next(iter(self._open))]
        return handle

    def _forget(self, shard: int) -> None:
        with self._lock:
            self._open.pop(shard, None)

    def _renew(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open: dict[int, FileIO] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "copies": self.copies}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Shards.__init__(self, state["files"], state["copies"])


@dataclass(frozen=True, slots=True)
class Member(Reference):
    """One file in a shard.

    Args:
        shards: The shards.
        shard: Which of them.
        offset: Where its content starts, in bytes.
        length: How many bytes it has.
        is_text: Whether it is a text, for modalities that read no files.
    """

    shards: Shards
    shard: int
    offset: int
    length: int
    is_text: bool

    def identity(self) -> bytes:
        """The shard as it was indexed, and the place in it."""
        return self.shards.files[self.shard].identity() + b"\0%d:%d" % (self.offset, self.length)

    def read(self, *, is_file: bool) -> bytes | str:
        """Returns the file's bytes, or its text.

        Raises:
            DataError: The shard has changed, or cannot be read.
            UnicodeDecodeError: It should be a text, and is not in UTF-8.
        """
        content = self.shards.read(self.shard, self.offset, self.length)
        return content.decode("utf-8") if self.is_text and not is_file else content

    def size(self) -> int | None:
        """Its length, unless a shard would have to be copied for it."""
        return None if self.shards.files[self.shard].is_remote else self.length


@dataclass(frozen=True)
class MemberColumn:
    """Makes members of the cells of a column.

    Args:
        shards: The shards.
        extension: The extension of the column's files; it says which are texts.
    """

    shards: Shards
    extension: str

    def __call__(self, value: Mapping[str, int]) -> Member:
        """Returns the member that a cell of type `MEMBER` stands for."""
        is_text = self.extension.rpartition(".")[2] in _TEXTS
        return Member(self.shards, value["shard"], value["offset"], value["size"], is_text)


def _changed(file: ShardFile, size: int) -> DataError:
    what = f"it has {size} bytes, and had {file.size}" if size != file.size else "it was written again"
    return DataError(
        f"the shard has changed since it was indexed: {what}.",
        place=shown(file.location),
        hint="Run the same command again; what has changed is indexed anew.",
    )
