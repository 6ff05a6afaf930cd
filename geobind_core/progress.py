"""What is under way, on standard error: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_TO_TELL = 1.0


class Task:
    """One thing under way; made by `Reporter.task`."""

    def __init__(self, console: Console, title: str, total: int, unit: str, done: int) -> None:
        self._console = console
        self._title = title
        self._unit = unit
        self._total = total
        self._done = done
        self._figures = ""
        self._last_line = time.monotonic()
        # The first items take what happens once besides, such as imports. As rich's, the rate begins after them.
        self._begun: tuple[float, int] | None = None
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=console,
                transient=True,
            )
            self._bar.add_task(title, total=total, completed=done, figures="")
            self._bar.start()

    def update(self, done: int, total: int | None = None, figures: str = "") -> None:
        """Says how much is done by now, and the figures to show beside it."""
        if self._begun is None and done > self._done:
            self._begun = time.monotonic(), done
        self._done, self._figures = done, figures or self._figures
        self._total = total or self._total
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=done, total=self._total, figures=self._figures)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._print_line()

    def advance(self, count: int) -> None:
        """Says that so much more is done."""
        self.update(self._done + count)

    def _print_line(self) -> None:
        parts = [f"{self._title}  {self._done}/{self._total} {self._unit}", self._figures, self._left()]
        self._console.print("  ".join(p for p in parts if p), highlight=False, markup=False, soft_wrap=True)

    def _left(self) -> str:
        """Returns how long the rest will take; nothing while too little has been seen to tell."""
        since, first = self._begun or (math.inf, 0)
        elapsed, done = time.monotonic() - since, self._done - first
        if done <= 0 or elapsed < _SECONDS_TO_TELL:
            return ""
        return f"{duration((self._total - self._done) * elapsed / done)} left"

    def close(self) -> None:
        """Takes the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()


class Reporter:
    """Where progress and messages go.

    Args:
        console: Standard error by default; results belong on standard output.
        quiet: Say nothing, as on all but the main process.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, quiet=quiet, highlight=False)

    def say(self, text: str, *, style: str = "") -> None:
        """Prints a line."""
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Prints a line that deserves attention."""
        self.say(f"warning: {text}", style="yellow")

    @contextmanager
    def task(self, title: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """Shows something under way until the block ends."""
        task = Task(self.console, title, total, unit, done)
        try:
            yield task
        finally:
            task.close()


def duration(seconds: float) -> str:
    """Returns `0:42`, `12:05` or `3:07:00`."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def counted(number: int, what: str) -> str:
    """Returns a number of things, such as 1 row or 1,200 rows."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def readable_size(size: float) -> str:
    """Returns bytes as people write them, such as 1.5 GiB."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while size >= 1024 and power < len(units) - 1:
        size /= 1024
        power += 1
    return f"{size:.1f} {units[power]}" if power else f"{size:.0f} B"
