"""What the verbs share: arguments, and how results are printed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from geobind_core.plugins.manager import PluginManager

ChainFile = Annotated[Path, typer.Argument(metavar="CHAIN", help="The chain: a YAML file.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change one value, such as stages.audio.epochs=3."),
]
Disabled = Annotated[
    list[str] | None,
    typer.Option("--disable-plugin", metavar="NAME", help="Do not import this entry point or distribution."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_WIDTH_OF_A_FILE = 10_000  # a row of a table is a line of the file, however much is in it


def number_of_process() -> int:
    """Returns the number of this process among those that a launcher started."""
    return int(os.environ.get("RANK", "0"))


def load_plugins(disabled: list[str] | None) -> PluginManager:
    """Returns a manager of the plugins that are not disabled. What it warns of goes to standard error."""
    from geobind_core.chain.builtin import plugin_manager
    from geobind_core.cli.verbs import own_commands

    return plugin_manager(disabled or [], own_commands(), warn)


def warn(text: str) -> None:
    """Prints a warning to standard error."""
    if not number_of_process():  # of several processes one speaks
        sys.stderr.write(f"warning: {text}\n")


def print_table(renderable: RenderableType) -> None:
    """Prints a table to standard output."""
    from rich.console import Console

    # A table that is piped into a file is not cut to the width of a terminal that is not there. What
    # plugins and files say is no markup: a path in square brackets is not the end of some style.
    width = None if sys.stdout.isatty() else _WIDTH_OF_A_FILE
    Console(width=width, highlight=False, markup=False, emoji=False).print(renderable, crop=False)


def print_json(value: Any) -> None:
    """Prints JSON to standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def say(text: str) -> None:
    """Prints a line to standard output."""
    sys.stdout.write(text + "\n")
