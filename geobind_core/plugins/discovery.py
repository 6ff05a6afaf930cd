"""Finds the plugins of this interpreter by their metadata, without importing them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from importlib.util import find_spec
from pathlib import Path

from geobind_core.plugins.installing import installer
from geobind_core.plugins.names import normalise

ENTRY_POINT_GROUP = "geobind"
_POINTS = "entry_points.txt"


@dataclass
class PluginRecord:
    """One module behind one or more entry points of one distribution, and how it fares.

    Attributes:
        value: The entry points' target, `module` or `module:attribute`.
        names: The names of the entry points.
        status: `available` (not imported yet), `loaded`, `disabled` or `broken`; `conflict` is
            found per name, in the registry.
        error: Why it is broken, in a sentence; `cause` is the exception.
        warnings: What is to be mended though it works.
        seconds: How long the import took.
    """

    distribution: str
    version: str
    value: str
    names: list[str] = field(default_factory=list)
    status: str = "available"
    error: str = ""
    cause: BaseException | None = None
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    entry_point: EntryPoint | None = None

    @property
    def who(self) -> str:
        """The distribution and its version, for messages."""
        return f"{self.distribution} {self.version}"

    def answers_to(self, name: str) -> bool:
        """Whether one of its entry points has this name."""
        return normalise(name) in {normalise(own) for own in self.names}


def discover() -> list[PluginRecord]:
    """Returns the plugins that are installed, sorted by distribution. Nothing is imported."""
    points, unreadable = _entry_points()
    records: dict[tuple[str, str], PluginRecord] = {}
    for point in points:
        name, version = _name_and_version(point.dist)
        record = records.setdefault((name, point.value), PluginRecord(name, version, point.value, entry_point=point))
        if point.name not in record.names:
            record.names.append(point.name)
    return sorted([*records.values(), *unreadable], key=lambda r: (r.distribution, r.value))


def _name_and_version(distribution: Distribution | None) -> tuple[str, str]:
    # What is left of a distribution that was removed half has no name.
    name = distribution.name if distribution else None
    version = distribution.version if distribution else None
    return name or "unknown", version or ""


def _entry_points() -> tuple[list[EntryPoint], list[PluginRecord]]:
    """Returns the entry points, and a broken plugin for each distribution whose own cannot be read."""
    try:
        return list(entry_points(group=ENTRY_POINT_GROUP)), []
    except Exception:  # of whatever package; one line without `=` somewhere hides the plugins of all
        pass
    found: list[EntryPoint] = []
    unreadable: list[PluginRecord] = []
    seen: set[str] = set()
    for distribution in distributions():
        name, version = _name_and_version(distribution)
        if normalise(name) in seen and distribution.name:  # what comes first on the path is what Python takes
            continue
        seen.add(normalise(name))
        try:
            found += distribution.entry_points.select(group=ENTRY_POINT_GROUP)
        except Exception as error:
            if _is_for_geobind(distribution, name):
                reason = f"its entry_points.txt cannot be read: {type(error).__name__}: {error}"
                unreadable.append(PluginRecord(name, version, _POINTS, status="broken", error=reason, cause=error))
    return found, unreadable


def _is_for_geobind(distribution: Distribution, name: str) -> bool:
    try:
        return f"[{ENTRY_POINT_GROUP}]" in (distribution.read_text(_POINTS) or "")
    except UnicodeDecodeError:
        return ENTRY_POINT_GROUP in name.lower()


def failure(record: PluginRecord, error: BaseException) -> str:
    """Returns why a plugin could not be loaded, for people."""
    point = record.entry_point
    if isinstance(error, ModuleNotFoundError) and point is not None and point.dist is not None:
        package = point.module.split(".")[0]
        if error.name == package and find_spec(package) is None:
            return (
                f"its module '{package}' is not there, only its metadata is: what is left of an installation "
                f"that was moved or removed by hand, or the entry point '{point.name} = {point.value}' is misspelled. "
                f"Mend it, or remove it: {_removal(record, point.dist)}"
            )
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _removal(record: PluginRecord, distribution: Distribution) -> str:
    """Returns how to get rid of a distribution; installers remove only what has a list of its files."""
    if distribution.read_text("RECORD") is not None:
        return f"{installer('uninstall')} {record.distribution}"
    site = Path(str(distribution.locate_file("")))
    start = normalise(f"{record.distribution}-{record.version}")
    folders = [p for p in site.glob("*-info") if normalise(p.stem) == start]
    return f"delete {folders[0] if folders else site}"


def imports_torch(record: PluginRecord) -> str:
    """Returns the warning about a plugin whose import brought torch in."""
    return (
        f"slow: importing it imports torch, which took {record.seconds:.1f} s; "
        "every command that loads it waits for that. Import torch inside methods."
    )


def torch_is_imported() -> bool:
    """Whether this process has torch by now."""
    return "torch" in sys.modules
