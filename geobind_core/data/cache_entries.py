"""The entries of the cache: where they are, what each is for, and how much they take."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from geobind_core.errors import RunFolderError
from geobind_core.files import read_json

ENTRY_FILE = "entry.json"
USED_FILE = "last_used"
SEGMENT_PREFIX = "seg-"
TEMPORARY_PREFIX = ".tmp-"
REMOVED_PREFIX = ".removed-"
IDS_FILE = "ids.npy"
VALUES_FILE = "values.npy"
IDS_HEADER_BYTES = 128  # what numpy writes before an array of one dimension
ID_BYTES = 16

_FORMAT = "geobind embedding cache"
_VERSION = 1
_TAG = """\
Signature: 8a477f597d28d172789f06886806bc55
# This folder is GeoBind's cache; programs for backups may leave it out. See https://bford.info/cachedir/
"""


def cache_root() -> Path:
    """Returns the cache's folder: `GEOBIND_CACHE`, or `geobind` where the user's caches are.

    Raises:
        RunFolderError: The user has no home.
    """
    own, shared = os.environ.get("GEOBIND_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        if own:
            return Path(own).expanduser().absolute()
        return (Path(shared) if shared else Path.home() / ".cache").absolute() / "geobind"
    except RuntimeError as error:
        raise RunFolderError(
            f"no folder for the cache: {error}", hint="Set GEOBIND_CACHE to a folder with room."
        ) from None


def anchors_folder(root: Path) -> Path:
    """Returns the folder of the entries."""
    return root / "anchors"


@dataclass(frozen=True)
class EntryDescription:
    """All that stored embeddings depend on besides the cell; where anything differs, it is another entry.

    Attributes:
        modality: Its name in the chain.
        plugin: The registered name of what embeds it.
        encoder: Hash of the weights.
        output: `embedding`, of unit norm in the space, or `features` of the trunk below a trained head.
        dimension: D of what is stored.
        precision: What it was computed in, such as `no` or `bf16`.
        dtype: What it is stored in.
        transform: What else decides: settings of the transform, augmentations, the seed of the views. As in JSON.
    """

    modality: str
    plugin: str
    encoder: str
    output: Literal["embedding", "features"]
    dimension: int
    precision: str
    dtype: Literal["float32", "float16"] = "float32"
    transform: Mapping[str, Any] = field(default_factory=dict)

    def key(self) -> str:
        """Returns the name of the entry's folder: 32 hexadecimal digits."""
        text = json.dumps({"version": _VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class StoredEntry:
    """An entry as it lies on the disk.

    Attributes:
        folder: Where.
        description: An `EntryDescription` as `entry.json` has it.
        created: When, as in ISO 8601.
        last_used: When a stage last opened it or wrote to it, in seconds since 1970.
        rows: How many embeddings it has; each view of a sample is one.
        size: Bytes of its files.
    """

    folder: Path
    description: Mapping[str, Any]
    created: str
    last_used: float
    rows: int
    size: int


def prepare_entry(root: Path, description: EntryDescription) -> Path:
    """Makes the folder of an entry, with what says whose it is; returns it.

    Raises:
        OSError: It cannot be written.
    """
    folder = anchors_folder(root) / description.key()
    folder.mkdir(parents=True, exist_ok=True)
    if not (root / "CACHEDIR.TAG").exists():
        with suppress(OSError):  # the root may be somebody else's
            _write(root / "CACHEDIR.TAG", _TAG)
    if not _record(folder):
        created = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"format": _FORMAT, "version": _VERSION, "key": folder.name, "created": created}
        _write(folder / ENTRY_FILE, json.dumps({**content, "description": asdict(description)}, indent=2) + "\n")
    return folder


def _write(path: Path, text: str) -> None:
    # `files.write_text` tells writers apart by their process number, which other machines have as well.
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def touch(folder: Path) -> None:
    """Notes that an entry is in use; where nothing can be written, it goes unnoted."""
    with suppress(OSError):
        if folder.is_dir():
            (folder / USED_FILE).touch()


def list_entries(root: Path) -> list[StoredEntry]:
    """Returns the entries of a cache, the last used first; none where there is no cache.

    Raises:
        RunFolderError: It cannot be read.
    """
    found = [_stored(folder) for folder in own_folders(root) if not folder.name.startswith(REMOVED_PREFIX)]
    return sorted(found, key=lambda entry: (-entry.last_used, entry.folder.name))


def own_folders(root: Path) -> list[Path]:
    """Returns the folders that carry our mark and no others, also those that are being removed.

    Raises:
        RunFolderError: The cache cannot be read.
    """
    try:
        folders = sorted(anchors_folder(root).iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunFolderError(f"the cache cannot be read: {error.strerror or error}.", place=str(root)) from error
    return [folder for folder in folders if not folder.is_symlink() and _record(folder)]


def _record(folder: Path) -> dict[str, Any]:
    """Returns what `entry.json` says, or nothing if it is not ours."""
    try:
        record = read_json(folder / ENTRY_FILE)
    except OSError:  # somebody else's
        return {}
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        return {}
    key = folder.name.rsplit("-", 1)[-1] if folder.name.startswith(REMOVED_PREFIX) else folder.name
    return record if record.get("key") == key and isinstance(record.get("description"), dict) else {}


def _stored(folder: Path) -> StoredEntry:
    record = _record(folder)
    rows = size = 0
    times = {}
    # Others write and remove meanwhile; what is gone by now takes no room.
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                found = os.stat(os.path.join(parent, name))  # noqa: PTH116, PTH118 - there may be many
                size += found.st_size
                times[name] = found.st_mtime
                if name == IDS_FILE and os.path.basename(parent).startswith(SEGMENT_PREFIX):  # noqa: PTH119
                    rows += max(0, found.st_size - IDS_HEADER_BYTES) // ID_BYTES
    last_used = times.get(USED_FILE) or max(times.values(), default=0.0)
    return StoredEntry(folder, record.get("description", {}), str(record.get("created", "")), last_used, rows, size)
