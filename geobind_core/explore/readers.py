"""Which modality of a space reads what a person gives: a text, a file, coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from geobind_core.data.samples import describe
from geobind_core.plugins.modality import Modality
from geobind_core.space.space import Space

_A_TEXT = "waves on a beach"
_A_PLACE, _NO_PLACE = [8.54, 47.37], [8.54, 147.37]  # longitude, latitude


class RefusedError(Exception):
    """A request that cannot be answered, and what to tell whoever asked.

    Args:
        status: The HTTP status.
        message: What is wrong.
        hint: What to do about it.
        choices: Modalities of which one has to be chosen.
    """

    def __init__(self, status: int, message: str, hint: str = "", choices: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.hint = hint
        self.choices = choices


@dataclass(frozen=True)
class Readers:
    """Who reads what.

    Attributes:
        text: Modalities that take any text.
        files: Modalities that take the content of files.
        coordinates: Modalities that take a longitude and a latitude.
        examples: Texts to try.
    """

    text: tuple[str, ...]
    files: tuple[str, ...]
    coordinates: tuple[str, ...]
    examples: tuple[str, ...]

    @classmethod
    def of(cls, space: Space) -> Readers:
        """Finds out by trying: the engine knows no modality by name."""
        values = [name for name in space.modalities if not space.modality(name).reads_files]
        text = tuple(name for name in values if _reads(space.modality(name), _A_TEXT))
        # Whoever also takes what is no place on Earth reads two numbers of another meaning.
        coordinates = tuple(
            name
            for name in values
            if _reads(space.modality(name), _A_PLACE) and not _reads(space.modality(name), _NO_PLACE)
        )
        cells = space.modality(text[0]).example_cells(np.random.default_rng(0)) if text else ()
        return cls(
            text=text,
            files=tuple(name for name in space.modalities if name not in values),
            coordinates=coordinates,
            examples=tuple(cell for cell in cells if isinstance(cell, str))[:4],
        )

    def of_text(self, text: str, modality: str | None) -> str:
        """Returns who reads a text.

        Raises:
            RefusedError: Nobody does, or several do.
        """
        if not text.strip():
            raise RefusedError(422, "The text is empty.", "Type what you are looking for.")
        return _chosen(self.text, modality, "text")

    def of_coordinates(self, modality: str | None) -> str:
        """Returns who reads coordinates.

        Raises:
            RefusedError: Nobody does.
        """
        return _chosen(self.coordinates, modality or next(iter(self.coordinates), None), "coordinates")

    def of_file(self, space: Space, content: bytes, modality: str | None) -> str:
        """Returns who reads the content of a file. Its name does not count.

        Raises:
            RefusedError: Nobody does, or several do.
        """
        if not content:
            raise RefusedError(422, "The file is empty.")
        if not self.files or (modality is not None and modality not in self.files):
            _chosen(self.files, modality, "files")
        reasons = {
            name: _why_not(space.modality(name), content)
            for name in ((modality,) if modality is not None else self.files)
        }
        able = tuple(name for name, reason in reasons.items() if not reason)
        if not able:
            why = " ".join(f"{name}: {reason}" for name, reason in reasons.items())
            raise RefusedError(415, f"This file cannot be read by {' or '.join(reasons)}.", why)
        if len(able) > 1:
            raise RefusedError(422, f"This file can be read as {' or as '.join(able)}.", "Choose one.", able)
        return able[0]


def _chosen(able: tuple[str, ...], modality: str | None, what: str) -> str:
    if not able:
        raise RefusedError(422, f"No modality of this space reads {what}.")
    if modality is None and len(able) > 1:
        raise RefusedError(422, f"Several modalities of this space read {what}.", "Choose one.", able)
    if modality is not None and modality not in able:
        raise RefusedError(422, f"'{modality}' does not read {what} here.", f"Expected {' or '.join(able)}.")
    return modality or able[0]


def _reads(modality: Modality[Any], cell: Any) -> bool:
    return not _why_not(modality, cell)


def _why_not(modality: Modality[Any], cell: Any) -> str:
    """Returns why a cell cannot be read; nothing if it can. Some modalities decode only when they transform."""
    try:
        modality.transform(modality.read(cell), train=False, rng=np.random.default_rng(0))
    except Exception as error:  # decoders raise what they like
        return describe(error) or type(error).__name__
    return ""
