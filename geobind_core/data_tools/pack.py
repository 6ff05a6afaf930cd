"""From a table with files to WebDataset shards."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from geobind_core.data_tools.opened import OpenedData
from geobind_core.data_tools.pack_plan import PackOptions, maker_of, plan_of, settings_of
from geobind_core.data_tools.pack_samples import Sample, SampleMaker, Skipped
from geobind_core.data_tools.shard_writer import FinishedShard, Journal, ShardWriter, size_in_tar
from geobind_core.errors import DataError
from geobind_core.files import read_json, write_json
from geobind_core.progress import Reporter

REPORT = "report.json"
_PLAN, _JOURNAL, _LOCK = ".pack.json", ".pack.jsonl", ".pack.lock"
_AHEAD = 8  # samples of each thread that may wait to be written


@dataclass(frozen=True)
class Packed:
    """What has been packed.

    Attributes:
        rows: Rows of the table.
        samples: How many of them are in shards.
        shards: The shards, in order.
        skipped: Rows that cannot be read, with the modality and the reason.
        settings: What to write into a chain to use the shards, but for where they are.
        unused: Columns that cannot be in a JSON file.
    """

    rows: int
    samples: int
    shards: tuple[FinishedShard, ...]
    skipped: tuple[Skipped, ...]
    settings: dict[str, Any]
    unused: tuple[str, ...]


def pack(opened: OpenedData, folder: Path, options: PackOptions, reporter: Reporter) -> Packed:
    """Writes shards; after a kill, the same call goes on where the last finished shard ends.

    Args:
        opened: The data set.
        folder: Where to; it is new, empty, or the same was packed into it before.
        options: How.
        reporter: Told how far it is.

    Raises:
        ConfigError: An option names what is not there.
        DataError: The folder holds something else, is in use or cannot be written, or not one row can be read.
    """
    maker, unused = maker_of(opened, options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _require_own(folder, plan_of(maker, options))
        with FileLock(folder / _LOCK, timeout=0):
            shards = _pack_rows(maker, folder, options, reporter)
            packed = _summary(maker, shards, unused)
            write_json(folder / REPORT, report_of(packed))
    except Timeout:
        raise DataError("another process is packing into it.", place=str(folder), hint="Wait for it to end.") from None
    except OSError as error:
        raise DataError(
            f"the shards cannot be written: {error.strerror or error}.",
            place=str(error.filename or folder),
            hint="Finished shards are kept: mend it, and run the same command again.",
        ) from error
    if not packed.samples:
        first = packed.skipped[0]
        raise DataError(
            f"not one of {packed.rows} rows can be packed. {first.key} ({first.field}): {first.reason}",
            place=opened.data.place,
            hint=f"{folder / REPORT} names them all.",
        )
    return packed


def _require_own(folder: Path, plan: dict[str, Any]) -> None:
    """Makes sure that nothing else is in the folder, and says in it what is to be there."""
    before = read_json(folder / _PLAN)
    if isinstance(before, dict):
        other = [name for name in plan if before.get(name) != plan[name]]
        if other:
            raise DataError(
                f"it holds shards made from something else; what differs is: {', '.join(other)}.",
                place=str(folder),
                hint="Choose another folder, or remove this one.",
            )
    elif any(path.name not in (_LOCK, f".{_PLAN}.tmp") for path in folder.iterdir()):
        raise DataError("it is not empty, and holds no shards of this command.", place=str(folder))
    else:
        write_json(folder / _PLAN, plan)


def _pack_rows(maker: SampleMaker, folder: Path, options: PackOptions, reporter: Reporter) -> list[FinishedShard]:
    journal, row = Journal(folder / _JOURNAL), 0
    shards: list[FinishedShard] = []
    total, stream = len(maker.opened.data), _Stream(maker, options.workers or os.cpu_count() or 1)
    with reporter.task("packing", total, "rows") as task:
        try:
            while row < total:
                name = f"shard-{len(shards):06d}.tar"
                shard = journal.intact(name)
                if shard is None:
                    stream.go_to(row)
                    shard = _write_shard(stream, folder / name, options, task.update)
                    if shard.samples:
                        journal.add(shard)
                shards.append(shard)
                row = shard.end
                task.update(row)
        finally:
            stream.close()
    return shards


def _write_shard(stream: _Stream, path: Path, options: PackOptions, progress: Callable[[int], None]) -> FinishedShard:
    """Writes samples until the shard is full or there are no more; the stream is then at the next row."""
    writer, start, skipped = ShardWriter(path), stream.row, []
    try:
        while (sample := stream.peek()) is not None:
            if isinstance(sample, Skipped):
                skipped.append([sample.key, sample.field, sample.reason])
            elif writer.samples and (
                writer.samples >= options.samples or writer.size + size_in_tar(sample) > options.size
            ):
                break
            else:
                writer.add(sample)
            stream.next()
            progress(stream.row)
    except BaseException:
        writer.abandon()
        raise
    return FinishedShard(path.name, start, stream.row, writer.samples, writer.close(), skipped)


class _Stream:
    """Samples in the order of their rows, made by several threads a little ahead."""

    def __init__(self, maker: SampleMaker, workers: int) -> None:
        self.row = -1
        self._maker = maker
        self._most = workers * _AHEAD
        self._pool = ThreadPoolExecutor(workers)
        self._waiting: deque[Future[Sample | Skipped]] = deque()
        self._rows: Iterator[tuple[int, dict[str, Any]]] = iter(())

    def go_to(self, row: int) -> None:
        """Goes on with a row."""
        if row != self.row:
            self._drop()
            self.row, self._rows = row, self._maker.rows_from(row)

    def peek(self) -> Sample | Skipped | None:
        """Returns the sample of the current row; None behind the last."""
        while len(self._waiting) < self._most and (following := next(self._rows, None)) is not None:
            self._waiting.append(self._pool.submit(self._maker.make, *following))
        return self._waiting[0].result() if self._waiting else None

    def next(self) -> None:
        """Goes to the next row."""
        self._waiting.popleft()
        self.row += 1

    def close(self) -> None:
        """Lets go of the threads."""
        self._drop()
        self._pool.shutdown(wait=True)

    def _drop(self) -> None:
        for waiting in self._waiting:
            waiting.cancel()
        self._waiting.clear()


def _summary(maker: SampleMaker, shards: list[FinishedShard], unused: tuple[str, ...]) -> Packed:
    return Packed(
        rows=len(maker.opened.data),
        samples=sum(shard.samples for shard in shards),
        shards=tuple(shard for shard in shards if shard.samples),
        skipped=tuple(Skipped(*row) for shard in shards for row in shard.skipped),
        settings=settings_of(maker),
        unused=unused,
    )


def report_of(packed: Packed) -> dict[str, Any]:
    """Returns what was packed and what was not, as `report.json` has it."""
    return {
        "rows": packed.rows,
        "samples": packed.samples,
        "shards": [{"name": s.name, "samples": s.samples, "bytes": s.size} for s in packed.shards],
        "skipped": [{"key": s.key, "modality": s.field, "reason": s.reason} for s in packed.skipped],
        "settings": packed.settings,
        "unused_columns": list(packed.unused),
    }
