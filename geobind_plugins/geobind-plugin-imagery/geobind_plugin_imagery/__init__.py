"""Satellite images, ground photos and text for GeoBind, on open_clip."""

from typing import Any

from geobind_core import Modality, hookimpl
from geobind_plugin_imagery.images import GroundImage, Satellite
from geobind_plugin_imagery.text import Text


@hookimpl
def geobind_register_modalities() -> list[type[Modality[Any]]]:
    """Satellite, ground_image, text."""
    return [Satellite, GroundImage, Text]
