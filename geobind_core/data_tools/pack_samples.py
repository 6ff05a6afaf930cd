"""From a row to the files of a sample in a shard: copied or made smaller, checked, and named."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps, UnidentifiedImageError

from geobind_core.data.samples import describe
from geobind_core.data_tools.opened import OpenedData
from geobind_core.errors import DataError
from geobind_core.plugins.source import Reference

_LONGEST_KEY = 60  # bytes; with an extension, a name as old tar programs can read it
_PROBED = 200  # rows that tell what a column's files are
_BLOCK = 256  # rows whose values are taken out of the table at once
_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
_STARTS = (
    (b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"fLaC", "flac"), (b"OggS", "ogg"), (b"ID3", "mp3"),
    (b"II*\0", "tif"), (b"MM\0*", "tif"), (b"\xff\xfb", "mp3"), (b"\xff\xf3", "mp3"), (b"\xff\xf2", "mp3"),
)  # fmt: skip
_INSIDE_RIFF = {b"WAVE": "wav", b"WEBP": "webp"}
_SAME = {"jpeg": "jpg", "jpe": "jpg", "jfif": "jpg", "tiff": "tif", "wave": "wav"}


@dataclass(frozen=True)
class Sample:
    """What a row becomes.

    Attributes:
        key: Part of the files' names, before the first dot.
        files: Extension -> content, in the order of their names.
    """

    key: str
    files: dict[str, bytes]


@dataclass(frozen=True)
class Skipped:
    """A row that cannot be packed, and why."""

    key: str
    field: str
    reason: str


@dataclass(frozen=True)
class SampleMaker:
    """Makes samples; any number of threads may.

    Attributes:
        opened: The data set.
        extensions: Modality -> extension of its files, such as `satellite.jpg`.
        columns: Columns that go into the JSON file.
        vectors: Those of them with short lists of numbers -> how many. They go there number by number as well,
            since a field of a JSON file is one value.
        resize: Modality -> pixels of the shorter side, of images that are larger.
        quality: Of JPEG and WebP images that are made smaller.
        check: Read what is copied as training will, and leave out what cannot be read.
    """

    opened: OpenedData
    extensions: Mapping[str, str]
    columns: tuple[str, ...]
    vectors: Mapping[str, int]
    resize: Mapping[str, int]
    quality: int
    check: bool

    def rows_from(self, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields the numbers of rows and their values, from a row on."""
        observations = self.opened.observations
        table = observations.table.select(list(dict.fromkeys([*self.columns, observations.key])))
        splits = self.opened.data.split_names()
        for first in range(start, table.num_rows, _BLOCK):
            for i, values in enumerate(table.slice(first, _BLOCK).to_pylist()):
                yield first + i, {**values, "split": splits[first + i]}

    def make(self, row: int, values: Mapping[str, Any]) -> Sample | Skipped:
        """Returns the sample of a row, or why there is none."""
        key, files, field = self.opened.data.key(row), {}, ""
        try:
            for field, extension in self.extensions.items():
                content = _content(self.opened.data.unread_cell(field, row, is_file=True))
                if content is not None:
                    files[extension] = self._checked(field, content)
        except Exception as error:  # decoders raise what they like
            return Skipped(key, field, describe(error))
        if self.extensions and not files:
            return Skipped(key, "", "it has none of the files")
        fields = json.dumps(
            self._plain({**values, "key": key}), sort_keys=True, ensure_ascii=False, separators=(",", ":")
        )
        files["json"] = fields.encode("utf-8", "surrogatepass")
        return Sample(safe_key(key), dict(sorted(files.items())))

    def _checked(self, field: str, content: bytes) -> bytes:
        if field in self.resize:
            kept = smaller_image(content, self.resize[field], self.extensions[field].rpartition(".")[2], self.quality)
            if kept is not content:
                return kept
        if not content:
            raise DataError("it is empty, 0 bytes.")
        if self.check:
            self.opened.require_readable(field, content)
        return content

    def _plain(self, values: Mapping[str, Any]) -> dict[str, Any]:
        plain = {name: _as_json(value) for name, value in values.items()}
        for name, length in self.vectors.items():
            numbers = values[name] if values[name] is not None else [None] * length
            plain |= {f"{name}.{i}": _as_json(number) for i, number in enumerate(numbers)}
        return plain


