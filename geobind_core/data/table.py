"""The source `table`: a CSV, TSV or Parquet file, with files beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from geobind_core.data.copies import local_table
from geobind_core.data.geoparquet import with_coordinates
from geobind_core.data.remote import is_url, plain
from geobind_core.data.table_files import file_fingerprint, read_table
from geobind_core.errors import DataError
from geobind_core.plugins.source import Observations, Source, SourceConfig

_ROW, _SPLIT = "row", "split"
_COORDINATES = (("longitude", "latitude"), ("lon", "lat"), ("lng", "lat"), ("long", "lat"))


class TableConfig(SourceConfig):
    """Settings of a table."""

    path: str | dict[Literal["train", "validation", "test"], str] = Field(
        description="The table (.csv, .tsv or .parquet), relative to the chain file or at an address; "
        "or one for each split."
    )
    root: str | None = Field(None, description="Folder of the files that cells name; default: the table's.")
    key: str | None = Field(None, description="Column that names a row; default: `key`, or the row's number.")
    longitude: str | None = Field(
        None, description="Column of longitudes, degrees, WGS 84; default: longitude, lon, lng, or the geometry."
    )
    latitude: str | None = Field(
        None, description="Column of latitudes, degrees, WGS 84; default: latitude, lat, or the geometry."
    )
    encoding: str = Field("utf-8", description="How a text file is written, such as cp1252.")
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="Between the cells of a text file; default: by its suffix."
    )
    decimal: Literal[".", ","] = Field(".", description="What numbers in a text file have before their fraction.")


class Table(Source[TableConfig]):
    """A CSV, TSV or Parquet file whose cells hold values, bytes, or paths relative to it.

    Without `fields`, a column named like a modality holds that modality. The geometry of a GeoParquet
    file becomes `longitude` and `latitude`.
    """

    name: ClassVar[str] = "table"
    Config = TableConfig

    def _paths(self) -> dict[str, Path]:
        """Returns the tables, by split; under no name when there is one for all."""
        return {split: local_table(p) if is_url(p) else self.resolve(plain(p)) for split, p in self._named().items()}

    def _named(self) -> dict[str, str]:
        path = self.config.path
        return {"": path} if isinstance(path, str) else {str(split): p for split, p in path.items()}

    def _folder(self, path: str) -> Path | str:
        """Returns where the paths in the cells of a table start."""
        return path.rpartition("/")[0] if is_url(path) else self.resolve(plain(path)).parent

    def _located(self, folder: str) -> Path | str:
        return folder if is_url(folder) else self.resolve(plain(folder))

    def fingerprint(self) -> str:
        """Identifies the tables' content; the files that they name are not opened."""
        config, paths = self.config, self._paths()
        settings = [str(config.key)]
        if config.encoding.lower() not in ("utf-8", "utf8") or config.delimiter is not None:
            settings += [config.encoding, str(config.delimiter)]
        if config.decimal != ".":
            settings.append(config.decimal)
        found = {split: file_fingerprint(path, ":".join(settings)) for split, path in paths.items()}
        if "" in found:
            return found[""]
        return hashlib.sha256(str(sorted(found.items())).encode()).hexdigest()

    def observations(self) -> Observations:
        """Reads the tables."""
        config, paths = self.config, self._paths()
        folders = {self._folder(path) for path in self._named().values()}
        if len(folders) > 1 and config.root is None:
            raise DataError(
                "the tables lie in several folders, and paths in cells start at one.",
                place=", ".join(self._named().values()),
                hint="Say at which: `root`.",
            )
        tables = {split: self._read(path) for split, path in paths.items()}
        table = tables[""] if "" in tables else _joined(tables, config.key or "key")
        columns = table.column_names
        key = config.key or ("key" if "key" in columns else _ROW)
        if key == _ROW and _ROW not in columns:
            table = table.append_column(_ROW, pa.array(range(table.num_rows)).cast(pa.string()))
        longitude, latitude = coordinate_columns(columns)
        # Settings that name fields say all there is; the engine adds them.
        own = {} if config.fields else {column: column for column in table.column_names if column != key}
        return Observations(
            table=table,
            root=self._located(config.root) if config.root else folders.pop(),
            fields=own,
            key=key,
            split=None if "" in tables else _SPLIT,
            longitude=config.longitude or longitude,
            latitude=config.latitude or latitude,
        )

    def _read(self, path: Path) -> pa.Table:
        config = self.config
        table = read_table(
            path,
            strings=(config.key or "key",),
            encoding=config.encoding,
            delimiter=config.delimiter,
            decimal=config.decimal,
        )
        return with_coordinates(table, str(path))


def coordinate_columns(columns: list[str]) -> tuple[str | None, str | None]:
    """Returns the columns that are called like coordinates."""
    for longitude, latitude in _COORDINATES:
        if longitude in columns and latitude in columns:
            return longitude, latitude
    return None, None


def _joined(tables: dict[str, pa.Table], key: str) -> pa.Table:
    """Returns the tables of all splits as one, with a column that names the split.

    Raises:
        DataError: Two splits have a key in common, or a column differs in type.
    """
    names = list(tables)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if key not in tables[first].column_names or key not in tables[second].column_names:
                continue
            keys = [tables[split][key].cast(pa.string()) for split in (first, second)]
            both = keys[0].filter(pc.is_in(keys[0], value_set=keys[1]))
            if len(both):
                raise DataError(
                    f"{len(both)} keys are in {first} and in {second}: {', '.join(map(str, both[:5].to_pylist()))}"
                    + (", …." if len(both) > 5 else "."),
                    place=f"path.{second}",
                    hint="What a model is measured on must not be what it was trained on. Take them out of one.",
                )
    marked = [
        (table.drop_columns([_SPLIT]) if _SPLIT in table.column_names else table).append_column(
            _SPLIT, pa.array([split] * table.num_rows, pa.string())
        )
        for split, table in tables.items()
    ]
    try:
        return pa.concat_tables(marked, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"the tables of the splits do not fit together: {error}", place="path") from error
