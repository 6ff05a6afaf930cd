"""Files that are not on this machine: by their addresses, through fsspec."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from geobind_core.errors import DataError
from geobind_core.plugins.source import Reference

T = TypeVar("T")

_ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs",
    "http": "aiohttp", "https": "aiohttp", "hf": "huggingface_hub", "sftp": "paramiko", "ssh": "paramiko",
    "oci": "ocifs", "oss": "ossfs", "smb": "smbprotocol", "webdav": "webdav4",
}  # fmt: skip
_VERSIONS = ("ETag", "etag", "md5Hash", "LastModified", "Last-Modified", "mtime", "created")
_WAITS = (1.0, 4.0)  # seconds before the second and the third attempt
_OF_THIS_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_SILENCE = 60.0  # seconds without a byte


@dataclass(frozen=True)
class RemoteFile(Reference):
    """A file at an address, read as a whole when it is asked for."""

    url: str

    def identity(self) -> bytes:
        """Its address: whether another file is there by now is not asked."""
        return self.url.encode("utf-8", "surrogatepass")

    def read(self, *, is_file: bool) -> bytes:
        """Returns its content.

        Raises:
            DataError: It cannot be read.
        """
        return read_bytes(self.url)


def is_url(text: str) -> bool:
    """Whether a text is an address of another machine, such as `s3://bucket/key`, and not a path."""
    return _ADDRESS.match(text) is not None and not text.startswith("file://")


def plain(path: str) -> str:
    """Returns a path that may be written as `file:///…` as one that is not."""
    return path.removeprefix("file://") if path.startswith("file:///") else path


def located(root: Path | str, relative: str) -> Path | RemoteFile:
    """Returns the file that a text names.

    Args:
        root: A folder, or the address of one; relative paths start there.
        relative: A path or an address.
    """
    if is_url(relative):
        return RemoteFile(relative)
    path = Path(plain(relative))
    if isinstance(root, str) and not path.is_absolute():
        return RemoteFile(f"{root.rstrip('/')}/{relative}")
    return Path(root) / path


def shown(url: str) -> str:
    """Returns an address for messages, without passwords and signatures; a path as it is."""
    if not is_url(url):
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def read_bytes(url: str) -> bytes:
    """Returns the content of a file.

    Raises:
        DataError: It cannot be read.
    """

    def read(system: Any, path: str) -> bytes:
        content: bytes = system.cat_file(path)
        return content

    return _attempted(url, read)


def copy_to(url: str, target: Path) -> None:
    """Copies a file to this machine.

    Raises:
        DataError: It cannot be read.
        OSError: It cannot be written.
    """

    def copy(system: Any, path: str) -> None:
        system.get_file(path, str(target))

    _attempted(url, copy)


def size_and_version(url: str) -> tuple[int, str]:
    """Returns the size of a file in bytes, and a text that is another when the file is another, if there is one.

    Raises:
        DataError: It is not there, or its size is not known.
    """

    def ask(system: Any, path: str) -> Any:
        system.invalidate_cache()  # or else an old listing would answer
        return system.info(path)

    found = _attempted(url, ask)
    if not isinstance(found.get("size"), int):
        raise DataError("the server does not say how large the file is.", place=shown(url))
    return found["size"], next((f"{name} {found[name]}" for name in _VERSIONS if found.get(name)), "")


def listed(pattern: str) -> list[str]:
    """Returns the addresses that a pattern with `*` stands for, sorted.

    Raises:
        DataError: The server cannot list files.
    """

    def find(system: Any, path: str) -> list[str]:
        system.invalidate_cache()
        return sorted(str(system.unstrip_protocol(name)) for name in system.glob(path))

    return _attempted(pattern, find)


def read_if_there(url: str) -> bytes | None:
    """Returns the content of a file, or None if there is no such file.

    Raises:
        DataError: The server cannot be asked.
    """

    def read(system: Any, path: str) -> bytes | None:
        try:
            content: bytes = system.cat_file(path)
        except FileNotFoundError:
            return None
        return content

    return _attempted(url, read)


def _attempted(url: str, work: Callable[[Any, str], T]) -> T:
    """Does something with a file, three times if need be.

    Raises:
        DataError: It did not work.
    """
    system, path = _file_system(url)
    for wait in (*_WAITS, None):
        try:
            return work(system, path)
        # Each of the many systems has errors of its own; most are of the network, and pass.
        except Exception as caught:
            error = _reason(caught)
            if isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE:
                raise
            if isinstance(error, FileNotFoundError):
                raise DataError("no such file.", place=shown(url)) from None
            if isinstance(error, PermissionError | NotImplementedError | ValueError):
                raise DataError(f"{type(error).__name__}: {error}.", place=shown(url)) from error
            if wait is None:
                raise DataError(
                    f"it cannot be read: {type(error).__name__}: {error}.",
                    place=shown(url),
                    hint="Three attempts failed.",
                ) from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def _reason(error: Exception) -> BaseException:
    """Returns what went wrong. fsspec finds no file where it finds no server, or one in trouble."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None:
        return error
    no_server = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    return cause if no_server or getattr(cause, "status", 404) not in (404, 410) else error


def _file_system(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system for an address, and the path there.

    It is asked for anew each time: fsspec keeps its systems, and knows which of them a forked process must not use.

    Raises:
        DataError: There is none, or a package is missing.
    """
    import fsspec

    protocol = urlsplit(url).scheme.lower()
    if "::" in url:
        raise DataError("expected one address, found several joined by `::`.", place=shown(url))
    options: dict[str, Any] = {}
    try:
        if protocol in ("http", "https"):
            import aiohttp

            # aiohttp gives up after five minutes, however well the copying goes.
            waits = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
            options["client_kwargs"] = {"timeout": waits}
        system, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        raise DataError(
            f"'{protocol}://' needs a package that is not installed{'' if package else f': {error}'}.",
            place=shown(url),
            hint=f"pip install {package}" if package else "",
        ) from None
    except ValueError as error:
        raise DataError(f"no way to read '{protocol}://': {error}", place=shown(url)) from None
    return system, str(path)
