"""The same thing twice: a cell that another row has as well, files of the same content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geobind_core.data.same_content import same_content

FILES_COMPARED = 2_000
"""Of more files that have the size of another, so many are compared, unless all are asked for."""

_EXAMPLES = 5


@dataclass(frozen=True)
class Duplicates:
    """What is there more than once.

    Attributes:
        distinct: Different values of the column; None where it holds no strings.
        repeated: Rows whose value an earlier row has as well; None as above.
        compared: Files whose size another has as well, and that were therefore compared.
        identical: Groups of files with the same content; the first few.
        redundant: Files, of those compared, whose content an earlier one has.
    """

    distinct: int | None
    repeated: int | None
    compared: int
    identical: list[list[str]]
    redundant: int


def find_duplicates(
    column: pa.ChunkedArray | None, sizes: Mapping[Path, int], *, root: Path | str, everything: bool, seed: int
) -> Duplicates:
    """Looks for what is there more than once.

    Args:
        column: The filled cells; None where several columns are read together.
        sizes: Files that they name, in bytes; those that were looked for.
        root: Paths are shown relative to this folder.
        everything: Compare all that may be equal.
        seed: Decides which are compared, where not all are.
    """
    distinct = repeated = None
    if column is not None and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        distinct = pc.count_distinct(column).as_py()
        repeated = len(column) - distinct
    of_size = Counter(sizes.values())
    candidates = [path for path, size in sizes.items() if size and of_size[size] > 1]
    if not everything and len(candidates) > FILES_COMPARED:
        chosen = np.random.default_rng(seed).choice(len(candidates), FILES_COMPARED, replace=False)
        candidates = [candidates[i] for i in np.sort(chosen)]
    identical = same_content(candidates, lambda path: path.open("rb"), lambda group: len(group) > 1)
    return Duplicates(
        distinct=distinct,
        repeated=repeated,
        compared=len(candidates),
        identical=[[shown(path, root) for path in group] for group in identical[:_EXAMPLES]],
        redundant=sum(len(group) - 1 for group in identical),
    )


def shown(path: Path, root: Path | str) -> str:
    """Returns a path as the table has it, if it is below the data set's folder."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
