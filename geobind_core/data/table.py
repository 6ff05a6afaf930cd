"""The source `table`: a CSV, TSV or Parquet file, with files beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from pydantic import Field

from geobind_core.errors import DataError
from geobind_core.plugins.source import Observations, Source, SourceConfig

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_PARQUET = (".parquet", ".geoparquet", ".pq")


class TableConfig(SourceConfig):
    """Settings of a table."""

    path: str = Field(description="The table: .csv, .tsv or .parquet; relative to the chain file.")
    root: str | None = Field(None, description="Folder of the files that cells name; default: the table's.")
    key: str | None = Field(None, description="Column that names a row; default: `key`, or the row's number.")
    longitude: str | None = Field(None, description="Column of longitudes, degrees, WGS 84.")
    latitude: str | None = Field(None, description="Column of latitudes, degrees, WGS 84.")


class Table(Source[TableConfig]):
    """A CSV, TSV or Parquet file whose cells hold values, bytes, or paths relative to it.

    Without `fields`, a column named like a modality holds that modality.
    """

    name: ClassVar[str] = "table"
    Config = TableConfig

    def fingerprint(self) -> str:
        """Identifies the table's content; the files that it names are not opened."""
        return file_fingerprint(self.resolve(self.config.path), str(self.config.key))

    def observations(self) -> Observations:
        """Reads the table."""
        path = self.resolve(self.config.path)
        table = read_table(path, strings=(self.config.key or "key",))
        key = self.config.key or ("key" if "key" in table.column_names else "row")
        if key == "row" and "row" not in table.column_names:
            table = table.append_column("row", pa.array([str(i) for i in range(table.num_rows)]))
        # Settings that name fields say all there is; the engine adds them.
        own = {} if self.config.fields else {column: column for column in table.column_names if column != key}
        return Observations(
            table=table,
            root=self.resolve(self.config.root) if self.config.root else path.parent,
            fields=own,
            key=key,
            longitude=self.config.longitude,
            latitude=self.config.latitude,
        )


def read_table(path: Path, *, strings: tuple[str, ...] = ()) -> pa.Table:
    """Reads a CSV, TSV or Parquet file.

    Args:
        path: The file; its suffix says what it is.
        strings: Columns of a text file to be kept as written, such as keys with leading zeros.

    Raises:
        DataError: It is missing, of another kind, or cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in _DELIMITERS and suffix not in _PARQUET:
        raise DataError(
            f"expected a table (.csv, .tsv or .parquet), found '{path.suffix or 'no suffix'}'.", place=str(path)
        )
    if not path.is_file():
        raise DataError("no such table.", place=str(path), hint="Relative paths start at the chain file's folder.")
    try:
        if suffix in _PARQUET:
            return pyarrow.parquet.read_table(path)
        return pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(delimiter=_DELIMITERS[suffix], newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(strings, pa.string()), strings_can_be_null=True
            ),
        )
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"the table cannot be read: {error}", place=str(path)) from error


def file_fingerprint(path: Path, settings: str = "") -> str:
    """Returns a hash of a file's content together with settings; where it lies does not count.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"the table cannot be read: {error.strerror}.",
            place=str(path),
            hint="Relative paths start at the chain file's folder.",
        ) from error
    return hashlib.sha256(f"{content}:{settings}".encode()).hexdigest()
