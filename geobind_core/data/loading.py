"""Deterministic batches: which rows, in which order, read by whom."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from geobind_core.config.models import LoaderConfig
from geobind_core.data.ahead import FetchedAhead
from geobind_core.data.order import Order, epoch_order
from geobind_core.data.paired import Rows
from geobind_core.data.samples import BadSample, SampleReader, describe, is_decoded_later, probe_rows, size_in_memory
from geobind_core.data.workers import BatchLoader, start_worker
from geobind_core.errors import PluginError

_PREFETCH = 4
_MIB = 2**20


@dataclass(frozen=True)
class BatchRequest:
    """A batch to be read.

    Attributes:
        epoch: Rows are read as they are in this epoch.
        step: The step's number, from 0.
        rows: `[B]` rows of the data set.
        random: Modality -> further rows of it, unrelated to `rows`; a negative number is an
            observation that the modality draws itself.
    """

    epoch: int
    step: int
    rows: Rows
    random: Mapping[str, Rows] = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """The part of each batch that one of several processes reads."""

    index: int = 0
    count: int = 1

    def of(self, rows: Rows) -> Rows:
        """Returns this process's consecutive part; parts differ by one row at most."""
        return rows[len(rows) * self.index // self.count : len(rows) * (self.index + 1) // self.count]


class Column(Protocol):
    """What stands in for the samples of a modality: something known of each row."""

    def of(self, rows: Rows, epoch: int) -> Any:
        """Returns an array `[B, ...]` of rows `[B]`."""


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
        shard: The part of each batch to be read here.
        random: Modality -> how many of its observations are drawn at random beside each batch.
        drawn: Those of them that the modality draws itself; the others are rows like any.
        order: The order of each epoch.
        near: Rows that are drawn at random come at most so many places before or after the batch in this
            order; None: they are any rows.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        epochs: int,
        seed: int,
        start_step: int = 0,
        shard: Shard | None = None,
        random: Mapping[str, int] | None = None,
        drawn: Iterable[str] = (),
        order: Order = epoch_order,
        near: int | None = None,
    ) -> None:
        self.order = order
        self.near = near
        self.shard = shard or Shard()
        self.random = random or {}
        self.drawn = frozenset(drawn)
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
            order = self.order(self.rows, self.seed, epoch)
            for position in range(self.steps_per_epoch):
                step = epoch * self.steps_per_epoch + position
                if step >= self.start_step:
                    start = position * self.batch_size
                    end = start + self.batch_size
                    rows = self.shard.of(order[start:end])
                    others = self.rows if self.near is None else order[max(0, start - self.near) : end + self.near]
                    yield BatchRequest(epoch, step, rows, {n: self._random(n, step, others) for n in self.random})

    def _random(self, name: str, step: int, rows: Rows) -> Rows:
        if name in self.drawn:
            return self.shard.of(-1 - np.arange(self.random[name]))
        digest = hashlib.blake2b(f"{self.seed}:{step}:{name}".encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
        return self.shard.of(generator.choice(rows, self.random[name]))


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


Batches = Sampler[BatchRequest] | Sequence[BatchRequest]


class _BatchDataset(Dataset[Any]):
    """Reads a whole batch at a time; rows with anything unreadable are left out of all modalities.

    An error is returned, for what a worker raises comes with its traceback in place of its message.
    """

    def __init__(self, readers: Mapping[str, SampleReader], columns: Mapping[str, Column], threads: int) -> None:
        self.readers = dict(readers)
        self.columns = dict(columns)
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}

    def __getitem__(self, request: BatchRequest) -> dict[str, Any] | PluginError:
        columns = {name: self._samples(reader, request) for name, reader in self.readers.items()}
        bad = [s for column in columns.values() for s in column if isinstance(s, BadSample)]
        keep = [
            i
            for i in range(len(request.rows))
            if not any(isinstance(column[i], BadSample) for column in columns.values())
        ]
        rows, inputs = request.rows[keep], {}
        random = {name: request.random[name] for name in request.random}
        for name, reader in self.readers.items():
            samples = [columns[name][i] for i in keep]
            if name in random:
                more = self._random_samples(reader, request)
                bad += [s for s in more if isinstance(s, BadSample)]
                good = [i for i, s in enumerate(more) if not isinstance(s, BadSample)]
                random[name] = random[name][good]
                samples += [more[i] for i in good]
            if samples:
                try:
                    inputs[name] = reader.modality.collate(samples)
                except MemoryError:
                    raise
                except Exception as error:  # which may be any: what it does is the plugin's own
                    return _cannot_collate(reader, len(samples), error)
        for name, column in self.columns.items():
            wanted = np.concatenate([rows, random[name]]) if name in random else rows
            inputs[name] = torch.from_numpy(column.of(wanted, request.epoch))
        return {
            "epoch": request.epoch,
            "step": request.step,
            "rows": torch.from_numpy(rows),
            "random": {name: torch.from_numpy(chosen) for name, chosen in random.items()},
            "inputs": inputs,
            "bad": bad,
        }

    def _samples(self, reader: SampleReader, request: BatchRequest) -> list[Any]:
        return self._ready(reader, request.rows.tolist(), request.epoch)

    def _random_samples(self, reader: SampleReader, request: BatchRequest) -> list[Any]:
        rows = request.random[reader.name].tolist()
        if rows and rows[0] < 0:
            return [reader.drawn(-1 - row, request.step) for row in rows]
        return self._ready(reader, rows, request.epoch)

    def _ready(self, reader: SampleReader, rows: list[int], epoch: int) -> list[Any]:
        def read(row: int) -> tuple[Any, Any]:
            decoded = reader.read(row)
            # Other transforms stay in one thread: they may use torch's own generator, which all threads share.
            return decoded, reader.finish(decoded, row, epoch) if is_decoded_later(decoded) else None

        if self.threads > 1:
            # Decoders release the interpreter's lock, so threads decode side by side.
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads)
            found = list(self._pool.map(read, rows))
        else:
            found = [read(row) for row in rows]
        samples = []
        for row, (decoded, sample) in zip(rows, found, strict=True):
            reader.keep(row, decoded)
            samples.append(sample if is_decoded_later(decoded) else reader.finish(decoded, row, epoch))
        return samples


