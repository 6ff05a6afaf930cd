"""Tables for people: the plan, the plugins, the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from geobind_core.progress import readable_size

if TYPE_CHECKING:
    from geobind_core.chain.plan import StagePlan
    from geobind_core.data.cache_entries import StoredEntry
    from geobind_core.plugins.manager import PluginManager
    from geobind_core.plugins.registry import Provided

_ACTIONS = {
    "done": ("done", "green"),
    "run": ("run", "bold"),
    "continue": ("continue", "bold"),
    "later": ("later", "dim"),
}


def plan_table(plans: Sequence[StagePlan]) -> Table:
    """Returns the plan: what each stage does, and what will happen to it and why."""
    table = Table("", "stage", "trains", "anchor", "data", "what", "why", title_justify="left", box=None)
    for plan in plans:
        text, style = _ACTIONS[plan.action]
        table.add_row(
            str(plan.number),
            plan.name,
            ", ".join(plan.stage.trains()) or "-",
            ", ".join(plan.stage.uses()) or "-",
            plan.stage.config.data_text or "-",
            Text(text, style=style),
            plan.why,
        )
    return table


def plugin_rows(plugins: PluginManager) -> list[dict[str, Any]]:
    """Returns the state of every plugin, as `geobind plugins --json` prints it."""
    rows = []
    for record in plugins.records:
        provided = plugins.registry.of(record.distribution)
        conflicts = [p for p in provided if len(plugins.registry.get(p.kind, p.name)) > 1]
        rows.append(
            {
                "entry_points": sorted(record.names),
                "distribution": record.distribution,
                "version": record.version,
                "status": "conflict" if conflicts and record.status == "loaded" else record.status,
                "provides": {
                    kind: sorted(p.name for p in provided if p.kind == kind)
                    for kind in sorted({p.kind for p in provided})
                },
                "conflicts": [p.name for p in conflicts],
                "seconds_to_import": round(record.seconds, 3),
                "error": record.error or "; ".join(_conflict(p, plugins) for p in conflicts),
                "warnings": record.warnings,
            }
        )
    return rows


def _conflict(provided: Provided, plugins: PluginManager) -> str:
    others = [p for p in plugins.registry.get(provided.kind, provided.name) if p is not provided]
    owners = " and ".join(f"{p.distribution} {p.version}" for p in others)
    return f"{provided.kind.replace('_', ' ')} '{provided.name}' is also provided by {owners}"


def plugin_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns the plugins as a table."""
    table = Table("distribution", "version", "status", "provides", "import", "what is wrong", box=None)
    styles = {"loaded": "green", "broken": "red", "conflict": "red", "disabled": "dim"}
    for row in rows:
        provides = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in row["provides"].items())
        table.add_row(
            row["distribution"],
            row["version"],
            Text(row["status"], style=styles.get(row["status"], "")),
            provides or ", ".join(row["entry_points"]),
            f"{row['seconds_to_import']:.2f} s",
            "; ".join(filter(None, [row["error"], *row["warnings"]])),
        )
    return table


def cache_rows(entries: Sequence[StoredEntry]) -> list[dict[str, Any]]:
    """Returns the entries of the cache, as `geobind cache list --json` prints them."""
    shown = ("modality", "plugin", "output", "dimension", "dtype", "precision", "encoder", "transform")
    return [
        {
            **{name: entry.description.get(name) for name in shown},
            "rows": entry.rows,
            "bytes": entry.size,
            "created": entry.created,
            "last_used": datetime.fromtimestamp(entry.last_used, UTC).isoformat(timespec="seconds"),
            "key": entry.folder.name,
            "folder": str(entry.folder),
        }
        for entry in entries
    ]


def cache_table(rows: Sequence[Mapping[str, Any]], root: Path) -> Table:
    """Returns entries of the cache as a table."""
    table = Table("modality", "what", "rows", "size", "stored as", "last used", "key", box=None)
    for column in table.columns[2:4]:
        column.justify, column.no_wrap = "right", True
    for row in rows:
        used = datetime.fromisoformat(row["last_used"]).astimezone()
        table.add_row(
            str(row["modality"]),
            f"{row['output']}, {row['dimension']}",
            str(row["rows"]),
            readable_size(row["bytes"]),
            str(row["dtype"]),
            f"{used:%Y-%m-%d %H:%M}",
            row["key"],
        )
    table.caption = f"{entries_text(rows)}, in {root}"
    table.caption_justify = "left"
    return table


def entries_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns how many entries there are and what they take, such as 2 entries, 1.5 GiB."""
    return f"{len(rows)} {'entry' if len(rows) == 1 else 'entries'}, {readable_size(sum(r['bytes'] for r in rows))}"
