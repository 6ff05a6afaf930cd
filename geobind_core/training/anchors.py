"""What is frozen is embedded once: from the samples into the cache, and from there into every batch."""

from __future__ import annotations

import hashlib
import inspect
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from accelerate import Accelerator

from geobind_core.config.models import AlignConfig
from geobind_core.data.cache_entries import ID_BYTES, EntryDescription, cache_root
from geobind_core.data.cell_ids import Ids, cell_ids, view_ids
from geobind_core.data.embedding_cache import EmbeddingCache
from geobind_core.data.loading import BatchRequest
from geobind_core.data.paired import Rows
from geobind_core.data.samples import BadSample, SampleReader
from geobind_core.errors import RunFolderError
from geobind_core.plugins.modality import EncoderOutput, Modality
from geobind_core.plugins.stage_kind import StageContext
from geobind_core.space.embed import embed_batches
from geobind_core.space.encoder import content_hash
from geobind_core.training.frozen import FrozenPart
from geobind_core.training.processes import Processes

_ROWS_AT_A_TIME = 256
_ROWS_PER_SEGMENT = 8192
_SECONDS_PER_SEGMENT = 30.0


@dataclass(frozen=True)
class CachedColumn:
    """The output of something frozen for every row, read from the cache.

    Attributes:
        cache: Has the embeddings.
        positions: `[K, N]` where the cache has view k of row n of the data set.
    """

    cache: EmbeddingCache
    positions: npt.NDArray[np.int64]

    def of(self, rows: Rows, epoch: int) -> npt.NDArray[np.float32]:
        """Returns the embeddings `[B, D]` of rows `[B]` as they are in an epoch."""
        return self.cache.read(self.positions[epoch % len(self.positions), rows])


def cached_column(
    part: FrozenPart,
    config: AlignConfig,
    context: StageContext,
    reader: SampleReader,
    rows: Rows,
    accelerator: Accelerator,
    processes: Processes,
) -> tuple[CachedColumn, list[BadSample]]:
    """Embeds what the cache does not have yet, and returns all of it.

    The processes share the work. Rows are embedded in the same batches whatever is in the cache
    already, so that a stage that was killed here ends with the same weights to the bit.

    Args:
        part: What is frozen; its network is on the accelerator's device.
        config: The stage's settings.
        context: The stage's context.
        reader: Reads the modality.
        rows: The training rows.
        accelerator: Accelerate.
        processes: The processes of the stage.

    Returns:
        The column, and what could not be read, the same on all processes.

    Raises:
        RunFolderError: The cache cannot be read or written.
    """
    filling = _Filling(part, config, context, reader, rows, accelerator, processes)
    filling.fill(processes.index, processes.count)
    if processes.any(bool(filling.missing())):
        # What others wrote cannot be seen here: every machine has a cache of its own.
        filling.fill(processes.local_index, processes.local_count)
    if lost := filling.missing():
        raise RunFolderError(
            f"{lost} embeddings of '{part.name}' are not in the cache, though they have been stored.",
            place=str(filling.cache.folder),
            hint="Was it pruned just now? Run the same command again.",
        )
    positions = np.full((part.views, len(reader.data)), -1, dtype=np.int64)
    positions[:, rows] = filling.positions
    return CachedColumn(filling.cache, positions), filling.bad


