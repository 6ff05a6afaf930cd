"""The views: each shows what is there, and nothing else is shared between them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from geobind_plugin_synthetic_earth.canvas import lay_out
from geobind_plugin_synthetic_earth.captions import write_scene_caption, write_sound_caption
from geobind_plugin_synthetic_earth.ground import render_ground_image
from geobind_plugin_synthetic_earth.planet import REGIONAL_FIELDS, make_planet, observe, scatter_places
from geobind_plugin_synthetic_earth.satellite import render_satellite
from geobind_plugin_synthetic_earth.scene import COVERS, Scene
from geobind_plugin_synthetic_earth.sounds import SOUNDS
from geobind_plugin_synthetic_earth.soundscape import render_soundscape
from geobind_plugin_synthetic_earth.source import SyntheticEarth
from geobind_plugin_synthetic_earth.views import VIEWS, Settings, View
from numpy.typing import NDArray

SETTINGS = Settings(24, 6, 0, 64, 64, 16000, 2.0)
MakeEarth = Callable[..., SyntheticEarth]
Render = Callable[[Scene, np.random.Generator, int], NDArray[np.float32]]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    planet = make_planet(0)
    return observe(planet, scatter_places(planet, 300))


@pytest.fixture(scope="module")
def plain(scenes: list[Scene]) -> Scene:
    """A dry, calm place at noon; tests put into it what they look for."""
    return dataclasses.replace(
        scenes[0],
        covers=mixture(grassland=1.0),
        sun=1.0,
        trees=0.0,
        conifers=0.0,
        traffic=0.0,
        relief=0.0,
        wind=0.0,
        rain=0.0,
        silt=0.0,
        **dict.fromkeys(REGIONAL_FIELDS, 0.5),
    )


def mixture(**shares: float) -> tuple[float, ...]:
    return tuple(shares.get(name, 0.0) for name in COVERS)


def loudness(scene: Scene, low: float, high: float) -> float:
    """Decibels within a band."""
    recording = render_soundscape(scene, np.random.default_rng(5), 16000, 2.0)
    power = np.abs(np.fft.rfft(recording)) ** 2 / len(recording)
    frequency = np.fft.rfftfreq(len(recording), 1 / 16000)
    return float(10 * np.log10(power[(frequency >= low) & (frequency <= high)].mean()))


def test_layout_gives_the_exact_shares() -> None:
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.ones(len(COVERS)))
    scene = dataclasses.replace(_any_scene(), covers=tuple(shares.tolist()))
    maps = generator.normal(size=(3, 64, 64)).astype(np.float32)
    labels = lay_out(scene, *maps)
    found = np.bincount(labels.ravel(), minlength=len(COVERS)) / labels.size
    np.testing.assert_allclose(found, shares, atol=3 / labels.size)


def _any_scene() -> Scene:
    planet = make_planet(0)
    return observe(planet, scatter_places(planet, 1))[0]


@pytest.mark.parametrize("render", [render_satellite, render_ground_image])
@pytest.mark.parametrize("pixels", [32, 64, 200])
def test_pictures_are_finite_at_any_size(scenes: list[Scene], render: Render, pixels: int) -> None:
    for place, scene in enumerate(scenes[:15]):
        image = render(scene, np.random.default_rng(place), pixels)
        assert image.shape == (pixels, pixels, 3)
        assert np.isfinite(image).all()
        assert image.std() > 5.0


@pytest.mark.parametrize("render", [render_satellite, render_ground_image])
@pytest.mark.parametrize("only", COVERS)
def test_pictures_of_a_single_cover_can_be_drawn(plain: Scene, render: Render, only: str) -> None:
    scene = dataclasses.replace(plain, covers=mixture(**{only: 1.0}), trees=1.0, traffic=1.0)
    assert np.isfinite(render(scene, np.random.default_rng(0), 64)).all()


@pytest.mark.parametrize("render", [render_satellite, render_ground_image])
def test_pictures_show_what_is_there(plain: Scene, render: Render) -> None:
    def colour(**shares: float) -> NDArray[np.float32]:
        scene = dataclasses.replace(plain, covers=mixture(**shares))
        pictures = [render(scene, np.random.default_rng(place), 64)[32:] for place in range(4)]
        return np.asarray(np.mean(pictures, axis=(0, 1, 2)))

    sea, desert, forest, snow = (colour(**{name: 1.0}) for name in ("water", "desert", "forest", "snow"))
    assert sea[2] > sea[0] + 40  # blue
    assert desert[0] > desert[2] + 40  # orange
    assert forest[1] > max(forest[0], forest[2])  # green
    assert snow.min() > 190
    assert forest.mean() < desert.mean() < snow.mean()


@pytest.mark.parametrize("factor", REGIONAL_FIELDS)
def test_colours_of_a_region_are_seen_from_above_and_from_the_ground(plain: Scene, factor: str) -> None:
    covers = mixture(grassland=0.3, forest=0.2, cropland=0.2, desert=0.2, built=0.1)
    changes = []
    for render in (render_satellite, render_ground_image):
        low, high = (
            np.mean(
                [
                    render(dataclasses.replace(plain, covers=covers, **{factor: value}), np.random.default_rng(n), 64)
                    for n in range(4)
                ],
                axis=(0, 1, 2),
            )
            for value in (0.1, 0.9)
        )
        changes.append(high - low)
    above, ground = changes
    assert min(np.linalg.norm(above), np.linalg.norm(ground)) > 5.0
    assert above @ ground > 0.8 * np.linalg.norm(above) * np.linalg.norm(ground)


@pytest.mark.parametrize("sound", SOUNDS, ids=lambda sound: sound.name)
def test_each_source_of_sound_is_heard_in_its_own_band(scenes: list[Scene], sound: object) -> None:
    assert isinstance(sound, type(SOUNDS[0]))
    ordered = sorted(scenes, key=sound.level)
    quietest, loudest = ordered[0], ordered[-1]
    difference = sound.level(loudest) - sound.level(quietest)
    heard = loudness(loudest, sound.low, sound.high) - loudness(quietest, sound.low, sound.high)
    assert heard > 15.0 * difference > 5.0


def test_towns_have_traffic_and_woods_have_birds(plain: Scene) -> None:
    town = dataclasses.replace(plain, covers=mixture(built=1.0), traffic=0.9)
    wood = dataclasses.replace(plain, covers=mixture(forest=1.0), trees=0.9)
    assert loudness(town, 570, 800) > loudness(wood, 570, 800) + 20
    assert loudness(wood, 2750, 3150) > loudness(town, 2750, 3150) + 20


def test_recordings_are_not_normalised_and_do_not_clip(scenes: list[Scene]) -> None:
    peaks = [
        float(np.abs(render_soundscape(scene, np.random.default_rng(0), 16000, 1.0)).max()) for scene in scenes[:40]
    ]
    assert max(peaks) < 1.0
    assert np.std(peaks) > 0.03


def test_captions_vary_in_words_for_the_same_scene(scenes: list[Scene]) -> None:
    for write in (write_scene_caption, write_sound_caption):
        assert len({write(scenes[3], np.random.default_rng(draw)) for draw in range(20)}) > 3
        assert len({write(scene, np.random.default_rng(0)) for scene in scenes}) > 280


def test_captions_are_sentences_that_fit_clip(scenes: list[Scene]) -> None:
    for draw, scene in enumerate(scenes):
        for write in (write_scene_caption, write_sound_caption):
            caption = write(scene, np.random.default_rng(draw))
            assert caption[0].isupper()
            assert caption.endswith(".") or len(caption.split()) < 8
            assert "{" not in caption
            assert ".." not in caption
            assert len(caption.split()) < 60


def test_captions_say_how_much(plain: Scene) -> None:
    def words(share: float) -> str:
        covers = mixture(water=share, grassland=1.0 - share)
        return write_scene_caption(dataclasses.replace(plain, covers=covers), np.random.default_rng(0))

    assert "pond" in words(0.01)
    assert "bay" in words(0.2)
    assert "open sea" in words(0.9)


def test_captions_name_colours_that_are_there(plain: Scene) -> None:
    def words(**changes: object) -> str:
        scene = dataclasses.replace(plain, **changes)
        return write_scene_caption(scene, np.random.default_rng(0))

    caption = words(soil_red=1.0, soil_dark=0.0, leaf_gold=1.0, dust=1.0)
    assert "golden leaves" in caption
    assert "chalky red earth" in caption
    assert "in yellow dust" in caption
    at_sea = words(covers=mixture(water=1.0))
    assert "no leaves" in at_sea
    assert "no earth" in at_sea


def test_some_captions_are_brief(scenes: list[Scene]) -> None:
    lengths = np.array([len(write_scene_caption(s, np.random.default_rng(n)).split()) for n, s in enumerate(scenes)])
    assert 0.02 < np.mean(lengths < 8) < 0.1


def test_views_draw_from_streams_of_their_own() -> None:
    streams = {(view.name, place): view.generator(SETTINGS, place).random() for view in VIEWS for place in range(20)}
    assert len(set(streams.values())) == len(streams)
    again = VIEWS[0].generator(SETTINGS, 3).random()
    assert again == streams[VIEWS[0].name, 3]


def test_views_of_one_place_share_the_scene_and_nothing_else(scenes: list[Scene]) -> None:
    """With one scene everywhere, no view of a place can be told from another place's."""
    scene, places = scenes[0], 150

    def residues(view: View) -> NDArray[np.float64]:
        images = np.stack([_pixels(view, scene, place) for place in range(places)])  # [places, features]
        images -= images.mean(axis=0)
        return np.asarray(images / np.linalg.norm(images, axis=1, keepdims=True))

    tiles, photos = (residues(view) for view in VIEWS[:2])
    similarity = tiles @ photos.T
    matching, others = np.diag(similarity), similarity[~np.eye(places, dtype=bool)]
    assert abs(matching.mean() - others.mean()) < 4 * others.std() / np.sqrt(places)


