"""The default chain: the `stages.yaml` at the root of the repository, shipped in the wheel."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from geobind_core.errors import InputError
from geobind_core.files import write_text

_IN_THE_WHEEL = "default_stages.yaml"


def default_chain() -> str:
    """Returns the text of the default chain."""
    shipped = files("geobind_core") / _IN_THE_WHEEL
    if shipped.is_file():
        return shipped.read_text(encoding="utf-8")
    # An editable installation has the repository itself.
    return (Path(__file__).parents[2] / "stages.yaml").read_text(encoding="utf-8")


def write_default(path: Path) -> None:
    """Writes the default chain.

    Raises:
        InputError: The file exists, or cannot be written.
    """
    if path.exists():
        raise InputError("exists already.", place=str(path), hint="Give another name: geobind init my_chain.yaml")
    try:
        write_text(path, default_chain())
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}.", place=str(path)) from error
