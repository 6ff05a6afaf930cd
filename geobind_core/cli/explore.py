"""`geobind explore`: a page to search a space, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geobind_core.cli.common import Disabled, load_plugins, say
from geobind_core.errors import ConfigError

_SECONDS_TO_END = 10.0
_SPLITS = ("train", "validation", "test", "all")


def explore(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder; or a space, with an INDEX.")],
    index: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[INDEX]...", help="What `geobind embed` wrote. Default: the run's data is embedded."),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes any that is free.")] = 8765,
    no_open: Annotated[bool, typer.Option("--no-open", help="Open no browser.")] = False,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Which of the run's data sets; may be given several times."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation, test or all. Default: test, if it has any rows.")
    ] = None,
    places: Annotated[
        int, typer.Option(min=1, metavar="N", help="At most so many places of a data set, drawn at random.")
    ] = 5_000,
    keep: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where embeddings are kept. Default: RUN/explore.")
    ] = None,
    upload_limit: Annotated[float, typer.Option(min=0.01, max=2048, metavar="MIB", help="Largest upload.")] = 32,
    disable_plugin: Disabled = None,
) -> None:
    """Open a page to search a space. Type, drop or record a query, see the map, look at places."""
    if split is not None and split not in _SPLITS:
        from geobind_core.config.problems import suggest

        raise ConfigError(f"no split '{split}'. {suggest(split, _SPLITS)}", place="--split")

    import sys
    import threading

    from accelerate import PartialState

    from geobind_core.explore.opening import RunOptions, open_indices, open_run, prepare, require_run_or_index
    from geobind_core.explore.serve import bind, is_loopback, serve
    from geobind_core.progress import Reporter

    reporter = Reporter()
    require_run_or_index(run, index or [])
    listening = bind(host, port)  # before anything that takes long
    device, plugins = PartialState().device, load_plugins(disable_plugin)
    options = RunOptions(tuple(data or ()), split, places, keep)  # type: ignore[arg-type]
    if index:
        explorer, left = open_indices(run, index, plugins, device)
    else:
        explorer, left = open_run(run, plugins, reporter, options, device)
    for collection in explorer.collections:
        if collection.places is None:
            reporter.say(f"{collection.name} has no coordinates: there is no map of it, but it can be searched")
    if not is_loopback(host):
        reporter.warn(
            f"listening on {host}: whoever can reach this machine can search the space and see its data. "
            "There is no password, and nothing is encrypted."
        )

    def started(url: str) -> None:
        say(f"explore {explorer.name}: {url}")
        sys.stdout.flush()
        reporter.say("Ctrl-C ends it")

    stop = threading.Event()
    background = threading.Thread(target=prepare, args=(explorer, left, reporter, stop), daemon=True)
    background.start()
    try:
        serve(explorer, listening, host, limit=round(upload_limit * 2**20), started=started, browse=not no_open)
    finally:
        stop.set()
        background.join(_SECONDS_TO_END)
