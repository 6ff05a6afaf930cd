"""The source `huggingface`: data sets of Hugging Face's `datasets` that lie on a disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from geobind_core.data.table import coordinate_columns
from geobind_core.errors import DataError
from geobind_core.plugins.installing import installer
from geobind_core.plugins.source import Observations, Progress, Source, SourceConfig

_STATE, _DICT, _INFO = "state.json", "dataset_dict.json", "dataset_info.json"
_TABLES = (".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".md", ".yaml")
_TAIL = 64 * 1024  # bytes; a Parquet file ends with what says where everything is
_LONGEST_MESSAGE = 500
_ROW, _SPLIT = "row", "split"


class HuggingFaceConfig(SourceConfig):
    """Settings of a data set of Hugging Face."""

    path: str = Field(
        description="Folder that `save_to_disk` has written, or a data set in the Hub's layout; relative to the "
        "chain file."
    )
    subset: str | None = Field(
        None, description="Which of the configurations, if a data set in the Hub's layout has several."
    )
    key: str | None = Field(None, description="Column that names a row; default: `key`, or the row's number.")
    longitude: str | None = Field(
        None, description="Column of longitudes, degrees, WGS 84; default: longitude, lon, lng."
    )
    latitude: str | None = Field(None, description="Column of latitudes, degrees, WGS 84; default: latitude, lat.")


class HuggingFace(Source[HuggingFaceConfig]):
    """What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write, and downloaded data sets.

    Tables stay on the disk, mapped into memory. Images and recordings arrive as they are stored, and
    the modalities decode them. Classes arrive as their names. Without `fields`, a column with the name of a
    modality holds that modality. The splits of a `DatasetDict` are those of the rows.
    """

    name: ClassVar[str] = "huggingface"
    Config = HuggingFaceConfig

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.resolve(self.config.path)

    def fingerprint(self) -> str:
        """Identifies the content by what `datasets` itself says of it and by the sizes of the files.

        Images and recordings are not read. Of tables that are not described, the last 64 KiB are.
        """
        folder = self._existing()
        identity = [str(self.config.subset), str(self.config.key)]
        if _saved(folder):
            for part in _parts(folder).values():
                identity += [_text(part / name) for name in (_STATE, _INFO)]
                identity += [f"{file.name} {_size(file)}" for file in _data_files(part)]
        else:
            identity += [_outline(file, folder) for file in _visible_files(folder)]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def prepare(self, progress: Progress) -> None:
        """Lets `datasets` convert what is not in its own format; it keeps the result in its cache.

        Raises:
            DataError: `datasets` is not installed, or the folder is no data set.
        """
        if not _saved(self._existing()):
            self._loaded()

    def observations(self) -> Observations:
        """Maps the tables of all splits into memory.

        Raises:
            DataError: `datasets` is not installed, or the folder is no data set.
        """
        config, loaded = self.config, self._loaded()
        by_split = loaded if isinstance(loaded, Mapping) else {"": loaded}
        tables = []
        for split, dataset in by_split.items():
            table = _readable(dataset)
            if config.key is None and "key" not in table.column_names:
                table = _with(table, _ROW, [f"{split}-{i}" if split else str(i) for i in range(table.num_rows)])
            tables.append(_with(table, _SPLIT, [str(split)] * table.num_rows) if split else table)
        try:
            table = pa.concat_tables(tables, promote_options="default")  # no row is copied
        except pa.ArrowException as error:
            raise DataError(f"the splits do not fit together: {error}", place=str(self.folder)) from error
        columns = table.column_names
        key = config.key or ("key" if "key" in columns else _ROW)
        longitude, latitude = coordinate_columns(columns)
        return Observations(
            table=table,
            root=self.folder,
            fields={} if config.fields else {column: column for column in columns if column not in (key, _SPLIT)},
            key=key,
            split=_SPLIT if "" not in by_split else None,
            longitude=config.longitude or longitude,
            latitude=config.latitude or latitude,
        )

    def _existing(self) -> Path:
        if not self.folder.is_dir():
            raise DataError(
                "no such folder.",
                place=str(self.folder),
                hint="Relative paths start at the chain file's folder. A data set of the Hub has to be downloaded "
                "first: hf download --repo-type dataset <name> --local-dir <folder>",
            )
        return self.folder

    def _loaded(self) -> Any:
        """Returns a `Dataset`, or a `DatasetDict`."""
        folder = self._existing()
        try:
            import datasets
        except ImportError as error:
            raise DataError(
                f"the source 'huggingface' needs the package datasets: {error}.",
                place=str(folder),
                hint=f"Install it: {installer()} 'geobind[huggingface]'",
            ) from error
        try:
            if _saved(folder):
                for part in _parts(folder).values():
                    _require_no_order_apart(part)
                return datasets.load_from_disk(str(folder), keep_in_memory=False)
            return datasets.load_dataset(str(folder), self.config.subset, keep_in_memory=False)
        except DataError:
            raise
        except Exception as error:  # its readers raise what they like
            cause = error.__cause__ or error  # its own says no more than that there was one
            message = " ".join(str(cause).split())[:_LONGEST_MESSAGE]
            raise DataError(f"datasets cannot load it: {message or type(cause).__name__}", place=str(folder)) from error


def _saved(folder: Path) -> bool:
    return (folder / _STATE).is_file() or (folder / _DICT).is_file()


def _parts(folder: Path) -> dict[str, Path]:
    """Returns the folders of a saved data set, by split; one under no name if it has no splits."""
    if not (folder / _DICT).is_file():
        return {"": folder}
    splits = _json(folder / _DICT).get("splits", [])
    return {str(split): folder / str(split) for split in splits}


def _data_files(part: Path) -> list[Path]:
    return [part / str(file["filename"]) for file in _json(part / _STATE).get("_data_files", [])]


def _require_no_order_apart(part: Path) -> None:
    """Refuses what `datasets` 1 wrote of a shuffled or filtered table: later ones ignore the order without a word."""
    if _json(part / _STATE).get("_indices_data_files"):
        raise DataError(
            "the table's order lies in a file apart, as datasets before 1.6 wrote it; later ones ignore it.",
            place=str(part),
            hint="Load it with the version that wrote it, call flatten_indices(), and save it again.",
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"it is no JSON: {error}", place=str(path)) from error
    if not isinstance(content, dict):
        raise DataError("it should hold a mapping.", place=str(path))
    return content


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"it cannot be read: {error}", place=str(path)) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}.", place=str(path)) from error


def _visible_files(folder: Path) -> Iterator[Path]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return (path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _outline(file: Path, folder: Path) -> str:
    """Returns a file's name and size, and a hash of a table's end."""
    size, tail = file.stat().st_size, ""
    if file.suffix.lower() in _TABLES:
        with file.open("rb") as opened:
            opened.seek(max(0, size - _TAIL))
            tail = hashlib.sha256(opened.read()).hexdigest()
    return f"{file.relative_to(folder).as_posix()} {size} {tail}"


def _readable(dataset: Any) -> pa.Table:
    """Returns the table below a `Dataset`, classes by their names; nothing is decoded or copied."""
    from datasets import ClassLabel

    table: pa.Table = dataset.data.table
    for name, feature in dataset.features.items():
        if isinstance(feature, ClassLabel):
            index = table.column_names.index(name)
            names = pa.array(feature.names, pa.string())
            chunks = [_named(chunk, names) for chunk in table.column(index).chunks]
            table = table.set_column(index, name, pa.chunked_array(chunks, pa.string()))
    return table.replace_schema_metadata(None)


def _named(codes: pa.Array, names: pa.Array) -> pa.Array:
    import pyarrow.compute as pc

    return names.take(pc.if_else(pc.greater_equal(codes, 0), codes, None))  # -1 stands for no class


def _with(table: pa.Table, name: str, values: list[str]) -> pa.Table:
    """Returns a table with a column of texts, in place of one of the same name."""
    table = table.drop_columns([name]) if name in table.column_names else table
    return table.append_column(name, pa.array(values, pa.string()))
