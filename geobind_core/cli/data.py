"""`geobind data`: look at data, and prepare it for training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geobind_core.cli.common import AsJson, Disabled, load_plugins, print_json, print_table, say
from geobind_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from geobind_core.data_tools.opened import OpenedData
    from geobind_core.progress import Reporter

data = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

What = Annotated[
    Path,
    typer.Argument(metavar="DATA", help="A chain (.yaml), a table, shards (.tar), or a folder of Hugging Face data."),
]
DataSet = Annotated[str | None, typer.Option("--data", metavar="NAME", help="Of a chain: which of its data sets.")]
Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--field", metavar="MODALITY=COLUMN", help="Without a chain: what a column holds; several with commas."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Change a value of the chain; without one, a setting of the data."
    ),
]


@data.command("inspect")
def inspect(
    what: What,
    data_set: DataSet = None,
    fields: Fields = None,
    check: Annotated[str, typer.Option(metavar="N|all", help="How many cells of a modality to read.")] = "200",
    seed: Annotated[int, typer.Option(min=0, help="Decides which, where not all are looked at.")] = 0,
    sheet: Annotated[Path | None, typer.Option(help="Draw some rows, as a PNG.")] = None,
    sheet_rows: Annotated[int, typer.Option(min=1, max=50, help="How many rows to draw.")] = 8,
    settings: Settings = None,
    disable_plugin: Disabled = None,
    as_json: AsJson = False,
) -> None:
    """Show what is in a data set. Counts, missing and broken files, sizes, duplicates, where it is."""
    from geobind_core.data_tools.inspect import inspect as inspect_data
    from geobind_core.data_tools.show import as_json as inspection_as_json
    from geobind_core.data_tools.show import as_table, unusable
    from geobind_core.progress import Reporter

    if check != "all" and not (check.isdecimal() and int(check)):
        raise ConfigError(f"found '{check}'; expected a number of cells, 1 or more, or all.", place="--check")
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise ConfigError(f"found '{sheet}'; expected the name of a .png file.", place="--sheet")
    reporter = Reporter()
    opened = _open(what, data_set, fields, settings, disable_plugin, reporter)
    inspection = inspect_data(opened, reporter, check=None if check == "all" else int(check), seed=seed)
    if sheet is not None:
        from geobind_core.data_tools.contact_sheet import write_contact_sheet

        write_contact_sheet(sheet, opened, rows=sheet_rows, seed=seed)
        reporter.say(f"contact sheet: {sheet}")
    print_json(inspection_as_json(inspection)) if as_json else print_table(as_table(inspection))
    if nothing := unusable(inspection):
        raise DataError(f"there is nothing that can be read for {', '.join(nothing)}.", place=opened.data.place)


@data.command("pack")
def pack(
    what: What,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of the shards.")],
    data_set: DataSet = None,
    fields: Fields = None,
    resize: Annotated[
        list[str] | None,
        typer.Option(metavar="MODALITY=PIXELS", help="Make images smaller, to so many pixels of the shorter side."),
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG images that are made smaller.")] = 90,
    shard_samples: Annotated[int, typer.Option(min=1, metavar="N", help="Rows of a shard, at most.")] = 10_000,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Size of a shard, at most, as in 500MB.")] = "1GB",
    check: Annotated[bool, typer.Option(help="Read what is copied, and skip what cannot be read.")] = True,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; default: as many as there are cores.")] = None,
    settings: Settings = None,
    disable_plugin: Disabled = None,
    as_json: AsJson = False,
) -> None:
    """Pack a data set into shards. Run it again after a kill, and it goes on."""
    from geobind_core.data.cache_prune import parse_size
    from geobind_core.data_tools.pack import pack as pack_data
    from geobind_core.data_tools.pack_plan import PackOptions
    from geobind_core.data_tools.show import packed_as_json, packed_as_text
    from geobind_core.progress import Reporter

    options = PackOptions(
        resize=dict(_pixels(text) for text in resize or []),
        quality=quality,
        samples=shard_samples,
        size=parse_size(shard_size, "--shard-size"),
        check=check,
        workers=workers,
    )
    reporter = Reporter()
    opened = _open(what, data_set, fields, settings, disable_plugin, reporter)
    packed = pack_data(opened, out, options, reporter)
    print_json(packed_as_json(packed, out)) if as_json else say(packed_as_text(packed, out))


@data.command("split")
def split(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A .csv, .tsv or .parquet file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The table to write, with a column more.")],
    by: Annotated[str, typer.Option(help="hash: of the key; blocks: of the part of the Earth.")] = "hash",
    test: Annotated[float, typer.Option(help="Share of rows, or of blocks, that is held out.")] = 0.1,
    validation: Annotated[float, typer.Option(help="Share of rows, or of blocks, for validation.")] = 0.0,
    block_km: Annotated[float, typer.Option(help="blocks: side of a block in kilometres.")] = 100.0,
    buffer_km: Annotated[
        float, typer.Option(help="blocks: rows closer than this to a held-out place are in no split.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Another seed makes another division.")] = 0,
    column: Annotated[str, typer.Option(help="Name of the new column.")] = "split",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the table, such as key=id or longitude=x."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Divide a table into train, validation and test. Writes it again with a column that says so."""
    from dataclasses import asdict

    from geobind_core.config import overrides
    from geobind_core.config.document import Document
    from geobind_core.data_tools.show import division_as_text
    from geobind_core.data_tools.split import split_table

    shares = {"test": test, "validation": validation, "block_km": block_km, "buffer_km": buffer_km}
    given = Document(table, {"split": {"by": by, "seed": seed, **shares}})
    for assignment in settings or []:
        overrides.apply(given, assignment)
    division = split_table(table, out, column, given.data)
    print_json(asdict(division)) if as_json else say(division_as_text(division, out, column))


