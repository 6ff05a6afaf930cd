"""What is right of a classification: a column of the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from geobind_core.config.evaluate import ZeroShotConfig
from geobind_core.config.problems import suggest
from geobind_core.data.paired import PairedData, Rows
from geobind_core.errors import DataError

_LISTED = 5


def class_numbers(
    name: str, task: ZeroShotConfig, data: PairedData, table: pa.Table, rows: Rows
) -> npt.NDArray[np.int64]:
    """Returns the number of the class of each row of the data set, -1 for rows without a label and for others.

    Args:
        name: The name of the classification, for messages.
        task: Names the column and the classes.
        data: The data set.
        table: The table that it was made of.
        rows: Those that might be classified.

    Raises:
        DataError: There is no such column, or a value of it is in no class.
    """
    place = f"evaluate.zero_shot.{name}"
    if task.label not in table.column_names:
        raise DataError(
            f"data set '{data.name}' has no column '{task.label}'. {suggest(task.label, table.column_names)}",
            place=f"{place}.label",
        )
    values = [_text(value) for value in table[task.label].to_pylist()]
    numbers = {label: number for number, label in enumerate(task.classes)}
    unknown = sorted({value for row in rows.tolist() if (value := values[row]) is not None} - numbers.keys())
    if unknown:
        shown = ", ".join(f"'{value}'" for value in unknown[:_LISTED]) + (", …" if len(unknown) > _LISTED else "")
        raise DataError(
            f"column '{task.label}' has {shown}, which no class has. {suggest(unknown[0], numbers)}",
            place=f"{place}.classes",
            hint="Name every label of the column under classes; a row without a label is left out.",
        )
    found = np.full(len(data), -1, dtype=np.int64)
    for row in rows.tolist():
        if (value := values[row]) is not None:
            found[row] = numbers[value]
    return found


def _text(value: Any) -> str | None:
    """Returns a value as it is written under `classes`; None for none."""
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, float) and value.is_integer():  # a column of whole numbers with empty cells
        value = int(value)
    return str(value).strip() or None
