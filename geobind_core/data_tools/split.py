"""A table with a column that says which rows are trained on and which are held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from pydantic import ValidationError

from geobind_core.config.problems import from_pydantic
from geobind_core.data.geography import nearest_km
from geobind_core.data.paired import PairedData
from geobind_core.data.splits import CODES
from geobind_core.data.table import Table, TableConfig
from geobind_core.data.table_files import COMPRESSED, delimiter_of, read_table
from geobind_core.errors import ConfigError, DataError, raise_all
from geobind_core.files import replacing_file


@dataclass(frozen=True)
class Division:
    """How a table was divided.

    Attributes:
        rows: Split -> its number of rows; `none` for rows in no split.
        nearest_km: How far the held-out place that is nearest to a training place is from it; None where
            there are no coordinates, or no such places.
    """

    rows: Mapping[str, int]
    nearest_km: float | None


def split_table(path: Path, out: Path, column: str, settings: Mapping[str, Any]) -> Division:
    """Writes a table again, with a column more.

    Args:
        path: A CSV, TSV or Parquet file.
        out: The file to write; its suffix says of which kind.
        column: Name of the new column.
        settings: Those of the source `table`, `split` among them.

    Raises:
        ConfigError: A setting is not right.
        DataError: The table cannot be used, has such a column already, or cannot be written.
    """
    try:
        config = TableConfig.model_validate({"source": "table", "path": str(path.absolute()), **settings})
    except ValidationError as error:
        found = from_pydantic(error, TableConfig, ())
        raise_all([ConfigError(one.message, place="data split", hint=one.hint) for one in found])
        raise
    data = PairedData(path.stem, Table(config, Path()).observations(), config)
    names = data.split_names()
    delimiter = delimiter_of(out)
    if out.suffix.lower() in COMPRESSED:
        raise DataError("tables are written uncompressed.", place=str(out), hint=f"Name it {out.stem}.")
    as_written = _as_written(path, config, as_text=delimiter is not None)
    if column in as_written.column_names:
        raise DataError(f"there is a column '{column}' already.", place=str(path), hint="Name another: --column.")
    try:
        with replacing_file(out) as temporary:
            _write(as_written.append_column(column, pa.array(names, pa.string())), temporary, delimiter)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"the table cannot be written: {error}", place=str(out)) from error
    counts = Counter(name or "none" for name in names)
    return Division({split: counts[split] for split in (*CODES, "none")}, _nearest(data))


def _as_written(path: Path, config: TableConfig, *, as_text: bool) -> pa.Table:
    def read(*strings: str) -> pa.Table:
        return read_table(path, strings=strings, encoding=config.encoding, delimiter=config.delimiter)

    table = read(config.key or "key")
    # From text to text nothing is interpreted: 007 and 1.50 stay as they are.
    return read(*table.column_names) if as_text and delimiter_of(path) is not None else table


def _write(table: pa.Table, path: Path, delimiter: str | None) -> None:
    if delimiter is None:
        pyarrow.parquet.write_table(table, path, compression="zstd")
    else:
        options = pyarrow.csv.WriteOptions(delimiter=delimiter, quoting_style="needed")
        pyarrow.csv.write_csv(table, path, options)


def _nearest(data: PairedData) -> float | None:
    if data.places is None:
        return None
    training = data.places.take(data.rows("train", []))
    held_out = data.places.take(np.concatenate([data.rows("test", []), data.rows("validation", [])]))
    nearest = nearest_km(held_out, training).min(initial=np.inf)
    return float(nearest) if np.isfinite(nearest) else None
