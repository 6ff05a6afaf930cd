"""Deterministic batches: which rows, in which order, read by whom."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from geobind_core.config.models import LoaderConfig
from geobind_core.data.paired import Rows
from geobind_core.data.samples import BadSample, SampleReader, size_in_memory

_PREFETCH = 4
_MIB = 2**20


@dataclass(frozen=True)
class BatchRequest:
    """A batch to be read: `rows` of the data set, as they are in this epoch."""

    epoch: int
    step: int
    rows: Rows


def epoch_order(rows: Rows, seed: int, epoch: int) -> Rows:
    """Returns the rows in the order of an epoch: a pure function of its arguments."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    return generator.permutation(rows)


class TrainingBatches(Sampler[BatchRequest]):
    """The batches of a whole stage, epoch after epoch, from a given step on.

    The last, incomplete batch of an epoch is left out, since a smaller pool of negatives would make
    another loss; which rows those are changes from epoch to epoch.

    Args:
        rows: The training rows.
        batch_size: Rows of a batch; of fewer rows than that, all make one batch.
        epochs: Number of epochs.
        seed: Seed of the order.
        start_step: Steps that have been done before.
    """

    def __init__(self, rows: Rows, batch_size: int, epochs: int, seed: int, start_step: int = 0) -> None:
        self.rows = rows
        self.batch_size = min(batch_size, len(rows))
        self.epochs = epochs
        self.seed = seed
        self.start_step = start_step
        self.steps_per_epoch = len(rows) // self.batch_size

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs - self.start_step

    def __iter__(self) -> Iterator[BatchRequest]:
        for epoch in range(self.start_step // self.steps_per_epoch, self.epochs):
            order = epoch_order(self.rows, self.seed, epoch)
            for position in range(self.steps_per_epoch):
                step = epoch * self.steps_per_epoch + position
                if step >= self.start_step:
                    start = position * self.batch_size
                    yield BatchRequest(epoch, step, order[start : start + self.batch_size])


class SequentialBatches(Sampler[BatchRequest]):
    """All rows once, in their order, the last batch as small as it may be."""

    def __init__(self, rows: Rows, batch_size: int) -> None:
        self.rows = rows
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[BatchRequest]:
        for step in range(len(self)):
            yield BatchRequest(0, step, self.rows[step * self.batch_size : (step + 1) * self.batch_size])


class _BatchDataset(Dataset[dict[str, Any]]):
    """Reads a whole batch at a time; rows with anything unreadable are left out of all modalities."""

    def __init__(self, readers: Mapping[str, SampleReader], threads: int) -> None:
        self.readers = dict(readers)
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}

    def __getitem__(self, request: BatchRequest) -> dict[str, Any]:
        columns = {name: self._samples(reader, request) for name, reader in self.readers.items()}
        bad = [s for column in columns.values() for s in column if isinstance(s, BadSample)]
        keep = [
            i
            for i in range(len(request.rows))
            if not any(isinstance(column[i], BadSample) for column in columns.values())
        ]
        inputs = {
            name: self.readers[name].modality.collate([column[i] for i in keep])
            for name, column in columns.items()
            if keep
        }
        return {
            "epoch": request.epoch,
            "step": request.step,
            "rows": torch.from_numpy(request.rows[keep]),
            "inputs": inputs,
            "bad": bad,
        }

    def _samples(self, reader: SampleReader, request: BatchRequest) -> list[Any]:
        rows = request.rows.tolist()
        if self.threads > 1:
            # Decoders release the interpreter's lock, so threads decode side by side.
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads)
            decoded = list(self._pool.map(reader.read, rows))
        else:
            decoded = [reader.read(row) for row in rows]
        for row, sample in zip(rows, decoded, strict=True):
            reader.keep(row, sample)
        return [reader.finish(d, row, request.epoch) for d, row in zip(decoded, rows, strict=True)]


def batches(
    readers: Mapping[str, SampleReader],
    sampler: TrainingBatches | SequentialBatches,
    *,
    workers: int,
    pin_memory: bool,
) -> DataLoader[dict[str, Any]]:
    """Returns a loader of batches.

    Each batch is a dictionary: `epoch`, `step`, `rows` (`[B]` row numbers), `inputs` (modality ->
    what its `collate` made of those rows; empty if none could be read) and `bad` (list of
    `BadSample`).
    """
    cores = os.cpu_count() or 1
    dataset = _BatchDataset(readers, threads=cores if workers == 0 else 1)
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=_PREFETCH if workers else None,
        persistent_workers=False,
        # A loader draws a seed for its workers when it starts. From the global stream, that draw would
        # set a stage that goes on from a checkpoint apart from one that never stopped.
        generator=torch.Generator(),
    )


def plan_workers(readers: Mapping[str, SampleReader], rows: Rows, loader: LoaderConfig) -> tuple[int, int]:
    """Decides how many loader processes to use, and how many bytes each reader may keep decoded.

    Where all decoded samples fit in memory, reading them once and keeping them in the training
    process beats any number of processes.
    """
    budget = loader.decoded_cache_mib * _MIB
    sizes = {name: _typical_size(reader, rows) for name, reader in readers.items()}
    fits = sum(sizes.values()) * len(rows) <= budget
    workers = loader.workers
    if workers is None:
        workers = 0 if fits else max(1, (os.cpu_count() or 1) - 1)
    return workers, budget // max(1, len(readers)) // max(1, workers)


def _typical_size(reader: SampleReader, rows: Rows) -> int:
    probes = rows[:: max(1, len(rows) // 8)][:8].tolist()
    return max((size_in_memory(reader.read(row)) for row in probes), default=0)
