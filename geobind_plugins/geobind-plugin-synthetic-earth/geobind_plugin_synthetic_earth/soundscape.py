"""The recorder's view: a few seconds of what a place sounds like."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np

from geobind_plugin_synthetic_earth.scene import Scene
from geobind_plugin_synthetic_earth.sounds import SOUNDS, Wave, make_loop

LOOP_SEED = 303
LOOP_SAMPLES = 1 << 18  # about 16 s at 16 kHz
FAINTEST = -56.0  # decibels of full scale, root mean square, of a source that is barely there
LOUDEST = -22.0
FLOOR = -72.0  # the recorder's own noise
UNCERTAINTY = 1.0  # decibels: no two recordings of one thing are equally loud
COMPRESSION_LEVEL = 0.0  # the fastest; noise hardly compresses anyway


@lru_cache(maxsize=2)
def _loops(sample_rate: int, samples: int) -> tuple[Wave, ...]:
    """One loop per source and one of the recorder's noise, each long enough to cut anywhere."""
    length = max(LOOP_SAMPLES, 1 << (2 * samples - 1).bit_length())
    loops = [make_loop(sound, LOOP_SEED + number, sample_rate, length) for number, sound in enumerate(SOUNDS)]
    hiss = np.random.default_rng(LOOP_SEED - 1).standard_normal(length, dtype=np.float32)
    return (*loops, hiss)


def render_soundscape(scene: Scene, generator: np.random.Generator, sample_rate: int, seconds: float) -> Wave:
    """Records a place.

    Loudness is absolute: nothing is normalised, so how loud a source is says how much of it there
    is.

    Args:
        scene: What is there.
        generator: Decides the moment at which each source is heard, and nothing of the scene.
        sample_rate: In hertz.
        seconds: Length of the recording.

    Returns:
        Samples between -1 and 1, ``[seconds * sample_rate]``.
    """
    samples = round(seconds * sample_rate)
    loops = _loops(sample_rate, samples)
    starts = generator.integers(0, len(loops[0]) - samples, size=len(loops)).tolist()
    errors = generator.normal(0.0, UNCERTAINTY, size=len(loops)).tolist()
    recording = loops[-1][starts[-1] : starts[-1] + samples] * np.float32(10.0 ** (FLOOR / 20.0))
    for sound, loop, start, error in zip(SOUNDS, loops[:-1], starts, errors, strict=False):
        level = sound.level(scene)
        if level <= 0.01:
            continue
        decibels = FAINTEST + (LOUDEST - FAINTEST) * level + error
        recording += loop[start : start + samples] * np.float32(10.0 ** (decibels / 20.0))
    return np.clip(recording, -1.0, 1.0, out=recording)


def to_flac(recording: Wave, sample_rate: int) -> bytes:
    """Encodes a recording.

    Args:
        recording: Samples between -1 and 1, ``[T]``.
        sample_rate: In hertz.

    Returns:
        A FLAC file, 16 bits per sample, one channel.
    """
    import soundfile

    buffer = io.BytesIO()
    whole = np.rint(recording * np.float32(32767.0)).astype(np.int16)
    soundfile.write(
        buffer,
        whole,
        sample_rate,
        format="FLAC",
        subtype="PCM_16",
        compression_level=COMPRESSION_LEVEL,
    )
    return buffer.getvalue()
