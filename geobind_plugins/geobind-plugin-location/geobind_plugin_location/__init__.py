"""Longitude and latitude for GeoBind, by the encoders of SatCLIP and GeoCLIP."""

from typing import Any

from geobind_core import Modality, hookimpl
from geobind_plugin_location.location import Location


@hookimpl
def geobind_register_modalities() -> list[type[Modality[Any]]]:
    """Location."""
    return [Location]
