"""Recordings for GeoBind, through CLAP."""

from typing import Any

from geobind_core import Modality, hookimpl
from geobind_plugin_audio.audio import Audio


@hookimpl
def geobind_register_modalities() -> list[type[Modality[Any]]]:
    """Audio."""
    return [Audio]
