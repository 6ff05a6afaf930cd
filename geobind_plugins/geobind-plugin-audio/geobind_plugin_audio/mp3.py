"""Which bytes of an MP3 hold which samples.

An MP3 is a row of small frames without an index. libsndfile believes what the first of them says; where that
gives no count it guesses the length from one bitrate, and of a recording with a variable one it plays a part.
So frames are counted here, by their headers alone, and only those that hold the wanted samples are handed on,
with a count in front. Tags, junk and the half frame at the end of a broken download stay out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

_CHUNK = 1 << 20
_JUNK = 1 << 16  # bytes of it in a row after which a recording is over
_DECODER_DELAY = 529  # samples that any decoder puts in front
# The sound of a frame may begin in the frames before it, and adds to that of the next.
_LENT = 511  # bytes, headers and side information not counted
_OVERLAP = 2
_KBITS = (
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
)
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


class _Kind(NamedTuple):
    """What the headers of all frames of a recording have in common."""

    version: int  # 3 is MPEG 1, 2 is MPEG 2, 0 is MPEG 2.5
    rate_bits: int
    mono: bool

    @property
    def rate(self) -> int:
        return _RATES[self.version][self.rate_bits]

    @property
    def samples(self) -> int:
        return 1152 if self.version == 3 else 576

    @property
    def second_byte(self) -> int:
        return 0xE2 | self.version << 3  # layer III; with a checksum behind the header, without it one more

    @property
    def side_bytes(self) -> int:
        """How many bytes behind the header say how the others are to be read."""
        if self.version == 3:
            return 17 if self.mono else 32
        return 9 if self.mono else 17

    def size(self, third_byte: int) -> int:
        """Returns the bytes of a frame by its header's third byte; 0 if it is of another kind."""
        kbits = _KBITS[self.version == 3][third_byte >> 4]
        if not kbits or third_byte >> 2 & 3 != self.rate_bits:
            return 0
        return self.samples // 8 * 1000 * kbits // self.rate + (third_byte >> 1 & 1)

    def silence(self, announced: int | None = None) -> bytes:
        """Returns a frame without sound, which may announce a number of frames as encoders do."""
        third_byte = 0x90 | self.rate_bits << 2  # 128 kbit/s, or 80: there is room enough
        header = bytes((0xFF, self.second_byte | 1, third_byte, 0xC0 if self.mono else 0))
        tag = b"" if announced is None else b"Info" + (1).to_bytes(4, "big") + announced.to_bytes(4, "big")
        return (header + bytes(self.side_bytes) + tag).ljust(self.size(third_byte), b"\0")


