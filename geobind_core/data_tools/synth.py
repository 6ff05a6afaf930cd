"""A synthetic Earth as a table with files, in a folder of one's own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from geobind_core.config.problems import from_pydantic
from geobind_core.errors import ConfigError, DataError, raise_all
from geobind_core.files import read_json, temporary_beside, write_json
from geobind_core.plugins.manager import PluginManager
from geobind_core.plugins.source import Observations, Source
from geobind_core.progress import Reporter

_SOURCE = "synthetic_earth"
_IDENTITY = ".synth.json"
_TABLE = "table.parquet"


def synthesize(folder: Path, settings: Mapping[str, Any], plugins: PluginManager, reporter: Reporter) -> dict[str, Any]:
    """Draws a synthetic Earth into a folder, unless it is there already.

    Args:
        folder: Where to; it is new or empty, or the same Earth is in it.
        settings: Those of the source `synthetic_earth`; None for its default.
        plugins: Have the source.
        reporter: Told how far it is.

    Returns:
        What to write into a chain to use it, but for where it is.

    Raises:
        PluginError: geobind-plugin-synthetic-earth is not installed.
        ConfigError: A setting is not right.
        DataError: Something else is in the folder, or it cannot be written.
    """
    provided = plugins.find("source", _SOURCE)
    drawn = temporary_beside(folder.absolute())
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        config = provided.cls.Config.model_validate({**given, "source": _SOURCE, "root": str(drawn)})
    except ValidationError as error:
        found = from_pydantic(error, provided.cls.Config, ())
        raise_all([ConfigError(one.message, place="data synth", hint=one.hint) for one in found])
        raise
    source: Source[Any] = provided.cls(config, Path())
    identity = {"source": _SOURCE, "fingerprint": source.fingerprint()}
    try:
        if not _is_there(folder, identity):
            drawn.mkdir(parents=True, exist_ok=True)
            with FileLock(drawn / ".lock"):
                if not _is_there(folder, identity):  # by now
                    _draw(source, folder, identity, reporter)
            shutil.rmtree(drawn, ignore_errors=True)
    except OSError as error:
        raise DataError(f"it cannot be written: {error.strerror or error}.", place=str(folder)) from error
    in_chain: dict[str, Any] = read_json(folder / _IDENTITY)["settings"]
    return in_chain


def _draw(source: Source[Any], folder: Path, identity: Mapping[str, str], reporter: Reporter) -> None:
    with reporter.task("drawing", source.config.places, "places") as task:
        source.prepare(lambda done, total, text: task.update(done, total))
    observations = source.observations()
    root = Path(observations.root)
    write_json(root / _IDENTITY, {**identity, "settings": _settings(observations)})
    root.replace(folder)


def _is_there(folder: Path, identity: Mapping[str, str]) -> bool:
    """Whether this very Earth is in the folder.

    Raises:
        DataError: Something else is.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    before = (read_json(folder / _IDENTITY) if folder.is_dir() else None) or {}
    if all(before.get(name) == value for name, value in identity.items()):
        return True
    what = "another synthetic Earth" if before else "something else"
    raise DataError(f"there is {what} already.", place=str(folder), hint="Choose another folder, or remove this one.")


def _settings(observations: Observations) -> dict[str, Any]:
    """Returns the settings of a table with these rows."""
    fields = {name: list(c) if isinstance(c, tuple) else c for name, c in observations.fields.items()}
    return {
        "source": "table",
        "path": _TABLE,
        "fields": fields,
        "labels": dict(observations.labels),
        "split": {"by": "column", "column": observations.split},
        "longitude": observations.longitude,
        "latitude": observations.latitude,
    }
