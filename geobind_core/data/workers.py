"""Loader processes that end, or are ended, without harm to the training process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from torch.utils.data import DataLoader

from geobind_core.data.ahead import FetchedAhead
from geobind_core.errors import GeoBindError


class BatchLoader(DataLoader[dict[str, Any]]):
    """Says that a worker has died where a batch is missed. torch throws it into whatever is just being done.

    A batch that is an error is raised.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        watched = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGCHLD) if watched else None
        iterator = super().__iter__()
        if watched:
            signal.signal(signal.SIGCHLD, handler)
        ahead = self.sampler if isinstance(self.sampler, FetchedAhead) else None
        try:
            while True:
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                except (ConnectionError, EOFError, FileNotFoundError) as error:
                    if str(error).startswith("Caught "):  # in a worker, which is well
                        raise
                    raise RuntimeError("DataLoader worker died while it handed over a batch") from error
                if isinstance(batch, GeoBindError):
                    raise batch
                if ahead is not None:
                    ahead.is_delivered()
                yield batch
        finally:
            if ahead is not None:
                ahead.end()


def start_worker(worker: int) -> None:
    """Lets the training process end the workers: a terminal or a scheduler signals all processes at once."""
    sys.excepthook = _report
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker that is ended by a signal makes the loader raise in the middle of a step. One that leaves
    # by itself is found missing between two steps, when a checkpoint can be written.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints an error, unless it is that the training process stopped in the middle of fetching a batch."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)
