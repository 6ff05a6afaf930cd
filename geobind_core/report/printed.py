"""The figures as tables for a terminal or a file: the matrix of pairs, and the classifications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from geobind_core.config.evaluate import headline_recall
from geobind_core.report.matrix import Figures, further_figures, written

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

_PADDING = 2  # of a column without a box, on both sides together


def metrics_table(metrics: Mapping[str, Any]) -> RenderableType:
    """Returns the matrix of pairs, one ordered pair a line, trained pairs first; and the classifications."""
    tables = [_pairs_table(metrics)] if metrics["pairs"] else []
    if metrics.get("zero_shot"):
        tables.append(_zero_shot_table(metrics["zero_shot"]))
    return Group(*tables)


class _Folded:
    """A table that goes on below itself where a line has no room for all columns, so that no figure is cut.

    Args:
        headers: Of the columns. The first column is there again in each part.
        left: Those whose cells stand on the left, beside the first.
        notes: What stands below.
    """

    def __init__(self, headers: Sequence[str], left: Sequence[str], notes: str) -> None:
        self._headers = headers
        self._left = (headers[0], *left)
        self._notes = notes
        self._rows: list[Sequence[str]] = []

    def add(self, row: Sequence[str]) -> None:
        """Adds a row, a cell for each header."""
        self._rows.append(row)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = list(zip(self._headers, *self._rows, strict=True))
        widths = [max(map(cell_len, column)) + _PADDING for column in columns]
        parts: list[list[int]] = [[]]
        for number, width in enumerate(widths[1:], start=1):
            if parts[-1] and widths[0] + sum(widths[i] for i in parts[-1]) + width > options.max_width:
                parts.append([])
            parts[-1].append(number)
        for part in parts:
            shown = [0, *part]
            table = Table(*(self._column(self._headers[i]) for i in shown), box=None)
            for row in self._rows:
                table.add_row(*(row[i] for i in shown))
            # Where one column alone is wider than the terminal, the line goes on below.
            width = max(options.max_width, sum(widths[i] for i in shown))
            yield from console.render(table, options.update(width=width))
            if part is not parts[-1]:
                yield ""
        yield Text(self._notes, style="table.caption")

    def _column(self, header: str) -> Column:
        return Column(header, justify="left" if header in self._left else "right", no_wrap=True)


def _pairs_table(metrics: Mapping[str, Any]) -> _Folded:
    pairs: dict[str, Figures] = metrics["pairs"]
    first = next(iter(pairs.values()))
    recalls = [key for key in first if key.startswith("recall@")]
    shown = headline_recall(recalls)
    legacy = [key for key in first.get("legacy_strict", ()) if key == shown]
    labelled = any("strict" in figures for figures in pairs.values())
    further = further_figures(pairs.values())
    notes = [f"chance: of {shown}."]
    if "intervals" in first:
        notes.append("In brackets: 95 % interval over the queries.")
    if labelled:
        notes.append("strict: only the very row counts, not others with the same label.")
    if legacy:
        notes.append(f"legacy: {first['legacy_strict']['convention']}.")
    headers = ["query -> gallery", *recalls, "median rank", "MRR", "chance", *(f"legacy {key}" for key in legacy)]
    headers += [*((f"strict {shown}",) if labelled else ()), *further, "gallery", "trained in"]
    table = _Folded(headers, ["trained in"], " ".join(notes))
    for name, figures in sorted(pairs.items(), key=lambda item: item[1]["emergent"]):
        row = [name.replace("_to_", " -> ")]
        row += [f"{written(key, figures[key])}{_interval(figures, key) if key == shown else ''}" for key in recalls]
        row += [written(key, figures[key]) for key in ("median_rank", "mean_reciprocal_rank", f"chance_{shown}")]
        row += [written(key, figures["legacy_strict"][key]) for key in legacy]
        if labelled:
            row.append(written(shown, figures["strict"][shown]) if "strict" in figures else "")
        row += [written(name, figures[name]) if name in figures else "" for name in further]
        row += [f"{figures['gallery']:,}", figures["trained_in"] or "- (emergent)"]
        table.add(row)
    return table


def _zero_shot_table(tasks: Mapping[str, Any]) -> _Folded:
    ks = list(dict.fromkeys(key for task in tasks.values() for key in task if key.startswith("accuracy@")))
    table = _Folded(
        ["zero-shot", "what", *ks, "mean per class", "chance", "largest class", "classes", "rows"],
        ["what"],
        "chance: of accuracy@1. largest class: the accuracy of always saying the most frequent one.",
    )
    for name, task in tasks.items():
        row = [name, f"{task['modality']} by {task['text']}, {task['data']}.{task['label']}"]
        row += [f"{task[key]:.3f}{_interval(task, key)}" if key in task else "" for key in ks]
        row += [f"{task['mean_per_class_recall']:.3f}", f"{task['chance_accuracy@1']:.3f}"]
        table.add([*row, f"{task['largest_class']:.3f}", str(len(task["classes"])), f"{task['rows']:,}"])
    return table


def _interval(figures: Figures, key: str) -> str:
    if key not in figures.get("intervals", ()):
        return ""
    low, high = figures["intervals"][key]
    return f" [{low:.3f}, {high:.3f}]"
