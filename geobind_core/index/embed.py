"""Embedding a data set: rows through an encoder, part after part, by one process or by several."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from geobind_core.config.models import LoaderConfig
from geobind_core.config.problems import suggest
from geobind_core.data.loading import BatchRequest
from geobind_core.data.paired import Rows
from geobind_core.data.samples import BadSample, BadSampleCount, SampleReader
from geobind_core.data.splits import Split
from geobind_core.data_tools.opened import OpenedData
from geobind_core.errors import DataError
from geobind_core.index.columns import Columns, columns_of
from geobind_core.index.record import FORMAT, IndexRecord
from geobind_core.index.write import Parts, assemble
from geobind_core.progress import Reporter
from geobind_core.space.embed import EmbeddedRows, embed_batches
from geobind_core.space.space import Space

_PART_ROWS = 1_024  # embedded before they are written: what a killed process loses at most


@dataclass(frozen=True)
class EmbedOptions:
    """How a data set is embedded.

    Attributes:
        split: Only rows of this split; None: all.
        dtype: How embeddings are stored.
        batch_size: Rows that go through the network at a time.
        keep: Further columns to write.
        time: The column of times; None: one that is called like it.
        max_bad_samples: The share of rows that may be unreadable.
        bad_samples_setting: What sets it, for messages; None: nothing does.
    """

    split: Split | None = None
    dtype: Literal["float32", "float16"] = "float32"
    batch_size: int = 64
    keep: tuple[str, ...] = ()
    time: str | None = None
    max_bad_samples: float = 0.01
    bad_samples_setting: str | None = "--max-bad-samples"


@dataclass(frozen=True)
class Job:
    """What there is to embed, the same in every process.

    Attributes:
        opened: The data set.
        modality: Which of its fields.
        rows: `[N]` the rows that have something for it.
        columns: What is written beside the embeddings.
        options: How.
        plan: What the embeddings depend on.
        parts: Where they are kept until all are there.
    """

    opened: OpenedData
    modality: str
    rows: Rows
    columns: Columns
    options: EmbedOptions
    plan: dict[str, object]
    parts: Parts

    @property
    def digest(self) -> str:
        """A hash of the plan."""
        return hashlib.sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()

    def bad_sample_count(self) -> BadSampleCount:
        """Returns what counts the samples that cannot be read."""
        of = self.options
        return BadSampleCount(len(self.rows), of.max_bad_samples, self.opened.data.place, of.bad_samples_setting)

    def batches_of_part(self, part: int) -> list[Rows]:
        """Returns the rows of a part; always the same, whoever embeds it, so that results are."""
        rows = self.rows[part * _PART_ROWS : (part + 1) * _PART_ROWS]
        size = self.options.batch_size
        return [rows[start : start + size] for start in range(0, len(rows), size)]


def make_job(
    space: Space, opened: OpenedData, modality: str, out: Path, options: EmbedOptions, rows: Rows | None = None
) -> Job:
    """Says what is to be embedded.

    Args:
        space: Has the encoder.
        opened: The data set.
        modality: Which of its fields.
        out: The index to be.
        options: How.
        rows: Only these, as far as they have something for the modality; None: all of the split.

    Raises:
        SpaceError: The space does not have the modality.
        DataError: The data does not, or not in this split.
        ConfigError: A column is not there.
    """
    record, data = space.record_of(modality), opened.data
    if modality not in data.fields:
        raise DataError(
            f"no field for '{modality}'. {suggest(modality, data.fields)}",
            place=data.place,
            hint=f"Say which column it is: --field {modality}=<column>",
        )
    filled = np.flatnonzero(data.filled(modality)) if options.split is None else data.rows(options.split, [modality])
    rows = filled if rows is None else rows[np.isin(rows, filled)]
    if not len(rows):
        where = f"split '{options.split}', {data.count(options.split)} rows," if options.split else "the data"
        raise DataError(f"{where} has nothing for '{modality}'.", place=data.place)
    columns = columns_of(opened, [*space.modalities], options.keep, options.time, out.absolute().parent)
    plan: dict[str, object] = {
        "format": FORMAT,
        "modality": modality,
        "encoder": record.model_dump(mode="json", include={"plugin", "distribution", "version", "config"}),
        "content_hash": record.content_hash,
        "data": opened.source.fingerprint(),
        "field": list(data.fields[modality]),
        "rows": hashlib.sha256(pa.array(rows).buffers()[1]).hexdigest(),
        "cells": {name: cells.model_dump(mode="json") for name, cells in columns.cells.items()},
        "root": columns.root,
        "part_rows": _PART_ROWS,
        **{name: value for name, value in asdict(options).items() if "bad_samples" not in name},
    }
    # What JSON makes of it, to compare it with what is on the disk.
    plan = json.loads(json.dumps(plan))
    return Job(opened, modality, rows, columns, options, plan, Parts.beside(out, -(-len(rows) // _PART_ROWS)))


def embed_parts(
    space: Space,
    job: Job,
    missing: Sequence[int],
    reporter: Reporter,
    device: torch.device,
    title: str,
    loader: LoaderConfig | None = None,
) -> None:
    """Embeds some parts of a job, and stores each when it is whole.

    Args:
        space: Has the encoder.
        job: What there is to embed.
        missing: The parts' numbers.
        reporter: Told how far it is.
        device: Where the network is.
        title: What progress is called.
        loader: How rows are read.

    Raises:
        DataError: More rows than are allowed cannot be read.
    """
    options = job.options
    reader = SampleReader(job.opened.data, job.modality, space.modality(job.modality), train=False, seed=0)
    encoder = space.encoder(job.modality)

    batches = [(part, rows) for part in missing for rows in job.batches_of_part(part)]
    if not batches:
        return
    rows = np.concatenate([rows for _, rows in batches])
    requests = [BatchRequest(0, step, rows) for step, (_, rows) in enumerate(batches)]
    count = job.bad_sample_count()
    embedded = embed_batches(reader, encoder, requests, rows, loader=loader or LoaderConfig(), device=device)
    done = len(job.rows) - len(rows)
    with reporter.task(title, len(job.rows), "rows", done=done) as task:
        for part, found in _by_part([part for part, _ in batches], embedded, task.advance):
            found = [_without_directionless(piece, reader) for piece in found]
            bad = [sample for piece in found for sample in piece.bad]
            for sample in count.add(bad):
                reporter.warn(f"skipped {sample}")
            kept = [piece for piece in found if len(piece.rows)]
            job.parts.write(part, *_joined(kept, space.embed_dim, options.dtype), bad)
            count.require_few()


def _by_part(
    parts: Sequence[int], embedded: Iterator[EmbeddedRows], advance: Callable[[int], None]
) -> Iterator[tuple[int, list[EmbeddedRows]]]:
    """Yields the batches of each part together."""
    found: list[EmbeddedRows] = []
    for number, (part, piece) in enumerate(zip(parts, embedded, strict=True)):
        found.append(piece)
        advance(len(piece.rows) + len(piece.bad))
        if number + 1 == len(parts) or parts[number + 1] != part:
            yield part, found
            found = []


def _without_directionless(piece: EmbeddedRows, reader: SampleReader) -> EmbeddedRows:
    """Counts rows as bad whose embedding is zero or not finite: it is near to nothing, or to everything."""
    if not len(piece.rows):
        return piece
    good = torch.linalg.vector_norm(piece.embeddings, dim=1) > 0.5  # else 1; false of NaN
    bad = [
        BadSample(reader.data.key(row), reader.name, "its embedding is zero or not finite")
        for row in piece.rows[~good].tolist()
    ]
    return replace(piece, rows=piece.rows[good], embeddings=piece.embeddings[good], bad=[*piece.bad, *bad])


def _joined(kept: Sequence[EmbeddedRows], embed_dim: int, dtype: str) -> tuple[Rows, npt.NDArray[Any]]:
    if not kept:
        return np.empty(0, dtype=np.int64), np.empty((0, embed_dim), dtype=dtype)
    rows = torch.cat([piece.rows for piece in kept]).numpy()
    return rows, torch.cat([piece.embeddings for piece in kept]).numpy().astype(dtype, copy=False)


def finish(space: Space, job: Job, out: Path, reporter: Reporter) -> IndexRecord:
    """Puts the parts together, and removes them.

    Raises:
        DataError: More rows than are allowed could not be read, or all.
    """
    bad: list[BadSample] = job.parts.bad()
    count = job.bad_sample_count()
    count.add(bad)
    count.require_few()
    record = IndexRecord(
        modality=job.modality,
        content_hash=space.record_of(job.modality).content_hash,
        embed_dim=space.embed_dim,
        dtype=job.options.dtype,
        space=space.record,
        data=job.opened.name,
        split=job.options.split,
        root=job.columns.root,
        cells=dict(job.columns.cells),
        skipped=len(bad),
        plan=job.digest,
    )
    with reporter.task(f"writing {out.name}", 1, "files"):
        assemble(out, job.parts, job.columns, record)
    job.parts.remove()
    return record
