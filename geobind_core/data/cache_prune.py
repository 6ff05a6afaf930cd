"""Removing entries of the cache: never a folder that is not the cache's own."""

from __future__ import annotations

import errno
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from geobind_core.config.problems import suggest
from geobind_core.data.cache_entries import (
    ENTRY_FILE,
    REMOVED_PREFIX,
    TEMPORARY_PREFIX,
    StoredEntry,
    list_entries,
    own_folders,
)
from geobind_core.errors import InputError, RunFolderError

_DAY = 86_400.0
_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{unit}b": 1000**power for power, unit in enumerate("kmgt", 1)}
_UNITS |= {f"{unit}ib": 1024**power for power, unit in enumerate("kmgt", 1)}


@dataclass(frozen=True)
class Pruned:
    """What was removed, and how many leftovers of killed processes besides."""

    entries: list[StoredEntry]
    leftovers: int


def prune(
    root: Path,
    *,
    older_than: float | None = None,
    max_size: int | None = None,
    modality: str | None = None,
    everything: bool = False,
    dry_run: bool = False,
) -> Pruned:
    """Removes entries, and what killed processes left behind more than a day ago.

    A process that has an entry open keeps what it has opened, and goes on to write what it computes.

    Args:
        root: The cache.
        older_than: Entries that were not used for so many days.
        max_size: The longest unused entries, until the rest takes at most so many bytes.
        modality: Only entries of this one; all of them, where this alone is given.
        everything: All entries.
        dry_run: Only say what would be removed.

    Raises:
        InputError: Nothing says what to remove, or what does contradicts itself.
        RunFolderError: The cache cannot be read or written.
    """
    chosen_by = [name for name, limit in _limits(older_than, max_size, modality) if limit is not None]
    if not chosen_by and not everything:
        raise InputError(
            "nothing says what to remove.",
            place="cache prune",
            hint="Choose with --older-than DAYS, --max-size SIZE and --modality NAME, or give --all.",
        )
    if chosen_by and everything:
        raise InputError(f"found {chosen_by[0]} as well; --all goes with no other choice.", place="--all")
    if older_than is not None and not older_than >= 0:
        raise InputError(f"found {older_than:g}; expected a number of days, 0 or more.", place="--older-than")
    entries = list_entries(root)
    if modality is not None:
        names = {str(entry.description.get("modality")) for entry in entries}
        if modality not in names:
            raise InputError(f"the cache has nothing of '{modality}'. {suggest(modality, names)}", place="--modality")
        entries = [entry for entry in entries if entry.description.get("modality") == modality]
    chosen = _choose(entries, older_than, max_size)
    leftovers = list(_leftovers(root))
    if not dry_run:
        for folder in (*(entry.folder for entry in chosen), *leftovers):
            _remove(folder)
    return Pruned(chosen, len(leftovers))


def _limits(older_than: object, max_size: object, modality: object) -> tuple[tuple[str, object], ...]:
    return ("--older-than", older_than), ("--max-size", max_size), ("--modality", modality)


def _choose(entries: list[StoredEntry], older_than: float | None, max_size: int | None) -> list[StoredEntry]:
    """Returns those to remove; `entries` have the last used first."""
    if older_than is None and max_size is None:
        return entries
    limit = time.time() - (older_than or 0) * _DAY
    kept, total = 0, 0
    for entry in entries:
        total += entry.size
        if (older_than is not None and entry.last_used <= limit) or (max_size is not None and total > max_size):
            break
        kept += 1
    return entries[kept:]  # all that comes later was not used for even longer


def _leftovers(root: Path) -> Iterator[Path]:
    """Yields what killed processes did not finish: half-removed entries and half-written segments."""
    for folder in own_folders(root):
        if folder.name.startswith(REMOVED_PREFIX):
            yield folder
            continue
        for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
            try:
                age = time.time() - path.lstat().st_mtime
            except FileNotFoundError:  # finished just now
                continue
            if age > _DAY:
                yield path


def _remove(path: Path) -> None:
    try:
        if path.name.startswith(TEMPORARY_PREFIX):
            _delete(path)
            return
        if not path.name.startswith(REMOVED_PREFIX):
            # Whole or not there, also for those who look while it is being removed.
            path = path.rename(path.with_name(f"{REMOVED_PREFIX}{uuid.uuid4().hex}-{path.name}"))
        for child in path.iterdir():
            if child.name != ENTRY_FILE:
                _delete(child)
        (path / ENTRY_FILE).unlink()  # last: without it, what remains would not be known as ours
        path.rmdir()
    except FileNotFoundError:
        return  # somebody else is removing it
    except OSError as error:
        # NFS keeps a file that a process of this machine still has open, until it ends.
        if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
            raise RunFolderError(f"cannot be removed: {error.strerror or error}.", place=str(path)) from error


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def parse_size(text: str, place: str = "--max-size") -> int:
    """Reads `10GiB`, `500 MB` or a plain number of bytes.

    Args:
        text: What was given.
        place: Where, for the message.

    Raises:
        InputError: It is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-z]*)\s*", text, re.IGNORECASE | re.ASCII)
    if match is None or match[2].lower() not in _UNITS:
        raise InputError(f"found '{text}'; expected a size such as 10GiB or 500MB.", place=place)
    return int(float(match[1]) * _UNITS[match[2].lower()])
