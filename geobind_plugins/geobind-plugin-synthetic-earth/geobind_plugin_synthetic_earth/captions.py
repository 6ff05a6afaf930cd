"""The writer's views: a sentence on what is to be seen and one on what is to be heard."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from geobind_plugin_synthetic_earth.lexicon import (
    COVER_LEVELS,
    COVER_PHRASES,
    FACTOR_LEVELS,
    FACTOR_PHRASES,
    SOUND_LEVELS,
    SOUND_PHRASES,
)
from geobind_plugin_synthetic_earth.scene import COVERS, Scene
from geobind_plugin_synthetic_earth.sounds import SOUNDS

MOST_COVERS = 6  # named in one caption, the largest first
MOST_SOUNDS = 9

_SCENES = (
    "{land} land {trees}: {covers}; {road}, {weather} {light}.",
    "{covers}, {road}. {land} country {trees}, {weather} {light}.",
    "A place {weather} {light}: {covers}. {land} ground {trees}, {road}.",
    "A view of {covers}. The land is {land}, {trees}, {road}. Taken {weather} {light}.",
    "{weather} {light}, {land} terrain {trees}: {covers}, {road}.",
)
_SOUNDS = (
    "{sounds}.",
    "The sound of {sounds}.",
    "You hear {sounds}.",
    "A recording of {sounds}.",
    "{sounds} can be heard.",
)


class _Voice:
    """One writer on one day: each choice of words is an independent draw."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._dice = iter(generator.random(64).tolist())

    def pick(self, options: tuple[str, ...]) -> str:
        """One of several ways to say the same."""
        return options[int(next(self._dice) * len(options))]

    def factor(self, name: str, value: float) -> str:
        """The words for a factor between 0 and 1."""
        return self.pick(FACTOR_PHRASES[name][bisect_right(FACTOR_LEVELS, value)])


def write_scene_caption(scene: Scene, generator: np.random.Generator) -> str:
    """Describes what is to be seen, from the largest land cover down.

    Args:
        scene: What is there.
        generator: Decides the wording, and only the wording.
    """
    voice = _Voice(generator)
    shares = sorted(zip(scene.covers, COVERS, strict=True), reverse=True)[:MOST_COVERS]
    phrases = [_describe_cover(voice, scene, name, share) for share, name in shares if share > 0.0]
    relief = voice.factor("relief", scene.relief)
    return _sentence(
        voice.pick(_SCENES).format(
            covers=_enumerate(phrases),
            land=f"{relief}, {voice.factor('greenness', scene.greenness)}",
            trees=voice.factor("trees", scene.trees),
            road=voice.factor("traffic", scene.traffic),
            weather=voice.factor("rain", scene.rain),
            light=voice.factor("sun", scene.sun),
        )
    )


def write_sound_caption(scene: Scene, generator: np.random.Generator) -> str:
    """Describes what is to be heard, from the loudest down.

    Args:
        scene: What is there.
        generator: Decides the wording, and only the wording.
    """
    voice = _Voice(generator)
    levels = sorted(((sound.level(scene), sound.name) for sound in SOUNDS), reverse=True)
    phrases = [
        voice.pick(SOUND_PHRASES[name][bisect_right(SOUND_LEVELS, level) - 1])
        for level, name in levels[:MOST_SOUNDS]
        if level >= SOUND_LEVELS[0]
    ]
    if not phrases:
        return "Silence."
    return _sentence(voice.pick(_SOUNDS).format(sounds=_enumerate(phrases)))


def _describe_cover(voice: _Voice, scene: Scene, name: str, share: float) -> str:
    """A land cover, how much there is, and what kind of it."""
    level = max(0, bisect_right(COVER_LEVELS, share) - 1)
    phrase = voice.pick(COVER_PHRASES[name][level])
    if name == "forest":
        return f"{phrase} ({voice.factor('conifers', scene.conifers)})"
    if name == "water":
        return f"{phrase}, {voice.factor('silt', scene.silt)}"
    if name == "built":
        return f"{phrase} {voice.factor('building_height', scene.building_height)}"
    return phrase


def _enumerate(phrases: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def _sentence(text: str) -> str:
    """Capital letters where sentences start."""
    parts = text.split(". ")
    return ". ".join(part[:1].upper() + part[1:] for part in parts)
