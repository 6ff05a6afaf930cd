"""`geobind eval`: how well a space is bound, on the data of its chain or on other data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geobind_core.cli.common import AsJson, Disabled, load_plugins, print_json, print_table
from geobind_core.errors import ConfigError

if TYPE_CHECKING:
    from geobind_core.plugins.manager import PluginManager

_PARTS = ("train", "validation", "test", "all")


def evaluate(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder; with --data PATH, a space will do as well.")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            help="Only this data set of the chain; or a table, shards or a folder that is in no chain.",
        ),
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="MODALITY=COLUMN", help="With --data PATH: what a column holds."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="SPLIT", help="validation or test; with --data PATH also train or all, the default without splits."
        ),
    ] = None,
    legacy_strict: Annotated[
        bool, typer.Option("--legacy-strict", help="Also count recalls as older papers do: rank < k.")
    ] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures to a .json file.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Change a setting: evaluate.gallery=500; with --data PATH also data.…."
        ),
    ] = None,
    disable_plugin: Disabled = None,
    as_json: AsJson = False,
) -> None:
    """Measure a space. On the chain's own data it writes metrics.json and report.html anew."""
    from geobind_core.chain.run_folder import RunFolder
    from geobind_core.files import write_json
    from geobind_core.progress import Reporter
    from geobind_core.report.printed import metrics_table

    if split is not None and split not in _PARTS:
        raise ConfigError(f"found '{split}'; expected one of {', '.join(_PARTS)}.", place="--split")
    if out is not None and out.suffix.lower() != ".json":
        raise ConfigError(f"found '{out}'; expected the name of a .json file.", place="--out")
    metrics = _measured(run_folder, data, fields or [], split, assignments or [], disable_plugin, legacy_strict)
    if out is not None:
        write_json(out, metrics)
    print_json(metrics) if as_json else print_table(metrics_table(metrics))
    if data is None:
        folder = RunFolder(run_folder)
        Reporter().say(f"metrics: {folder.metrics}\nreport: {folder.report}")


def _measured(
    run_folder: Path,
    data: str | None,
    fields: list[str],
    split: Any,
    assignments: list[str],
    disable_plugin: list[str] | None,
    legacy_strict: bool,
) -> dict[str, Any]:
    from geobind_core.chain.datasets import DataSets
    from geobind_core.chain.measure import measure
    from geobind_core.chain.measure_path import measure_path
    from geobind_core.chain.resolve import load_chain
    from geobind_core.chain.run_folder import RunFolder
    from geobind_core.config.problems import suggest
    from geobind_core.progress import Reporter

    plugins, reporter = load_plugins(disable_plugin), Reporter()
    if data is not None and _is_path(data, run_folder, plugins):
        return measure_path(
            run_folder, Path(data), fields, assignments, split, plugins, reporter, legacy_strict=legacy_strict
        )
    if fields:
        raise ConfigError("a chain says itself what its columns hold.", place=f"--field {fields[0]}")
    folder = RunFolder(run_folder)
    base = folder.chain_base()
    for text in assignments:
        if not text.startswith("evaluate."):
            raise ConfigError("expected evaluate.SETTING=VALUE; the rest of a run is done.", place=f"--set {text}")
    if split is not None:
        assignments = [*assignments, f"evaluate.split={split}"]
    with folder.locked():
        loaded = load_chain(folder.chain, plugins, assignments, base=base)
        if data is not None and data not in loaded.sources:
            raise ConfigError(
                f"no data set '{data}', and no such file or folder. {suggest(data, loaded.sources)}", place="--data"
            )
        datasets = DataSets(loaded, reporter)
        return measure(loaded, folder, datasets, reporter, again=True, only=data, legacy_strict=legacy_strict)


def _is_path(data: str, run_folder: Path, plugins: PluginManager) -> bool:
    """Whether this is data of no chain: what looks like a file, or is there and is no data set of the run."""
    from geobind_core.chain.resolve import chain_of

    path = Path(data)
    if data.startswith(".") or path.suffix != "" or len(path.parts) > 1:
        return True
    if not path.exists():
        return False
    chain = chain_of(run_folder, plugins)
    return chain is None or data not in chain.sources
