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
from geobind_plugin_synthetic_earth.scene import (
    BEACH,
    COVERS,
    CROPLAND,
    FOREST,
    GRASSLAND,
    SNOW,
    WATER,
    WETLAND,
    Scene,
)
from geobind_plugin_synthetic_earth.sounds import SOUNDS

MOST_COVERS = 5  # named in one caption, the largest first
BRIEF = 0.04  # of the captions name the largest and nothing else: many of these are the same
BRIEF_BY_THE_SEA = 0.12  # where most would say the same
MOST_SOUNDS = 9
LEAST_WAVES = 0.1  # share of water from which a beach has waves

_SCENES = (
    "{land} land {trees}, {ground}: {covers}; {road}, {weather} {light}, {air}.",
    "{covers}, {road}. {land} country {trees}, {ground}, {weather} {light}, {air}.",
    "A view of {covers}. The land is {land}, {trees}, {ground}, {road}. Taken {weather} {light}, {air}.",
)
_WAVES = "waves on a beach"
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

    def happens(self, share: float) -> bool:
        """True in a share of all cases."""
        return bool(next(self._dice) < share)

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
    if voice.happens(BRIEF_BY_THE_SEA if _has_waves(scene) else BRIEF):
        return _sentence(_name_cover(voice, scene, *shares[0]))
    phrases = [_describe_cover(voice, scene, share, name) for share, name in shares if share > 0.0]
    relief = voice.factor("relief", scene.relief)
    return _sentence(
        voice.pick(_SCENES).format(
            covers=_enumerate(phrases),
            ground=_describe_ground(voice, scene),
            air=voice.factor("dust", scene.dust),
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


def _name_cover(voice: _Voice, scene: Scene, share: float, name: str) -> str:
    """The land cover in a few words. By the sea these are about the sea."""
    return _WAVES if _has_waves(scene) else _say_how_much(voice, share, name)


def _say_how_much(voice: _Voice, share: float, name: str) -> str:
    """A land cover and how much there is."""
    return voice.pick(COVER_PHRASES[name][max(0, bisect_right(COVER_LEVELS, share) - 1)])


def _describe_cover(voice: _Voice, scene: Scene, share: float, name: str) -> str:
    """A land cover, how much there is, and what kind of it."""
    phrase = _say_how_much(voice, share, name)
    if name == "beach" and _has_waves(scene):
        return _WAVES
    if name == "forest":
        return f"{phrase} ({voice.factor('conifers', scene.conifers)})"
    if name == "water":
        return f"{phrase}, {voice.factor('silt', scene.silt)}"
    if name == "built":
        return f"{phrase} {voice.factor('building_height', scene.building_height)}"
    return phrase


def _has_waves(scene: Scene) -> bool:
    """There is a beach, and enough water for waves on it."""
    return scene.covers[BEACH] > 0.0 and scene.covers[WATER] > LEAST_WAVES


def _describe_ground(voice: _Voice, scene: Scene) -> str:
    """Colours of plants and soil, so far as there is any to be seen."""
    plants = sum(scene.covers[number] for number in (FOREST, GRASSLAND, CROPLAND, WETLAND))
    bare = 1.0 - scene.covers[WATER] - scene.covers[SNOW] - scene.covers[FOREST]
    leaves = f"{voice.factor('leaf_gold', scene.leaf_gold)} leaves" if plants > 0.0 else "no leaves"
    soil = f"{voice.factor('soil_dark', scene.soil_dark)} {voice.factor('soil_red', scene.soil_red)} earth"
    return f"{leaves}, {soil if bare > 0.0 else 'no earth'}"


def _enumerate(phrases: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def _sentence(text: str) -> str:
    """Capital letters where sentences start."""
    parts = text.split(". ")
    return ". ".join(part[:1].upper() + part[1:] for part in parts)
