"""`geobind plugins check`: the checks of what is registered under a name, and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from geobind_core.config.document import parse_value
from geobind_core.config.problems import from_pydantic, suggest
from geobind_core.errors import ConfigError, GeoBindError, InputError, PluginError, raise_all
from geobind_core.plugins.manager import PluginManager
from geobind_core.plugins.names import normalise
from geobind_core.plugins.registry import REGISTER_HOOKS, Provided
from geobind_core.testing.check import Check, CheckResult
from geobind_core.testing.loss import loss_checks
from geobind_core.testing.modality import modality_checks
from geobind_core.testing.source import source_checks

KINDS = ("modality", "loss", "source")
_STYLES = {"ok": "green", "failed": "bold red", "expected failure": "yellow", "skipped": "dim"}


@dataclass(frozen=True)
class Checked:
    """One check of one registered class, and how it ended."""

    provided: Provided
    check: Check
    result: CheckResult


def find_targets(manager: PluginManager, name: str) -> list[Provided]:
    """Returns what a name stands for: what is registered under it, or all that a plugin of that name provides.

    Raises:
        PluginError: Nothing that can be checked, or its plugin is broken, disabled or in conflict.
    """
    manager.load_all()
    registered = [manager.find(kind, name) for kind in KINDS if manager.registry.get(kind, name)]
    if registered:
        return registered
    owners = {
        record.distribution
        for record in manager.records
        if normalise(name) in map(normalise, (*record.names, record.distribution)) and record.status == "loaded"
    }
    others = [one for kind in REGISTER_HOOKS for one in manager.registry.get(kind, name)]
    provided = [one for owner in sorted(owners) for one in manager.registry.of(owner)]
    if (found := others or provided) and not any(one.kind in KINDS for one in found):
        listed = ", ".join(f"{one.kind.replace('_', ' ')} '{one.name}'" for one in found)
        raise PluginError(
            f"'{name}' stands for {listed}; there are conformance kits for modalities, losses and sources only.",
            hint="Tests of its own say whether it is right.",
        )
    provided = [one for one in provided if one.kind in KINDS]
    # `find` says what is wrong with a name that nothing stands behind, or refuses what is in conflict.
    return [manager.find(one.kind, one.name) for one in provided] or [manager.find("modality", name)]


def parse_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """Reads `key=value` settings; values are YAML.

    Raises:
        ConfigError: One is not of that form.
    """
    settings = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        try:
            settings[key.strip()] = parse_value(text)
        except ValueError as error:
            raise ConfigError(f"the value is not valid YAML: {error}.", place=f"--set {assignment}") from error
        if not equals or not key.strip():
            raise ConfigError("expected KEY=VALUE.", place=f"--set {assignment}")
    return settings


def checks_of_all(
    targets: Sequence[Provided], settings: Mapping[str, Any], base: Path
) -> tuple[list[tuple[Provided, list[Check]]], list[str]]:
    """Returns the checks of several registered classes. Each is given those of the settings that it has.

    Args:
        targets: Modalities, losses, sources.
        settings: Settings; what is left out has its default.
        base: Relative paths in the settings of a source start here.

    Returns:
        The checks, and a line for each class that cannot be made without settings and was given none.

    Raises:
        ConfigError: None of them has a setting, or one is missing or not valid.
    """
    if len(targets) == 1:
        return [(targets[0], checks_for(targets[0], settings, base))], []
    known = {key for one in targets for key in one.cls.Config.model_fields}
    for key in settings:
        if key not in known:
            names = ", ".join(f"'{one.name}'" for one in targets)
            raise ConfigError(f"none of {names} has a setting '{key}'. {suggest(key, known)}", place=f"--set {key}")
    found: list[tuple[Provided, list[Check]]] = []
    left_out: dict[str, GeoBindError] = {}
    for one in targets:
        own = {key: value for key, value in settings.items() if key in one.cls.Config.model_fields}
        try:
            found.append((one, checks_for(one, own, base)))
        except InputError as error:
            if own:
                raise
            left_out[f"{one.kind} '{one.name}' is not checked: {error}"] = error
    if not found:
        raise_all([*left_out.values()])
    return found, [*left_out]


def checks_for(provided: Provided, settings: Mapping[str, Any], base: Path) -> list[Check]:
    """Returns the checks of a registered class.

    Args:
        provided: A modality, a loss or a source.
        settings: Its settings; what is left out has its default.
        base: Relative paths in the settings of a source start here.

    Raises:
        ConfigError: A setting is missing, unknown or not valid.
    """
    cls = provided.cls
    named = {"modality": {}, "loss": {"name": provided.name}, "source": {"source": provided.name}}[provided.kind]
    try:
        config = cls.Config.model_validate({**named, **settings})
    except ValidationError as error:
        found = from_pydantic(error, cls.Config, ())
        hint = "Settings are given with --set KEY=VALUE."
        raise_all(
            [ConfigError(p.message, place=f"{provided.name}.{'.'.join(map(str, p.path))}", hint=hint) for p in found]
        )
    if provided.kind == "source":
        return source_checks(cls(config, base))
    return modality_checks(cls(config)) if provided.kind == "modality" else loss_checks(cls(config))


def check_rows(checked: Sequence[Checked]) -> list[dict[str, Any]]:
    """Returns the results, as `geobind plugins check --json` prints them."""
    return [
        {
            "kind": one.provided.kind,
            "name": one.provided.name,
            "distribution": one.provided.distribution,
            "version": one.provided.version,
            "check": one.check.name,
            "status": one.result.status,
            "message": one.result.message,
            "protects": one.check.protects,
            "hint": one.check.hint,
        }
        for one in checked
    ]


def check_table(checked: Sequence[Checked]) -> Table:
    """Returns the results for people: of what failed, why and where to look."""
    table = Table("", "check", "", "what it protects, or what is wrong", box=None, title_justify="left")
    for one in checked:
        result, said = one.result, Text(one.check.protects)
        if result.status == "failed":
            said = Text(f"{result.message}\n") + Text(f"protects: {one.check.protects}\nhint: {one.check.hint}", "dim")
        elif result.message:
            said = Text(result.message, style="dim")
        table.add_row(one.provided.name, one.check.name, Text(result.status, style=_STYLES[result.status]), said)
    counts = {status: sum(one.result.status == status for one in checked) for status in _STYLES}
    table.caption = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    table.caption_justify = "left"
    return table
