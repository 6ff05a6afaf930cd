"""What is to be packed, and how: which columns become files, which fields of the JSON file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import PIL
import pyarrow as pa
import pyarrow.compute as pc

from geobind_core.config.problems import suggest
from geobind_core.data_tools.opened import OpenedData
from geobind_core.data_tools.pack_samples import SampleMaker, extension_of, is_file_like
from geobind_core.errors import ConfigError

_VERSION = 1
_LONGEST_VECTOR = 64


@dataclass(frozen=True)
class PackOptions:
    """How to pack.

    Attributes:
        resize: Modality -> pixels of the shorter side; smaller images, and other modalities, are copied.
        quality: Of JPEG and WebP images that are made smaller.
        samples: Of a shard, at most.
        size: Bytes of a shard, at most, unless a single sample is larger.
        check: Read what is copied, and skip what cannot be read.
        workers: Threads that read, decode and encode; as many as there are cores by default.
    """

    resize: Mapping[str, int] = field(default_factory=dict)
    quality: int = 90
    samples: int = 10_000
    size: int = 10**9
    check: bool = True
    workers: int | None = None


def maker_of(opened: OpenedData, options: PackOptions) -> tuple[SampleMaker, tuple[str, ...]]:
    """Returns what makes samples, and the columns that it has to leave out."""
    data, observations = opened.data, opened.observations
    files = [name for name, modality in opened.modalities.items() if modality.reads_files]
    for name in options.resize:
        if name not in files:
            raise ConfigError(f"'{name}' has no files here. {suggest(name, files)}", place=f"--resize {name}")
    for name in files:
        if len(data.fields[name]) > 1:
            raise ConfigError(f"'{name}' has several columns; files come in one.", place=f"--field {name}")
    extensions = {}
    for name in files:
        suffix = extension_of(opened, name)
        if name in options.resize and suffix not in ("jpg", "png", "webp"):
            suffix = "jpg"
        extensions[name] = f"{name.lower()}.{suffix}"
    packed = {data.fields[name][0] for name in files}
    columns, vectors, unused = [], {}, []
    for column in observations.table.schema:
        if column.name in packed or column.name in ("split", "key"):
            continue
        if is_file_like(column.type) or column.name in observations.references:
            unused.append(column.name)
            continue
        columns.append(column.name)
        if length := _vector_length(observations.table[column.name]):
            vectors[column.name] = length
    maker = SampleMaker(
        opened, extensions, tuple(columns), vectors, dict(options.resize), options.quality, options.check
    )
    return maker, tuple(unused)


def _vector_length(column: pa.ChunkedArray) -> int:
    """Returns how many numbers each cell of a column has, if all have equally many, and not too many."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)):
        return 0
    if not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        return 0
    lengths = pc.unique(pc.list_value_length(column)).drop_null().to_pylist()
    return lengths[0] if len(lengths) == 1 and 0 < lengths[0] <= _LONGEST_VECTOR else 0


def plan_of(maker: SampleMaker, options: PackOptions) -> dict[str, Any]:
    """Returns all that the bytes of the shards depend on."""
    opened = maker.opened
    splits = json.dumps(opened.data.split_names()).encode()
    return {
        "format": "geobind pack",
        "version": _VERSION,
        "data": opened.source.fingerprint(),
        "root": str(opened.data.root),
        "files": {name: [opened.data.fields[name][0], extension] for name, extension in maker.extensions.items()},
        "columns": [list(maker.columns), dict(maker.vectors)],
        "splits": hashlib.sha256(splits).hexdigest(),
        "resize": dict(maker.resize),
        # What compresses is part of the result.
        "quality": [options.quality, f"Pillow {PIL.__version__}"] if maker.resize else None,
        "samples": options.samples,
        "size": options.size,
        "check": options.check,
    }


def settings_of(maker: SampleMaker) -> dict[str, Any]:
    """Returns what to write into a chain to use the shards, but for where they are."""
    opened = maker.opened
    own: dict[str, Any] = {}
    fields: dict[str, str | list[str]] = {}
    for name in opened.modalities:
        columns = [column for given in opened.data.fields[name] for column in _in_shard(given, maker)]
        fields[name] = maker.extensions.get(name) or (columns[0] if len(columns) == 1 else columns)
    observations = opened.observations
    given = {**observations.labels, **(opened.source.config.labels or {})}
    if labels := {name: f"json.{column}" for name, column in given.items() if name in fields}:
        own["labels"] = labels
    if observations.longitude is not None and observations.latitude is not None:
        own |= {"longitude": f"json.{observations.longitude}", "latitude": f"json.{observations.latitude}"}
    return {"fields": fields, "split": {"by": "column", "column": "json.split"}, **own}


def _in_shard(column: str, maker: SampleMaker) -> list[str]:
    """Returns the columns that a column of the table is in the shards."""
    if column in maker.vectors:
        return [f"json.{column}.{i}" for i in range(maker.vectors[column])]
    return [f"json.{column}"]
