"""Shards that are whole or not there, the same to the byte whenever the same samples are written."""

from __future__ import annotations

import json
import os
import tarfile
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from geobind_core.data_tools.pack_samples import Sample
from geobind_core.files import naming

_BLOCK = 512
_MODE = 0o444  # as webdataset's own writer has it


@dataclass(frozen=True)
class FinishedShard:
    """A shard that has been written.

    Attributes:
        name: Of the file.
        start: The row that it starts with.
        end: The row after its last one.
        samples: How many it has.
        size: Bytes of the file.
        skipped: Key, modality and reason of each row from `start` to `end` that is not in it.
    """

    name: str
    start: int
    end: int
    samples: int
    size: int
    skipped: list[list[str]]


class ShardWriter:
    """Writes one tar file under a temporary name. Times, owners and orders are always the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = temporary_name(path)
        self.samples = 0
        self._file = self.temporary.open("wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._tar.offset

    def add(self, sample: Sample) -> None:
        """Adds a sample."""
        with naming(self.temporary):
            for extension, content in sample.files.items():
                member = tarfile.TarInfo(f"{sample.key}.{extension}")
                member.size, member.mode, member.mtime = len(content), _MODE, 0
                self._tar.addfile(member, BytesIO(content))
        self.samples += 1

    def close(self) -> int:
        """Waits until all of it is on the disk; returns its size. It still has its temporary name."""
        with naming(self.temporary):
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return self.temporary.stat().st_size

    def abandon(self) -> None:
        """Gives up; what has been written stays, to be written over."""
        self._file.close()


def temporary_name(path: Path) -> Path:
    """Returns the name that a shard has while it is written."""
    return path.with_name(f".{path.name}.tmp")


def size_in_tar(sample: Sample) -> int:
    """Returns the bytes that a sample takes in a tar file."""
    return sum(_BLOCK + -(-len(content) // _BLOCK) * _BLOCK for content in sample.files.values())


class Journal:
    """Which shards are finished, so that a process that was killed can go on. One JSON object a line.

    A shard is noted when it is on the disk under its temporary name, and renamed after that: whatever is
    noted is there, under one of the two names.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished: dict[str, FinishedShard] = {}
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # the line that was being written when the process was killed
            with path.open("r+b") as file:
                file.truncate(len(whole))
        for line in whole.splitlines():
            record: dict[str, Any] = json.loads(line)
            self.finished[record["name"]] = FinishedShard(**record)

    def add(self, shard: FinishedShard) -> None:
        """Notes a shard that lies on the disk under its temporary name, and gives it its own."""
        path = self.path.with_name(shard.name)
        with naming(self.path), self.path.open("ab") as file:
            file.write(json.dumps(asdict(shard), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary_name(path).replace(path)
        self.finished[shard.name] = shard

    def intact(self, name: str) -> FinishedShard | None:
        """Returns what is known of a shard, if it has been finished and is still there as a whole."""
        shard, path = self.finished.get(name), self.path.with_name(name)
        if shard is None:
            return None
        if not path.exists() and _size(temporary_name(path)) == shard.size:
            temporary_name(path).replace(path)  # killed between noting it and renaming it
        return shard if _size(path) == shard.size else None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
