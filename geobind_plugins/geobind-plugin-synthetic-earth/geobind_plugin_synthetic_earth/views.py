"""The views of a place: what the synthetic Earth can show of it.

A view is a column. To add one (a species, a second ground resolution), write a function from a
scene to a cell and append a :class:`View` to a source of your own::

    class MyEarth(SyntheticEarth):
        name = "my_earth"
        views = (*VIEWS, View("close_up", render_close_up, suffix=".jpg"))
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from geobind_plugin_synthetic_earth.scene import Scene


@dataclass(frozen=True)
class Settings:
    """What decides the content of a planet's files.

    Attributes:
        places: Number of places.
        held_out: Number of those that are for testing.
        seed: The planet.
        satellite_pixels: Side of a satellite tile.
        ground_pixels: Side of a ground photo.
        sample_rate: Of the recordings, in hertz.
        seconds: Length of a recording.
    """

    places: int
    held_out: int
    seed: int
    satellite_pixels: int
    ground_pixels: int
    sample_rate: int
    seconds: float


Render = Callable[[Scene, np.random.Generator, Settings], bytes | str]


@dataclass(frozen=True)
class View:
    """One way to observe a place.

    Attributes:
        name: Name of the column and of the folder.
        render: From a scene, a generator of the view's own and the settings to the content of a
            file or to a cell. A function at the top of a module: it travels to other processes.
        suffix: Ending of the file's name; ``None`` if the cell itself holds a text.
        version: Raise it when the function draws something else; it makes files anew.
    """

    name: str
    render: Render
    suffix: str | None = None
    version: int = 1

    def generator(self, settings: Settings, place: int) -> np.random.Generator:
        """The view's own randomness at a place: shared with no other view and no other place."""
        return np.random.default_rng([settings.seed, place, zlib.crc32(self.name.encode())])


def satellite(scene: Scene, generator: np.random.Generator, settings: Settings) -> bytes:
    """The tile from above, as JPEG."""
    from geobind_plugin_synthetic_earth.canvas import to_jpeg
    from geobind_plugin_synthetic_earth.satellite import render_satellite

    return to_jpeg(render_satellite(scene, generator, settings.satellite_pixels))


def ground_image(scene: Scene, generator: np.random.Generator, settings: Settings) -> bytes:
    """The photo from the ground, as JPEG."""
    from geobind_plugin_synthetic_earth.canvas import to_jpeg
    from geobind_plugin_synthetic_earth.ground import render_ground_image

    return to_jpeg(render_ground_image(scene, generator, settings.ground_pixels))


def audio(scene: Scene, generator: np.random.Generator, settings: Settings) -> bytes:
    """The recording, as FLAC."""
    from geobind_plugin_synthetic_earth.soundscape import render_soundscape, to_flac

    recording = render_soundscape(scene, generator, settings.sample_rate, settings.seconds)
    return to_flac(recording, settings.sample_rate)


def text(scene: Scene, generator: np.random.Generator, settings: Settings) -> str:
    """What is to be seen, in words."""
    from geobind_plugin_synthetic_earth.captions import write_scene_caption

    return write_scene_caption(scene, generator)


def sound_text(scene: Scene, generator: np.random.Generator, settings: Settings) -> str:
    """What is to be heard, in words."""
    from geobind_plugin_synthetic_earth.captions import write_sound_caption

    return write_sound_caption(scene, generator)


VIEWS: tuple[View, ...] = (
    View("satellite", satellite, suffix=".jpg"),
    View("ground_image", ground_image, suffix=".jpg"),
    View("audio", audio, suffix=".flac"),
    View("text", text),
    View("sound_text", sound_text),
)
