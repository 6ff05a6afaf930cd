"""The processes that run a chain together: one by itself, or those of `accelerate launch` and `torchrun`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from geobind_core.training.processes import Processes

T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """One of the processes that run a chain. The main one writes and speaks; all of them train.

    Attributes:
        processes: How they talk to each other; None when there is one.
    """

    processes: Processes | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.processes is None or self.processes.is_main

    def main_first(self, action: Callable[[], T]) -> T:
        """Does something in the main process, then in the others, which find done what it has written."""
        if self.is_main:
            result = action()
        self.wait()
        if not self.is_main:
            result = action()
        self.wait()
        return result

    def main_only(self, action: Callable[[], None]) -> None:
        """Does something in the main process while the others wait."""
        if self.is_main:
            action()
        self.wait()

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.processes is not None:
            self.processes.wait()


def launched() -> Launch:
    """Returns this process among those that were launched together. Imports no torch when it is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Launch()
    from accelerate import PartialState

    from geobind_core.training.accelerator import on_cpu, processes_of

    return Launch(processes_of(PartialState(cpu=on_cpu())))
