"""A shard as it was found: where it is, and what tells it from a shard that is written over it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from geobind_core.data.remote import is_url, size_and_version
from geobind_core.errors import DataError


class ShardFile(NamedTuple):
    """A shard.

    Attributes:
        location: Its absolute path, or its address.
        size: In bytes.
        mtime_ns: When it was last changed, of a file on this machine; 0 of others.
        version: What the server says that is another when the file is another; empty if nothing, or of a path.
    """

    location: str
    size: int
    mtime_ns: int
    version: str

    @property
    def is_remote(self) -> bool:
        """Whether it must be copied before it can be read."""
        return is_url(self.location)

    @property
    def folder(self) -> str:
        """The path or the address of its folder."""
        return self.location.rpartition("/")[0]

    @property
    def name(self) -> str:
        """Its name in the folder."""
        path = urlsplit(self.location).path if self.is_remote else self.location
        return path.rpartition("/")[2]

    def identity(self) -> bytes:
        """Returns what tells it from all others, and from itself with another content."""
        stands_for = f"\0{self.size}:{self.mtime_ns}:{self.version}"
        return os.fsencode(self.location) + stands_for.encode("utf-8", "surrogatepass")


def find_shard(location: str) -> ShardFile | None:
    """Returns the shard at a path or an address; None if there is none.

    Raises:
        DataError: It is no file, or it cannot be asked for.
    """
    if is_url(location):
        size, version = size_and_version(location)
        return ShardFile(location, size, 0, version)
    path = Path(location)
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"the shard cannot be read: {error.strerror}.", place=location) from error
    if path.is_dir():
        raise DataError("expected a tar file, found a folder.", place=location, hint=f"Write {location}/*.tar")
    return ShardFile(location, found.st_size, found.st_mtime_ns, "")
