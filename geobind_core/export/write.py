"""`geobind export`: a space, or a part of it, as a folder for another library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from geobind_core.config.problems import suggest
from geobind_core.errors import ExportError, PluginError
from geobind_core.export.compare import compare
from geobind_core.export.hub import write_hub
from geobind_core.export.lineage import Lineage, lineage_of, trained_scale
from geobind_core.export.onnx import OPSET, require_onnx, write_onnx
from geobind_core.files import replacing_folder, write_json
from geobind_core.plugins.export import Exporter, ExportPart, Stored, Written, find_exporter
from geobind_core.plugins.modality import Modality
from geobind_core.space.encoder import state_hash
from geobind_core.space.exported import EXPORT, REST, ExportRecord, Measured, is_export, read_back
from geobind_core.space.lineage import SpaceRecord
from geobind_core.space.space import Space

HUB, ONNX = "hub", "onnx"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: Where.
        to: The format.
        files: Name -> bytes.
        hashes: Modality -> content hash.
        measured: Modality -> how well the other library reproduces the embeddings; empty for `hub`.
        load: The line of Python that loads it.
        notes: What a person should know.
    """

    folder: Path
    to: str
    files: dict[str, int]
    hashes: dict[str, str]
    measured: dict[str, Measured]
    load: str
    notes: tuple[str, ...]


def export_space(
    space: Space, to: str, folder: Path, *, modalities: Sequence[str] = (), license_name: str | None = None
) -> Exported:
    """Writes a space in a format, and makes sure that it is right before it takes its place.

    Args:
        space: The space, on the CPU.
        to: `hub`, `onnx`, or a format of a modality's plugin.
        folder: The folder to write; an earlier export there is replaced.
        modalities: Which; default: for `hub` all, else the binding modality or the only one that has the format.
        license_name: Licence of the weights, for the model card.

    Raises:
        ExportError: The format cannot express it, the embeddings differ, or the folder holds something else.
        SpaceError: The space is damaged, or has no such modality.
        PluginError: A plugin is missing.
    """
    _check_folder(folder)
    for name in modalities:
        space.record_of(name)
    if to == ONNX:
        require_onnx()
    wanted = _wanted(space, to, list(dict.fromkeys(modalities)))
    lineage = lineage_of(space)
    with _writing(folder) as temporary:
        if to == HUB:
            space.verify(wanted)
            record = _record(space, to, wanted, lineage)
            load, notes = write_hub(space, record, lineage, temporary, license_name)
        elif to == ONNX:
            space.verify(wanted)
            record, load, notes = _onnx(space, wanted, lineage, temporary)
        else:
            record, load, notes = _library(space, to, wanted, lineage, temporary)
        write_json(temporary / EXPORT, record.model_dump(mode="json"))
    return Exported(
        folder=folder,
        to=to,
        files={f.relative_to(folder).as_posix(): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()},
        hashes={name: entry.content_hash for name, entry in record.space.modalities.items()},
        measured=record.measured,
        load=load.format(folder=folder),
        notes=tuple(notes),
    )


# ---------------------------------------------------------------------- what, and where


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ExportError("there is a file of this name; expected a folder, or nothing.", place=str(folder))
    if folder.is_dir() and any(folder.iterdir()) and not is_export(folder):
        raise ExportError(
            "the folder holds something that `geobind export` did not write.",
            place=str(folder),
            hint="Choose another with -o. Only an earlier export is replaced.",
        )


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    try:
        with replacing_folder(folder.absolute()) as temporary:
            yield temporary
    except OSError as error:
        raise ExportError(f"cannot be written: {error.strerror or error}.", place=str(folder)) from error


def _wanted(space: Space, to: str, named: list[str]) -> list[str]:
    """Returns the modalities that go into the folder."""
    if to == HUB:
        return named or list(space.modalities)
    if to == ONNX:
        return named or [_binding_or_only(space, list(space.modalities), to)]
    known = _had(space)
    for name in named:
        if name not in known:
            space.modality(name)  # says what is missing
    formats = {name: modality.exports() for name, modality in known.items()}
    having = [name for name in formats if to in formats[name]]
    if not having:
        raise ExportError(
            f"no modality of the space has a format '{to}'. "
            f"{suggest(to, {HUB, ONNX, *(f for found in formats.values() for f in found)})}",
            place=str(space.folder),
        )
    first = named[0] if named else _binding_or_only(space, having, to)
    exporter = find_exporter(known[first], first, to, (HUB, ONNX))
    for name in named[1:]:
        find_exporter(known[name], name, to, (HUB, ONNX))
    return list(exporter.choose(named or [first], known))


