"""The command line: parses and dispatches. What a verb does is imported when it is called."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from geobind_core.cli.cache import cache
from geobind_core.cli.common import (
    AsJson,
    Assignments,
    ChainFile,
    Disabled,
    load_plugins,
    number_of_process,
    print_json,
    print_table,
    say,
)
from geobind_core.cli.data import data
from geobind_core.cli.embed import embed
from geobind_core.cli.eval import evaluate
from geobind_core.cli.explore import explore
from geobind_core.cli.export import export
from geobind_core.cli.map import draw
from geobind_core.cli.plugins import plugins
from geobind_core.cli.search import search
from geobind_core.errors import EXIT_FAILURE, EXIT_INTERRUPTED, ConfigError, GeoBindError, PluginError

_SECONDS_TO_SPEAK = 5.0


class _Verbs(TyperGroup):
    """The verbs, and those of plugins. Typer has its own view of Ctrl-C, from release to release another."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is None:
            # Only now, so that neither `--help` nor any verb of the core imports a plugin for its commands.
            from geobind_core.cli.plugin_commands import plugin_command

            found = plugin_command(cmd_name)
        return found

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            if not number_of_process():
                sys.stderr.write(f"{str(interrupt) or 'interrupted'}; run the same command again to go on\n")
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    name="geobind",
    cls=_Verbs,
    help="Bind many modalities into one embedding space through satellite images.",
    epilog="Plugins may add commands; `geobind plugins` lists them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: importing what draws the boxes takes twice as long as all the rest
)

app.add_typer(cache, name="cache", help="List and remove stored embeddings of frozen encoders.")
app.add_typer(data, name="data", help="Look at data, and prepare it for training.")
app.add_typer(plugins, name="plugins")
app.command("embed")(embed)
app.command("eval")(evaluate)
app.command("explore")(explore)
app.command("export")(export)
app.command("map")(draw)
app.command("search")(search)


@app.command()
def run(
    chain: ChainFile,
    out: Annotated[Path | None, typer.Option(help="The run folder; default: runs/<name>.")] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="End after this stage.")] = None,
    assignments: Assignments = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would happen and why; do nothing.")] = False,
    disable_plugin: Disabled = None,
    as_json: AsJson = False,
) -> None:
    """Run a chain. Stages that are done are skipped, interrupted ones go on, the space is measured."""
    from geobind_core.chain.execute import run_chain
    from geobind_core.chain.plan import make_plan
    from geobind_core.chain.resolve import load_chain
    from geobind_core.chain.run_folder import RunFolder
    from geobind_core.display import plan_table
    from geobind_core.progress import Reporter
    from geobind_core.report.printed import metrics_table
    from geobind_core.training.interrupts import terminated_as_interrupted

    loaded = load_chain(chain, load_plugins(disable_plugin), assignments or [])
    folder = RunFolder(out or Path("runs") / loaded.name)
    if dry_run:
        plans = make_plan(loaded, folder, until)
        if as_json:
            print_json(
                [
                    {
                        "stage": p.name,
                        "trains": p.stage.trains(),
                        "anchors": p.stage.uses(),
                        "data": p.stage.config.data,
                        "action": p.action,
                        "why": p.why,
                    }
                    for p in plans
                ]
            )
        else:
            print_table(plan_table(plans))
        return
    reporter = Reporter()
    with terminated_as_interrupted():
        metrics = run_chain(loaded, folder, reporter, until)
    if metrics is not None:
        print_json(metrics) if as_json else print_table(metrics_table(metrics))
        reporter.say(f"space: {folder.space}\nreport: {folder.report}")


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("stages.yaml"),
) -> None:
    """Write the default chain. It is a small synthetic Earth, on a CPU, in minutes."""
    from geobind_core.config.default import write_default

    write_default(path)
    say(f"wrote {path}; next: geobind run {path}")


@app.command()
def validate(chain: ChainFile, assignments: Assignments = None, disable_plugin: Disabled = None) -> None:
    """Check a chain file. Everything that is wrong with it is shown."""
    from geobind_core.chain.resolve import load_chain

    loaded = load_chain(chain, load_plugins(disable_plugin), assignments or [])
    say(f"{chain}: valid; {len(loaded.stages)} stages, {len(loaded.modalities)} modalities")


@app.command()
def schema(disable_plugin: Disabled = None) -> None:
    """Print the JSON Schema of chain files. It has the settings of all installed plugins."""
    from geobind_core.chain.schema import chain_schema

    print_json(chain_schema(load_plugins(disable_plugin)))


def own_commands() -> list[str]:
    """Returns the names of the core's own commands, which no plugin may take."""
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    return list(command.commands)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        say(f"geobind {version('geobind')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line and exits: 0 done, 2 the input is at fault, 130 interrupted, else 1."""
    # Idle threads sleep instead of spinning: on two cores with anything else to do, spinning made a
    # step of small networks more than twice as slow, and on idle cores it gains a tenth at most.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Tables are read once and then kept; pyarrow's own allocator keeps what reading took as well.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except GeoBindError as error:
        # Messages quote files; a file that is not what it should be may hold what upsets a terminal.
        printable = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in str(error))
        number = number_of_process()
        if not number:
            sys.stderr.write(f"error: {printable}\n")
        elif isinstance(error, (ConfigError, PluginError)):  # of these all processes would say the same
            # A launcher ends all processes when the first of them has gone, before it may have spoken.
            time.sleep(_SECONDS_TO_SPEAK)
        else:
            sys.stderr.write(f"error in process {number}: {printable}\n")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILURE)
