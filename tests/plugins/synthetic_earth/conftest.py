"""A planet of 24 places, drawn once for all tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
from geobind_plugin_synthetic_earth.source import SyntheticEarth, SyntheticEarthConfig


def quiet(done: int, total: int, text: str) -> None:
    """Progress that nobody looks at."""


def _make_earth(root: Path, **settings: object) -> SyntheticEarth:
    chosen = {"places": 24, "held_out": 6, "seconds": 1.0, **settings}
    config = SyntheticEarthConfig.model_validate({"source": "synthetic_earth", "root": root, **chosen})
    return SyntheticEarth(config, base=root)


@pytest.fixture(scope="session")
def make_earth() -> Callable[..., SyntheticEarth]:
    """Makes a source of 24 places, 6 of them held out; nothing is drawn yet."""
    return _make_earth


@pytest.fixture(scope="session")
def earth(tmp_path_factory: pytest.TempPathFactory) -> SyntheticEarth:
    """A planet that has been drawn."""
    source = _make_earth(tmp_path_factory.mktemp("earth"))
    source.prepare(quiet)
    return source
