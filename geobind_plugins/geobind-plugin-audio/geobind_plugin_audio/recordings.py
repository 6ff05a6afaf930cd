"""Recordings as they are stored: opened without decoding, decoded where they are wanted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import soundfile
import torch

from geobind_core import DataError
from geobind_plugin_audio.mp3 import Mp3, find_frames
from geobind_plugin_audio.resampling import Rates

_MOST_CHANNELS = 64  # more are the samples of an array [channels, N]
_MOST_HERTZ = 10_000_000
_MOST_FRAMES = 1 << 36  # that FLAC can count
_UNKNOWN = 1 << 62  # what libsndfile says of a FLAC that was written into a pipe
_BLOCK = 1 << 20  # numbers decoded at a time
_LOUDEST = 1e10  # its square, added up over a Fourier transform, is a number still
_MP3_HERTZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_READABLE = "Expected MP3, FLAC, Ogg, WAV, or another format that libsndfile reads."


@dataclass(frozen=True)
class Recording:
    """A recording that is not decoded yet.

    It can be sent to other processes. `nbytes` tells the engine what it would hold on to: a file is decoded
    again each time, so that there is nothing to keep.

    Attributes:
        source: A file, the content of one, or samples `[N]` float32.
        rate: Samples per second.
        channels: Number of channels.
        frames: Samples of a channel, as the file says.
        format: `MP3`, `FLAC`, …, as libsndfile calls them, with what is in them.
        mp3: Where the frames of an MP3 lie.
        believed: Whether it was not found yet that the file has fewer frames than it said.
    """

    source: Path | bytes | npt.NDArray[np.float32]
    rate: int
    channels: int
    frames: int
    format: str
    mp3: Mp3 | None = None
    believed: bool = True

    @property
    def nbytes(self) -> float:
        return self.source.nbytes if isinstance(self.source, np.ndarray) else math.inf

    def heard(self, rate: int, wanted: int, place: Callable[[int], int]) -> torch.Tensor:
        """Returns a stretch of the resampled recording, mono, or all of one that is no longer.

        Args:
            rate: Samples per second to be.
            wanted: Length of the stretch, in samples.
            place: Chooses its start, given the last one possible.

        Returns:
            `[wanted]` float32, fewer of a shorter recording.

        Raises:
            DataError: There are no samples, or none that can be decoded or are numbers.
        """
        rates = Rates(self.rate, rate)
        length = rates.length(self.frames)
        start = place(length - wanted) if length > wanted else 0
        needed = rates.stretch(start, min(wanted, length), self.frames)
        samples, reason = self._decoded(needed.begin, needed.end)
        if len(samples) < needed.end - needed.begin and self.believed:
            there = self._frames_before(needed.end)
            if 0 < there < needed.end:
                return replace(self, frames=there, believed=False).heard(rate, wanted, place)
        if len(samples) == 0:
            raise DataError(f"the recording cannot be decoded: {reason or 'nothing comes of it'}.")
        # A maximum is no number where one of them is none.
        if not float(samples.abs().max()) < _LOUDEST:
            raise DataError("the recording has samples that are not finite.")
        return rates.resample(samples)[needed.spare : needed.spare + wanted]

    def _decoded(self, start: int, stop: int) -> tuple[torch.Tensor, str]:
        """Returns the samples from `start` up to `stop`, all channels averaged, or those that are there, and why."""
        if isinstance(self.source, np.ndarray):
            return torch.from_numpy(self.source[start:stop]), ""
        parts, reason = [torch.empty(0)], ""
        with _file(self.source) as file:
            try:
                if self.mp3 is None:
                    with soundfile.SoundFile(file) as sound:
                        sound.seek(start)
                        parts.extend(_blocks(sound, stop - start))
                else:
                    content, before = self.mp3.cut(file, start, stop)
                    with soundfile.SoundFile(BytesIO(content)) as sound:
                        parts.extend(_blocks(sound, before + stop - start))  # mpg123 seeks too close
                        parts = [torch.cat(parts)[before:]]
            except soundfile.LibsndfileError as error:
                reason = _reason(error)
        return torch.cat(parts), reason

    def _frames_before(self, end: int) -> int:
        """Returns up to where a file can be decoded, within a part in 256 and never more; it ends before `end`."""

        def is_there(frame: int) -> bool:
            return len(self._decoded(frame, frame + 1)[0]) == 1

        low, high = 0, min(end, 1 << 18)
        while high < end and is_there(high - 1):  # looking far behind the end of a file takes longest
            low, high = high, min(end, 2 * high)
        while high - low > low >> 8:
            middle = (low + high) // 2
            if is_there(middle):
                low = middle + 1
            else:
                high = middle
        return low


def _blocks(sound: soundfile.SoundFile, left: int) -> Iterator[torch.Tensor]:
    """Decodes from where a file stands, a part at a time: a header may promise any number of channels."""
    while left > 0:
        block = sound.read(min(left, _BLOCK // sound.channels), dtype="float32", always_2d=True)
        if len(block) == 0:
            return
        left -= len(block)
        mono = block[:, 0].copy()
        for channel in range(1, sound.channels):  # many times as fast as a mean over rows of two
            mono += block[:, channel]
        mono /= sound.channels
        yield torch.from_numpy(mono)


def opened(cell: Any) -> Recording:
    """Opens a cell of a table: a path, bytes, `(samples, sample_rate)`, or either as Hugging Face has them.

    Raises:
        OSError: The file cannot be read.
        DataError: It is no recording, or the cell nothing of the kind.
    """
    if isinstance(cell, dict) and cell.get("array") is not None:  # an audio column as Hugging Face decodes it
        cell = (cell["array"], cell["sampling_rate"])
    elif isinstance(cell, dict) and ("bytes" in cell or "path" in cell):
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if isinstance(cell, tuple) and len(cell) == 2:
        recording = _of_samples(cell[0], int(cell[1]))
    elif isinstance(cell, str | Path):
        recording = _of_file(Path(cell))
    elif isinstance(cell, bytes | bytearray | memoryview):
        recording = _of_file(bytes(cell))
    else:
        raise DataError(f"expected a path, bytes or (samples, sample_rate), found {type(cell).__name__}.")
    if not 1 <= recording.rate <= _MOST_HERTZ:
        raise DataError(f"the recording has a sample rate of {recording.rate} Hz, which is no recorder's.")
    if recording.frames == 0:
        raise DataError("the recording has no samples.")
    return recording


def _of_samples(found: Any, rate: int) -> Recording:
    samples = _as_floats(np.asarray(found))
    if samples.ndim not in (1, 2) or samples.size == 0 or (samples.ndim == 2 and samples.shape[1] > _MOST_CHANNELS):
        raise DataError(f"expected samples [N] or [N, channels], found shape {samples.shape}.")
    channels = samples.shape[1] if samples.ndim == 2 else 1
    mono = samples.mean(axis=1, dtype=np.float32) if samples.ndim == 2 else samples
    return Recording(np.ascontiguousarray(mono), rate, channels, len(mono), "samples")


def _of_file(source: Path | bytes) -> Recording:
    with _file(source) as file:
        if not file.read(1):
            raise DataError("the file is empty.")
        mp3 = find_frames(file)
        if mp3 is None:
            file.seek(0)
            try:
                with soundfile.SoundFile(file) as sound:
                    form = f"{sound.format} {sound.subtype}"
                    recording = Recording(source, sound.samplerate, sound.channels, sound.frames, form)
            except soundfile.LibsndfileError as error:
                mp3 = find_frames(file, search=True)
                if mp3 is None:
                    raise DataError(
                        f"this is no recording that can be decoded: {_reason(error)}.", hint=_READABLE
                    ) from error
    if mp3 is not None:
        return Recording(source, mp3.kind.rate, 1 if mp3.kind.mono else 2, mp3.length, "MP3 MPEG_LAYER_III", mp3)
    if recording.frames < _UNKNOWN:
        return recording
    content = source if isinstance(source, bytes) else source.read_bytes()
    endless = replace(recording, source=_without_end(content))
    return replace(endless, frames=endless._frames_before(_MOST_FRAMES))


def _without_end(content: bytes) -> bytes:
    """Returns a FLAC of unknown length as one of the greatest, for in the former libFLAC cannot go to all places."""
    at = content.find(b"fLaC") + 21  # 36 bits of the first block, which is there
    return content[:at] + bytes((content[at] | 15,)) + b"\xff" * 4 + content[at + 5 :]


class _Nameless(BufferedReader):
    """A file that soundfile cannot take for raw samples because of its name: what is in it decides what it is."""

    name = ""


def _file(source: Path | bytes | npt.NDArray[np.float32]) -> BinaryIO:
    return _Nameless(FileIO(source)) if isinstance(source, Path) else BytesIO(cast(bytes, source))


def _reason(error: soundfile.LibsndfileError) -> str:
    """Returns what libsndfile says, which is nothing sometimes."""
    return (error.error_string or f"libsndfile's error {error.code}").strip().rstrip(".")


def _as_floats(samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Returns samples in [-1, 1]; whole numbers are scaled as in a WAV file."""
    if samples.dtype == np.uint8:  # WAV has 8 bits without a sign, and silence at 128
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float32) / np.float32(-float(np.iinfo(samples.dtype).min))
    return samples.astype(np.float32)


def as_mp3(samples: torch.Tensor, rate: int) -> bytes:
    """Returns samples `[N]` as an MP3, which all browsers play, at the next rate that MP3 has."""
    possible = next((known for known in _MP3_HERTZ if known >= rate), _MP3_HERTZ[-1])
    heard = Rates(rate, possible).resample(samples).clamp(-1, 1)
    content = BytesIO()
    soundfile.write(content, heard.numpy(), possible, format="MP3")
    return content.getvalue()
