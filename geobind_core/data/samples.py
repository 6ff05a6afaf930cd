"""From a cell to a sample: decoding, transforming, and what to do with those that cannot be read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from geobind_core.data.paired import PairedData, Rows
from geobind_core.errors import DataError
from geobind_core.plugins.modality import Modality

_LISTED = 10
_PROBES = 8


@dataclass(frozen=True)
class BadSample:
    """A cell that could not be read, and why."""

    key: str
    modality: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key} ({self.modality}): {self.reason}"


@dataclass
class BadSampleCount:
    """Counts bad samples, each row and modality once, and says when there are too many.

    Args:
        rows: How many rows there are in all.
        allowed: The share of them that may be bad.
        place: The stage or evaluation, for the message.
        setting: What says how many are allowed, for the message; None where that is fixed.
    """

    rows: int
    allowed: float
    place: str
    setting: str | None
    found: dict[tuple[str, str], BadSample] = field(default_factory=dict)

    def add(self, samples: Sequence[BadSample]) -> list[BadSample]:
        """Adds samples and returns those that are new."""
        new = {(s.key, s.modality): s for s in samples if (s.key, s.modality) not in self.found}
        self.found.update(new)
        return list(new.values())

    def require_few(self) -> None:
        """Makes sure that no more than the allowed share of rows is bad.

        Raises:
            DataError: More are.
        """
        bad_rows = len({key for key, _ in self.found})
        if bad_rows > self.allowed * self.rows:
            listed = list(self.found.values())
            lines = "\n".join(f"    {sample}" for sample in listed[:_LISTED])
            more = f"\n    … and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
            further = f"take their rows out, or raise {self.setting}." if self.setting else "or take their rows out."
            raise DataError(
                f"{bad_rows} of {self.rows} rows cannot be read, more than {self._limit()}:\n{lines}{more}",
                place=self.place,
                hint=f"Mend the files, {further}",
            )

    def _limit(self) -> str:
        most = int(self.allowed * self.rows)
        return f"{self.setting}: {self.allowed:g} allows ({most})" if self.setting else f"the {most} that are allowed"


class SampleReader:
    """Reads the samples of one modality of one data set.

    Args:
        data: The data set.
        name: The modality's name in the chain.
        modality: The modality.
        train: Whether samples train it: augmentation and random crops are on.
        seed: Samples are a pure function of this, the epoch and the key.
    """

    def __init__(self, data: PairedData, name: str, modality: Modality[Any], *, train: bool, seed: int) -> None:
        self.data = data
        self.name = name
        self.modality = modality
        self.train = train
        self.seed = seed
        self._room: float = 0
        self._decoded: dict[int, Any] = {}

    def keep_up_to(self, size: int) -> None:
        """Lets `keep` hold so many bytes of decoded samples in memory."""
        self._room = size

    def keep(self, row: int, decoded: Any) -> None:
        """Keeps what `read` returned, while there is room. For one thread, unlike `read`."""
        size = size_in_memory(decoded)
        if row not in self._decoded and size <= self._room:
            self._room -= size
            self._decoded[row] = decoded

    def read(self, row: int) -> Any:
        """Returns the decoded sample of a row, or a `BadSample`; any number of threads may read."""
        if row in self._decoded:
            return self._decoded[row]
        try:
            cell = self.data.cell(self.name, row, is_file=self.modality.reads_files)
            return self.modality.read(cell)
        # Decoders raise what they like; whatever it is, it concerns this one file.
        except Exception as error:
            return BadSample(self.data.key(row), self.name, describe(error))

    def finish(self, decoded: Any, row: int, epoch: int) -> Any:
        """Turns what `read` returned into what `collate` takes, or a `BadSample`."""
        if isinstance(decoded, BadSample):
            return decoded
        try:
            return self.modality.transform(decoded, train=self.train, rng=self._rng(row, epoch))
        except Exception as error:
            return BadSample(self.data.key(row), self.name, describe(error))

    def drawn(self, number: int, step: int) -> Any:
        """Returns an observation that the modality draws itself, ready for `collate`, or a `BadSample`."""
        rng = self._generator(f"{self.seed}:{step}:{self.name}:random {number}")
        try:
            return self.modality.transform(self.modality.draw(rng), train=self.train, rng=rng)
        except Exception as error:
            return BadSample(f"random {number} of step {step}", self.name, describe(error))

    def _rng(self, row: int, epoch: int) -> np.random.Generator:
        return self._generator(f"{self.seed}:{epoch}:{self.name}:{self.data.key(row)}")

    @staticmethod
    def _generator(text: str) -> np.random.Generator:
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def probe_rows(data: PairedData, rows: Rows) -> list[int]:
    """Returns a few of these rows: from here and there, unless a large file would have to be fetched for each."""
    step = max(1, len(rows) // _PROBES) if data.blocks is None else 1
    probes: list[int] = rows[::step][:_PROBES].tolist()
    return probes


def describe(error: BaseException) -> str:
    """Returns an error in one line."""
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"no such file: {error.filename}"
    message = getattr(error, "message", None) or str(error)
    text = " ".join(str(message).split())
    return text if isinstance(error, DataError) else f"{type(error).__name__}: {text}"


def is_decoded_later(sample: Any) -> bool:
    """Whether `transform` is what decodes a sample, each time anew, so that there is nothing to keep of it."""
    return bool(getattr(sample, "nbytes", 0) == math.inf)


def size_in_memory(sample: Any) -> float:
    """Estimates the bytes that a decoded sample takes: infinitely many if it is decoded later."""
    if hasattr(sample, "nbytes"):
        return float(sample.nbytes)
    if hasattr(sample, "getbands"):  # a PIL image
        return int(sample.width) * int(sample.height) * len(sample.getbands())
    if isinstance(sample, dict):
        return sum(size_in_memory(v) for v in sample.values())
    if isinstance(sample, list | tuple):
        return sum(size_in_memory(v) for v in sample)
    return len(sample) if isinstance(sample, str | bytes) else 64
