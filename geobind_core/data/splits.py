"""Which rows are trained on, and which are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from geobind_core.data.geography import Places, equal_area_cells, nearest_km
from geobind_core.errors import DataError
from geobind_core.plugins.source import SplitConfig

Split = Literal["train", "validation", "test"]
CODES: dict[str, int] = {"train": 0, "validation": 1, "test": 2}
_ALIASES = {"val": "validation", "valid": "validation", "dev": "validation", "training": "train", "testing": "test"}
_UNUSED = -1
_AT_A_TIME = 65_536


def assign(
    keys: pa.ChunkedArray, column: pa.ChunkedArray | None, config: SplitConfig, places: Places | None = None
) -> npt.NDArray[np.int8]:
    """Returns the code of each row's split, -1 for a row in none.

    Args:
        keys: The keys of the rows, strings.
        column: The column of splits, when there is one to go by.
        config: How to divide otherwise.
        places: Where the rows are, if that is known.

    Raises:
        DataError: The column holds a word that is no split, or blocks are asked for without coordinates.
    """
    if config.by == "none":
        return np.zeros(len(keys), dtype=np.int8)
    if column is not None:
        return _by_column(column)
    if config.by == "blocks":
        return _by_blocks(places, config)
    return _by_hash(_texts(keys), config)


def _by_column(column: pa.ChunkedArray) -> npt.NDArray[np.int8]:
    encoded = column.dictionary_encode().combine_chunks()
    codes = []
    for word in encoded.dictionary.to_pylist():
        name = str(word).strip().lower()
        name = _ALIASES.get(name, name)
        if name not in CODES:
            raise DataError(
                f"split '{word}' is none of train, validation, test.",
                hint="Mend the column, or use split: {by: hash}.",
            )
        codes.append(CODES[name])
    positions = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    by_position: npt.NDArray[np.int8] = np.append(np.array(codes, dtype=np.int8), np.int8(_UNUSED))[positions]
    return by_position


def _texts(keys: pa.ChunkedArray) -> Iterator[str]:
    # Some at a time: a million texts take more memory in Python than the table that they come from.
    for start in range(0, len(keys), _AT_A_TIME):
        yield from map(str, keys.slice(start, _AT_A_TIME).to_pylist())


def _by_hash(keys: Iterable[str], config: SplitConfig) -> npt.NDArray[np.int8]:
    # A hash of the key alone: a row keeps its split when rows are added or reordered.
    salt = f"{config.seed}:".encode()
    digests = bytearray()
    for key in keys:
        digests += hashlib.blake2b(salt + key.encode(), digest_size=8).digest()
    position = np.frombuffer(digests, dtype=">u8").astype(np.float64) / 2.0**64
    codes = np.full(len(position), CODES["train"], dtype=np.int8)
    codes[position < config.test + config.validation] = CODES["validation"]
    codes[position < config.test] = CODES["test"]
    return codes


def _by_blocks(places: Places | None, config: SplitConfig) -> npt.NDArray[np.int8]:
    if places is None or not places.known.any():
        raise DataError(
            "by: blocks needs coordinates, and no row has any that can be used.",
            hint="Name the columns: `longitude` and `latitude` of the data set, degrees, WGS 84.",
        )
    cells, block = np.unique(equal_area_cells(places, config.block_km), return_inverse=True)
    of_cell = _by_hash((f"{config.block_km:g} km:{cell}" for cell in cells), config)
    of_cell[cells < 0] = _UNUSED  # the one of all rows without coordinates
    codes = of_cell[block]
    if config.buffer_km > 0:
        # Validation gives way to test, and training to both.
        for held_out in ("test", "validation"):
            inside = codes == CODES[held_out]
            open_rows = np.flatnonzero((codes != CODES["test"]) & ~inside & (codes != _UNUSED))
            near = nearest_km(places.take(open_rows), places.take(inside), config.buffer_km) < config.buffer_km
            codes[open_rows[near]] = _UNUSED
    return codes
