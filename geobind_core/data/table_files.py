"""Tables in files: CSV, TSV and Parquet, read as they are meant."""

from __future__ import annotations

import codecs
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from geobind_core.errors import DataError

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_PARQUET = (".parquet", ".geoparquet", ".pq")
COMPRESSED = (".gz", ".bz2", ".zst")
_ROWS_AT_A_TIME = 65_536
_RELATIVE = "Relative paths in a chain start at its file's folder."
_OTHER_DELIMITERS = ";\t|,"


def read_table(
    path: Path,
    *,
    strings: tuple[str, ...] = (),
    encoding: str = "utf-8",
    delimiter: str | None = None,
    decimal: str = ".",
) -> pa.Table:
    """Reads a CSV, TSV or Parquet file.

    Of a text file an empty cell is a missing one, in a column of texts as well. Words such as `NA` are
    missing numbers, but texts like any: Namibia's code is one.

    Args:
        path: The file; its suffix says what it is. Text may be compressed, as in `.csv.gz`.
        strings: Columns of a text file to be kept as written, such as keys with leading zeros.
        encoding: Of a text file.
        delimiter: Of a text file; None goes by the suffix.
        decimal: What numbers in a text file have before their fraction.

    Raises:
        DataError: It is missing, of another kind, or cannot be read.
    """
    usual = delimiter_of(path)
    if not path.is_file():
        raise DataError("no such table.", place=str(path), hint=_RELATIVE)
    try:
        if usual is None:
            return _read_parquet(path)
        return _read_text(path, strings, encoding, delimiter or usual, decimal)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"the table cannot be read: {error}", place=str(path)) from error


def delimiter_of(path: Path) -> str | None:
    """Returns what is usual between the cells of a file with such a suffix; None of a Parquet file.

    Raises:
        DataError: The suffix is not that of a table.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = suffixes[-1] if suffixes else ""
    if suffix in COMPRESSED and len(suffixes) > 1:
        suffix = suffixes[-2]
    if suffix not in _DELIMITERS and suffix not in _PARQUET:
        raise DataError(f"expected a table (.csv, .tsv or .parquet), found '{suffix or 'no suffix'}'.", place=str(path))
    return _DELIMITERS.get(suffix)


def _read_parquet(path: Path) -> pa.Table:
    # A batch at a time: reading all at once holds the file and the table side by side.
    with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
        return pa.Table.from_batches(file.iter_batches(_ROWS_AT_A_TIME), schema=file.schema_arrow)


def _read_text(path: Path, strings: tuple[str, ...], encoding: str, delimiter: str, decimal: str) -> pa.Table:
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise DataError(f"no encoding '{encoding}'; expected one that Python knows.", place=str(path)) from None
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # Excel's "Unicode text"
            encoding = "utf-16"
    wrong = DataError(
        f"the table is not written in {encoding}.",
        place=str(path),
        hint="Say how it is: `encoding: cp1252` is what Windows programs write in western Europe.",
    )
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(encoding=encoding),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(strings, pa.string()), decimal_point=decimal
            ),
        )
        # pyarrow leaves a column of bytes, or a name of them, where it finds what is no UTF-8.
        if any(pa.types.is_binary(table[name].type) for name in table.column_names):
            raise wrong
    except UnicodeDecodeError as error:
        raise wrong from error
    except pa.ArrowInvalid as error:
        raise (wrong if "invalid UTF8" in str(error) else _uneven(path, encoding, delimiter) or error) from error
    if table.num_columns == 1 and (uneven := _uneven(path, encoding, delimiter)) is not None:
        raise uneven
    return _empty_texts_are_missing(table)


def _uneven(path: Path, encoding: str, delimiter: str) -> DataError | None:
    """Returns an error if the first line looks as if something else were between the cells."""
    if path.suffix.lower() in COMPRESSED:
        return None
    with path.open(encoding=encoding, errors="replace") as file:
        line = file.readline().rstrip("\n")
    likely = max(_OTHER_DELIMITERS, key=line.count)
    if line.count(likely) <= line.count(delimiter):
        return None
    return DataError(
        f"the table cannot be read with {delimiter!r} between the cells; it begins with: {line[:80]}",
        place=str(path),
        hint=f"Say what is between them: `delimiter: {json.dumps(likely)}`.",
    )


def _empty_texts_are_missing(table: pa.Table) -> pa.Table:
    for i, column in enumerate(table.columns):
        # A column without an empty cell is left alone: a copy of all texts takes as much memory again.
        if pa.types.is_string(column.type) and pc.any(pc.equal(column, "")).as_py():
            filled = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
            table = table.set_column(i, table.column_names[i], filled)
    return table


def file_fingerprint(path: Path, settings: str = "") -> str:
    """Returns a hash of a file's content together with settings; where it lies does not count.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"the table cannot be read: {error.strerror}.", place=str(path), hint=_RELATIVE) from error
    return hashlib.sha256(f"{content}:{settings}".encode()).hexdigest()
