"""Loads only the plugins that are needed, and keeps a broken one from harming the rest."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from difflib import get_close_matches
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pluggy

from geobind_core.config.problems import suggest
from geobind_core.errors import PluginError
from geobind_core.plugins import hooks
from geobind_core.plugins.checking import provided_by
from geobind_core.plugins.discovery import PluginRecord, discover, failure, imports_torch, torch_is_imported
from geobind_core.plugins.installing import install_hint, installed_version, provider_of
from geobind_core.plugins.names import normalise
from geobind_core.plugins.registry import COMMAND, Provided, Registry

CORE = "geobind"


class PluginManager:
    """The plugins of this interpreter.

    Args:
        builtin: The core's own plugin modules, registered at once.
        disabled: Entry points or distributions that are not to be imported, in addition to those
            in the environment variable `GEOBIND_DISABLE_PLUGINS` (separated by commas).
        commands: The names of the core's own commands, which stay the core's.
        warn: Is told at once what is to be mended though it works; it is also kept in `warnings`.
    """

    def __init__(
        self,
        builtin: Sequence[ModuleType] = (),
        disabled: Iterable[str] = (),
        commands: Iterable[str] = (),
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self._strict = os.environ.get("GEOBIND_STRICT_PLUGINS", "") not in ("", "0")
        self._pluggy = pluggy.PluginManager(hooks.PROJECT)
        self._pluggy.add_hookspecs(hooks)
        self._tell = warn
        self.registry = Registry()
        self.warnings: list[str] = []
        version = installed_version(CORE) or "0"  # of a source tree that was never installed
        for module in builtin:
            self._register(module, PluginRecord(CORE, version, module.__name__))
        for name in commands:
            self.registry.add(Provided(COMMAND, name, None, CORE, version))
        self.records = discover()
        self._disable([name.strip() for name in disabled if name.strip()])

    def _disable(self, disabled: Sequence[str]) -> None:
        known = {n for record in self.records for n in (*record.names, record.distribution)}
        for name in disabled:
            if normalise(name) not in map(normalise, known):
                # Not so in the environment variable, which may be meant for several environments.
                self._warn(f"--disable-plugin {name}: no plugin has this name. {suggest(name, known)}")
        from_environment = os.environ.get("GEOBIND_DISABLE_PLUGINS", "").split(",")
        off = {normalise(name.strip()) for name in (*disabled, *from_environment)}
        for record in self.records:
            if off & {normalise(name) for name in (*record.names, record.distribution)}:
                record.status = "disabled"

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        if self._tell is not None:
            self._tell(text)

    # ------------------------------------------------------------------ loading

    def load_all(self) -> None:
        """Imports every plugin that is not disabled."""
        for record in self.records:
            self._load(record)

    def _load(self, record: PluginRecord) -> None:
        if record.status == "available" and record.entry_point is not None:
            self._import(record, record.entry_point)
        if record.status == "broken" and self._strict:
            raise PluginError(
                f"plugin {record.who} is broken: {record.error}",
                hint="GEOBIND_STRICT_PLUGINS is set; unset it to go on without the plugin.",
            ) from record.cause

    def _import(self, record: PluginRecord, entry_point: EntryPoint) -> None:
        had_torch, started = torch_is_imported(), time.perf_counter()
        try:
            # Standard output is for results: a module that prints when it is imported would spoil `--json`.
            with redirect_stdout(sys.stderr):
                try:
                    plugin = entry_point.load()
                finally:
                    record.seconds = time.perf_counter() - started
                    if torch_is_imported() and not had_torch:
                        record.warnings.append(imports_torch(record))
                self._register(plugin, record)
            record.status = "loaded"
        except (Exception, SystemExit) as error:  # SystemExit: a module that calls sys.exit at import
            record.status, record.cause = "broken", error
            record.error = error.message if isinstance(error, PluginError) else failure(record, error)

    def _register(self, plugin: Any, record: PluginRecord) -> None:
        if self._pluggy.is_registered(plugin):
            return
        provided = provided_by(plugin, record)
        # Last, so that nothing remains of a plugin that is broken. Python shows deprecations to nobody
        # but those who run tests, and does not know whose they are.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._pluggy.register(plugin, name=f"{record.distribution}:{record.value}")
        for warning in caught:
            record.warnings.append(str(warning.message))
            self._warn(f"{record.who}: {warning.message}")
        for one in provided:
            self.registry.add(one)

    # ------------------------------------------------------------------ look-up

    def find(self, kind: str, name: str, distribution: str = "") -> Provided:
        """Returns what is registered under a name, importing its plugin if need be.

        Args:
            kind: One of `registry.REGISTER_HOOKS`.
            name: The registered name.
            distribution: Who provided it, where that is on record; the message about a missing plugin
                says to install it.

        Raises:
            PluginError: Nobody provides it, its plugin is broken or disabled, or several provide it.
        """
        for record in self.records:
            if record.answers_to(name):
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
        raise self._not_found(kind, readable, name, distribution)

    def require(self, name: str) -> None:
        """Loads the plugins with an entry point of this name, whatever they provide.

        Raises:
            PluginError: There is none, or it is broken or disabled.
        """
        named = [record for record in self.records if record.answers_to(name)]
        for record in named:
            self._load(record)
        if (failed := self._unusable("plugin", name)) is not None:
            raise failed
        if not named:
            names = {n for record in self.records for n in record.names}
            near = get_close_matches(name, names, 1)
            raise PluginError(
                f"no plugin '{name}'. {suggest(name, names)}", hint=self._remedy("plugin", name, guess=not near)
            )

    def _not_found(self, kind: str, readable: str, name: str, distribution: str) -> PluginError:
        if (failed := self._unusable(readable, name)) is not None:
            return failed
        available = self.registry.names(kind)
        near = get_close_matches(name, available, 1)
        broken = [f"{r.who} ({r.error})" for r in self.records if r.status == "broken"]
        hints = [f"Not loaded because broken: {'; '.join(broken)}."] if broken else []
        # After a slip of the keyboard, to install what might be called after it is bad advice.
        hints.append(self._remedy(kind, name, distribution, guess=not near and kind != COMMAND))
        return PluginError(
            f"no {readable} '{name}'. {suggest(name, available)}", hint=" ".join(hint for hint in hints if hint)
        )

    def _remedy(self, kind: str, name: str, distribution: str = "", *, guess: bool) -> str:
        """Returns what to do about a name that nobody provides: not to install what is installed."""
        announcing = [record.who for record in self.records if record.answers_to(name)]
        if not announcing:
            likely = provider_of(kind, name, distribution)
            if (version := installed_version(likely)) is None:
                return install_hint(kind, name, distribution, guess=guess)
            announcing = [f"{likely} {version}"]
        return f"{announcing[0]} is installed and does not provide it; `geobind plugins` shows what it provides."

    def _unusable(self, readable: str, name: str) -> PluginError | None:
        """Returns what is wrong with the plugin whose entry point has this name, if it cannot be used."""
        for record in self.records:
            if record.answers_to(name) and record.status == "disabled":
                return PluginError(
                    f"{readable} '{name}' is provided by {record.who}, which is disabled.",
                    hint="Take it out of --disable-plugin and GEOBIND_DISABLE_PLUGINS.",
                )
            if record.answers_to(name) and record.status == "broken":
                return PluginError(
                    f"{readable} '{name}' is provided by {record.who}, which cannot be loaded: {record.error}",
                    hint="`geobind plugins` shows the state of all plugins.",
                )
        return None

    # ------------------------------------------------------------------ life cycle

    def notify(self, hook: str, **arguments: Any) -> None:
        """Calls a life-cycle hook, one implementation at a time.

        One that raises stops nobody; what it raised is appended to `warnings`.
        """
        for implementation in getattr(self._pluggy.hook, hook).get_hookimpls():
            try:
                accepted = {n: arguments[n] for n in implementation.argnames}
                with redirect_stdout(sys.stderr):
                    implementation.function(**accepted)
            except (Exception, SystemExit) as error:
                self.warnings.append(f"{implementation.plugin_name}: {hook}: {type(error).__name__}: {error}")
