"""What is said of progress where there is no terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from geobind_core import progress
from geobind_core.progress import Reporter


def test_the_time_left_is_not_that_of_the_first_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of 200 takes 6 seconds, for what is imported with it; the others a 16th of a second each."""
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=100)
    with Reporter(console).task("  photos", 200, "files") as task:
        for item in range(200):
            now += 1 / 16 if item else 6.0
            task.advance(1)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "  photos  1/200 files",
        "  photos  81/200 files  0:07 left",
        "  photos  161/200 files  0:02 left",
    ]


def test_what_goes_on_is_not_taken_for_what_is_done_now(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=100)
    with Reporter(console).task("  one", 1000, "steps", 500) as task:
        for step in range(510, 540, 10):
            now += 6.0
            task.update(step)
    assert isinstance(console.file, io.StringIO)
    assert [line.partition("steps")[2].strip() for line in console.file.getvalue().splitlines()] == [
        "",
        "4:48 left",
        "4:42 left",
    ]
