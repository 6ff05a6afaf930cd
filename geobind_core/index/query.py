"""What is searched for: observations of any modalities, with weights, as one vector of the space."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geobind_core.config.problems import suggest
from geobind_core.data.samples import describe
from geobind_core.errors import ConfigError, DataError, PluginError

if TYPE_CHECKING:
    from geobind_core.space.space import Space

_NAMED = re.compile(r"(?P<modality>[A-Za-z_][\w-]*)=(?P<value>.*)", re.DOTALL)
_WEIGHTED = re.compile(r"(?P<value>.*)\*\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*", re.DOTALL | re.I)
_LIKE_A_WEIGHT = re.compile(r".*\*\s*[+-]?[\d.,]*\s*", re.DOTALL)
_NUMBERS = re.compile(r"[-+\d.,;\s]+")
_LIKE_A_FILE = re.compile(r"\S*\.[A-Za-z][A-Za-z0-9]{1,4}")
_SMALLEST_SUM = 1e-6  # of unit vectors; what is left below that are rounding errors


@dataclass(frozen=True)
class QueryPart:
    """One observation to search by.

    Attributes:
        modality: Its modality.
        item: What the modality reads: a path, bytes, a text, numbers.
        weight: How much it counts; a negative one leads away from it.
    """

    modality: str
    item: Any
    weight: float = 1.0


def embed_query(space: Space, parts: Sequence[QueryPart]) -> npt.NDArray[np.float32]:
    """Returns the weighted sum of the parts' embeddings, `[D]` float32 of unit norm.

    Raises:
        SpaceError: The space does not have a modality.
        DataError: A part cannot be read, or the parts cancel each other.
    """
    if not parts:
        raise ConfigError("nothing to search by.", hint="Give a text, a file, or MODALITY=VALUE.")
    embeddings = []
    for part in parts:
        try:
            embeddings.append(space.embed(part.modality, [part.item])[0].cpu().numpy())
        except DataError as error:
            raise DataError(error.message, place=f"{part.modality}={_shown(part.item)}", hint=error.hint) from error
    return combined(embeddings, [part.weight for part in parts])


def combined(embeddings: Sequence[npt.NDArray[np.float32]], weights: Sequence[float]) -> npt.NDArray[np.float32]:
    """Returns the weighted sum of unit vectors `[D]`, `[D]` float32 of unit norm.

    Raises:
        DataError: They cancel each other.
    """
    total = np.asarray(weights, dtype=np.float64) @ np.stack(embeddings).astype(np.float64)
    length = float(np.linalg.norm(total))
    if length < _SMALLEST_SUM:
        raise DataError("the parts of the query cancel each other.", hint="Change a weight.")
    unit: npt.NDArray[np.float32] = (total / length).astype(np.float32)
    return unit


def parse_query(text: str, space: Space, *, modality: str | None = None) -> list[QueryPart]:
    """Reads a query as people write it.

    `waves on a beach`, `surf.flac` and `8.5,47.3` go to the one modality of the space that can read them;
    `audio=surf.flac` says which. `*0.5` behind a value is its weight, and ` + ` joins values, as in
    `text=a beach + audio=surf.flac*0.5 + text=snow*-1`.

    Args:
        text: The query.
        space: Has the modalities.
        modality: Who is to read a value that does not say so itself.

    Raises:
        SpaceError: The space has no such modality.
        ConfigError: No modality can read it, or several can.
        DataError: There is no such file.
    """
    if modality is not None:
        space.record_of(modality)
    # Only before `modality=`, since a text may have a plus sign.
    names = "|".join(re.escape(name) for name in space.modalities)
    return [_part(piece, space, modality) for piece in re.split(rf"\s\+\s+(?=(?:{names})=)", text)]


def _part(text: str, space: Space, modality: str | None) -> QueryPart:
    named = _NAMED.fullmatch(text.strip())
    if named is not None and (modality is None or named["modality"] in space.modalities):
        name, value, weight = named["modality"], named["value"].strip(), 1.0
        space.record_of(name)
        if (weighted := _WEIGHTED.fullmatch(value)) is not None:
            value, weight = weighted["value"].strip(), float(weighted["weight"])
        elif _LIKE_A_WEIGHT.fullmatch(value):
            raise ConfigError("what is behind `*` is no number.", place=text, hint="A weight is written as in *0.5.")
        if weight == 0 or not math.isfinite(weight):
            raise ConfigError(f"the weight is {weight:g}; expected a number other than 0.", place=text)
        return QueryPart(name, _item(value, name, space), weight)
    if not text.strip():
        raise ConfigError("the query is empty.", hint="Give a text, a file, or MODALITY=VALUE.")
    if _WEIGHTED.fullmatch(text) and not _is_file(text):
        raise ConfigError(
            "a weight is given to a part that does not say its modality.",
            place=text,
            hint=f"Write {_example(space, text)}",
        )
    name = modality or _reader(text, space)
    return QueryPart(name, _item(text.strip(), name, space))


def _reader(text: str, space: Space) -> str:
    """Returns the one modality that can read a text or a file that does not say whose it is."""
    is_file = _is_file(text)
    if not is_file and _LIKE_A_FILE.fullmatch(text):
        raise DataError(
            "no such file.", place=text, hint=f"To search for these words, say so: {_example(space, text)}."
        )
    reasons: dict[str, str] = {}
    for name in space.modalities:
        try:
            if space.modality(name).reads_files != is_file:
                continue
            _try(text, name, space)
        except Exception as error:  # decoders raise what they like, and a plugin may be missing
            reasons[name] = describe(error)
        else:
            reasons[name] = ""
    readers = [name for name, reason in reasons.items() if not reason]
    if len(readers) == 1:
        if _NUMBERS.fullmatch(text) and isinstance(space.modality(readers[0]).read(text), str):
            raise ConfigError(
                f"these are numbers, and only '{readers[0]}' could read them, as words.",
                place=text,
                hint=f"If that is meant: {readers[0]}={text}",
            )
        return readers[0]
    if readers:
        raise ConfigError(
            f"{', '.join(readers)} can all read this.",
            place=text,
            hint=f"Say which is meant, such as {readers[0]}={text}",
        )
    what = "file" if is_file else "text"
    why = "".join(f"\n    {name}: {reason}" for name, reason in reasons.items())
    raise ConfigError(
        f"no modality of the space can read this {what}. {suggest('', space.modalities)}{why}",
        place=text,
        hint="Say which modality it is of: MODALITY=VALUE.",
    )


def _example(space: Space, text: str) -> str:
    for name in space.modalities:
        with suppress(PluginError):  # of a plugin that is missing
            if not space.modality(name).reads_files:
                return f"{name}={text}"
    return f"MODALITY={text}"


def _try(value: str, name: str, space: Space) -> None:
    modality = space.modality(name)
    modality.transform(modality.read(_item(value, name, space)), train=False, rng=np.random.default_rng(0))


def _item(value: str, name: str, space: Space) -> Any:
    """Returns a value as the modality reads it.

    Raises:
        DataError: It is to be a file, and there is none.
    """
    if not value:
        raise ConfigError("there is no value.", place=f"{name}=", hint=f"For example: {name}=VALUE")
    modality = space.modality(name)
    if modality.reads_files:
        if not _is_file(value):
            raise DataError("no such file.", place=value, hint=f"'{name}' is read from files.")
        return Path(value).expanduser()
    try:
        modality.read(value)
    except Exception:  # numbers are written with commas, and some modalities read nothing else
        try:
            return [float(number) for number in value.split(",")]
        except ValueError:
            return value
    return value


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # longer than a name may be, `~somebody`, a zero byte
        return False


def _shown(item: Any) -> str:
    return f"{len(item)} bytes" if isinstance(item, bytes) else str(item)
