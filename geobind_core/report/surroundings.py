"""What the run worked with: its data sets, and the versions of what it ran on."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from geobind_core.data.paired import PairedData
from geobind_core.plugins.source import Source
from geobind_core.space.lineage import SpaceRecord

_PACKAGES = ("geobind", "torch", "accelerate", "numpy", "pyarrow", "safetensors")


@dataclass(frozen=True)
class DataView:
    """A data set.

    Attributes:
        name: What the chain calls it.
        source: What kind of source.
        train: Rows to train on.
        validation: Rows held out for validation.
        test: Rows held out for tests.
        places: How many rows have coordinates; None where the data set has none at all.
        modalities: Those that it has.
        notes: What its source says of it.
        terms: Licence, citation and home page, as the chain gives them.
    """

    name: str
    source: str
    train: int
    validation: int
    test: int
    places: int | None
    modalities: tuple[str, ...]
    notes: tuple[str, ...]
    terms: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, data: PairedData, source: Source[Any], modalities: Sequence[str]) -> DataView:
        """Describes an opened data set."""
        terms = {name: getattr(source.config, name, None) for name in ("license", "citation", "homepage")}
        return cls(
            data.name,
            source.name,
            data.count("train"),
            data.count("validation"),
            data.count("test"),
            None if data.places is None else int(np.count_nonzero(data.places.known)),
            tuple(name for name in modalities if name in data.fields),
            tuple(source.notes()),
            tuple((name, str(value)) for name, value in terms.items() if value),
        )


def versions(record: SpaceRecord) -> list[tuple[str, str]]:
    """Returns the versions of Python, of packages, and of the plugins that the space's modalities came from."""
    found = [("Python", platform.python_version()), ("system", f"{platform.system()} {platform.machine()}")]
    for name in _PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:  # a source tree that is not installed
            continue
    plugins = {m.distribution: m.version for m in record.modalities.values()}
    return found + sorted((name, number) for name, number in plugins.items() if name != "geobind")