def _had(space: Space) -> dict[str, Modality[Any]]:
    """Returns the modalities whose plugins are installed."""
    found = {}
    for name in space.modalities:
        try:
            found[name] = space.modality(name)
        except PluginError:
            continue
    return found


def _binding_or_only(space: Space, names: Sequence[str], to: str) -> str:
    if space.record.binding in names:
        return space.record.binding
    if len(names) == 1:
        return names[0]
    raise ExportError(
        f"several modalities have the format {to}: {', '.join(names)}.",
        place=str(space.folder),
        hint=f"Say which: --modality {names[0]}",
    )


def _record(space: Space, to: str, names: Sequence[str], lineage: Lineage, **more: Any) -> ExportRecord:
    record = space.record
    part = SpaceRecord(
        embed_dim=record.embed_dim,
        binding=record.binding,
        modalities={name: record.modalities[name] for name in names},
        pairs=[pair for pair in record.pairs if set(pair.modalities) <= set(names)],
    )
    return ExportRecord(geobind=version("geobind"), to=to, space=part, lineage=lineage.model_dump(mode="json"), **more)


# ---------------------------------------------------------------------- formats


def _onnx(
    space: Space, names: Sequence[str], lineage: Lineage, folder: Path
) -> tuple[ExportRecord, str, Sequence[str]]:
    measured, notes = {}, [f"opset {OPSET}; the output `embeddings` is [batch, {space.embed_dim}] float32 of unit norm"]
    for name in names:
        measured[name], described = write_onnx(space.modality(name), name, space.encoder(name), folder)
        notes.append(f"{name}.onnx: the input `input` is {described}, what the modality's `collate` makes")
    load = f'onnxruntime.InferenceSession("{{folder}}/{names[0]}.onnx")'
    return _record(space, ONNX, names, lineage, measured=measured), load, notes


def _library(
    space: Space, to: str, names: Sequence[str], lineage: Lineage, folder: Path
) -> tuple[ExportRecord, str, Sequence[str]]:
    exporter = find_exporter(space.modality(names[0]), names[0], to)
    parts = [_part(space, name) for name in names]
    scale = trained_scale(lineage, names)
    written = exporter.write(parts, folder, logit_scale=scale[0] if scale else None)
    tensors = _keep(parts, written, space, folder)
    measured = {part.name: _measured(exporter, space, part, folder) for part in parts}
    for part in parts:
        if state_hash(read_back(folder, tensors[part.name])) != part.content_hash:
            raise ExportError(f"the weights of '{part.name}' that were written are not those of the space.")
    notes = [*written.notes]
    if scale and len(parts) > 1:  # of one modality alone there is nothing to scale
        notes.append(f"logit scale {scale[0]:.4g}, of stage {scale[1]}")
    return _record(space, to, names, lineage, tensors=tensors, measured=measured), written.load, notes


def _part(space: Space, name: str) -> ExportPart:
    space.verify([name])
    encoder = space.encoder(name)
    return ExportPart(
        name=name,
        modality=space.modality(name),
        encoder=encoder.encoder,
        projection=None if encoder.projection is None else encoder.projection.weight.detach(),
        embed_dim=space.embed_dim,
        content_hash=space.record_of(name).content_hash,
    )


def _keep(parts: Sequence[ExportPart], written: Written, space: Space, folder: Path) -> dict[str, dict[str, Stored]]:
    """Finds out which tensors the other library's files hold to the bit, and stores the rest beside them."""
    tensors: dict[str, dict[str, Stored]] = {}
    rest: dict[str, torch.Tensor] = {}
    for part in parts:
        claimed = {f"encoder.{name}": stored for name, stored in written.tensors.get(part.name, {}).items()}
        there = read_back(folder, claimed)
        tensors[part.name] = {}
        for name, tensor in space.encoder(part.name).state_dict().items():
            if name in there and there[name].dtype == tensor.dtype and torch.equal(there[name], tensor):
                tensors[part.name][name] = claimed[name]
            else:
                own = f"{part.name}.{name}"
                rest[own] = tensor.detach().contiguous().clone()
                tensors[part.name][name] = Stored(REST, (own,))
    if rest:
        (folder / REST).write_bytes(save(rest, metadata={"format": "pt"}))
    return tensors


def _measured(exporter: Exporter, space: Space, part: ExportPart, folder: Path) -> Measured:
    def embed(samples: Sequence[Any]) -> torch.Tensor:
        return exporter.embed(folder, part, samples)

    return compare(part.modality, part.name, space.encoder(part.name), embed, exporter.library)