def _pixels(view: View, scene: Scene, place: int) -> NDArray[np.float64]:
    render = {"satellite": render_satellite, "ground_image": render_ground_image}[view.name]
    image = render(scene, view.generator(SETTINGS, place), 64)
    return np.asarray(image.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)), dtype=np.float64).ravel()


def close_up(scene: Scene, generator: np.random.Generator, settings: Settings) -> str:
    """A view that a later plugin might add."""
    return f"{scene.temperature:.0f} degrees"


class Extended(SyntheticEarth):
    """A planet with one more view."""

    name = "extended_earth"
    views = (*VIEWS, View("thermometer", close_up))


def quiet(done: int, total: int, text: str) -> None:
    """Progress that nobody looks at."""


def test_a_view_is_added_without_touching_the_others(tmp_path: Path, make_earth: MakeEarth) -> None:
    usual = make_earth(tmp_path, places=3, held_out=1)
    extended = Extended(usual.config, usual.base)
    assert extended.fingerprint() != usual.fingerprint()
    usual.prepare(quiet)
    extended.prepare(quiet)
    observations = extended.observations()
    assert observations.fields["thermometer"] == "thermometer"
    assert observations.table["thermometer"][0].as_py().endswith("degrees")
    path = observations.table["audio"][2].as_py()
    assert (observations.root / path).read_bytes() == (usual.folder() / path).read_bytes()
