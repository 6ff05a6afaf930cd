"""`geobind embed`: data into a file of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geobind_core.cli.common import AsJson, Disabled, load_plugins, number_of_process, print_json, say
from geobind_core.errors import ConfigError

_DTYPES = ("float32", "float16")
_SPLITS = ("train", "validation", "test")


def embed(
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="A space, or a run folder.")],
    modality: Annotated[str, typer.Option(metavar="NAME", help="What to embed: a modality of the space.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The .parquet file to write.")],
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="A data set of the run, a table, shards (.tar), or a folder."),
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="MODALITY=COLUMN", help="Of a file: what a column holds."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Of a file: a setting of the data, such as key=id."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only these rows: train, validation or test.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="How embeddings are stored: float32 or float16.")
    ] = "float32",
    keep: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Write this column as well; may be given several times.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column of times. Default: time, timestamp, date.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows that go through the network at a time.")] = 64,
    max_bad_samples: Annotated[
        float, typer.Option(min=0, max=1, help="Share of rows that may be unreadable; they are skipped.")
    ] = 0.01,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index that is there.")] = False,
    disable_plugin: Disabled = None,
    as_json: AsJson = False,
) -> None:
    """Embed data. Writes GeoParquet to search, to map, to open in GeoPandas; a killed run goes on."""
    from geobind_core.config.problems import suggest

    for option, value, among in (("--dtype", dtype, _DTYPES), ("--split", split, (*_SPLITS, None))):
        if value not in among:
            raise ConfigError(f"no '{value}'. {suggest(value, filter(None, among))}", place=option)
    if out.suffix.lower() != ".parquet":
        raise ConfigError(f"found '{out}'; expected the name of a .parquet file.", place="--out")

    from accelerate import PartialState

    from geobind_core.chain.embed import embed_to, open_data
    from geobind_core.chain.launch import launched
    from geobind_core.index.embed import EmbedOptions
    from geobind_core.progress import Reporter, readable_size
    from geobind_core.space.space import Space
    from geobind_core.training.interrupts import terminated_as_interrupted

    plugins, launch = load_plugins(disable_plugin), launched()
    reporter = Reporter(quiet=not launch.is_main)
    loaded = Space.load(space, device=PartialState().device, plugins=plugins)
    loaded.record_of(modality)  # a misspelled one is said before the data is looked at
    options = EmbedOptions(
        split=split,  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
        batch_size=batch_size,
        keep=tuple(keep or ()),
        time=time,
        max_bad_samples=max_bad_samples,
    )
    with terminated_as_interrupted():
        opened = launch.main_first(
            lambda: open_data(loaded, space, data, modality, fields or [], settings or [], plugins, reporter)
        )
        index = embed_to(out, loaded, opened, modality, options, launch, reporter, overwrite=overwrite)
    if number_of_process():
        return
    about = {
        "path": str(out),
        "modality": modality,
        "rows": len(index),
        "embed_dim": index.embed_dim,
        "dtype": index.record.dtype,
        "skipped": index.record.skipped,
        "data": index.record.data,
        "split": index.record.split,
        "columns": index.column_names,
        "content_hash": index.content_hash,
    }
    skipped = f", {index.record.skipped} rows skipped" if index.record.skipped else ""
    size = readable_size(out.stat().st_size)
    text = f"{out}: {len(index):,} x {index.embed_dim} {index.record.dtype} of {modality}, {size}{skipped}"
    print_json(about) if as_json else say(text)
