"""A stretch of a resampled recording, from no more of the recording than it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import torch
from torchaudio.transforms import Resample

_LARGEST = 1_000_000  # numbers of a filter bank, of which there is one for each pair of rates


@dataclass(frozen=True)
class Stretch:
    """What of a recording is needed for a stretch of the resampled one.

    Attributes:
        begin: First sample of the recording.
        end: The one after the last.
        spare: Resampled samples that come out before the wanted ones.
    """

    begin: int
    end: int
    spare: int


@dataclass(frozen=True)
class Rates:
    """From one sample rate to another: as torchaudio's `resample`, with its default filter.

    Rates whose ratio takes a very large filter bank (44,101 Hz to 48,000 Hz) are taken at a ratio next to it. That is
    off by a part in two thousand at most, and mostly by less than the clocks of recorders are.

    Args:
        found: Samples per second of the recording.
        wanted: Samples per second to be.
    """

    found: int
    wanted: int

    @property
    def ratio(self) -> Fraction:
        exact = Fraction(self.found, self.wanted)
        if exact.numerator * exact.denominator <= _LARGEST:
            return exact
        return exact.limit_denominator(max(1, math.isqrt(int(_LARGEST / exact))))

    def length(self, frames: int) -> int:
        """Returns how many samples a recording has when it is resampled."""
        ratio = self.ratio
        return -(-frames * ratio.denominator // ratio.numerator)

    def stretch(self, start: int, count: int, frames: int) -> Stretch:
        """Returns what is needed for `count` resampled samples from `start` on, of a recording of so many frames."""
        every, gives = self.ratio.numerator, self.ratio.denominator
        if every == gives:
            return Stretch(start, min(frames, start + count), 0)
        width = int(_filters(every, gives).width)
        # The filters of torchaudio step by whole blocks; a stretch that begins between two would be another one.
        lead = -(-width // every)
        block = max(0, start // gives - lead)
        end = -(-(start + count) // gives) * every + width + every
        return Stretch(block * every, min(frames, end), start - block * gives)

    def resample(self, samples: torch.Tensor) -> torch.Tensor:
        """Resamples `[N]` samples."""
        every, gives = self.ratio.numerator, self.ratio.denominator
        if every == gives:
            return samples
        with torch.no_grad():
            resampled: torch.Tensor = _filters(every, gives)(samples)
        return resampled


@lru_cache(maxsize=16)
def _filters(every: int, gives: int) -> Any:
    """Returns the filters that make `gives` samples of `every` one; computing them takes longer than using them."""
    return Resample(every, gives)