class _Filling:
    """The cache of one frozen part while what it lacks is being embedded."""

    def __init__(
        self,
        part: FrozenPart,
        config: AlignConfig,
        context: StageContext,
        reader: SampleReader,
        rows: Rows,
        accelerator: Accelerator,
        processes: Processes,
    ) -> None:
        self.part = part
        self.context = context
        self.encoder = context.encoders[part.name]
        self.reader = reader
        self.rows = rows
        self.accelerator = accelerator
        self.processes = processes
        self.batch_size = config.micro_batch_size or min(config.batch_size, _ROWS_AT_A_TIME)
        self.cache = EmbeddingCache.open(cache_root(), _description(part, config, context, reader, accelerator))
        own = cell_ids(reader.data, part.name, rows, is_file=reader.modality.reads_files)
        if part.augmented:
            own = _with_keys(own, reader, rows)
        self.ids: list[Ids] = [view_ids(own, view) if part.augmented else own for view in range(part.views)]
        self._failed: dict[bytes, str] = {}
        self._locate()
        for warning in self.cache.warnings if processes.is_main else ():
            context.reporter.warn(warning)

    @property
    def bad(self) -> list[BadSample]:
        """What is missing because it cannot be read."""
        found = []
        for i, identity in self._missing():
            if identity in self._failed:
                key = self.reader.data.key(int(self.rows[i]))
                found.append(BadSample(key, self.part.name, self._failed[identity]))
        return found

    def missing(self) -> int:
        """Returns how many embeddings are missing of what can be read."""
        return sum(identity not in self._failed for _, identity in self._missing())

    def _missing(self) -> Iterator[tuple[int, bytes]]:
        for view, ids in enumerate(self.ids):
            for i in np.flatnonzero(self.positions[view] < 0).tolist():
                yield i, ids[i].tobytes()

    def fill(self, index: int, count: int) -> None:
        """Embeds the index-th of `count` parts of what is missing, and finds out what the others have done."""
        requests = list(self._requests())
        own = requests[index::count]
        if requests:
            total = sum(len(request.rows) for request in own)
            title = f"  {self.part.name} ({'frozen trunk' if self.part.is_trunk else 'frozen'})"
            with self.context.reporter.task(title, total, "rows") as task:
                for done in self._embed(own):
                    task.advance(done)
        for failed in self.processes.all_objects(self._failed):
            self._failed |= failed
        self.cache.refresh()
        self._locate()

    def _locate(self) -> None:
        self.positions = np.stack([self.cache.locate(ids) for ids in self.ids])

    def _requests(self) -> Iterator[BatchRequest]:
        """Yields what is missing, in batches whose borders do not depend on what there is."""
        seen: set[bytes] = set()
        for start in range(0, len(self.rows), self.batch_size):
            for view, ids in enumerate(self.ids):
                block = slice(start, start + self.batch_size)
                chosen = []
                for i in np.flatnonzero(self.positions[view, block] < 0) + start:
                    identity = ids[i].tobytes()
                    if identity not in seen:  # captions repeat
                        seen.add(identity)
                        chosen.append(i)
                if chosen:
                    yield BatchRequest(view, start, self.rows[chosen])

    def _embed(self, requests: list[BatchRequest]) -> Iterator[int]:
        """Embeds and stores; yields how many rows are done."""
        device, pending, waiting, since = self.accelerator.device, [], 0, time.monotonic()

        def embed(batch: Any) -> EncoderOutput:
            with self.accelerator.autocast():
                return self.part.embed(self.encoder, batch)

        rows = np.concatenate([np.empty(0, dtype=np.int64), *(request.rows for request in requests)])
        loaded = embed_batches(self.reader, embed, requests, rows, loader=self.context.run.loader, device=device)
        for request, done in zip(requests, loaded, strict=True):
            ids = self.ids[request.epoch]
            reasons = {sample.key: sample.reason for sample in done.bad}
            for row in np.setdiff1d(request.rows, done.rows):
                self._failed[ids[self._at(row)].tobytes()] = reasons[self.reader.data.key(int(row))]
            if len(done.rows):
                ids = ids[self._at(done.rows.numpy())]
                pending.append((ids, done.embeddings.numpy()))
                waiting += len(ids)
            if waiting >= _ROWS_PER_SEGMENT or (waiting and time.monotonic() - since > _SECONDS_PER_SEGMENT):
                self._store(pending)
                pending, waiting, since = [], 0, time.monotonic()
            yield len(request.rows)
        self._store(pending)

    def _at(self, rows: Any) -> Any:
        """Returns where rows of the data set stand among the training rows, which are in order."""
        return np.searchsorted(self.rows, rows)

    def _store(self, pending: list[tuple[Ids, npt.NDArray[np.float32]]]) -> None:
        if pending:
            self.cache.append(np.concatenate([ids for ids, _ in pending]), np.concatenate([v for _, v in pending]))


def _with_keys(ids: Ids, reader: SampleReader, rows: Rows) -> Ids:
    """Returns ids that differ between rows with the same cell: a view is drawn for a row, by its key."""
    keys = (reader.data.key(row).encode("utf-8", "surrogatepass") for row in rows.tolist())
    own = zip(ids, keys, strict=True)
    joined = b"".join(hashlib.blake2b(i.tobytes() + key, digest_size=ID_BYTES).digest() for i, key in own)
    return np.frombuffer(joined, dtype=f"V{ID_BYTES}")


def _description(
    part: FrozenPart, config: AlignConfig, context: StageContext, reader: SampleReader, accelerator: Accelerator
) -> EntryDescription:
    encoder = context.encoders[part.name]
    transform: dict[str, Any] = {
        # Weights are known by their content, and where they came from is not part of it.
        "config": reader.modality.config.model_dump(
            mode="json", exclude={"plugin", "pretrained", "init_from", "projection"}
        ),
        "code": _code(type(reader.modality)),
    }
    if part.augmented:
        transform |= {"augment": config.augment[part.name], "seed": reader.seed}
    assert config.anchor_cache != "off"  # or else nothing is cached
    return EntryDescription(
        modality=part.name,
        plugin=reader.modality.name,
        encoder=content_hash(part.network(encoder)),
        output="features" if part.is_trunk else "embedding",
        dimension=encoder.raw_dim if part.is_trunk else encoder.embed_dim,
        precision=str(accelerator.mixed_precision),
        dtype=config.anchor_cache,
        transform=transform,
    )


def _code(modality: type[Modality[Any]]) -> dict[str, dict[str, str]]:
    """Identifies the code that reads samples: another release of it, or an edit while it is being written."""
    classes = [c for c in modality.__mro__ if issubclass(c, Modality) and c is not Modality]
    return {
        f"{c.__module__}:{c.__qualname__}": {"version": _version(c.__module__.split(".")[0]), "source": _source(c)}
        for c in classes
    }


@cache
def _version(package: str) -> str:
    distributions = metadata.packages_distributions().get(package, [])
    return ", ".join(sorted(f"{name} {metadata.version(name)}" for name in set(distributions)))


def _source(modality: type[Modality[Any]]) -> str:
    """Returns a hash of the file that has a class, and in a package of the files beside it, which it may use."""
    try:
        own = Path(inspect.getsourcefile(modality) or "")
    except (TypeError, OSError):  # typed into a notebook
        return ""
    in_package = getattr(sys.modules.get(modality.__module__), "__package__", None)
    digest = hashlib.sha256()
    for path in sorted(own.parent.glob("*.py")) if in_package else [own]:
        if path.is_file():
            digest.update(f"{path.name}:".encode() + path.read_bytes())
    return digest.hexdigest()
