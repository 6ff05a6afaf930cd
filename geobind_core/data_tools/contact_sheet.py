"""A picture of some rows of a data set: a line for each, a column for each modality."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from geobind_core.data.paired import PairedData, Rows
from geobind_core.data.samples import describe
from geobind_core.data_tools.drawing import INK, QUIET, WRONG, draw_preview, draw_text, font
from geobind_core.data_tools.opened import OpenedData
from geobind_core.errors import DataError

_CELL = (240, 200)
_LABELS = 190  # width of the column that says which row it is
_GAP, _HEADER = 12, 76
_TABLE = "#eef1f4"


def write_contact_sheet(path: Path, opened: OpenedData, *, rows: int = 8, seed: int = 0) -> None:
    """Draws rows chosen at random, such that have something for every modality if there are any.

    Args:
        path: The PNG to write.
        opened: The data set.
        rows: How many to draw at most.
        seed: Of the choice.

    Raises:
        DataError: The picture cannot be written.
    """
    chosen, splits = _choose(opened, rows, seed), opened.data.split_names()
    width = _GAP + _LABELS + (_CELL[0] + _GAP) * len(opened.modalities)
    sheet = Image.new("RGB", (width, _HEADER + (_CELL[1] + _GAP) * len(chosen)), _TABLE)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, 12), opened.name, fill=INK, font=font(20, bold=True))
    pen.text((_GAP, 42), f"{len(chosen)} of {len(opened.data):,} rows", fill=QUIET, font=font(13))
    for column, name in enumerate(opened.modalities):
        pen.text((_left(column), 42), name, fill=INK, font=font(15, bold=True))
    for line, row in enumerate(chosen.tolist()):
        top = _HEADER + line * (_CELL[1] + _GAP)
        _write_labels(pen, opened.data, row, splits[row], top)
        for column, name in enumerate(opened.modalities):
            sheet.paste(_drawn(opened, name, row), (_left(column), top))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except OSError as error:
        raise DataError(f"the contact sheet cannot be written: {error.strerror or error}.", place=str(path)) from error


def _left(column: int) -> int:
    return _GAP + _LABELS + column * (_CELL[0] + _GAP)


def _choose(opened: OpenedData, count: int, seed: int) -> Rows:
    """Returns complete rows, and more where those are too few, in the order of the table."""
    rng = np.random.default_rng(seed)
    chosen = np.array([], dtype=np.int64)
    complete = np.logical_and.reduce([opened.data.filled(name) for name in opened.modalities])
    for usable in (complete, ~complete):
        more = rng.permutation(np.flatnonzero(usable))[: count - len(chosen)]
        chosen = np.concatenate([chosen, more])
    return np.sort(chosen)


def _write_labels(pen: ImageDraw.ImageDraw, data: PairedData, row: int, split: str | None, top: int) -> None:
    lines = [split or ""]
    if data.places is not None and data.places.known[row]:
        lines.append(f"{data.places.longitude[row]:.4f}, {data.places.latitude[row]:.4f}")
    face = font(14, bold=True)
    key = data.key(row)
    while face.getlength(key) > _LABELS - _GAP and len(key) > 2:
        key = f"{key[:-2]}…"
    pen.text((_GAP, top + 4), key, fill=INK, font=face)
    for number, line in enumerate(lines):
        pen.text((_GAP, top + 28 + 20 * number), line, fill=QUIET, font=font(12))


def _drawn(opened: OpenedData, name: str, row: int) -> Image.Image:
    modality = opened.modalities[name]
    cell = opened.data.cell(name, row, is_file=modality.reads_files)
    values = cell if isinstance(cell, tuple) else (cell,)
    if any(value is None for value in values):
        return Image.new("RGB", _CELL, _TABLE)
    try:
        preview = modality.preview(cell, size=max(_CELL))
        if preview is None and isinstance(cell, tuple | list) and all(isinstance(v, str | int | float) for v in cell):
            return draw_text("\n".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in cell), _CELL)
        return draw_preview(preview, _CELL)
    except Exception as error:  # decoders raise what they like
        return draw_text(describe(error), _CELL, size=12, colour=WRONG)
