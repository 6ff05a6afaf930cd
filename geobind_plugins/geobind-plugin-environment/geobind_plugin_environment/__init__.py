"""Environmental variables for GeoBind: vectors of numbers, with gaps."""

from typing import Any

from geobind_core import Modality, hookimpl
from geobind_plugin_environment.environment import Environment


@hookimpl
def geobind_register_modalities() -> list[type[Modality[Any]]]:
    """Environment."""
    return [Environment]
