"""Draws places: the part of the work that many processes share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from geobind_plugin_synthetic_earth.scene import Scene
from geobind_plugin_synthetic_earth.views import Settings, View

Cells = dict[str, list[str]]
PLACES_PER_FOLDER = 5000


@dataclass(frozen=True)
class Job:
    """What a worker needs to know.

    Attributes:
        folder: Where files go.
        settings: What they look like.
        views: What to draw.
        scenes: What is at each place.
    """

    folder: Path
    settings: Settings
    views: tuple[View, ...]
    scenes: tuple[Scene, ...]


def place_key(place: int) -> str:
    """Name of a place. Places are in random order, so their number says nothing about them."""
    return f"place-{place:06d}"


def view_folder(view: View, settings: Settings, place: int) -> str:
    """The folder of a place's file; large sets are divided among several."""
    if settings.places <= 2 * PLACES_PER_FOLDER:
        return view.name
    return f"{view.name}/{place // PLACES_PER_FOLDER:03d}"


def draw_places(job: Job, start: int, stop: int) -> Cells:
    """Draws all views of some places and writes their files.

    Args:
        job: What to draw.
        start: First place.
        stop: The one after the last.

    Returns:
        For each view its cells: texts, or paths relative to the folder.
    """
    cells: Cells = {view.name: [] for view in job.views}
    for place in range(start, stop):
        for view in job.views:
            generator = view.generator(job.settings, place)
            content = view.render(job.scenes[place], generator, job.settings)
            if isinstance(content, str):
                cells[view.name].append(content)
                continue
            folder = view_folder(view, job.settings, place)
            path = f"{folder}/{place_key(place)}{view.suffix}"
            (job.folder / path).write_bytes(content)
            cells[view.name].append(path)
    return cells
