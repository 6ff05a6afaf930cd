"""A data set as the stages see it: rows, cells, splits and labels."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from geobind_core.config.problems import suggest
from geobind_core.data.coordinates import places_of
from geobind_core.data.order import Blocks, epoch_order
from geobind_core.data.order import Rows as Rows
from geobind_core.data.remote import located
from geobind_core.data.splits import CODES, Split, assign
from geobind_core.errors import DataError
from geobind_core.plugins.modality import Modality
from geobind_core.plugins.source import Observations, Reference, SourceConfig, SplitConfig


class PairedData:
    """The rows of one data set, checked.

    Args:
        name: The data set's name in the chain, for messages.
        observations: What the source yielded.
        config: The data set's settings: fields and labels add to the source's own; without `split`
            the source's own column is followed, or else the default.
        with_gaps: Modalities that have something in a row as long as one of their several columns is filled.

    Attributes:
        places: Where the rows are; None without coordinates.
        notes: What a person should know, a sentence each.

    Raises:
        DataError: A column is missing, a key is missing or given twice, or there are no rows.
    """

    def __init__(
        self,
        name: str,
        observations: Observations,
        config: SourceConfig | None = None,
        with_gaps: Container[str] = (),
    ) -> None:
        split = config.split if config else None
        self.name = name
        self.place = f"data.{name}"
        self.root = observations.root
        self.fields: dict[str, tuple[str, ...]] = {
            modality: (columns,) if isinstance(columns, str) else tuple(columns)
            for modality, columns in fields_of(observations, config).items()
        }
        self._with_gaps = with_gaps
        self._table = observations.table
        self._key = observations.key
        self._labels = {**observations.labels, **((config and config.labels) or {})}
        self._check_columns(observations, split)
        # Left in their chunks: an array of bytes or strings cannot hold more than 2 GiB.
        self._references = observations.references
        self._columns = {c: self._table[c] for columns in self.fields.values() for c in columns}
        self.blocks = self._blocks(observations)
        self.keys = self._checked_keys()
        self.places, self.notes = places_of(observations, config, self.place)
        split_column = split.column if split is not None and split.by == "column" else None
        if split is None:
            split_column = observations.split
        try:
            self._splits = assign(
                pa.chunked_array([self.keys]),
                self._table[split_column] if split_column else None,
                split or SplitConfig(),
                self.places,
            )
        except DataError as error:
            error.place = f"{self.place}.split"
            raise
        # Of a million rows, what nobody will ask for takes as much memory as what is read.
        self._table = self._table.select(list(dict.fromkeys(self._labels.values())))

    def __len__(self) -> int:
        return len(self.keys)

    def _check_columns(self, observations: Observations, split: SplitConfig | None) -> None:
        wanted: list[tuple[str, str]] = [("key", self._key)]
        wanted += [(f"fields.{m}", c) for m, columns in self.fields.items() for c in columns]
        wanted += [(f"labels.{m}", c) for m, c in self._labels.items()]
        if split is not None and split.column is not None:
            wanted.append(("split.column", split.column))
        own = {where: getattr(observations, where) for where in ("split", "longitude", "latitude")}
        wanted += [(where, column) for where, column in own.items() if column is not None]
        present = observations.table.column_names
        for where, column in wanted:
            if column not in present:
                raise DataError(
                    f"no column '{column}' in the table. {suggest(column, present)}", place=f"{self.place}.{where}"
                )
            if present.count(column) > 1:
                raise DataError(
                    f"{present.count(column)} columns of the table are called '{column}'.",
                    place=f"{self.place}.{where}",
                )
            if column in observations.references and not where.startswith("fields."):
                raise DataError(
                    f"the values of '{column}' are files in shards, which are read when they are needed.",
                    place=f"{self.place}.{where}",
                    hint="Take a column of values: a field of a JSON file, or a `.cls` file.",
                )
        if observations.table.num_rows == 0:
            raise DataError("the table has no rows.", place=self.place)

    def _blocks(self, observations: Observations) -> Blocks | None:
        if observations.blocks is None:
            return None
        numbers = self._one_chunk(observations.blocks).to_numpy(zero_copy_only=False).astype(np.int32)
        return Blocks(numbers, observations.blocks_at_once, observations.blocks_ahead, observations.fetch_block)

    def order(self, rows: Rows, seed: int, epoch: int) -> Rows:
        """Returns the rows of an epoch in their order, a pure function of the arguments."""
        return epoch_order(rows, seed, epoch, self.blocks)

    def near(self, rows: Rows) -> int | None:
        """Returns how far from a batch, in `order`, rows can be had that need few other files; None: anywhere."""
        return None if self.blocks is None else self.blocks.typical_size(rows)

    def _one_chunk(self, column: str) -> pa.Array:
        chunked = self._table[column]
        return chunked.combine_chunks() if chunked.num_chunks != 1 else chunked.chunk(0)

    def _checked_keys(self) -> pa.Array:
        keys = self._one_chunk(self._key).cast(pa.string())
        if keys.null_count:
            raise DataError(f"{keys.null_count} rows have no key.", place=f"{self.place}.{self._key}")
        if len(pc.unique(keys)) != len(keys):
            counts = pc.value_counts(keys)
            twice = [c["values"].as_py() for c in counts if c["counts"].as_py() > 1]
            raise DataError(
                f"{len(twice)} keys are given more than once: {', '.join(twice[:5])}"
                + (", …." if len(twice) > 5 else "."),
                place=f"{self.place}.{self._key}",
                hint="A key names one row; results and caches are stored under it.",
            )
        return keys

    def key(self, row: int) -> str:
        """Returns the key of a row."""
        return str(self.keys[row].as_py())

    def cell(self, modality: str, row: int, *, is_file: bool) -> Any:
        """Returns what stands in a row for a modality.

        Args:
            modality: One of `fields`.
            row: The row's number.
            is_file: Whether strings are paths; relative ones start at the data set's root. The content of
                addresses is fetched.

        Returns:
            The value, or a tuple of values where the modality has several columns.

        Raises:
            DataError: What lies elsewhere, in a shard or at an address, cannot be read.
        """
        cell = self.unread_cell(modality, row, is_file=is_file)
        if isinstance(cell, tuple):
            return tuple(_read(value, is_file=is_file) for value in cell)
        return _read(cell, is_file=is_file)

    def unread_cell(self, modality: str, row: int, *, is_file: bool) -> Any:
        """Returns what `cell` does, with a `Reference` for what lies elsewhere."""
        values = tuple(self._value(column, row, is_file=is_file) for column in self.fields[modality])
        return values[0] if len(values) == 1 else values

    def _value(self, column: str, row: int, *, is_file: bool) -> Any:
        value = self._columns[column][row].as_py()
        if column in self._references and value is not None:
            return self._references[column](value)
        return self._located(value) if is_file else value

    def _located(self, value: Any) -> Any:
        if isinstance(value, str):
            return located(self.root, value)
        if isinstance(value, dict) and isinstance(value.get("path"), str):  # as Hugging Face writes files
            found = located(self.root, value["path"])
            if isinstance(found, Reference):
                return found if value.get("bytes") is None else value
            return {**value, "path": str(found)}
        return value

    def rows(self, split: Split, modalities: Iterable[str]) -> Rows:
        """Returns the rows of a split that have something for each of these modalities, in order."""
        keep = self._splits == CODES[split]
        for modality in modalities:
            keep = keep & self.filled(modality)
        return np.flatnonzero(keep).astype(np.int64)

    def filled(self, modality: str) -> npt.NDArray[np.bool_]:
        """Returns `[N]`, true where a row of any split or none has something for a modality."""
        gaps = modality in self._with_gaps
        keep = np.full(len(self), not gaps)
        for column in dict.fromkeys(self.fields[modality]):
            # A chunk at a time, for trimmed texts are a copy of them.
            filled = np.concatenate([_filled(chunk) for chunk in self._columns[column].chunks])
            keep = keep | filled if gaps else keep & filled
        return keep

    def split_names(self) -> list[str | None]:
        """Returns the split of each row, None for a row in none."""
        names: dict[int, str | None] = {code: name for name, code in CODES.items()}
        return [names.get(code) for code in self._splits.tolist()]

    def column_has_values(self, modality: str) -> bool:
        """Whether any row has something for a modality."""
        some = any if modality in self._with_gaps else all
        return some(self._columns[c].null_count < len(self) for c in self.fields[modality])

    def count(self, split: Split) -> int:
        """Returns how many rows a split has, complete or not."""
        return int((self._splits == CODES[split]).sum())

    def label_values(self, modality: str) -> pa.Array | None:
        """Returns the label of each row, a text or null, or None without labels."""
        column = self._labels.get(modality)
        return None if column is None else self._one_chunk(column).cast(pa.string())

    def labels(self, modality: str) -> npt.NDArray[np.int64] | None:
        """Returns a number per row, equal for equal labels and -1 for none, or None without labels."""
        values = self.label_values(modality)
        if values is None:
            return None
        codes = values.dictionary_encode().indices
        result: npt.NDArray[np.int64] = codes.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return result

    def pair_labels(self, first: str, second: str) -> list[npt.NDArray[np.int64]]:
        """Returns the label arrays that decide what is right between two modalities."""
        found = [self.labels(m) for m in (first, second)]
        return [labels for labels in found if labels is not None]


def fields_of(observations: Observations, config: SourceConfig | None) -> dict[str, str | Sequence[str]]:
    """Returns the columns of each modality: those of the settings add to the source's own."""
    return {**observations.fields, **((config and config.fields) or {})}


def with_gaps(modalities: Mapping[str, Modality[Any]]) -> frozenset[str]:
    """Returns the names of the modalities that read a row in which not all of their columns are filled."""
    return frozenset(name for name, modality in modalities.items() if modality.with_gaps)


def _filled(array: pa.Array) -> npt.NDArray[np.bool_]:
    """Returns where an array has something; blank texts and NaN are nothing."""
    filled = pc.invert(pc.is_null(array, nan_is_null=True))
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        filled = pc.and_(filled, pc.not_equal(pc.utf8_trim_whitespace(array), "").fill_null(False))
    found: npt.NDArray[np.bool_] = filled.to_numpy(zero_copy_only=False)
    return found


def _read(value: Any, *, is_file: bool) -> Any:
    return value.read(is_file=is_file) if isinstance(value, Reference) else value
