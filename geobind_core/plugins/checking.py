"""What a plugin must be like before it is registered. What is wrong is said in a sentence for its user."""

from __future__ import annotations

import re
import sys
from difflib import get_close_matches
from typing import Any

from geobind_core.errors import PluginError
from geobind_core.plugins import hooks
from geobind_core.plugins.discovery import PluginRecord
from geobind_core.plugins.loss import Loss
from geobind_core.plugins.metric import Metric
from geobind_core.plugins.modality import Modality
from geobind_core.plugins.registry import COMMAND, REGISTER_HOOKS, Provided
from geobind_core.plugins.source import Source
from geobind_core.plugins.stage_kind import StageKind

_BASES: dict[str, Any] = {
    "modality": Modality,
    "loss": Loss,
    "source": Source,
    "stage_kind": StageKind,
    "metric": Metric,
}
_API = "geobind_api"
_COMMAND_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def provided_by(plugin: Any, record: PluginRecord) -> list[Provided]:
    """Checks a plugin and asks it for what it provides.

    Its hooks are called by themselves and not through pluggy, so that one that raises breaks only
    its own plugin.

    Raises:
        PluginError: It is written for another API, has no hooks, a hook is misspelled, or returned something else.
    """
    _check_api(plugin, record)
    _check_hooks(plugin)
    found = []
    for kind, hook in REGISTER_HOOKS.items():
        for one in getattr(plugin, hook)() if hasattr(plugin, hook) else ():
            name, value = _command(one) if kind == COMMAND else (_name(kind, one), one)
            found.append(Provided(kind, name, value, record.distribution, record.version))
    return found


def _check_api(plugin: Any, record: PluginRecord) -> None:
    module = sys.modules.get(record.entry_point.module) if record.entry_point is not None else None
    version = getattr(plugin, _API, getattr(module, _API, None))
    if version is None:
        return
    oldest, newest = hooks.OLDEST_API_VERSION, hooks.API_VERSION
    works = f"version {newest}" if oldest == newest else f"versions {oldest} to {newest}"
    if not isinstance(version, int) or isinstance(version, bool):
        raise PluginError(f"{_API} is {version!r}; expected a whole number: this GeoBind works with {works}")
    if version > newest:
        raise PluginError(
            f"it is written for version {version} of the plugin API; this GeoBind works with {works}. "
            f"Install a newer GeoBind, or an older {record.distribution}"
        )
    if version < oldest:
        raise PluginError(
            f"it is written for version {version} of the plugin API, which was removed; this GeoBind works with "
            f"{works}. Install a newer {record.distribution}"
        )


def _check_hooks(plugin: Any) -> None:
    """Finds hooks that are misspelled or not marked, which pluggy would ignore without a word."""
    known = [name for name in dir(hooks) if name.startswith(f"{hooks.PROJECT}_")]
    marked = False
    for attribute in dir(plugin):
        marks = getattr(getattr(plugin, attribute), f"{hooks.PROJECT}_impl", None)
        marked = marked or marks is not None
        if marks is not None and attribute not in known:
            near = get_close_matches(attribute, known, 1)
            raise PluginError(f"no hook '{attribute}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        if attribute in known and marks is None:
            raise PluginError(f"'{attribute}' is not decorated with @hookimpl")
        if marks is not None and (marks["wrapper"] or marks["hookwrapper"]):
            raise PluginError(f"'{attribute}' is a wrapper; hooks are called one at a time, with nothing to wrap")
    if not marked:
        found = (
            f"it is the class {plugin.__name__}" if isinstance(plugin, type) else "it has no function with @hookimpl"
        )
        raise PluginError(f"what its entry point names registers nothing: {found}; expected a module with hooks")


def _name(kind: str, cls: Any) -> str:
    """Returns the name of a registered class."""
    base = _BASES[kind]
    if not isinstance(cls, type) or not issubclass(cls, base):
        raise PluginError(f"{REGISTER_HOOKS[kind]} returned {cls!r}; expected subclasses of {base.__name__}")
    name = getattr(cls, "name", None)
    if not isinstance(name, str):
        raise PluginError(f"{cls.__name__} has no `name`")
    config = getattr(cls, "Config", None)
    if not isinstance(config, type) or not issubclass(config, base.Config):
        raise PluginError(f"{cls.__name__}.Config is {config!r}; expected a subclass of {base.Config.__name__}")
    return name


def _command(one: Any) -> tuple[str, Any]:
    """Returns the name of a command and what it does."""
    if not isinstance(one, tuple) or len(one) != 2 or not isinstance(one[0], str) or not callable(one[1]):
        raise PluginError(
            f"{REGISTER_HOOKS[COMMAND]} returned {one!r}; expected pairs of a name and a function or typer.Typer"
        )
    if not _COMMAND_NAME.fullmatch(one[0]):
        raise PluginError(f"{one[0]!r} is no name of a command; expected lower-case letters, digits and hyphens")
    return one
