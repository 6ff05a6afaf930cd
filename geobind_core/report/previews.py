"""Observations as the page shows them: pictures, recordings and texts, within a budget of bytes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from geobind_core.data.geography import Places, great_circle_km
from geobind_core.data.paired import PairedData
from geobind_core.data.samples import describe
from geobind_core.data_tools.drawing import draw_preview
from geobind_core.data_tools.media import Kind, kind_of, media_type_of, text_of
from geobind_core.plugins.modality import Modality, Preview

PIXELS = 128
"""Longer side of a picture."""

_LONGEST_TEXT = 400
_SOUND = (240, 100)  # width and height of the picture of a recording


@dataclass(frozen=True)
class Observation:
    """One observation, ready to be shown.

    Attributes:
        modality: What it is an observation by.
        key: The row's key.
        place: Where it is, written; empty where that is not known.
        kind: How it is shown; None where it cannot be.
        content: The text; or of a picture or recording, the whole of it as a `data:` address.
        picture: Of a recording, its waveform and spectrogram, likewise.
        note: Why there is nothing to see.
    """

    modality: str
    key: str
    place: str
    kind: Kind | None
    content: str = ""
    picture: str = ""
    note: str = ""

    @property
    def size(self) -> int:
        """Bytes that it takes on the page."""
        return len(self.content) + len(self.picture)

    def without_content(self, note: str) -> Observation:
        """Returns it with a note in place of what it shows."""
        return Observation(self.modality, self.key, self.place, None, note=note)


@dataclass
class Album:
    """Makes previews, each once, and keeps account of what is on the page.

    Args:
        modalities: By name.
        budget: Bytes of pictures and recordings that the page may have.
    """

    modalities: Mapping[str, Modality[Any]]
    budget: int
    spent: int = 0
    _made: dict[tuple[str, str, int], Observation] = field(default_factory=dict)

    def look_at(self, data: PairedData, modality: str, row: int) -> Observation:
        """Returns an observation; what cannot be read says why."""
        known_as = (data.name, modality, row)
        if known_as not in self._made:
            self._made[known_as] = self._observation(data, modality, row)
        return self._made[known_as]

    def fits(self, size: int) -> bool:
        """Whether so many bytes more are within the budget."""
        return self.spent + size <= self.budget

    def take(self, observation: Observation) -> Observation:
        """Returns an observation for the page, without its content where there is no room for it left."""
        if not observation.size:
            return observation
        if not self.fits(observation.size):
            return observation.without_content("left out to keep the page small")
        self.spent += observation.size
        return observation

    def _observation(self, data: PairedData, name: str, row: int) -> Observation:
        place = place_text(data.places, row)

        def nothing(note: str) -> Observation:
            return Observation(name, data.key(row), place, None, note=note)

        modality = self.modalities.get(name)
        if modality is None:
            return nothing("no preview")
        try:
            preview = modality.preview(data.cell(name, row, is_file=modality.reads_files), PIXELS)
        except Exception as error:  # decoders raise what they like, and the page is no reason to lose a run
            return nothing(f"cannot be shown: {describe(error)[:_LONGEST_TEXT]}")
        kind = None if preview is None else kind_of(preview)
        if preview is None or kind is None:
            return nothing("no preview")
        if kind == "text":
            return Observation(name, data.key(row), place, kind, text_of(preview, _LONGEST_TEXT))
        picture = _picture_of(preview) if kind == "audio" else ""
        return Observation(name, data.key(row), place, kind, _address(media_type_of(preview), preview.data), picture)


def _picture_of(recording: Preview) -> str:
    """Returns the waveform and the spectrogram of a recording; nothing where it cannot be drawn."""
    drawn = BytesIO()
    try:
        draw_preview(recording, _SOUND).save(drawn, format="JPEG", quality=70, optimize=True)
    except Exception:  # there is still something to hear
        return ""
    return _address("image/jpeg", drawn.getvalue())


def _address(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def place_text(places: Places | None, row: int) -> str:
    """Returns where a row is, such as `47.37° N, 8.54° E`; empty where that is not known."""
    if places is None or not places.known[row]:
        return ""
    longitude, latitude = float(places.longitude[row]), float(places.latitude[row])
    north, east = "S" if latitude < 0 else "N", "W" if longitude < 0 else "E"
    return f"{abs(latitude):.2f}° {north}, {abs(longitude):.2f}° {east}"


def kilometres(places: Places | None, first: int, second: int) -> float | None:
    """Returns how far two rows are apart; None where that is not known."""
    if places is None or not (places.known[first] and places.known[second]):
        return None
    ends = (Places(places.longitude[[row]], places.latitude[[row]]) for row in (first, second))
    return float(great_circle_km(*ends)[0])
