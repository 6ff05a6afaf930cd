"""`geobind plugins`: what is installed, what it provides, and what is wrong with it."""

from __future__ import annotations

import typer

from geobind_core.cli.common import AsJson, Disabled, load_plugins, print_json, print_table

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
