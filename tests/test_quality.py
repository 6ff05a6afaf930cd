"""The checks that every change must pass, as part of the tests: style, types, import contracts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKS = {
    "ruff format": ["ruff", "format", "--check", "."],
    "ruff check": ["ruff", "check", "."],
    "mypy": ["mypy"],
    "import-linter": ["lint-imports"],
}


@pytest.mark.parametrize("name", CHECKS)
def test_check(name: str) -> None:
    command, *arguments = CHECKS[name]
    program = shutil.which(command, path=str(Path(sys.executable).parent))
    assert program is not None, f"{command} is not installed beside {sys.executable}; run `uv sync`"
    done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_long_source_files() -> None:
    """A file past about 300 lines is asking to be two."""
    files = [*ROOT.glob("geobind_core/**/*.py"), *ROOT.glob("geobind_plugins/*/geobind_plugin_*/**/*.py")]
    long = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 300}
    assert not long
