"""The networks of a chain while it runs: built, started from the right weights, stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geobind_core.chain.datasets import DataSets
from geobind_core.chain.model import Chain
from geobind_core.data.samples import BadSample, SampleReader, probe_rows
from geobind_core.data.splits import Split
from geobind_core.errors import ConfigError, DataError, GeoBindError, WeightsError, raise_all
from geobind_core.files import read_json
from geobind_core.space.encoder import SpaceEncoder, content_hash, raw_dimension
from geobind_core.space.lineage import ModalityRecord
from geobind_core.space.space import CONFIG, load_encoder, modality_from, save_encoder
from geobind_core.training.seeds import derived_seed


@dataclass
class Encoders:
    """Builds each network once, and keeps it with its current weights.

    Args:
        chain: The chain.
        datasets: Where an example for measuring a network's output comes from.
        embed_dim: Dimension of the space, when it is settled already.
    """

    chain: Chain
    datasets: DataSets
    embed_dim: int | None = None
    _stored: dict[str, Path] = field(default_factory=dict)
    _built: dict[str, nn.Module] = field(default_factory=dict)
    _ready: dict[str, SpaceEncoder] = field(default_factory=dict)

    def adopt(self, name: str, folder: Path) -> None:
        """Takes a network's weights from where a finished stage has stored them."""
        self._stored[name] = folder
        self._ready.pop(name, None)

    def preflight(self, fresh: list[str], trained: set[str]) -> None:
        """Builds networks, so that whatever is wrong with one is known before training starts.

        Args:
            fresh: The modalities that will start from their initial weights.
            trained: Those that some stage trains, which may be given a projection.

        Raises:
            WeightsError, ConfigError, CombinedError: All that is wrong.
        """
        self._for_each(fresh, self._build)
        self._for_each(fresh, lambda name: self._wrap(name, can_train=name in trained))
        self._for_each([name for name in fresh if self._start(name) in fresh], self._check_start)

    def _for_each(self, names: list[str], check: Callable[[str], object]) -> None:
        errors: list[GeoBindError] = []
        for name in names:
            try:
                check(name)
            except GeoBindError as error:
                error.place = error.place or f"modalities.{name}"
                errors.append(error)
        raise_all(errors)

    def get(self, name: str) -> SpaceEncoder:
        """Returns the network of a modality with its current weights."""
        if name not in self._ready:
            if name in self._stored:
                folder = self._stored[name]
                record = ModalityRecord.model_validate(read_json(folder / CONFIG))
                modality = modality_from(record, self.chain.plugins)
                self._ready[name] = load_encoder(modality, record, self._dimension(), folder)
            else:
                encoder = self._wrap(name, can_train=True)
                start = self._start(name)
                if start is not None:
                    self._copy(start, name, encoder)
                self._ready[name] = encoder
        return self._ready[name]

    def hash(self, name: str) -> str:
        """Returns the content hash of a network as it is now."""
        return content_hash(self.get(name))

    def store(self, name: str, folder: Path, *, stage: str | None, aligned_to: Mapping[str, str]) -> None:
        """Writes a network's weights and lineage."""
        entry, encoder = self.chain.modalities[name], self.get(name)
        record = ModalityRecord(
            plugin=entry.provided.name,
            distribution=entry.provided.distribution,
            version=entry.provided.version,
            config=entry.modality.rebuild_config(encoder.encoder).model_dump(mode="json"),
            raw_dim=encoder.raw_dim,
            projected=encoder.projection is not None,
            content_hash=content_hash(encoder),
            stage=stage,
            aligned_to=dict(aligned_to),
        )
        save_encoder(encoder, record, folder)

    # ------------------------------------------------------------------ building

    def _build(self, name: str) -> nn.Module:
        if name not in self._built:
            # A stream of its own: initial weights do not depend on what was built before.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derived_seed(self.chain.config.seed, "weights", name))
                self._built[name] = self.chain.modalities[name].modality.build_encoder()
        return self._built[name]

    def _wrap(self, name: str, *, can_train: bool) -> SpaceEncoder:
        if name in self._ready:
            return self._ready[name]
        network, wanted = self._build(name), self._dimension()
        given = self._raw_dim(name, network)
        projection = self.chain.modalities[name].modality.config.projection
        if given != wanted and (projection == "none" or not can_train):
            reason = "projection: none allows no head" if projection == "none" else "no stage trains a head for it"
            raise ConfigError(
                f"'{name}' has {given} dimensions and the space has {wanted}, and {reason}.",
                place=f"modalities.{name}",
                hint=f"Set embed_dim: {given}, choose another model, or use projection: auto on what is trained.",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.chain.config.seed, "projection", name))
            projected = projection == "linear" or given != wanted
            return SpaceEncoder(network, given, wanted, projected=projected, name=name)

    def _start(self, name: str) -> str | None:
        start: str | None = self.chain.modalities[name].modality.config.init_from
        return start

    def _copy(self, start: str, name: str, encoder: SpaceEncoder) -> None:
        try:
            encoder.load_state_dict(self.get(start).state_dict())
        except RuntimeError as error:  # torch's word for tensors that are missing, left over or of another shape
            raise WeightsError(
                f"'{name}' cannot start from '{start}': {error}",
                place=f"modalities.{name}.init_from",
                hint="Give both the same model and projection.",
            ) from error

    def _check_start(self, name: str) -> None:
        start = str(self._start(name))
        own, other = self._build(name).state_dict(), self._build(start).state_dict()
        different = [k for k in {*own, *other} if k not in own or k not in other or own[k].shape != other[k].shape]
        if different:
            raise WeightsError(
                f"'{name}' cannot start from '{start}': their networks differ in {len(different)} tensors, "
                f"such as {sorted(different)[0]}.",
                place=f"modalities.{name}.init_from",
                hint="Give both the same model.",
            )

    def _dimension(self) -> int:
        if self.embed_dim is None:
            first = self.chain.stages[0]
            name = [*first.uses(), *first.trains()][0]
            self.embed_dim = self.chain.config.embed_dim or self._raw_dim(name, self._build(name))
        return self.embed_dim

    def _raw_dim(self, name: str, network: nn.Module) -> int:
        """Returns the dimension of a network's output: what it says, or else what it does."""
        declared = getattr(network, "embed_dim", None)
        if isinstance(declared, int):
            return declared
        modality = self.chain.modalities[name].modality
        example = self._example(name, modality)
        if example is None:
            raise ConfigError(
                f"the dimension of '{name}' cannot be measured: no data set of the chain has it.",
                place=f"modalities.{name}",
                hint="Map it to a column under data.<name>.fields, or give its encoder an `embed_dim` attribute.",
            )
        if isinstance(example, BadSample):
            raise DataError(
                f"the dimension of '{name}' cannot be measured: none of the rows that were tried can be read; "
                f"the first is {example.key}: {example.reason}",
                place=f"modalities.{name}",
                hint="Mend the data or the settings, or give its encoder an `embed_dim` attribute.",
            )
        try:
            return raw_dimension(network, modality.collate([example]))
        except Exception as error:
            raise ConfigError(
                f"the encoder of '{name}' cannot embed an example: {type(error).__name__}: {error}",
                place=f"modalities.{name}",
            ) from error

    def _example(self, name: str, modality: Any) -> Any:
        """Returns a sample; a `BadSample`, the first, where a few rows have no other; None where there are no rows."""
        splits: tuple[Split, ...] = ("train", "test", "validation")
        first_bad: BadSample | None = None
        for data_name in self.chain.sources:
            data = self.datasets.open(data_name)
            if name not in data.fields:
                continue
            reader = SampleReader(data, name, modality, train=False, seed=0)
            for split in splits:
                for row in probe_rows(data, data.rows(split, [name])):
                    sample = reader.finish(reader.read(row), row, 0)
                    if not isinstance(sample, BadSample):
                        return sample
                    first_bad = first_bad or sample
        return first_bad
