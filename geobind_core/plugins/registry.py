"""What plugins provide, by kind and name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

COMMAND = "command"
REGISTER_HOOKS = {
    "modality": "geobind_register_modalities",
    "loss": "geobind_register_losses",
    "source": "geobind_register_sources",
    "stage_kind": "geobind_register_stage_kinds",
    "metric": "geobind_register_metrics",
    COMMAND: "geobind_register_commands",
}


@dataclass(frozen=True)
class Provided:
    """What is registered under a name, and who provides it.

    Attributes:
        kind: One of `REGISTER_HOOKS`.
        name: The name.
        cls: The class; of a command what it does, a function or a `typer.Typer`, or None for the core's own.
        distribution: The distribution of the plugin.
        version: Its version.
    """

    kind: str
    name: str
    cls: Any
    distribution: str
    version: str


@dataclass
class Registry:
    """What is registered, by (kind, name). A name with two providers is a conflict: neither wins."""

    entries: dict[tuple[str, str], list[Provided]] = field(default_factory=dict)

    def add(self, provided: Provided) -> None:
        """Adds a class beside whatever stands under its name."""
        self.entries.setdefault((provided.kind, provided.name), []).append(provided)

    def get(self, kind: str, name: str) -> list[Provided]:
        """Returns the providers of a name: none, the one, or those in conflict."""
        return self.entries.get((kind, name), [])

    def names(self, kind: str) -> list[str]:
        """Returns the usable names of a kind, sorted."""
        return sorted(n for (k, n), found in self.entries.items() if k == kind and len(found) == 1)

    def of(self, distribution: str) -> list[Provided]:
        """Returns everything that a distribution provides."""
        return [p for found in self.entries.values() for p in found if p.distribution == distribution]