@data.command("synth")
def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    places: Annotated[int | None, typer.Option(min=1, help="How many places; default: 5000.")] = None,
    held_out: Annotated[
        int | None, typer.Option(min=0, help="How many of them are for testing; default: a fifth.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Another seed is another planet.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another setting of synthetic_earth: satellite_pixels=256."),
    ] = None,
    disable_plugin: Disabled = None,
    as_json: AsJson = False,
) -> None:
    """Write a synthetic Earth: a table with files. Shows what to write into a chain to use it."""
    from geobind_core.config import overrides
    from geobind_core.config.document import Document
    from geobind_core.data_tools.show import synthesized_as_text
    from geobind_core.data_tools.synth import synthesize
    from geobind_core.progress import Reporter

    if held_out is None and places is not None:
        held_out = places // 5
    given = Document(out, {"places": places, "held_out": held_out, "seed": seed})
    for assignment in settings or []:
        overrides.apply(given, assignment)
    for_chain = synthesize(out, given.data, load_plugins(disable_plugin), Reporter())
    for_chain["path"] = str(out / for_chain["path"])
    print_json(for_chain) if as_json else say(synthesized_as_text(out, for_chain))


def _pixels(text: str) -> tuple[str, int]:
    modality, _, pixels = (part.strip() for part in text.partition("="))
    if not modality or not pixels.isdecimal() or not int(pixels):
        raise ConfigError("expected MODALITY=PIXELS.", place=f"--resize {text}", hint="For example: satellite=256")
    return modality, int(pixels)


def _open(
    what: Path,
    data_set: str | None,
    fields: list[str] | None,
    settings: list[str] | None,
    disable_plugin: list[str] | None,
    reporter: Reporter,
) -> OpenedData:
    """Opens what a command is to work on."""
    from geobind_core.chain.resolve import load_chain
    from geobind_core.config.problems import suggest
    from geobind_core.data_tools.opened import open_path, open_source

    plugins = load_plugins(disable_plugin)
    if what.suffix.lower() not in (".yaml", ".yml"):
        if data_set is not None:
            raise ConfigError(f"found '{data_set}'; {what} is no chain, and has no data sets.", place="--data")
        return open_path(what, fields or [], settings or [], plugins, reporter)
    if fields:
        raise ConfigError("a chain says itself what its columns hold.", place=f"--field {fields[0]}")
    chain = load_chain(what, plugins, settings or [])
    if data_set is None and len(chain.sources) == 1:
        (data_set,) = chain.sources
    if data_set is None or data_set not in chain.sources:
        found = "say which data set." if data_set is None else f"no data set '{data_set}'."
        raise ConfigError(f"{found} {suggest(data_set or '', chain.sources)}", place="--data")
    modalities = {name: known.modality for name, known in chain.modalities.items()}
    return open_source(data_set, chain.sources[data_set], modalities.get, reporter)
