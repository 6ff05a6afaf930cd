"""`geobind plugins`: what is installed, what it provides, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geobind_core.cli.common import AsJson, Disabled, load_plugins, print_json, print_table, say, warn
from geobind_core.errors import EXIT_INPUT

plugins = typer.Typer(rich_markup_mode=None)


@plugins.callback(invoke_without_command=True)
def plugins_list(context: typer.Context, disable_plugin: Disabled = None, as_json: AsJson = False) -> None:
    """List the installed plugins. Shows what they provide, and what is wrong with them."""
    if context.invoked_subcommand is not None:
        return
    from geobind_core.display import plugin_rows, plugin_table

    manager = load_plugins(disable_plugin)
    manager.load_all()
    rows = plugin_rows(manager)
    print_json(rows) if as_json else print_table(plugin_table(rows))


@plugins.command("new")
def plugins_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the modality, such as sea_ice.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where its folder is to be.")] = Path(),
) -> None:
    """Write a plugin with one modality that works. Its tests pass as they are."""
    from geobind_core.plugins.scaffold import PluginNames, new_plugin, next_steps

    folder = new_plugin(name, out)
    say(f"wrote {folder}: {', '.join(PluginNames.of(name).files())}")
    say(next_steps(folder, name))


@plugins.command("check")
def plugins_check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A modality, loss or source, or a whole plugin.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as model=geobind-tiny; the value is YAML."),
    ] = None,
    disable_plugin: Disabled = None,
    as_json: AsJson = False,
) -> None:
    """Check that a plugin keeps what it promises. Ends with exit code 2 if it does not."""
    from geobind_core.testing.command import (
        Checked,
        check_rows,
        check_table,
        checks_of_all,
        find_targets,
        parse_settings,
    )

    given = parse_settings(settings or [])
    found, left_out = checks_of_all(find_targets(load_plugins(disable_plugin), name), given, Path.cwd())
    for line in left_out:
        warn(line)
    checked = [Checked(one, check, check.result()) for one, checks in found for check in checks]
    print_json(check_rows(checked)) if as_json else print_table(check_table(checked))
    if any(one.result.status == "failed" for one in checked):
        raise typer.Exit(EXIT_INPUT)
