"""Checks of any plugin class: how it is imported, registered and configured."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any
from unittest import SkipTest

from pydantic import BaseModel, ValidationError

from geobind_core.plugins.discovery import discover
from geobind_core.plugins.registry import REGISTER_HOOKS
from geobind_core.testing.check import Definition, require

UNKNOWN_KEY = "no_such_setting_"
_IMPORT = """\
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[1])
try:
    importlib.import_module(sys.argv[2])
except ModuleNotFoundError as error:
    if sys.argv[2] == error.name or sys.argv[2].startswith(f"{error.name}."):
        sys.exit(3)
    raise
sys.exit(4 if "torch" in sys.modules else 0)
"""


class PluginSubject:
    """A class that a plugin registers, with settings.

    Args:
        kind: `modality`, `loss` or `source`.
        owner: The class.
        config: Settings of an instance.
    """

    def __init__(self, kind: str, owner: type[Any], config: BaseModel) -> None:
        self.kind = kind
        self.owner = owner
        self.config = config

    def settings(self) -> dict[str, Any]:
        """Returns the settings as JSON has them, as they are stored with a space and in a run folder."""
        found: dict[str, Any] = json.loads(self.config.model_dump_json())
        return found


def _import(subject: PluginSubject) -> None:
    module = subject.owner.__module__
    if module == "__main__":
        raise SkipTest("it is defined in the program that runs, not in a module")
    command = [sys.executable, "-c", _IMPORT, json.dumps(sys.path), module]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        raise SkipTest(f"{module} cannot be imported by its name in another process")
    require(done.returncode in (0, 4), f"importing {module} fails: {done.stderr.strip()}")
    require(done.returncode == 0, f"importing {module} imports torch")


def _registration(subject: PluginSubject) -> None:
    owner, package = subject.owner, subject.owner.__module__.partition(".")[0]
    name = getattr(owner, "name", None)
    require(isinstance(name, str) and name, f"{owner.__name__} has no `name`")
    records = [record for record in discover() if record.value.partition(":")[0].partition(".")[0] == package]
    if not records:
        raise SkipTest(f"no installed distribution has an entry point into {package}")
    listed = sorted({point for record in records for point in record.names})
    found = [record for record in records if name in record.names]
    require(found, f"`name` is '{name}'; the entry points of {package} are named {', '.join(listed)}")
    point, hook = found[0].entry_point, REGISTER_HOOKS[subject.kind]
    register = getattr(point.load() if point else None, hook, None)
    require(register is not None, f"{found[0].value}, where entry point '{name}' leads, has no {hook}")
    require(owner in list(register()), f"{hook} of {found[0].value} does not return {owner.__name__}")  # type: ignore[misc]


def _config_unknown_key(subject: PluginSubject) -> None:
    try:
        type(subject.config).model_validate({**subject.settings(), UNKNOWN_KEY: 1})
    except ValidationError:
        return
    require(False, f"{type(subject.config).__name__} took '{UNKNOWN_KEY}: 1' without a word")


def _config_round_trip(subject: PluginSubject) -> None:
    again = type(subject.config).model_validate(subject.settings())
    require(again == subject.config, f"written as JSON and read again, {subject.config!r} became {again!r}")
    require(isinstance(subject.config, subject.owner.Config), f"`config` is no {subject.owner.__name__}.Config")


PACKAGING_CHECKS: tuple[Definition[Any], ...] = (
    Definition(
        "import_without_torch",
        "`geobind --help`, `plugins` and `validate` stay quick however many plugins are installed.",
        "Import torch, and what imports it (transformers, open_clip, torchaudio), inside methods.",
        _import,
    ),
    Definition(
        "registration",
        "A chain finds the plugin by its name and imports no other plugin for it.",
        "`name` of the class, the name of the entry point and what the hook returns are to agree; reinstall "
        "the package when pyproject.toml has changed.",
        _registration,
    ),
    Definition(
        "config_unknown_key",
        "A misspelled setting in a chain is an error with a line number, and not ignored.",
        'Derive `Config` from ModalityConfig, LossConfig or SourceConfig, and leave `extra="forbid"` as it is.',
        _config_unknown_key,
    ),
    Definition(
        "config_round_trip",
        "What is stored with a run or a space builds the same thing again.",
        "Settings are to be plain: numbers, texts, lists, mappings, models of pydantic. Validators are to accept "
        "what they have returned.",
        _config_round_trip,
    ),
)
