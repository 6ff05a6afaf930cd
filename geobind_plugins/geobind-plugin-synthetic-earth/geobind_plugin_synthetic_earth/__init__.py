"""The synthetic Earth: a small planet with everything a chain needs, drawn on first use.

A data set of satellite tiles, ground photos, recordings, captions and locations that fits on a
laptop and takes seconds to make. See :mod:`.views` for how to add a view of your own.
"""

from __future__ import annotations

from typing import Any

from geobind_core import Source, hookimpl


@hookimpl
def geobind_register_sources() -> list[type[Source[Any]]]:
    """Registers the source ``synthetic_earth``."""
    from geobind_plugin_synthetic_earth.source import SyntheticEarth

    return [SyntheticEarth]
