"""Finds plugins, loads only those that are needed, and keeps a broken one from harming the rest."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pluggy

from geobind_core.errors import PluginError
from geobind_core.plugins import hooks
from geobind_core.plugins.loss import Loss
from geobind_core.plugins.modality import Modality
from geobind_core.plugins.registry import KINDS, REGISTER_HOOKS, Provided, Registry
from geobind_core.plugins.source import Source
from geobind_core.plugins.stage_kind import StageKind

ENTRY_POINT_GROUP = "geobind"
CORE = "geobind"
_BASES: dict[str, type] = {"modality": Modality, "loss": Loss, "source": Source, "stage_kind": StageKind}


@dataclass
class PluginRecord:
    """One module behind one or more entry points of one distribution, and how it fares.

    Attributes:
        value: The entry points' target, `module` or `module:attribute`.
        names: The names of the entry points.
        status: `available` (not imported yet), `loaded`, `disabled` or `broken`; `conflict` is
            found per name, in the registry.
        error: Why it is broken.
        seconds: How long the import took.
    """

    distribution: str
    version: str
    value: str
    names: list[str] = field(default_factory=list)
    status: str = "available"
    error: str = ""
    seconds: float = 0.0
    entry_point: EntryPoint | None = None


def normalise(name: str) -> str:
    """Returns a name as distributions and modalities are compared: `my.Plugin-x` is `my_plugin_x`."""
    return name.lower().replace("-", "_").replace(".", "_")


class PluginManager:
    """The plugins of this interpreter.

    Args:
        builtin: The core's own plugin modules, registered at once.
        disabled: Entry points or distributions that are not to be imported, in addition to those
            in the environment variable `GEOBIND_DISABLE_PLUGINS` (separated by commas).
    """

    def __init__(self, builtin: Sequence[ModuleType] = (), disabled: Iterable[str] = ()) -> None:
        from_environment = os.environ.get("GEOBIND_DISABLE_PLUGINS", "").split(",")
        self._disabled = {normalise(n.strip()) for n in (*disabled, *from_environment) if n.strip()}
        self._strict = os.environ.get("GEOBIND_STRICT_PLUGINS", "") not in ("", "0")
        self._pluggy = pluggy.PluginManager(hooks.PROJECT)
        self._pluggy.add_hookspecs(hooks)
        self.registry = Registry()
        self.warnings: list[str] = []
        for module in builtin:
            self._register(module, PluginRecord(CORE, _core_version(), module.__name__))
        self.records = self._discover()

    def _discover(self) -> list[PluginRecord]:
        records: dict[tuple[str, str], PluginRecord] = {}
        for point in entry_points(group=ENTRY_POINT_GROUP):
            # What is left of a distribution that was removed half has no name.
            name = (point.dist.name if point.dist else None) or "unknown"
            version = (point.dist.version if point.dist else None) or ""
            record = records.setdefault(
                (name, point.value), PluginRecord(name, version, point.value, entry_point=point)
            )
            if point.name not in record.names:  # a stale second metadata folder lists it again
                record.names.append(point.name)
            if normalise(point.name) in self._disabled or normalise(name) in self._disabled:
                record.status = "disabled"
        return sorted(records.values(), key=lambda r: (r.distribution, r.value))

    # ------------------------------------------------------------------ loading

    def load_all(self) -> None:
        """Imports every plugin that is not disabled."""
        for record in self.records:
            self._load(record)

    def _load(self, record: PluginRecord) -> None:
        if record.status != "available" or record.entry_point is None:
            return
        started = time.perf_counter()
        try:
            try:
                plugin = record.entry_point.load()
            finally:
                record.seconds = time.perf_counter() - started
            self._register(plugin, record)
            record.status = "loaded"
        except (Exception, SystemExit) as error:  # SystemExit: a module that calls sys.exit at import
            record.status = "broken"
            record.error = f"{type(error).__name__}: {error}"
            if self._strict:
                raise PluginError(
                    f"plugin {record.distribution} {record.version} is broken: {record.error}",
                    hint="GEOBIND_STRICT_PLUGINS is set; unset it to go on without the plugin.",
                ) from error

    def _register(self, plugin: Any, record: PluginRecord) -> None:
        if self._pluggy.is_registered(plugin):
            return
        _check_hooks(plugin)
        provided = [
            Provided(kind, _checked_name(kind, cls), cls, record.distribution, record.version)
            for kind in KINDS
            if hasattr(plugin, REGISTER_HOOKS[kind])
            # Called by themselves and not through pluggy, so that one that raises breaks only its own plugin.
            for cls in getattr(plugin, REGISTER_HOOKS[kind])()
        ]
        # Last, so that nothing remains of a plugin that is broken.
        self._pluggy.register(plugin, name=f"{record.distribution}:{record.value}")
        for one in provided:
            self.registry.add(one)

    # ------------------------------------------------------------------ look-up

    def find(self, kind: str, name: str) -> Provided:
        """Returns the class registered under a name, importing its plugin if need be.

        Raises:
            PluginError: Nobody provides it, its plugin is broken or disabled, or several provide it.
        """
        for record in self.records:
            if normalise(name) in {normalise(n) for n in record.names}:
                self._load(record)
        if not self.registry.get(kind, name):
            # An entry point may be named otherwise than what it provides: then all must be asked.
            self.load_all()
        found = self.registry.get(kind, name)
        if len(found) == 1:
            return found[0]
        readable = kind.replace("_", " ")
        if found:
            owners = " and ".join(f"{p.distribution} {p.version}" for p in found)
            raise PluginError(
                f"conflict: {readable} '{name}' is provided by {owners}; neither is used.",
                hint="Uninstall one, or disable it with --disable-plugin.",
            )
        raise self._not_found(kind, readable, name)

    def _not_found(self, kind: str, readable: str, name: str) -> PluginError:
        for record in self.records:
            if normalise(name) in {normalise(n) for n in record.names}:
                who = f"{record.distribution} {record.version}"
                if record.status == "disabled":
                    return PluginError(
                        f"{readable} '{name}' is provided by {who}, which is disabled.",
                        hint="Take it out of --disable-plugin and GEOBIND_DISABLE_PLUGINS.",
                    )
                if record.status == "broken":
                    return PluginError(
                        f"{readable} '{name}' is provided by {who}, which cannot be loaded: {record.error}",
                        hint="`geobind plugins` shows the state of all plugins.",
                    )
        available = self.registry.names(kind)
        near = get_close_matches(name, available, 1)
        broken = [f"{r.distribution} {r.version} ({r.error})" for r in self.records if r.status == "broken"]
        return PluginError(
            f"no {readable} '{name}'. Available: {', '.join(available) or 'none'}."
            + (f" Did you mean '{near[0]}'?" if near else ""),
            hint=(f"Not loaded because broken: {'; '.join(broken)}. " if broken else "")
            + (
                ""
                if near
                else f"If a plugin provides it, install that: {installer()} geobind-plugin-{name.replace('_', '-')}"
            ),
        )

    # ------------------------------------------------------------------ life cycle

    def notify(self, hook: str, **arguments: Any) -> None:
        """Calls a life-cycle hook, one implementation at a time.

        One that raises stops nobody; what it raised is appended to `warnings`.
        """
        for implementation in getattr(self._pluggy.hook, hook).get_hookimpls():
            try:
                accepted = {n: arguments[n] for n in implementation.argnames}
                implementation.function(**accepted)
            except (Exception, SystemExit) as error:
                self.warnings.append(f"{implementation.plugin_name}: {hook}: {type(error).__name__}: {error}")


def _check_hooks(plugin: Any) -> None:
    """Raises PluginError where a hook is misspelled or not marked; pluggy would ignore it without a word."""
    known = [name for name in dir(hooks) if name.startswith(f"{hooks.PROJECT}_")]
    for attribute in dir(plugin):
        is_hook = hasattr(getattr(plugin, attribute), f"{hooks.PROJECT}_impl")
        if is_hook and attribute not in known:
            near = get_close_matches(attribute, known, 1)
            raise PluginError(f"no hook '{attribute}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        if attribute in known and not is_hook:
            raise PluginError(f"'{attribute}' is not decorated with @hookimpl")


def _checked_name(kind: str, cls: Any) -> str:
    """Returns the name of a registered class.

    Raises:
        PluginError: It is no subclass of what its kind consists of, or has no name.
    """
    base = _BASES[kind]
    if not isinstance(cls, type) or not issubclass(cls, base):
        raise PluginError(f"{REGISTER_HOOKS[kind]} returned {cls!r}; expected subclasses of {base.__name__}")
    name = getattr(cls, "name", None)
    if not isinstance(name, str):
        raise PluginError(f"{cls.__name__} has no `name`")
    return name


def installer() -> str:
    """Returns the command that installs into this very interpreter; environments made by uv have no pip."""
    if find_spec("pip") is not None:
        return f"{sys.executable} -m pip install"
    return f"uv pip install --python {sys.executable}"


def _core_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(CORE)
    except PackageNotFoundError:  # running from a source tree that was never installed
        return "0"
