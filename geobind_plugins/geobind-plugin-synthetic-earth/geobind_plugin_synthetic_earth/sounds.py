"""The sources of sound and what each sounds like, as endless loops to cut recordings from.

Every source has a frequency band and a rhythm of its own, so that a spectrogram shows which of them
are there and how loud. The loops are the same on every planet: only levels differ between places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geobind_plugin_synthetic_earth.scene import Scene, amount

Wave = NDArray[np.float32]


@dataclass(frozen=True)
class Sound:
    """One source of sound.

    Attributes:
        name: What it is.
        low: Lower edge of its band, in hertz.
        high: Upper edge, in hertz.
        rhythm: Seconds ``[L]`` and a generator to loudness over time ``[L]``, 0 to 1.
        level: How much of it there is at a place, 0 to 1.
        tonal: A gliding tone and not a hiss.
    """

    name: str
    low: float
    high: float
    rhythm: Callable[[Wave, np.random.Generator], Wave]
    level: Callable[[Scene], float]
    tonal: bool = False


def _steady(seconds: Wave, generator: np.random.Generator) -> Wave:
    return np.ones_like(seconds)


def _swell(rate: float, depth: float) -> Callable[[Wave, np.random.Generator], Wave]:
    """Comes and goes ``rate`` times a second, down to ``1 - depth``; not quite regularly."""

    def rhythm(seconds: Wave, generator: np.random.Generator) -> Wave:
        phase = 2.0 * np.pi * rate * seconds + 0.8 * np.sin(seconds * rate * 2.1)
        return np.asarray(1.0 - depth * (0.5 + 0.5 * np.cos(phase)), dtype=np.float32)

    return rhythm


def _pulses(rate: float, duty: float) -> Callable[[Wave, np.random.Generator], Wave]:
    """Short calls, ``rate`` a second at random moments, each lasting ``duty / rate`` seconds."""

    def rhythm(seconds: Wave, generator: np.random.Generator) -> Wave:
        calls_in_all = int(float(seconds[-1]) * rate)
        slots = np.arange(calls_in_all) + generator.uniform(0.0, 1.0 - duty, calls_in_all)
        position = seconds * rate
        slot = np.minimum(position.astype(int), len(slots) - 1)
        inside = (position - slots[slot]) / duty
        calls = np.where((inside > 0.0) & (inside < 1.0), np.sin(np.pi * inside) ** 2, 0.0)
        return np.asarray(calls, dtype=np.float32)

    return rhythm


def _area(cover: str) -> Callable[[Scene], float]:
    """As loud as there is much of a land cover."""
    return lambda scene: amount(scene.cover(cover))


def _town(scene: Scene) -> float:
    """Machines hum where there are many and tall buildings."""
    return min(1.0, 2.0 * amount(scene.cover("built"))) * scene.building_height


def _birds(conifers: float) -> Callable[[Scene], float]:
    """Birds go by the trees: goldcrests live in conifers, warblers in the rest."""

    def level(scene: Scene) -> float:
        match = 1.0 - abs(conifers - scene.conifers)
        return float(min(1.0, scene.trees**0.6 * match**0.6))

    return level


def _insects(gold: float) -> Callable[[Scene], float]:
    """As loud as there is much grassland: cicadas where plants are golden, crickets in the rest."""
    return lambda scene: amount(scene.cover("grassland")) * (1.0 - abs(gold - scene.leaf_gold)) ** 0.6


def _doves(scene: Scene) -> float:
    """On dry land, the more of them the dustier the air."""
    return min(1.0, 3.0 * (1.0 - scene.cover("water"))) * scene.dust


SOUNDS: tuple[Sound, ...] = (
    Sound("wind", 35, 105, _swell(0.5, 0.5), lambda scene: scene.wind),
    Sound("tractor", 125, 195, _swell(11.0, 0.9), _area("cropland")),
    Sound("hum", 225, 300, _steady, _town, tonal=True),
    Sound("surf", 340, 520, _swell(0.7, 0.7), _area("water")),
    Sound("traffic", 570, 800, _swell(1.4, 0.4), lambda scene: scene.traffic),
    Sound("frogs", 900, 1130, _swell(7.0, 1.0), _area("wetland")),
    Sound("voices", 1230, 1420, _pulses(4.5, 0.6), _area("built")),
    Sound("doves", 1480, 1620, _pulses(2.5, 0.6), _doves, tonal=True),
    Sound("ice", 1720, 2020, _pulses(6.0, 0.2), _area("snow"), tonal=True),
    Sound("gulls", 2150, 2550, _pulses(3.0, 0.5), _area("beach"), tonal=True),
    Sound("warblers", 2750, 3150, _pulses(5.0, 0.5), _birds(conifers=0.0), tonal=True),
    Sound("goldcrests", 3300, 3700, _pulses(9.0, 0.5), _birds(conifers=1.0), tonal=True),
    Sound("brook", 3850, 4200, _swell(16.0, 0.5), lambda scene: scene.relief),
    Sound("crickets", 4320, 4540, _swell(22.0, 1.0), _insects(gold=0.0)),
    Sound("cicadas", 4640, 4860, _swell(9.0, 0.7), _insects(gold=1.0)),
    Sound("sand", 5000, 5450, _swell(1.0, 0.6), _area("desert")),
    Sound("leaves", 5650, 6250, _swell(2.5, 0.6), _area("forest")),
    Sound("stones", 6450, 6750, _pulses(8.0, 0.15), _area("rock")),
    Sound("rain", 6950, 7800, _steady, lambda scene: scene.rain),
)


def make_loop(sound: Sound, seed: int, sample_rate: int, length: int) -> Wave:
    """Renders a loop of one source.

    Args:
        sound: The source.
        seed: Where its randomness comes from.
        sample_rate: In hertz. What lies above half of it is silent.
        length: In samples.

    Returns:
        The loop, of root mean square 1 (0 where it cannot be heard), ``[length]``.
    """
    generator = np.random.default_rng(seed)
    seconds = np.arange(length, dtype=np.float32) / np.float32(sample_rate)
    if sound.low >= sample_rate / 2:
        return np.zeros(length, dtype=np.float32)
    if sound.tonal:
        carrier = _gliding_tone(sound, generator, length, sample_rate)
    else:
        carrier = _band_noise(sound, generator, length, sample_rate)
    wave = carrier * sound.rhythm(seconds, generator)
    return np.asarray(wave / np.sqrt(np.mean(np.square(wave)) + 1e-12), dtype=np.float32)


def _band_noise(sound: Sound, generator: np.random.Generator, length: int, sample_rate: int) -> Wave:
    """Noise within the band, with soft edges."""
    spectrum = np.fft.rfft(generator.normal(size=length))
    frequency = np.fft.rfftfreq(length, 1.0 / sample_rate)
    edge = 0.12 * (sound.high - sound.low)
    shape = np.clip(np.minimum(frequency - sound.low, sound.high - frequency) / edge, 0.0, 1.0)
    return np.asarray(np.fft.irfft(spectrum * shape, length), dtype=np.float32)


def _gliding_tone(sound: Sound, generator: np.random.Generator, length: int, sample_rate: int) -> Wave:
    """Two tones that wander through the band, as a call does."""
    seconds = np.arange(length) / sample_rate
    middle, reach = (sound.low + sound.high) / 2.0, (sound.high - sound.low) / 2.5
    wave = np.zeros(length)
    for rate in generator.uniform(1.5, 4.0, size=2):
        glide = np.sin(2.0 * np.pi * rate * seconds + generator.uniform(0.0, 6.28))
        phase = 2.0 * np.pi * np.cumsum(middle + reach * glide) / sample_rate
        wave += np.sin(phase)
    return np.asarray(wave, dtype=np.float32)
