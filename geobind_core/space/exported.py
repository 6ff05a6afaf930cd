"""A space in the format of another library: what stands beside the library's files, and how they are read back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import safe_open

from geobind_core.errors import SpaceError
from geobind_core.files import read_json
from geobind_core.plugins.export import Stored
from geobind_core.space.lineage import SpaceRecord

EXPORT = "geobind.json"
REST = "geobind.safetensors"
"""The tensors that the other library has no place for, or holds changed."""

EXPORT_FORMAT = 1


class Measured(BaseModel):
    """How far the embeddings of the other library are from those of the space.

    Attributes:
        largest_difference: Of any number of any embedding, all of unit norm.
        examples: How many were compared.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    largest_difference: float
    examples: int


class ExportRecord(BaseModel):
    """`geobind.json`.

    Attributes:
        geobind: The version that wrote it.
        to: The format.
        space: The lineage of what was exported.
        tensors: Modality -> name of a tensor -> where the folder holds it. Empty where nothing can be read back.
        measured: Modality -> how well the other library reproduces the embeddings.
        lineage: What is known of the training, for the model card.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    geobind: str
    to: str
    space: SpaceRecord
    tensors: dict[str, dict[str, Stored]] = Field(default_factory=dict)
    measured: dict[str, Measured] = Field(default_factory=dict)
    lineage: dict[str, Any] = Field(default_factory=dict)


def is_export(folder: Path) -> bool:
    """Whether `geobind export` wrote this folder."""
    found = read_json(folder / EXPORT)
    return isinstance(found, dict) and {"geobind", "to", "space"} <= set(found)


def read_export(folder: Path) -> ExportRecord:
    """Reads the record of an exported folder.

    Raises:
        SpaceError: It is damaged or of a newer format.
    """
    raw, place = read_json(folder / EXPORT), str(folder / EXPORT)
    if isinstance(raw, dict) and raw.get("format") != EXPORT_FORMAT:
        raise SpaceError(
            f"the export has format {raw.get('format')}; this version reads format {EXPORT_FORMAT}.",
            place=place,
            hint="Install the version of GeoBind that wrote it, or a newer one.",
        )
    try:
        return ExportRecord.model_validate(raw)
    except ValidationError as error:
        raise SpaceError(f"the file is damaged: {error}", place=place) from error


def readable(record: ExportRecord, folder: Path) -> SpaceRecord:
    """Returns the lineage of an export that can be loaded again.

    Raises:
        SpaceError: Its weights cannot be read back.
    """
    if not set(record.space.modalities) <= set(record.tensors):
        raise SpaceError(
            f"an export to {record.to} cannot be loaded as a space.",
            place=str(folder),
            hint="Load the space it was made from, or export that with --to hub.",
        )
    return record.space


def read_back(folder: Path, tensors: Mapping[str, Stored]) -> dict[str, torch.Tensor]:
    """Reads the tensors of one modality, as the space has them.

    Args:
        folder: An exported folder.
        tensors: Name in the space -> where it is.

    Raises:
        SpaceError: A file is missing or damaged.
    """
    found: dict[str, torch.Tensor] = {}
    for file in sorted({stored.file for stored in tensors.values()}):
        path = folder / file
        if Path(file).name != file:  # the record may come from anybody
            raise SpaceError(f"found the file name {file!r}; expected one in this folder.", place=str(folder / EXPORT))
        if not path.is_file():
            raise SpaceError("the weights are missing.", place=str(path))
        try:
            with safe_open(path, framework="pt") as opened:
                for name, stored in tensors.items():
                    if stored.file == file:
                        found[name] = _put_together([opened.get_tensor(part) for part in stored.tensors], stored)
        except Exception as error:  # safetensors' own errors derive from nothing nearer
            raise SpaceError(f"the weights are damaged: {error}", place=str(path)) from error
    return found


def _put_together(parts: list[torch.Tensor], stored: Stored) -> torch.Tensor:
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return (whole.T if stored.transposed else whole).contiguous()
