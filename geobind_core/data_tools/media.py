"""Which previews a web page may show, and how."""

from __future__ import annotations

from typing import Literal

from geobind_core.plugins.modality import Preview

Kind = Literal["image", "audio", "text"]

_SHOWN: dict[str, Kind] = {
    **dict.fromkeys(("image/jpeg", "image/png", "image/webp", "image/gif"), "image"),
    **dict.fromkeys(("audio/mpeg", "audio/flac", "audio/wav", "audio/x-wav", "audio/ogg", "audio/mp4"), "audio"),
    **dict.fromkeys(("text/plain", "application/json"), "text"),
}
"""What is handed to a browser. Nothing in here can run a script, as an SVG picture or a page could."""


def media_type_of(preview: Preview) -> str:
    """Returns the bare media type of a preview, without parameters."""
    return preview.media_type.partition(";")[0].strip().lower()


def kind_of(preview: Preview) -> Kind | None:
    """Returns how a preview is shown; None if it must not be."""
    return _SHOWN.get(media_type_of(preview))


def text_of(preview: Preview, longest: int = 2_000) -> str:
    """Returns the text of a preview, not longer than a page can show."""
    text = preview.data.decode("utf-8", "replace")
    return text if len(text) <= longest else f"{text[:longest]}…"
