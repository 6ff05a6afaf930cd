"""Shards and tables that are elsewhere, copied into a folder of limited size when they are first needed."""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from filelock import FileLock, Timeout

from geobind_core.data.cache_entries import cache_root
from geobind_core.data.remote import copy_to, shown, size_and_version
from geobind_core.data.shard_file import ShardFile
from geobind_core.errors import DataError

_LOCK = ".lock"
_UNFINISHED = ".part"
_RESERVED = ".room"  # as large as the file will be, but takes no room itself
_LOCKS = 64  # so many files can be copied at the same time
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_OF_A_USE = 30.0  # how exactly it is known which copy was used last
_SECONDS_OF_A_FAILURE = 60.0
_LONGEST_NAME = 100
_BYTES_OF_TABLES = 16 * 2**30


@dataclass(frozen=True)
class Copies:
    """A folder of copies; any number of processes may use it at the same time.

    Args:
        folder: The folder; nothing else may be in it.
        limit: The bytes that it may take. What was not used for the longest time makes room.
    """

    folder: Path
    limit: int
    _failed: dict[str, tuple[float, DataError]] = field(default_factory=dict, compare=False, repr=False)

    def path(self, file: ShardFile) -> Path:
        """Returns where the copy of a file is, or will be; its name ends as the file's own does."""
        return self.folder / f"{hashlib.sha256(file.identity()).hexdigest()[:32]}-{file.name[-_LONGEST_NAME:]}"

    def open(self, file: ShardFile) -> FileIO:
        """Opens the copy of a file, which is made first if there is none.

        Raises:
            DataError: It cannot be copied, or there is no room for it.
        """
        path = self.path(file)
        while True:
            try:
                handle = FileIO(path)
            except FileNotFoundError:
                self._fetch(file, path)  # another process may remove it before it is opened: once more, then
                continue
            if time.time() - os.fstat(handle.fileno()).st_mtime > _SECONDS_OF_A_USE:
                with suppress(PermissionError):  # another user's
                    os.utime(handle.fileno())
            return handle

    def _fetch(self, file: ShardFile, path: Path) -> None:
        since, error = self._failed.get(file.location, (0.0, None))
        if error is not None and time.monotonic() - since < _SECONDS_OF_A_FAILURE:
            raise error  # or else each of its thousands of rows would wait for it
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self._lock_of(path)):  # others that want the same file wait for it
                if not path.exists():  # or else another process has just made it
                    self._wait_for_room(file, path)
                    self._copy(file, path)
        except DataError as error:
            self._failed[file.location] = time.monotonic(), error
            raise
        except OSError as error:
            raise DataError(
                f"files cannot be copied here: {error.strerror or error}.",
                place=str(self.folder),
                hint="Lower the data set's cache_gib, or set GEOBIND_CACHE to a folder with more room.",
            ) from error

    def _alone(self) -> FileLock:
        """Returns the lock of who adds up sizes. It is never held for long."""
        return FileLock(self.folder / _LOCK)

    def _lock_of(self, path: Path) -> Path:
        """Returns the lock that is held while a file is copied, one of few, so that they do not pile up."""
        name = path.name.removesuffix(_UNFINISHED).removesuffix(_RESERVED)
        return self.folder / f"{_LOCK}-{zlib.crc32(os.fsencode(name)) % _LOCKS:02d}"

    def _copy(self, file: ShardFile, path: Path) -> None:
        unfinished, reserved = (path.with_name(path.name + suffix) for suffix in (_UNFINISHED, _RESERVED))
        try:
            copy_to(file.location, unfinished)
            size = unfinished.stat().st_size
            if size != file.size:
                raise DataError(
                    f"{size} bytes arrived of {file.size}: the file has changed, or the connection was lost.",
                    place=shown(file.location),
                    hint="Run the same command again.",
                )
            with self._alone():  # who adds up sizes meanwhile might see neither
                unfinished.replace(path)
                reserved.unlink(missing_ok=True)
        except BaseException:
            for left in (unfinished, reserved):
                left.unlink(missing_ok=True)
            raise

    def _wait_for_room(self, file: ShardFile, path: Path) -> None:
        """Reserves room for a file whose lock is held; where others have reserved all of it, when they are done."""
        if file.size > self.limit:
            raise DataError(
                f"the file has {file.size} bytes, more than all copies together may take, {self.limit}.",
                place=shown(file.location),
                hint="Raise the data set's cache_gib.",
            )
        while True:
            with self._alone():
                if self._make_room(file.size, self._lock_of(path)):
                    with path.with_name(path.name + _RESERVED).open("wb") as reserved:
                        reserved.truncate(file.size)
                    return
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _make_room(self, size: int, held: Path) -> bool:
        """Removes what was not used for the longest time. Returns whether there is room now."""
        copies, taken = [], 0
        for path in self.folder.iterdir():
            if path.name.startswith(_LOCK) or self._is_leftover(path, held):
                continue
            try:
                found = path.stat()
            except FileNotFoundError:  # the copying of it has just ended
                continue
            if path.suffix != _UNFINISHED:  # for which room is reserved
                taken += found.st_size
            if path.suffix not in (_RESERVED, _UNFINISHED):
                copies.append((found.st_mtime, found.st_size, path))
        for _, freed, path in sorted(copies):
            if taken + size <= self.limit:
                break
            path.unlink(missing_ok=True)
            taken -= freed
        return taken + size <= self.limit

    def _is_leftover(self, path: Path, held: Path) -> bool:
        """Removes what a killed process has left. Nobody holds its lock, or we do, and have not begun."""
        if path.suffix not in (_RESERVED, _UNFINISHED):
            return False
        lock = self._lock_of(path)
        try:
            with nullcontext() if lock == held else FileLock(lock, blocking=False):
                path.unlink(missing_ok=True)
        except Timeout:
            return False
        return True


def local_table(url: str) -> Path:
    """Returns a copy on this machine of a table at an address, a new one if the table has changed.

    Raises:
        DataError: It cannot be copied.
    """
    size, version = size_and_version(url)
    file, copies = ShardFile(url, size, 0, version), Copies(cache_root() / "tables", _BYTES_OF_TABLES)
    copies.open(file).close()
    return copies.path(file)
