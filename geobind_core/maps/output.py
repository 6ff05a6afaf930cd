"""Whether the files of a map may be written."""

from __future__ import annotations

from pathlib import Path

from geobind_core.errors import ConfigError, DataError
from geobind_core.maps.geotiff import is_map
from geobind_core.maps.picture import is_picture


def require_room(path: Path, picture: Path | None) -> None:
    """Makes sure that the files may be written, before the work is done.

    Raises:
        ConfigError: A name has the wrong ending, or its folder is not there.
        DataError: Another file is in the way.
    """
    for file, suffixes, ours in ((path, (".tif", ".tiff"), is_map), (picture, (".png",), is_picture)):
        if file is None:
            continue
        if file.suffix.lower() not in suffixes:
            raise ConfigError(f"expected the name of a {suffixes[0]} file.", place=str(file))
        if not file.absolute().parent.is_dir():
            raise ConfigError("there is no such folder.", place=str(file.parent))
        if file.exists() and not ours(file):
            raise DataError(
                "a file is here that `geobind map` did not write.",
                place=str(file),
                hint="Choose another name, or remove it yourself.",
            )
