"""What was found, packed and made, for people and for scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Group
from rich.table import Table
from rich.text import Text

from geobind_core.data_tools.inspect import FieldReport, Inspection, Problems, Range
from geobind_core.data_tools.pack import REPORT, Packed, report_of
from geobind_core.data_tools.split import Division
from geobind_core.progress import counted, readable_size


def as_json(inspection: Inspection) -> dict[str, Any]:
    """Returns everything that was found, and the findings in words."""
    return {**asdict(inspection), "findings": list(findings(inspection))}


def findings(inspection: Inspection) -> Iterator[str]:
    """Yields what somebody should look at, a sentence each."""
    yield from inspection.notes
    for name, report in inspection.fields.items():
        if report.missing is not None and report.missing.found:
            yield f"{name}: {_share(report.missing, 'files are missing')}"
        if report.broken.found:
            yield f"{name}: {_share(report.broken, 'cells cannot be read')}"
        if report.missing is not None and report.duplicates.repeated:
            yield f"{name}: {_rows(report.duplicates.repeated, 'names', 'name')} a file that another row names as well"
        if report.duplicates.redundant:
            groups = "; ".join(" = ".join(group) for group in report.duplicates.identical)
            yield (
                f"{name}: of {report.duplicates.compared} files whose size another has as well, "
                f"{report.duplicates.redundant} repeat the content of another: {groups}"
            )
    if inspection.extent is not None and inspection.extent.without:
        yield f"{_rows(inspection.extent.without, 'has', 'have')} no usable coordinates"
    if inspection.splits["none"]:
        yield f"{_rows(inspection.splits['none'], 'is', 'are')} in no split, and never used"


def unusable(inspection: Inspection) -> list[str]:
    """Returns the modalities of which not one cell can be used."""
    found = []
    for name, report in inspection.fields.items():
        nothing_there = report.missing is not None and report.missing.checked == report.missing.found
        if not report.filled or nothing_there or report.broken.checked == report.broken.found:
            found.append(name)
    return found


def as_table(inspection: Inspection) -> Group:
    """Returns the report as it is printed."""
    splits = ", ".join(f"{name} {rows:,}" for name, rows in inspection.splits.items() if rows)
    table = Table("modality", "column", "filled", "missing", "broken", "what is in them", box=None)
    for column in table.columns[2:5]:
        column.justify, column.no_wrap = "right", True
    for name, report in inspection.fields.items():
        table.add_row(
            name,
            ", ".join(report.columns),
            f"{report.filled:,}",
            _figure(report.missing, report.filled),
            _figure(report.broken, report.filled),
            "; ".join(_properties(report)) or "-",
        )
    lines = [f"{inspection.data} ({inspection.source}): {inspection.rows:,} rows ({splits})"]
    if inspection.unread:
        lines.append(f"fields of no modality here: {', '.join(inspection.unread)}")
    if (extent := inspection.extent) is not None:
        lines.append(
            f"longitude {extent.west:g} to {extent.east:g}, latitude {extent.south:g} to {extent.north:g}, WGS 84"
        )
    sampled = [name for name, report in inspection.fields.items() if _partly(report)]
    if sampled:
        lines.append(
            f"'of': not all of {', '.join(sampled)} were looked at, but some drawn at random; --check all does"
        )
    found = [Text(f"! {finding}", style="yellow") for finding in findings(inspection)]
    return Group(Text(lines[0]), table, *map(Text, lines[1:]), *found)


def _rows(count: int, of_one: str, of_several: str) -> str:
    return f"{counted(count, 'row')} {of_one if count == 1 else of_several}"


def _share(problems: Problems, what: str) -> str:
    return f"{problems.found} of {problems.checked} {what}, such as {'; '.join(problems.examples)}"


def _partly(report: FieldReport) -> bool:
    there = report.filled - (report.missing.found if report.missing else 0)
    return report.broken.checked < there or (report.missing is not None and report.missing.checked < report.filled)


def _figure(problems: Problems | None, filled: int) -> str:
    if problems is None:
        return "-"
    return f"{problems.found:,}" if problems.checked == filled else f"{problems.found:,} of {problems.checked:,}"


def _properties(report: FieldReport) -> Iterator[str]:
    """Yields each property: numbers from the least to the greatest, words with their counts."""
    if report.file_bytes is not None:
        yield f"file size {_span(report.file_bytes, readable_size)}"
    for name, numbers in report.ranges.items():
        yield f"{name.replace('_', ' ')} {_span(numbers, lambda number: f'{number:.6g}')}"
    for name, words in report.counts.items():
        yield f"{name.replace('_', ' ')} " + ", ".join(f"{word} ({count:,})" for word, count in words.items())
    if report.missing is None and report.duplicates.distinct is not None:
        yield f"{report.duplicates.distinct:,} different"


def _span(numbers: Range, written: Any) -> str:
    if numbers.min == numbers.max:
        return str(written(numbers.min))
    return f"{written(numbers.min)} to {written(numbers.max)}, median {written(numbers.median)}"


def packed_as_json(packed: Packed, folder: Path) -> dict[str, Any]:
    """Returns what was packed, and the settings that use it."""
    return {**report_of(packed), "settings": _shard_settings(packed, folder)}


def packed_as_text(packed: Packed, folder: Path) -> str:
    """Returns what was packed, and what to write into a chain."""
    size = readable_size(sum(shard.size for shard in packed.shards))
    shards = counted(len(packed.shards), "shard")
    lines = [f"packed {packed.samples:,} of {counted(packed.rows, 'row')} into {shards}, {size}, in {folder}"]
    if packed.skipped:
        first = packed.skipped[0]
        field = f" ({first.field})" if first.field else ""
        lines.append(f"! {counted(len(packed.skipped), 'row')} skipped, such as {first.key}{field}: {first.reason}")
        lines.append(f"  all of them: {folder / REPORT}")
    if packed.unused:
        lines.append(f"! columns of files that no modality reads are left out: {', '.join(packed.unused)}")
    return "\n".join([*lines, _for_chain(folder.name, _shard_settings(packed, folder))])


def synthesized_as_text(folder: Path, settings: dict[str, Any]) -> str:
    """Returns what to write into a chain."""
    return f"the synthetic Earth is in {folder}\n{_for_chain(folder.name, settings)}"


def _shard_settings(packed: Packed, folder: Path) -> dict[str, Any]:
    names = [shard.name for shard in packed.shards]
    numbers = [name.removeprefix("shard-").removesuffix(".tar") for name in (names[0], names[-1])]
    pattern = names[0] if len(names) == 1 else f"shard-{{{numbers[0]}..{numbers[1]}}}.tar"
    return {"source": "webdataset", "shards": str(folder / pattern), **packed.settings}


def _for_chain(name: str, settings: dict[str, Any]) -> str:
    known = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
    document = {"data": {known if known[:1].isalpha() else f"data-{known}": settings}}
    written = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
    return f"To use it in a chain, less the fields that the chain has no modality for:\n\n{written}"


def division_as_text(division: Division, out: Path, column: str) -> str:
    """Returns how a table was divided, and how to use it."""
    counts = ", ".join(f"{name} {count:,}" for name, count in division.rows.items() if count or name != "none")
    near = division.nearest_km
    distance = "" if near is None else f"the nearest held-out and training places are {near:.3g} km apart\n"
    use = f"in a chain: split: {{by: column, column: {column}}}"
    return f"wrote {out}: {counts.replace('none', 'in no split')}\n{distance}{use}"
