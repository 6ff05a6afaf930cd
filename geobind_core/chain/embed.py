"""Embedding data into an index: which data, and by which processes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from geobind_core.chain.launch import Launch
from geobind_core.chain.model import Chain
from geobind_core.chain.resolve import chain_of
from geobind_core.data_tools.opened import OpenedData, open_path, open_source
from geobind_core.errors import ConfigError, DataError
from geobind_core.index.embed import EmbedOptions, Job, embed_parts, finish, make_job
from geobind_core.index.file import EmbeddingIndex
from geobind_core.index.write import locked, require_ours
from geobind_core.plugins.manager import PluginManager
from geobind_core.progress import Reporter
from geobind_core.space.space import Space


def open_data(
    space: Space,
    folder: Path,
    data: str | None,
    modality: str,
    fields: Sequence[str],
    assignments: Sequence[str],
    plugins: PluginManager,
    reporter: Reporter,
) -> OpenedData:
    """Opens data for a space: a data set of its run, or else a table, shards or a folder.

    Args:
        space: Has the modalities.
        folder: The run folder, if it is one.
        data: The name of a data set, or a path; None takes the one data set that has the modality.
        modality: What is to be embedded.
        fields: Of a path, each `modality=column`.
        assignments: Of a path, each `setting=value`.
        plugins: Know sources.
        reporter: Told how far it is.

    Raises:
        ConfigError: It is not said which data, or the chain is not valid.
        DataError: It is missing or unusable.
    """
    chain = chain_of(folder, plugins)
    if data is None:
        data = _only_one(chain, modality)
    if chain is None or data not in chain.sources:
        if not Path(data).exists() and not any(sign in data for sign in "*{:"):
            raise DataError(f"no such file or folder.{_known(chain)}", place=f"--data {data}")
        if Path(data).suffix.lower() in (".yaml", ".yml"):
            raise ConfigError(
                f"a chain is no data.{_known(chain)}",
                place=f"--data {data}",
                hint="Give a run folder, and the name of one of its data sets; or a table, shards, or a folder.",
            )
        return open_path(Path(data), fields, assignments, plugins, reporter, modality_of=space.modality)
    for option, given in (("--field", fields), ("--set", assignments)):
        if given:
            raise ConfigError(
                f"'{data}' is a data set of the run, whose chain says this.",
                place=f"{option} {given[0]}",
                hint=f"A file of that name is --data ./{data}",
            )
    return open_source(
        data,
        chain.sources[data],
        lambda field: space.modality(field) if field in space.modalities else None,
        reporter,
    )


def _known(chain: Chain | None) -> str:
    return "" if chain is None else f" Data sets of the run: {', '.join(chain.sources)}."


def _only_one(chain: Chain | None, modality: str) -> str:
    if chain is None:
        raise ConfigError("say what is to be embedded.", place="--data", hint="A table, shards, or a folder.")
    names = [
        name
        for name, source in chain.sources.items()
        if not (fields := {*(source.config.fields or ()), *source.default_fields}) or modality in fields
    ]
    if len(names) != 1:
        raise ConfigError(f"say which data set.{_known(chain)}", place="--data")
    return names[0]


def embed_to(
    out: Path,
    space: Space,
    opened: OpenedData,
    modality: str,
    options: EmbedOptions,
    launch: Launch,
    reporter: Reporter,
    *,
    overwrite: bool = False,
) -> EmbeddingIndex:
    """Embeds data by as many processes as were launched; each has its share of the parts that are missing.

    A killed run goes on where it was. The index does not depend on the number of processes.

    Args:
        out: The index to write.
        space: Has the encoder.
        opened: The data set.
        modality: Which of its fields.
        options: How.
        launch: The processes.
        reporter: Told how far it is.
        overwrite: Whether another index may be replaced.

    Raises:
        DataError: The data cannot be embedded, or another file is in the way.
        RunFolderError: Another index is in the way, or is being written.
    """
    job = make_job(space, opened, modality, out, options)
    with ExitStack() as held:
        there = None
        if launch.is_main:
            for note in job.columns.notes:
                reporter.say(f"note: {note}")
            held.enter_context(locked(out))
            there = require_ours(out, job.digest, overwrite=overwrite)
            if there is None and job.parts.claim(job.plan):
                reporter.warn("what an earlier run left was made of something else; it starts anew")
        launch.wait()
        if launch.processes is not None and launch.processes.any(there is not None) and there is None:
            return EmbeddingIndex.open(out)
        if there is not None:
            reporter.say("embedded already; nothing changed since")
            return there
        try:
            _embed(space, job, launch, reporter)
            if launch.is_main:
                finish(space, job, out, reporter)
        except DataError:
            job.parts.forget_bad()
            raise
        launch.wait()
    return EmbeddingIndex.open(out)


def _embed(space: Space, job: Job, launch: Launch, reporter: Reporter) -> None:
    missing = job.parts.missing()
    launch.wait()  # all have looked before the first writes
    if len(missing) < job.parts.count:
        reporter.say(f"going on: {job.parts.count - len(missing)} of {job.parts.count} parts are there")
    title = f"embedding {job.modality}"
    if launch.processes is not None:
        missing = launch.processes.share(missing)
        title = f"{title} (process 1 of {launch.processes.count})"
    device = next(space.encoder(job.modality).parameters()).device
    embed_parts(space, job, missing, reporter, device, title)
    launch.wait()
