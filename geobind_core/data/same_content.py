"""Files of the same content, found without reading most of them."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar

from geobind_core.errors import DataError

T = TypeVar("T")
R = TypeVar("R")

_HEAD = 16 * 2**10  # bytes that tell most files apart
_THREADS = 16  # that wait for a file system at a time
_BLOCK = 256


def same_content(
    files: Sequence[T], open_file: Callable[[T], BinaryIO], is_of_interest: Callable[[Sequence[T]], bool]
) -> list[list[T]]:
    """Groups files by their content. They are read to their end only where they begin alike.

    Args:
        files: Whatever `open_file` takes.
        open_file: Opens one. What it cannot open, or what cannot be read then, is in no group.
        is_of_interest: Whether the files of a group may be all that there is of it; otherwise it is left out.

    Returns:
        The groups of interest, and the files in each, in the order of `files`.
    """
    groups = []
    for (size, _), alike in _grouped(files, lambda file: _of(file, open_file, _head)).items():
        if not is_of_interest(alike):
            continue
        whole = [alike] if size <= _HEAD else _grouped(alike, lambda file: _of(file, open_file, _all)).values()
        groups += [group for group in whole if is_of_interest(group)]
    return groups


def in_threads(action: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Does the same with each of many things that wait for a file system."""
    blocks = [items[start : start + _BLOCK] for start in range(0, len(items), _BLOCK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [
            result for results in pool.map(lambda block: [action(item) for item in block], blocks) for result in results
        ]


def _grouped(files: Sequence[T], key: Callable[[T], R | None]) -> dict[R, list[T]]:
    groups: dict[R, list[T]] = defaultdict(list)
    for file, found in zip(files, in_threads(key, files), strict=True):
        if found is not None:
            groups[found].append(file)
    return groups


def _head(file: BinaryIO) -> tuple[int, bytes]:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size, hashlib.blake2b(file.read(_HEAD)).digest()


def _all(file: Any) -> bytes:  # BinaryIO does not promise what file_digest needs
    return hashlib.file_digest(file, "sha256").digest()


def _of(file: T, open_file: Callable[[T], BinaryIO], digest: Callable[[BinaryIO], R]) -> R | None:
    try:
        with open_file(file) as opened:
            return digest(opened)
    except (DataError, OSError, TypeError, ValueError):  # what cannot be read is counted where it is needed
        return None
