"""SIGINT and SIGTERM: the first asks for a checkpoint, the second leaves at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from geobind_core.errors import EXIT_INTERRUPTED

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A launcher passes on to its processes what the terminal has sent them already.
_ECHO_SECONDS = 1.0


class StopRequest:
    """Whether somebody wants the stage to stop, and since when."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._at = 0.0

    def __bool__(self) -> bool:
        return self.signal is not None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Notes the first signal; at the second, ends the process."""
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._at = signal.Signals(number), now
        elif now - self._at > _ECHO_SECONDS:
            # Not an exception: whoever asks twice does not want to wait for anything to be closed.
            sys.stderr.write("\nleaving at once; the last checkpoint is intact\n")
            sys.stderr.flush()
            os._exit(EXIT_INTERRUPTED)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Collects requests to stop while the block runs, instead of being thrown out of a step.

    Outside the main thread, where Python delivers no signals, none are collected.

    Raises:
        KeyboardInterrupt: At the end of the block, if a request came and the block has not seen to it.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.receive) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if request:
        raise KeyboardInterrupt


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Makes SIGTERM, which schedulers send, end the block as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
