"""`Space`: what users take away from a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save

from geobind_core.config.problems import suggest
from geobind_core.data.samples import describe
from geobind_core.errors import DataError, SpaceError
from geobind_core.files import link_or_copy, read_json, recover_folder, replacing_folder, write_json
from geobind_core.plugins.manager import PluginManager
from geobind_core.plugins.modality import Modality
from geobind_core.space.embed import to_device
from geobind_core.space.encoder import SpaceEncoder, require_rows, state_hash
from geobind_core.space.exported import EXPORT, ExportRecord, read_back, read_export, readable
from geobind_core.space.lineage import FORMAT, ModalityRecord, SpaceRecord

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
RECORD = "space.json"


class Space:
    """One embedding space of many modalities; networks are loaded when they are first used.

    Example:
        >>> space = Space.load("runs/demo/space")                     # doctest: +SKIP
        >>> sounds = space.embed("audio", ["bird.flac", "surf.flac"]) # doctest: +SKIP
        >>> texts = space.embed("text", ["waves on a beach"])         # doctest: +SKIP
        >>> space.similarity(sounds, texts)                           # doctest: +SKIP

    Attributes:
        record: Lineage: what each modality is, and what it was aligned to.
        export: What `geobind export` wrote beside the files of another library; None for a space of GeoBind's own.
    """

    def __init__(
        self,
        folder: Path,
        record: SpaceRecord,
        plugins: PluginManager,
        device: torch.device,
        export: ExportRecord | None = None,
    ) -> None:
        self.folder = folder
        self.record = record
        self.export = export
        self._plugins = plugins
        self._device = device
        self._modalities: dict[str, Modality[Any]] = {}
        self._encoders: dict[str, SpaceEncoder] = {}

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str | torch.device = "cpu", plugins: PluginManager | None = None
    ) -> Space:
        """Opens a space. No network is loaded yet, and nothing is unpickled, ever.

        Args:
            folder: The folder with `space.json`, a run folder that has one under `space/`, or a folder that
                `geobind export` wrote for another library.
            device: Where networks and embeddings live, such as `"cuda"`.
            plugins: The plugin manager to look modalities up in; default: a new one.

        Raises:
            SpaceError: There is no space, it is damaged, or of a newer format.
        """
        path = Path(folder)
        recover_folder(path)
        if not (path / RECORD).is_file() and (path / "space" / RECORD).is_file():
            path = path / "space"
        found, manager = torch.device(device), plugins or PluginManager()
        if not (path / RECORD).is_file() and (path / EXPORT).is_file():
            export = read_export(path)
            return cls(path, readable(export, path), manager, found, export)
        if not (path / RECORD).is_file():
            raise SpaceError(
                f"no {RECORD} here.", place=str(path), hint="`geobind run` writes a space to runs/<name>/space."
            )
        raw = read_json(path / RECORD)
        if isinstance(raw, dict) and raw.get("format") != FORMAT:
            raise SpaceError(
                f"the space has format {raw.get('format')}; this version reads format {FORMAT}.",
                place=str(path / RECORD),
                hint="Install the version of GeoBind that wrote it, or a newer one.",
            )
        try:
            record = SpaceRecord.model_validate(raw)
        except ValidationError as error:
            raise SpaceError(f"the file is damaged: {error}", place=str(path / RECORD)) from error
        return cls(path, record, manager, found)

    def __repr__(self) -> str:
        return f"Space({str(self.folder)!r}, modalities={list(self.modalities)}, embed_dim={self.embed_dim})"

    @property
    def modalities(self) -> tuple[str, ...]:
        """The names of the modalities."""
        return tuple(self.record.modalities)

    @property
    def embed_dim(self) -> int:
        """The dimension D of the space."""
        return self.record.embed_dim

    def modality(self, name: str) -> Modality[Any]:
        """Returns the modality of a name: how its items are read and transformed. Loads no weights."""
        if name not in self._modalities:
            self._modalities[name] = modality_from(self.record_of(name), self._plugins)
        return self._modalities[name]

    def encoder(self, name: str) -> SpaceEncoder:
        """Returns the network of a modality, frozen, on the space's device."""
        if name not in self._encoders:
            record, modality = self.record_of(name), self.modality(name)
            encoder = _fitted(modality, record, self.embed_dim, self.weights(name), self._place_of(name))
            encoder.freeze()
            self._encoders[name] = encoder.to(self._device)
        return self._encoders[name]

    def embed(self, modality: str, items: Sequence[Any] | Iterable[Any], *, batch_size: int = 64) -> torch.Tensor:
        """Embeds items of one modality.

        Args:
            modality: One of `modalities`.
            items: What the modality reads: paths, bytes, strings; for images also PIL images and
                arrays `[H, W, 3]` uint8; for audio also `(samples, sample_rate)`.
            batch_size: Items that go through the network at a time.

        Returns:
            `[N, D]` float32 of unit norm, on the space's device.

        Raises:
            SpaceError: No such modality.
            DataError: An item cannot be read.
        """
        if isinstance(items, str | bytes | Path | Mapping) or not isinstance(items, Iterable):
            raise TypeError("items must be a list of items; put a single one into a list")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
        reader, encoder, listed = self.modality(modality), self.encoder(modality), list(items)
        parts = []
        with torch.inference_mode():
            for start in range(0, len(listed), batch_size):
                numbered = enumerate(listed[start : start + batch_size], start)
                samples = [_sample(reader, item, f"{modality}, item {number}") for number, item in numbered]
                output = encoder(to_device(reader.collate(samples), self._device))
                parts.append(require_rows(output, len(samples), modality).embedding)
        if not parts:
            return torch.empty(0, self.embed_dim, device=self._device)
        return torch.cat(parts).clone()  # a clone is a normal tensor, usable in autograd

    def similarity(self, queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        """Returns cosine similarities `[B, N]` of queries `[B, D]` and a gallery `[N, D]`, tensors or arrays."""
        queries, gallery = torch.as_tensor(queries), torch.as_tensor(gallery)
        if queries.shape[-1] != gallery.shape[-1]:
            raise SpaceError(
                f"the queries have {queries.shape[-1]} dimensions and the gallery {gallery.shape[-1]}; "
                "they are not of one space."
            )
        unit = torch.nn.functional.normalize
        return unit(queries.float(), dim=-1) @ unit(gallery.float(), dim=-1).T

    def weights(self, modality: str) -> dict[str, torch.Tensor]:
        """Returns the tensors of a modality's encoder as the disk has them; builds no network.

        Raises:
            SpaceError: There is no such modality, or its weights are missing or damaged.
        """
        self.record_of(modality)
        if self.export is not None:
            return read_back(self.folder, self.export.tensors[modality])
        return _read_weights(self.folder / modality / WEIGHTS)

    def verify(self, modalities: Iterable[str] | None = None) -> None:
        """Checks that the weights on the disk are those that the lineage names; builds no network.

        Args:
            modalities: Which; default: all.

        Raises:
            SpaceError: They are not.
        """
        for name in self.modalities if modalities is None else modalities:
            found, expected = state_hash(self.weights(name)), self.record_of(name).content_hash
            if found != expected:
                raise SpaceError(
                    f"the weights of '{name}' have hash {found[:12]}…; the lineage says {expected[:12]}….",
                    place=self._place_of(name),
                )

    def record_of(self, name: str) -> ModalityRecord:
        """Returns the lineage of one modality.

        Raises:
            SpaceError: There is no such modality.
        """
        record = self.record.modalities.get(name)
        if record is None:
            raise SpaceError(f"no modality '{name}'. {suggest(name, self.modalities)}", place=str(self.folder))
        return record

    def _place_of(self, name: str) -> str:
        return str(self.folder / name / WEIGHTS if self.export is None else self.folder)


def modality_from(record: ModalityRecord, plugins: PluginManager) -> Modality[Any]:
    """Makes the modality that a space's record describes."""
    cls = plugins.find("modality", record.plugin, record.distribution).cls
    try:
        modality: Modality[Any] = cls(cls.Config.model_validate(record.config))
    except ValidationError as error:
        raise SpaceError(
            f"{record.distribution} does not understand settings written by its version {record.version}: {error}"
        ) from error
    return modality


def load_encoder(modality: Modality[Any], record: ModalityRecord, embed_dim: int, folder: Path) -> SpaceEncoder:
    """Builds a network without its pretrained weights and gives it those of a folder.

    Raises:
        SpaceError: The weights are missing, damaged, or of another network.
    """
    weights = _read_weights(folder / WEIGHTS)
    return _fitted(modality, record, embed_dim, weights, str(folder / WEIGHTS))


def _fitted(
    modality: Modality[Any], record: ModalityRecord, embed_dim: int, weights: Mapping[str, torch.Tensor], place: str
) -> SpaceEncoder:
    network, projected = modality.build_encoder(), record.projected
    encoder = SpaceEncoder(network, record.raw_dim, embed_dim, projected=projected, name=modality.name)
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise SpaceError(
            f"the weights do not fit the network of '{modality.name}': {error}",
            place=place,
            hint=f"They were written by {record.distribution} {record.version}; is another version installed?",
        ) from error
    return encoder


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise SpaceError("the weights are missing.", place=str(path)) from error
    except Exception as error:  # safetensors' own errors derive from nothing nearer
        raise SpaceError(f"the weights are damaged: {error}", place=str(path)) from error


def _sample(modality: Modality[Any], item: Any, place: str) -> Any:
    # Nothing is drawn outside training; a fixed generator makes sure of it.
    rng = np.random.default_rng(0)
    try:
        return modality.transform(modality.read(item), train=False, rng=rng)
    except Exception as error:  # decoders raise what they like
        raise DataError(f"cannot be read: {describe(error)}", place=place) from error


def save_encoder(encoder: SpaceEncoder, record: ModalityRecord, folder: Path) -> None:
    """Writes one modality's `config.json` and `model.safetensors`; the folder appears whole."""
    with replacing_folder(folder) as temporary:
        write_modality(encoder.state_dict(), record, temporary)


def write_modality(weights: Mapping[str, torch.Tensor], record: ModalityRecord, folder: Path) -> None:
    """Writes one modality's two files into a folder that is there."""
    # Clones: safetensors refuses tensors that share memory.
    state = {k: v.detach().cpu().contiguous().clone() for k, v in weights.items()}
    # One entry only: safetensors writes several in any order, and the same weights are to make the same file.
    # save_file would leave it readable to nobody but its owner, whatever the umask says.
    (folder / WEIGHTS).write_bytes(save(state, metadata={"format": "pt"}))
    write_json(folder / CONFIG, record.model_dump(mode="json"))


def assemble(folder: Path, record: SpaceRecord, weights: Mapping[str, Path]) -> None:
    """Writes a space out of modality folders that are there already.

    Args:
        folder: Where the space is to be; it appears whole, in place of what was there.
        record: Its lineage.
        weights: Modality -> a folder that `save_encoder` wrote.
    """
    with replacing_folder(folder) as temporary:
        for name, source in weights.items():
            (temporary / name).mkdir()
            for file in (WEIGHTS, CONFIG):
                link_or_copy(source / file, temporary / name / file)
        write_json(temporary / RECORD, record.model_dump(mode="json"))
