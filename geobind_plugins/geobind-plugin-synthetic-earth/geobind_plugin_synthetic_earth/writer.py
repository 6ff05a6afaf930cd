"""Writes a planet to disk: once, whole, and on all cores."""

from __future__ import annotations

import json
import os
import pickle
import queue
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from geobind_plugin_synthetic_earth.drawing import Cells, Job, draw_places, view_folder
from geobind_plugin_synthetic_earth.planet import make_planet, observe, scatter_places
from geobind_plugin_synthetic_earth.tables import write_table, write_truth
from geobind_plugin_synthetic_earth.views import Settings, View

CHUNK = 40  # places drawn between two reports
WORTH_A_PROCESS = 200  # places; fewer are drawn sooner than a process starts

Progress = Callable[[int, int, str], None]
Range = tuple[int, int]


def write_planet(
    folder: Path,
    settings: Settings,
    views: tuple[View, ...],
    progress: Progress,
    workers: int | None = None,
) -> None:
    """Draws all places into ``<folder>.partial`` and renames that into place.

    What a killed run has left behind is removed first. Which process draws a place makes no
    difference to its files.

    Args:
        folder: The data set's folder; must not exist.
        settings: What to draw.
        views: How to look at it.
        progress: Told about places done.
        workers: Number of processes; as many as there are cores by default.

    Raises:
        OSError: The folder cannot be written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    planet = make_planet(settings.seed)
    scenes = tuple(observe(planet, scatter_places(planet, settings.places)))
    job = Job(partial, settings, views, scenes)
    for place in range(0, settings.places, CHUNK):
        for view in views:
            if view.suffix is not None:
                (partial / view_folder(view, settings, place)).mkdir(parents=True, exist_ok=True)
    cells = _draw_all(job, workers, progress)
    write_truth(partial / "truth.parquet", scenes)
    write_table(partial / "table.parquet", settings, scenes, cells)
    partial.rename(folder)


def _draw_all(job: Job, workers: int | None, progress: Progress) -> Cells:
    """Hands out the places and collects their cells in order."""
    places = job.settings.places
    ranges = [(start, min(places, start + CHUNK)) for start in range(0, places, CHUNK)]
    count = workers or min(_cores(), max(1, places // WORTH_A_PROCESS))
    if any(view.render.__module__ == "__main__" for view in job.views):
        count = 1  # another process would look for the function in a script of its own
    parts: dict[Range, Cells] = {}
    done = 0
    for part, cells in _in_turn(job, ranges) if count == 1 else _side_by_side(job, ranges, count):
        parts[part] = cells
        done += part[1] - part[0]
        progress(done, places, "drawing the synthetic Earth")
    return {view.name: [cell for part in ranges for cell in parts[part][view.name]] for view in job.views}


def _cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _in_turn(job: Job, ranges: list[Range]) -> Iterator[tuple[Range, Cells]]:
    for part in ranges:
        yield part, draw_places(job, *part)


def _side_by_side(job: Job, ranges: list[Range], count: int) -> Iterator[tuple[Range, Cells]]:
    """The same in several processes, each of which takes the next range when it is done."""
    content = pickle.dumps(job)
    idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def draw(part: Range) -> Cells:
        process = idle.get()
        try:
            return _ask(process, part)
        finally:
            idle.put(process)

    with _processes(content, count) as processes, ThreadPoolExecutor(count) as threads:
        for process in processes:
            idle.put(process)
        futures = {threads.submit(draw, part): part for part in ranges}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _ask(process: subprocess.Popen[bytes], part: Range) -> Cells:
    """Has a worker draw one range of places."""
    assert process.stdout is not None
    _send(process, b"%d %d\n" % part)
    answer = process.stdout.readline()
    if not answer:
        raise _ended(process)
    cells: Cells = json.loads(answer)
    return cells


def _send(process: subprocess.Popen[bytes], content: bytes) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(content)
        process.stdin.flush()
    except BrokenPipeError:
        raise _ended(process) from None


def _ended(process: subprocess.Popen[bytes]) -> RuntimeError:
    return RuntimeError(
        f"a process that draws the synthetic Earth ended with exit code {process.wait()}; its own message is above"
    )


@contextmanager
def _processes(job: bytes, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Starts workers that know their job, and ends them."""
    one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM")}
    environment = {**os.environ, **one_thread, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "geobind_plugin_synthetic_earth.worker"]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) for _ in range(count)
    ]
    try:
        for process in processes:
            _send(process, job)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()