def safe_key(key: str) -> str:
    """Returns a key as a file's name before the first dot; different keys have different names.

    Letters, digits, `-`, `_` and `~` stay; anything else becomes `%` and its bytes in hexadecimal, a dot among
    it, because in a shard a key ends there. A long one is cut, and a hash of all of it put behind.
    """
    name = quote(key, safe="").replace(".", "%2E")
    if len(name) <= _LONGEST_KEY:
        return name
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()
    return f"{name[: _LONGEST_KEY - len(digest) - 1]}~{digest}"


def smaller_image(content: bytes, side: int, extension: str, quality: int) -> bytes:
    """Returns an image with a shorter side of so many pixels; the very same bytes if it is small enough.

    It is turned as its EXIF data says, which is then left out; its colour profile is kept.

    Raises:
        DataError: Its pixels cannot be resized.
        OSError: It cannot be decoded.
    """
    try:
        opened = Image.open(BytesIO(content))
    except UnidentifiedImageError:  # whose text names an object in memory
        raise DataError(
            "Pillow does not know this kind of image, so it cannot be resized.", hint="Pack it as it is."
        ) from None
    with opened as image:
        width, height = image.size
        if min(width, height) <= side:
            return content
        scale = side / min(width, height)
        size = max(side, round(width * scale)), max(side, round(height * scale))
        # JPEG is decoded at a half or a quarter where that leaves three times the pixels that are wanted.
        image.draft(None, (3 * size[0], 3 * size[1]))
        if image.mode in ("P", "PA", "1"):
            image.load()
        picture: Image.Image = (
            image.convert("RGBA" if "transparency" in image.info else "RGB")
            if (image.mode in ("P", "PA", "1", "CMYK", "YCbCr"))
            else image
        )
        if picture.mode not in ("L", "LA", "RGB", "RGBA"):
            raise DataError(f"pixels of the kind {picture.mode} cannot be resized; pack them as they are.")
        resized = ImageOps.exif_transpose(picture.resize(size, Image.Resampling.LANCZOS))
        form = _FORMATS[extension]
        if form == "JPEG" and resized.mode in ("LA", "RGBA"):
            resized = resized.convert(resized.mode[:-1])
        written = BytesIO()
        profile = None if image.mode == "CMYK" else image.info.get("icc_profile")
        resized.save(written, form, quality=quality, icc_profile=profile)
    return written.getvalue()


def extension_of(opened: OpenedData, field: str) -> str:
    """Returns what most of a field's files are, such as `jpg`, by their names or, without names, their content."""
    rows = np.flatnonzero(opened.data.filled(field))
    found: Counter[str] = Counter()
    for row in rows[:: max(1, len(rows) // _PROBED)][:_PROBED].tolist():
        cell = opened.data.unread_cell(field, row, is_file=True)
        name = cell.get("path") if isinstance(cell, dict) else cell
        suffix = Path(name).suffix[1:].lower() if isinstance(name, str | Path) else ""
        if not suffix:
            try:
                suffix = _by_content(_content(cell) or b"")
            except (DataError, OSError):
                continue
        found[_SAME.get(suffix, suffix)] += 1
    return found.most_common(1)[0][0] if found else "bin"


def _by_content(content: bytes) -> str:
    if content[:4] == b"RIFF":
        return _INSIDE_RIFF.get(content[8:12], "bin")
    return next((suffix for start, suffix in _STARTS if content.startswith(start)), "bin")


def _content(cell: Any) -> bytes | None:
    """Returns the bytes that a cell stands for, or None if it is empty."""
    if isinstance(cell, dict):  # as Hugging Face writes files
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path") and Path(cell["path"])
    if isinstance(cell, Reference):
        cell = cell.read(is_file=True)
    if isinstance(cell, Path):
        return cell.read_bytes()
    if cell is None or isinstance(cell, bytes):
        return cell
    raise DataError(f"expected a file, found {type(cell).__name__}.")


def _as_json(value: Any) -> Any:
    """Returns a value as JSON has it; a number that is none is nothing there."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def is_file_like(kind: pa.DataType) -> bool:
    """Whether cells of a type hold the content of files: bytes, or those of Hugging Face with a path."""
    if pa.types.is_struct(kind):
        return any(is_file_like(kind.field(i).type) for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