def _cannot_collate(reader: SampleReader, count: int, error: Exception) -> PluginError:
    trained = "; transform(train=True) made them" if reader.train else ""
    return PluginError(
        f"{count} samples of '{reader.name}' cannot be made into a batch{trained}: {describe(error)}",
        hint=f"Samples of different sizes have to be made equal, in `transform` or in `collate` of "
        f"'{reader.modality.name}'; `geobind plugins check {reader.modality.name}` tries it.",
    )


def batches(
    readers: Mapping[str, SampleReader],
    sampler: Batches,
    *,
    workers: int,
    pin_memory: bool,
    columns: Mapping[str, Column] | None = None,
) -> DataLoader[dict[str, Any]]:
    """Returns a loader of batches.

    Each batch is a dictionary: `epoch`, `step`, `rows` (`[B]` row numbers), `inputs` (modality ->
    what its `collate` made of those rows, and behind them of the random ones; no entry if none could
    be read), `random` (modality -> numbers of the random ones that could be read) and `bad` (list of
    `BadSample`).
    """
    blocks = next((reader.data.blocks for reader in readers.values()), None)
    if blocks is not None and blocks.fetch is not None and blocks.ahead:
        sampler = FetchedAhead(sampler, blocks)
    cores = os.cpu_count() or 1
    dataset = _BatchDataset(readers, columns or {}, threads=cores if workers == 0 else 1)
    return BatchLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=_PREFETCH if workers else None,
        worker_init_fn=start_worker,
        persistent_workers=False,  # one pass over the sampler is the whole stage
        # A loader draws a seed for its workers when it starts. From the global stream, that draw would
        # set a stage that goes on from a checkpoint apart from one that never stopped.
        generator=torch.Generator(),
    )


def plan_workers(
    readers: Mapping[str, SampleReader], rows: Rows, loader: LoaderConfig, device: torch.device
) -> tuple[int, int]:
    """Decides how many loader processes to use, and how many bytes each reader may keep decoded.

    On a CPU, where all decoded samples fit in memory, reading them once and keeping them in the
    training process beats any number of processes. An accelerator would have to wait meanwhile.
    """
    if not readers:  # what is left to look up takes no time
        return loader.workers or 0, 0
    budget = loader.decoded_cache_mib * _MIB
    sizes = {name: _typical_size(reader, rows) for name, reader in readers.items()}
    fits = sum(sizes.values()) * len(rows) <= budget
    workers = loader.workers
    if workers is None:
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = 0 if fits and device.type == "cpu" else max(1, cores - 1)
    return workers, budget // max(1, len(readers)) // max(1, workers)


def _typical_size(reader: SampleReader, rows: Rows) -> float:
    return max((size_in_memory(reader.read(row)) for row in probe_rows(reader.data, rows)), default=0)
