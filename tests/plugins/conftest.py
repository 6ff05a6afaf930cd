"""Throw-away distributions: a module and a `*.dist-info` folder beside it."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest


class Installed:
    """A folder on the path into which distributions are put.

    Call it: `add("moss", source, version="1.0", entry_points={"moss": "geobind_plugin_moss"})` installs
    geobind-plugin-moss; without a source its metadata only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self, name: str, source: str | None, *, version: str = "1.0", entry_points: dict[str, str] | None = None
    ) -> None:
        module = f"geobind_plugin_{name}"
        if source is not None:
            (self.folder / f"{module}.py").write_text(dedent(source), encoding="utf-8")
        info = self.info(name, version)
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: geobind-plugin-{name}\nVersion: {version}\n")
        points = entry_points or {name: module}
        (info / "entry_points.txt").write_text("[geobind]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
        importlib.invalidate_caches()

    def info(self, name: str, version: str = "1.0") -> Path:
        """The folder with the metadata of a distribution."""
        return self.folder / f"geobind_plugin_{name}-{version}.dist-info"


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    """Installs distributions into a folder that is on the path of this process for the test."""
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield Installed(folder)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(folder)):
            del sys.modules[name]
