"""Files that are whole or not there: written beside and renamed into place."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the path to an error of the disk that has none: a write that finds the disk full knows no name."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole: a reader sees the old content or the new, never half."""
    temporary = path.with_name(f".{path.name}.tmp")  # always the same: what a killed process left is written over
    try:
        with naming(path):
            temporary.write_text(text, encoding="utf-8")
            _wait_for_the_disk(temporary)
            temporary.replace(path)
    except BaseException:  # a full disk, an interruption: nothing half-written is left behind
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yields a name beside `path`; the file written there takes its place when the block ends without an error.

    Machines that share the folder may write at the same time; the last one's file stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with naming(path):
            yield temporary
            _wait_for_the_disk(temporary)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _wait_for_the_disk(path: Path) -> None:
    """Returns when the content of a file is on the disk: or else a power cut may leave its new name without it."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file; None when it is not there or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def temporary_beside(path: Path) -> Path:
    """Returns the folder that `replacing_folder` yields for a path."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside `path` that takes its place when the block ends without an error."""
    temporary = temporary_beside(path)
    previous = path.with_name(f".{path.name}.old")
    recover_folder(path)  # or else the next line would remove the only whole one
    for leftover in (temporary, previous):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with naming(path):
            yield temporary
            for parent, _, names in os.walk(temporary):
                for name in names:
                    _wait_for_the_disk(Path(parent, name))
    except BaseException:  # a full disk most of all needs the room back
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    # A folder cannot be renamed over another that has content. Between the two renames there is
    # neither; `recover_folder` puts the previous one back if the process dies just then.
    if path.exists():
        path.replace(previous)
    temporary.replace(path)
    shutil.rmtree(previous, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Undoes a replacement that was cut off between its two renames; ends one that was cut off after them."""
    previous = path.with_name(f".{path.name}.old")
    if previous.exists() and path.exists():
        shutil.rmtree(previous, ignore_errors=True)
    elif previous.exists():
        previous.replace(path)


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
