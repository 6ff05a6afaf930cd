"""A data set that has been opened to be looked at or packed: one of a chain, or a file or folder by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from geobind_core.config import overrides
from geobind_core.config.document import Document
from geobind_core.config.problems import Problem, from_pydantic
from geobind_core.data.paired import PairedData, fields_of, with_gaps
from geobind_core.errors import ConfigError, DataError, PluginError, SpaceError, raise_all
from geobind_core.plugins.manager import PluginManager
from geobind_core.plugins.modality import Modality
from geobind_core.plugins.source import Observations, Source, observations_of
from geobind_core.progress import Reporter

_SPLITS = ("split", "json.split")
_TABLES = (".csv", ".tsv", ".parquet", ".geoparquet")
_OF_HUGGING_FACE = ("dataset_dict.json", "dataset_info.json", "state.json")


@dataclass(frozen=True)
class OpenedData:
    """A data set and the modalities that read it.

    Attributes:
        name: Its name in the chain, or that of its file.
        source: Where it comes from.
        observations: What the source yielded.
        data: The same, checked.
        modalities: Those of the data set's fields that somebody can read.
    """

    name: str
    source: Source[Any]
    observations: Observations
    data: PairedData
    modalities: Mapping[str, Modality[Any]]

    def require_readable(self, field: str, cell: Any) -> None:
        """Reads a cell as evaluation would. Some modalities decode when they read, others when they transform.

        Raises:
            Exception: Whatever the modality raises of a cell that it cannot read.
        """
        modality = self.modalities[field]
        modality.transform(modality.read(cell), train=False, rng=np.random.default_rng(0))


def open_source(
    name: str, source: Source[Any], modality_of: Callable[[str], Modality[Any] | None], reporter: Reporter
) -> OpenedData:
    """Opens a data set, making it first where its source makes it.

    Args:
        name: What messages call it.
        source: Where it comes from.
        modality_of: Returns who reads a field, if anybody does.
        reporter: Told how far it is.

    Raises:
        DataError: It is missing or unusable, or has none of the modalities.
    """
    return _opened(name, source, _observations(name, source, reporter), modality_of)


def _observations(name: str, source: Source[Any], reporter: Reporter) -> Observations:
    with reporter.task(f"data {name}", 1, "places") as task:
        source.prepare(lambda done, total, text: task.update(done, total, text))
    return observations_of(source)


def _opened(
    name: str, source: Source[Any], observations: Observations, modality_of: Callable[[str], Modality[Any] | None]
) -> OpenedData:
    fields = fields_of(observations, source.config)
    modalities = {field: modality for field in fields if (modality := modality_of(field)) is not None}
    data = PairedData(name, observations, source.config, with_gaps(modalities))
    if not modalities:
        raise DataError(
            f"no modality is called as one of its fields: {', '.join(data.fields) or 'there are none'}.",
            place=data.place,
            hint="Say which column is what: --field MODALITY=COLUMN, or `fields` in a chain.",
        )
    return OpenedData(name, source, observations, data, modalities)


def open_path(
    path: Path,
    fields: Sequence[str],
    assignments: Sequence[str],
    plugins: PluginManager,
    reporter: Reporter,
    modality_of: Callable[[str], Modality[Any]] | None = None,
) -> OpenedData:
    """Opens a table, shards, or a folder without a chain.

    Args:
        path: Of which kind it is, its name or what is in it tells.
        fields: Each `modality=column`, or `modality=column,column`. Without any, the source's own, and
            columns with the name of a modality.
        assignments: Each `setting=value`, settings as under `data` of a chain.
        plugins: Know sources and modalities.
        reporter: Told how far it is.
        modality_of: Returns the modality of a name, or raises an error; default: that of a plugin, with its
            default settings.

    Raises:
        ConfigError: A field or a setting is not right.
        PluginError: There is no such modality or source.
        DataError: It is missing or unusable.
    """
    document = Document(path, _settings(path))
    named = dict(_field(text) for text in fields)
    find = modality_of or partial(_modality, plugins=plugins)
    modalities = {name: find(name) for name in named}  # a misspelled one is said at once
    if named:
        document.data["fields"] = named
    for assignment in assignments:
        overrides.apply(document, assignment)
    provided = plugins.find("source", str(document.data["source"]))
    try:
        config = provided.cls.Config.model_validate(document.data)
    except ValidationError as error:
        raise_all([_unusable(document, found) for found in from_pydantic(error, provided.cls.Config, ())])
        raise

    source: Source[Any] = provided.cls(config, Path())
    observations = _observations(path.stem, source, reporter)
    if config.fields is None:
        observations, modalities = _guessed(observations, find)
    if config.split is None and observations.split is None:
        split = next((name for name in _SPLITS if name in observations.table.column_names), None)
        observations = replace(observations, split=split)
    return _opened(path.stem, source, observations, modalities.get)


def _guessed(
    observations: Observations, find: Callable[[str], Modality[Any]]
) -> tuple[Observations, dict[str, Modality[Any]]]:
    """Returns fields named after the modalities that their columns are called like, and those modalities.

    In shards, `satellite.jpg` and `json.text` are called like `satellite` and `text`.
    """
    fields: dict[str, str | tuple[str, ...]] = {}
    modalities: dict[str, Modality[Any]] = {}
    for field, columns in observations.fields.items():
        name = field
        for likely in dict.fromkeys((field, field.partition(".")[0], field.rpartition(".")[2])):
            with suppress(PluginError, ConfigError, SpaceError):  # most columns are nobody's
                if likely and likely not in modalities:
                    modalities[likely] = find(likely)
                    name = likely
                    break
        fields[name] = columns
    return replace(observations, fields=fields), modalities


def _settings(path: Path) -> dict[str, Any]:
    """Returns the settings that a path decides."""
    name = path.name.lower()
    if name.endswith((".tar", ".tar.gz", ".tar}")):
        return {"source": "webdataset", "shards": str(path)}
    if not path.is_dir():
        return {"source": "table", "path": str(path)}
    if (path / "metadata.csv").is_file() and (path / "images").is_dir():
        return {"source": "soundingearth", "root": str(path)}
    if any(path.glob("*.tar")):
        return {"source": "webdataset", "shards": str(path / "*.tar")}
    tables = [file for file in sorted(path.glob("*.*")) if file.suffix.lower() in _TABLES and file.stem != "metadata"]
    if len(tables) == 1 and not any((path / name).is_file() for name in _OF_HUGGING_FACE):
        return {"source": "table", "path": str(tables[0])}
    return {"source": "huggingface", "path": str(path)}


def _field(text: str) -> tuple[str, str | list[str]]:
    modality, equals, columns = (part.strip() for part in text.partition("="))
    names = [column.strip() for column in columns.split(",")]
    if not equals or not modality or not all(names):
        raise ConfigError(
            "expected MODALITY=COLUMN.", place=f"--field {text}", hint="For example: --field satellite=tile"
        )
    return modality, names[0] if len(names) == 1 else names


def _modality(name: str, plugins: PluginManager) -> Modality[Any]:
    """Returns a modality with its default settings."""
    cls = plugins.find("modality", name).cls
    try:
        modality: Modality[Any] = cls(cls.Config())
    except ValidationError as error:
        missing = " ".join(problem.message for problem in from_pydantic(error, cls.Config, ()))
        raise ConfigError(
            f"'{name}' has settings without which it does not work: {missing}",
            place=f"--field {name}",
            hint="Write them into a chain, and look at the chain's data set.",
        ) from error
    return modality


def _unusable(document: Document, problem: Problem) -> ConfigError:
    place = document.locate(problem.path)
    # What is not from the command line was not written by anybody, so it has no line.
    place = place if place.startswith("--set ") else str(document.path)
    return ConfigError(problem.message, place=place, hint=problem.hint)
