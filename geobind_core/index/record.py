"""What an index says of itself, in the footer of its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from geobind_core.errors import DataError
from geobind_core.space.lineage import SpaceRecord

FORMAT = 1
"""Version of what an index says of itself in its footer."""

FOOTER = b"geobind"
HOW_TO_WRITE = "Write one with `geobind embed SPACE --modality … --data … -o out.parquet`."


class IndexedCells(BaseModel):
    """How the cells of a modality are found in an index.

    Attributes:
        columns: The columns of the index that hold them.
        is_file: Whether they name files, relative to the index's `root`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: tuple[str, ...]
    is_file: bool


class IndexRecord(BaseModel):
    """What an index says of itself: model and lineage, in the footer under `geobind`.

    Attributes:
        modality: What was embedded.
        content_hash: Hash of its encoder's weights.
        embed_dim: D.
        dtype: How the embeddings are stored.
        space: The space's own record, with the lineage of every modality.
        data: What was embedded: name of the data set, and of the split if it was one.
        root: Where relative paths of files start: an address, or a folder relative to the index.
        cells: Modality -> where its cells are, for those that can be shown.
        skipped: How many rows could not be read.
        plan: Hash of everything that the embeddings depend on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    modality: str
    content_hash: str
    embed_dim: int
    dtype: Literal["float32", "float16"]
    space: SpaceRecord
    data: str
    split: str | None
    root: str
    cells: dict[str, IndexedCells] = Field(default_factory=dict)
    skipped: int = 0
    plan: str = ""


def read_record(footer: Mapping[bytes, bytes], path: Path) -> IndexRecord:
    """Returns what the footer of a Parquet file says.

    Raises:
        DataError: It is no index, or of another version.
    """
    if FOOTER not in footer:
        what = "GeoParquet file" if b"geo" in footer else "Parquet file"
        raise DataError(
            f"this {what} is no index: it says nothing of the space that its rows were embedded in.",
            place=str(path),
            hint=f"If it is your data, embed it: `geobind embed SPACE --modality … --data {path.name} -o out.parquet`.",
        )
    try:
        raw = json.loads(footer[FOOTER])
        found = raw.get("format") if isinstance(raw, dict) else None
        if found != FORMAT:
            raise DataError(
                f"the index has format {found}; this version reads format {FORMAT}.",
                place=str(path),
                hint="Install the version of GeoBind that wrote it, or a newer one.",
            )
        return IndexRecord.model_validate(raw)
    except (ValueError, ValidationError) as error:
        raise DataError(
            f"what the index says of itself is damaged: {error}", place=str(path), hint=HOW_TO_WRITE
        ) from error
