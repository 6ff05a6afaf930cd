"""From a run, or a space with indices, to something to explore; embeddings are made where there are none yet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console

from geobind_core.chain.model import Chain
from geobind_core.chain.resolve import load_chain
from geobind_core.chain.run_folder import RunFolder
from geobind_core.config.models import LoaderConfig
from geobind_core.config.problems import suggest
from geobind_core.data.paired import Rows
from geobind_core.data.splits import Split
from geobind_core.data_tools.opened import OpenedData, open_source
from geobind_core.errors import ConfigError, DataError, GeoBindError, RunFolderError
from geobind_core.explore.collection import Collection, from_data, from_index
from geobind_core.explore.explorer import Explorer, Preparation
from geobind_core.explore.gallery import Gallery
from geobind_core.index.embed import EmbedOptions, Job, embed_parts, finish, make_job
from geobind_core.index.file import EmbeddingIndex
from geobind_core.index.write import locked
from geobind_core.plugins.manager import PluginManager
from geobind_core.plugins.modality import Modality
from geobind_core.progress import Reporter, Task
from geobind_core.space.space import Space

_MOST_BAD = 0.5  # share of rows; the page is for looking at data, bad data too


@dataclass(frozen=True)
class RunOptions:
    """Which places of a run are explored.

    Attributes:
        data: Names of data sets; none: those that the run is measured on, or else all.
        split: Only rows of this split, or `all`; None: the held-out rows if there are any, else all.
        places: At most so many of each data set, drawn at random, always the same.
        keep: Where embeddings are kept; None: `explore` in the run folder.
    """

    data: tuple[str, ...] = ()
    split: Split | Literal["all"] | None = None
    places: int = 5_000
    keep: Path | None = None


@dataclass(frozen=True)
class ToEmbed:
    """The rows of a data set that are explored, and where their embeddings are kept.

    Attributes:
        number: Of the collection.
        opened: The data set.
        rows: `[N]` of them.
        split: That they are of.
        folder: Has an index of each modality.
    """

    number: int
    opened: OpenedData
    rows: Rows
    split: Split | None
    folder: Path


def open_run(
    folder: Path, plugins: PluginManager, reporter: Reporter, options: RunOptions, device: torch.device
) -> tuple[Explorer, list[tuple[ToEmbed, str]]]:
    """Opens a run with its data, and embeds the first modality of each data set, unless that has been done.

    Returns:
        What there is to explore, and which modalities of which data are left to embed: see `prepare`.

    Raises:
        RunFolderError: This is no run folder.
        ConfigError: There is no such data set.
        DataError: The data is missing, or has nothing for the space.
    """
    run = RunFolder(folder)
    chain = load_chain(run.chain, plugins, base=run.chain_base())
    space = Space.load(run.space, device=device, plugins=plugins)
    found = [
        _rows(number, _open(chain, name, space, reporter), options, options.keep or folder / "explore")
        for number, name in enumerate(_names(chain, options.data))
    ]
    explorer = Explorer(folder.absolute().name, space, [from_data(part.opened, part.rows) for part in found])
    left = []
    for part in found:
        first, *others = _modalities(space, explorer.collections[part.number])
        _add(explorer, part, _embedded(space, part, first, reporter))
        for name in others:
            if (there := _kept(_job(space, part, name), part, name)) is not None:
                _add(explorer, part, there)
            else:
                left.append((part, name))
    explorer.preparing.update({(part.number, name): Preparation() for part, name in left})
    return explorer, left


def open_indices(
    folder: Path, paths: Sequence[Path], plugins: PluginManager, device: torch.device
) -> tuple[Explorer, list[tuple[ToEmbed, str]]]:
    """Opens a space with indices that `geobind embed` wrote. Nothing is left to embed.

    Raises:
        SpaceError: There is no space, or an index was made with another one.
        DataError: An index is missing or damaged.
    """
    space = Space.load(folder, device=device, plugins=plugins)
    indices = [EmbeddingIndex.open(path) for path in paths]
    for index in indices:
        index.require_space(space)
    named = space.folder.absolute()
    name = named.parent.name if named.name == "space" else named.name  # the run's
    explorer = Explorer(name, space, [from_index(index, space) for index in indices])
    for number, index in enumerate(indices):
        explorer.galleries[number, index.modality] = Gallery(index, explorer.collections[number])
    return explorer, []


def _names(chain: Chain, wanted: Sequence[str]) -> list[str]:
    for name in wanted:
        if name not in chain.sources:
            raise ConfigError(f"no data set '{name}'. {suggest(name, chain.sources)}", place="--data")
    return list(wanted or chain.config.evaluate.data or chain.sources)


def _open(chain: Chain, name: str, space: Space, reporter: Reporter) -> OpenedData:
    def modality_of(field: str) -> Modality[Any] | None:
        return space.modality(field) if field in space.modalities else None

    return open_source(name, chain.sources[name], modality_of, reporter)


def _rows(number: int, opened: OpenedData, options: RunOptions, folder: Path) -> ToEmbed:
    data = opened.data
    filled = np.logical_or.reduce([data.filled(name) for name in opened.modalities])
    split: Split | None = None if options.split == "all" else options.split
    if options.split is None and filled[data.rows("test", ())].any():
        split = "test"
    rows = np.flatnonzero(filled)
    if split is not None:
        rows = rows[np.isin(rows, data.rows(split, ()))]
    if not len(rows):
        raise DataError(f"no row of split '{split}' has anything that the space reads.", place=data.place)
    if len(rows) > options.places:
        rows = np.sort(np.random.default_rng(0).choice(rows, options.places, replace=False))
    return ToEmbed(number, opened, rows, split, folder / opened.name)


def _modalities(space: Space, collection: Collection) -> list[str]:
    """Returns what can be embedded of a collection, that which binds the space first."""
    there = [name for name in space.modalities if name in collection.filled and collection.filled[name].any()]
    return sorted(there, key=lambda name: name != space.record.binding)


def _out(part: ToEmbed, modality: str) -> Path:
    return part.folder / f"{modality}.parquet"


def _job(space: Space, part: ToEmbed, modality: str) -> Job:
    options = EmbedOptions(split=part.split, max_bad_samples=_MOST_BAD, bad_samples_setting=None)
    return make_job(space, part.opened, modality, _out(part, modality), options, part.rows)


def _kept(job: Job, part: ToEmbed, modality: str) -> EmbeddingIndex | None:
    """Returns embeddings that were made before, if they are those that would be made now."""
    with suppress(DataError):  # none there, or one that is damaged: a new one takes its place
        there = EmbeddingIndex.open(_out(part, modality))
        if there.record.plan == job.digest:
            return there
    return None


def _embedded(
    space: Space, part: ToEmbed, modality: str, reporter: Reporter, loader: LoaderConfig | None = None
) -> EmbeddingIndex:
    """Returns the embeddings of a modality, made now unless they were made before."""
    job, out = _job(space, part, modality), _out(part, modality)
    if (there := _kept(job, part, modality)) is not None:
        return there
    with locked(out):
        job.parts.claim(job.plan)
        title = f"embedding {modality} of {part.opened.name}"
        device = next(space.encoder(modality).parameters()).device
        embed_parts(space, job, job.parts.missing(), reporter, device, title, loader)
        finish(space, job, out, reporter)
    return EmbeddingIndex.open(out)


def _add(explorer: Explorer, part: ToEmbed, index: EmbeddingIndex) -> None:
    gallery = Gallery(index, explorer.collections[part.number])
    explorer.galleries[part.number, index.modality] = gallery
    explorer.preparing.pop((part.number, index.modality), None)


def prepare(explorer: Explorer, left: Sequence[tuple[ToEmbed, str]], reporter: Reporter, stop: threading.Event) -> None:
    """Embeds what is left, one modality after the other, and adds each when it is whole. Made for a thread.

    Queries go first: while one is being encoded, this waits. What is embedded when `stop` is set goes on
    from there the next time.
    """
    with suppress(GeoBindError):  # a query will say it again, to somebody who can see it
        explorer.warm_up()
    for part, modality in left:
        progress = explorer.preparing[part.number, modality]
        quiet = _Background(progress, lambda: _give_way(explorer, stop), reporter)
        try:
            with explorer.encoding:  # two threads would build the same network twice
                explorer.space.encoder(modality)
            # Threads read: processes that are forked off a server inherit its locks.
            _add(explorer, part, _embedded(explorer.space, part, modality, quiet, LoaderConfig(workers=0)))
        except _StoppedError:
            return
        except Exception as error:  # whatever it is, the page is of use without this modality
            progress.failed = error.message if isinstance(error, GeoBindError) else f"{type(error).__name__}: {error}"
            reporter.warn(f"{modality} of {part.opened.name} is not explored: {progress.failed}")


def _give_way(explorer: Explorer, stop: threading.Event) -> None:
    if stop.is_set():
        raise _StoppedError
    with explorer.encoding:
        pass


class _StoppedError(Exception):
    """The server has ended."""


class _Background(Reporter):
    """Tells the page how far it is, and not the terminal, where the server's lines are."""

    def __init__(self, progress: Preparation, give_way: Callable[[], None], reporter: Reporter) -> None:
        super().__init__(Console(quiet=True, file=StringIO()))
        self._progress, self._give_way, self._reporter = progress, give_way, reporter

    def say(self, text: str, *, style: str = "") -> None:
        self._reporter.say(text, style=style)

    @contextmanager
    def task(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        task = _BackgroundTask(self.console, title, total, unit, done)
        task.watch(self._progress, self._give_way)
        yield task


class _BackgroundTask(Task):
    def watch(self, progress: Preparation, give_way: Callable[[], None]) -> None:
        self._progress, self._give_way = progress, give_way
        self.update(self._done)

    def update(self, done: int, total: int | None = None, figures: str = "") -> None:
        super().update(done, total, figures)
        self._progress.done, self._progress.total = self._done, self._total
        self._give_way()


def require_run_or_index(folder: Path, paths: Sequence[Path]) -> None:
    """Says what is missing where a space comes without an index.

    Raises:
        RunFolderError: It is no run folder, and there is no index.
    """
    if paths or (folder / "chain.yaml").is_file():
        return
    raise RunFolderError(
        "no run here, and no index to explore.",
        place=str(folder),
        hint="Give the folder that `geobind run` wrote, such as runs/stages; or a space, and an index of "
        "`geobind embed` behind it.",
    )
