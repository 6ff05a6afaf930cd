"""Commands that plugins add to the command line."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from geobind_core.cli.common import load_plugins
from geobind_core.errors import PluginError
from geobind_core.plugins.registry import COMMAND


def plugin_command(name: str) -> Any:
    """Returns the command of a plugin, importing the plugin whose entry point is so named, or else all.

    Raises:
        PluginError: No plugin has the command, several have it, or it is none that typer understands.
    """
    provided = load_plugins(None).find(COMMAND, name)
    host = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    host.callback()(_nothing)  # typer makes a group of it, whatever there is in it
    try:
        if isinstance(provided.cls, typer.Typer):
            host.add_typer(provided.cls, name=name)
        else:
            host.command(name)(provided.cls)
        group = typer.main.get_command(host)
    except Exception as error:  # arguments of a type that typer does not know, and the like
        raise PluginError(
            f"command '{name}' of {provided.distribution} {provided.version} cannot be used: "
            f"{type(error).__name__}: {error}"
        ) from error
    assert isinstance(group, TyperGroup)
    command = group.commands[name]
    invoke = command.invoke

    def invoke_naming_the_plugin(context: Any) -> Any:
        try:
            return invoke(context)
        except Exception as error:
            error.add_note(f"in the command '{name}' of {provided.distribution} {provided.version}")
            raise

    command.invoke = invoke_naming_the_plugin  # type: ignore[method-assign, assignment]
    return command


def _nothing() -> None:
    pass
