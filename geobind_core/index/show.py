"""What was found, for people and for scripts: a table, JSON, GeoJSON, a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from rich.table import Table

from geobind_core.data.samples import describe
from geobind_core.data_tools.drawing import INK, QUIET, WRONG, draw_preview, draw_text, font
from geobind_core.errors import DataError
from geobind_core.files import replacing_file
from geobind_core.index.file import EmbeddingIndex
from geobind_core.index.search import Hit
from geobind_core.plugins.modality import Modality

_CELL, _CAPTION, _GAP, _HEADER, _COLUMNS = (220, 220), 62, 12, 48, 5
_TABLE = "#eef1f4"
_LONGEST = 60  # characters of a text in a table


def as_json(index: EmbeddingIndex, found: Sequence[Hit]) -> list[dict[str, Any]]:
    """Returns what was found, with the cells that the index has of each row."""
    cells = index.record.cells
    columns = list(dict.fromkeys(column for known in cells.values() for column in known.columns))
    described = index.rows([hit.row for hit in found], columns)
    return [
        {
            "rank": rank,
            "key": hit.key,
            "score": round(hit.score, 6),
            "longitude": hit.longitude,
            "latitude": hit.latitude,
            "time": None if hit.time is None else hit.time.isoformat().replace("+00:00", "Z"),
            "row": hit.row,
            "cells": {name: _cell([about[column] for column in known.columns]) for name, known in cells.items()},
        }
        for rank, (hit, about) in enumerate(zip(found, described, strict=True), start=1)
    ]


def _cell(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def as_geojson(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns what `as_json` did as a FeatureCollection, RFC 7946; a row without coordinates has no geometry."""
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "id": row["key"],
                "geometry": None
                if row["longitude"] is None
                else {"type": "Point", "coordinates": [row["longitude"], row["latitude"]]},
                "properties": {
                    **{name: row[name] for name in ("rank", "key", "score", "time") if row[name] is not None},
                    **row["cells"],
                },
            }
            for row in rows
        ],
    }


def as_table(index: EmbeddingIndex, rows: Sequence[dict[str, Any]]) -> Table:
    """Returns what `as_json` did as a table: of the cells, that which was searched and what is no file."""
    shown = [name for name, cells in index.record.cells.items() if name == index.modality or not cells.is_file]
    places = any(row["longitude"] is not None for row in rows)
    times = any(row["time"] for row in rows)
    table = Table(box=None)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    for name in ["key", *(["longitude", "latitude"] if places else []), *(["time"] if times else []), *shown]:
        is_number = name in ("longitude", "latitude")
        table.add_column(name, justify="right" if is_number else "left", no_wrap=is_number)
    for row in rows:
        cells = [f"{row[axis]:.5f}" if row[axis] is not None else "-" for axis in ("longitude", "latitude")]
        table.add_row(
            str(row["rank"]),
            f"{row['score']:.4f}",
            row["key"],
            *(cells if places else []),
            *([row["time"] or "-"] if times else []),
            *(_short(row["cells"][name]) for name in shown),
        )
    return table


def _short(value: Any) -> str:
    text = ", ".join(map(_number, value)) if isinstance(value, list) else _number(value)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def write_sheet(
    path: Path, index: EmbeddingIndex, found: Sequence[Hit], modality: Modality[Any], title: str
) -> list[str]:
    """Draws what was found, the nearest first, a box for each.

    Args:
        path: The PNG to write.
        index: What was searched; knows where the observations are.
        found: What was found.
        modality: Draws the observations of the index.
        title: What was searched for.

    Returns:
        The keys of those that could not be drawn, each with the reason.

    Raises:
        DataError: The index does not know where its observations are, or the picture cannot be written.
    """
    index.require_cells(index.modality)
    columns = min(_COLUMNS, len(found))
    lines = -(-len(found) // columns)
    size = _GAP + columns * (_CELL[0] + _GAP), _HEADER + lines * (_CELL[1] + _CAPTION + _GAP)
    sheet = Image.new("RGB", size, _TABLE)
    sheet.paste(_line(title, size[0] - 2 * _GAP, 18), (_GAP, 12))
    missing = []
    for number, hit in enumerate(found):
        line, column = divmod(number, columns)
        left, top = _GAP + column * (_CELL[0] + _GAP), _HEADER + line * (_CELL[1] + _CAPTION + _GAP)
        try:
            preview = modality.preview(index.cell(index.modality, hit.row), size=max(_CELL))
            drawn = draw_preview(preview, _CELL)
        except Exception as error:  # decoders raise what they like
            missing.append(f"{hit.key}: {describe(error)}")
            drawn = draw_text(describe(error), _CELL, size=12, colour=WRONG)
        sheet.paste(drawn, (left, top))
        _write_caption(sheet, hit, number + 1, left, top + _CELL[1])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(path) as temporary:
            sheet.save(temporary, format="PNG")
    except OSError as error:
        raise DataError(f"the contact sheet cannot be written: {error.strerror or error}.", place=str(path)) from error
    return missing


def _line(text: str, width: int, size: int) -> Image.Image:
    """Draws a text that ends in dots where it is too long for its line."""
    face = font(size, bold=True)
    while face.getlength(text) > width and len(text) > 2:
        text = f"{text[:-2]}…"
    drawn = Image.new("RGB", (width, round(size * 1.6)), _TABLE)
    ImageDraw.Draw(drawn).text((0, 0), text, fill=INK, font=face)
    return drawn


def _write_caption(sheet: Image.Image, hit: Hit, rank: int, left: int, top: int) -> None:
    pen = ImageDraw.Draw(sheet)
    sheet.paste(_line(f"{rank}  {hit.key}", _CELL[0], 13), (left, top + 4))
    told = [f"{hit.score:.4f}"]
    if hit.longitude is not None:
        told.append(f"{hit.longitude:.4f}, {hit.latitude:.4f}")
    pen.text((left, top + 24), "   ".join(told), fill=QUIET, font=font(12))
    if hit.time is not None:
        pen.text((left, top + 41), f"{hit.time:%Y-%m-%d %H:%M} UTC", fill=QUIET, font=font(12))