@dataclass(frozen=True)
class Mp3:
    """The frames of a recording.

    Attributes:
        kind: What they have in common.
        starts: `[F]` where frames start in the file.
        ends: `[F]` where they end.
        skip: Samples that encoder and decoder put in front of the recording.
        length: Samples of the recording itself; none where not even one frame is whole.
    """

    kind: _Kind
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    skip: int
    length: int

    def cut(self, file: BinaryIO, start: int, stop: int) -> tuple[bytes, int]:
        """Returns an MP3 that holds the samples from `start` up to `stop`, and how many others come before them."""
        samples = self.kind.samples
        played = max(0, (start + self.skip) // samples - _OVERLAP)
        first = self._lender(played)
        last = min(len(self.starts), -(-(stop + self.skip) // samples) + 1)
        offset = int(self.starts[first])
        file.seek(offset)
        content = file.read(int(self.ends[last - 1]) - offset)
        spans = zip((self.starts[first:last] - offset).tolist(), (self.ends[first:last] - offset).tolist(), strict=True)
        frames = [content[start:end] for start, end in spans]
        # What these would need themselves is not there.
        frames[: played - first] = [self._muted(frame) for frame in frames[: played - first]]
        # libsndfile leaves out the decoder's delay: here, of a frame of silence that is there for it.
        front = [self.kind.silence(announced=1 + len(frames)), self.kind.silence()]
        return b"".join(front + frames), start + self.skip - (first - 1) * samples - _DECODER_DELAY

    def _lender(self, frame: int) -> int:
        """Returns the first of the frames in which the sound of a frame may begin."""
        lent = 0
        while frame > 0 and lent < _LENT:
            frame -= 1
            lent += int(self.ends[frame] - self.starts[frame]) - 4 - self.kind.side_bytes
        return frame

    def _muted(self, frame: bytes) -> bytes:
        """Returns a frame that plays nothing, with its bytes where they were."""
        side = 4 if frame[1] & 1 else 6  # behind a checksum
        end = side + self.kind.side_bytes
        # Where its sound begins stays, in 9 bits or 8, for decoders pass bytes on from frame to frame by it.
        kept = bytes((frame[side], frame[side + 1] & 0x80 if self.kind.version == 3 else 0))
        return frame[:side] + kept.ljust(end - side, b"\0") + frame[end:]


def find_frames(file: BinaryIO, *, search: bool = False) -> Mp3 | None:
    """Returns the frames of a file, or None if it is no MP3.

    Args:
        file: Is read from its beginning, a part at a time.
        search: Whether it may begin with something else than a tag or a frame.
    """
    start = _after_tags(file)
    file.seek(start)
    head = file.read(_JUNK if search else 4)
    offset = _next_frame(head, 0, None) if search else 0
    kind = None if offset is None else _kind(head, offset)
    if offset is None or kind is None:
        return None
    return _counted(file, kind, *_walk(file, start + offset, kind))


def _kind(data: bytes, at: int) -> _Kind | None:
    """Returns what four bytes say if they are the header of a frame of layer III."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:
        return None
    version, third_byte = data[at + 1] >> 3 & 3, data[at + 2]
    if version == 1 or third_byte >> 2 & 3 == 3 or third_byte >> 4 in (0, 15):
        return None
    return _Kind(version, third_byte >> 2 & 3, data[at + 3] >> 6 == 3)


def _after_tags(file: BinaryIO) -> int:
    """Returns where the ID3 tags at the beginning of a file end."""
    position = 0
    while True:
        file.seek(position)
        head = file.read(10)
        if head[:3] != b"ID3" or len(head) < 10:
            return position
        size = 0
        for byte in head[6:]:
            size = size << 7 | byte & 0x7F
        position += 10 + size + (10 if head[5] & 0x10 else 0)


def _walk(file: BinaryIO, start: int, kind: _Kind) -> tuple[list[int], list[int]]:
    """Returns where the frames from `start` on start and end; one that is cut off is none."""
    sizes, second_byte = [kind.size(byte) for byte in range(256)], kind.second_byte
    starts: list[int] = []
    ends: list[int] = []
    file.seek(start)
    base, data, at = start, file.read(_CHUNK), 0
    while True:
        if at + _JUNK > len(data) and (more := file.read(_CHUNK)):  # there is always enough to search in
            base, data, at = base + at, data[at:] + more, 0
        if at + 4 > len(data):
            return starts, ends
        size = sizes[data[at + 2]] if data[at] == 0xFF and data[at + 1] & 0xFE == second_byte else 0
        if size and (data[at + 3] >> 6 == 3) == kind.mono:
            if at + size > len(data):
                return starts, ends
            starts.append(base + at)
            ends.append(base + at + size)
            at += size
        else:
            found = _next_frame(data, at + 1, kind)
            if found is None:
                return starts, ends
            at = found


def _next_frame(data: bytes, start: int, wanted: _Kind | None) -> int | None:
    """Returns where, after some junk, three frames follow each other; fewer are an accident."""
    at = data.find(b"\xff", start, start + _JUNK)
    while at >= 0:
        kind = _kind(data, at)
        if kind is not None and wanted in (None, kind):
            second = at + kind.size(data[at + 2])
            if _kind(data, second) == kind and _kind(data, second + kind.size(data[second + 2])) == kind:
                return at
        at = data.find(b"\xff", at + 1, start + _JUNK)
    return None


def _counted(file: BinaryIO, kind: _Kind, starts: list[int], ends: list[int]) -> Mp3:
    """Puts aside the frame that only describes the others, and with it what the encoder added."""
    frame = b""
    if starts:
        file.seek(starts[0])
        frame = file.read(ends[0] - starts[0])
    tag = frame[4 + kind.side_bytes :]
    skip, length = 0, len(starts) * kind.samples
    if tag[:4] in (b"Xing", b"Info") or frame[36:40] == b"VBRI":
        starts, ends, length = starts[1:], ends[1:], length - kind.samples
        delay, padding, said = _added(tag)
        if said is not None:
            skip = delay + _DECODER_DELAY
            end = said * kind.samples - padding + _DECODER_DELAY
            length = (min(end, length) if said >= len(starts) else length) - skip
    return Mp3(kind, np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64), skip, max(0, length))


def _added(tag: bytes) -> tuple[int, int, int | None]:
    """Returns the samples that an encoder says to have added, before and behind, and its count of frames."""
    flags = int.from_bytes(tag[4:8], "big")
    encoder = 8 + sum(size for bit, size in ((1, 4), (2, 4), (4, 100), (8, 4)) if flags & bit)
    added = tag[encoder + 21 : encoder + 24]
    if not flags & 1 or len(added) < 3:
        return 0, 0, None
    return added[0] << 4 | added[1] >> 4, (added[1] & 15) << 8 | added[2], int.from_bytes(tag[8:12], "big")
