"""Files that batches will need are fetched while earlier batches are trained on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from torch.utils.data import Sampler

from geobind_core.data.order import ANYWHERE, Blocks

if TYPE_CHECKING:
    from geobind_core.data.loading import Batches, BatchRequest

_AT_A_TIME = 4  # blocks that are fetched together: one connection is rarely a fast one
_MOST_ROWS = 2**17  # that wait for a block which is not there yet


class FetchedAhead(Sampler["BatchRequest"]):
    """The same batches in the same order. When one is handed out, the blocks that come next are being fetched.

    Args:
        requests: The batches.
        blocks: Which block each row is in, and how one is fetched.
    """

    def __init__(self, requests: Batches, blocks: Blocks) -> None:
        self.requests = requests
        self.blocks = blocks
        self._fetcher: _Fetcher | None = None

    def __len__(self) -> int:
        return len(self.requests)  # type: ignore[arg-type] # a sampler need not have a length; these have

    def __iter__(self) -> Iterator[BatchRequest]:
        assert self.blocks.fetch is not None
        threads = min(_AT_A_TIME, self.blocks.ahead)
        self._fetcher = fetcher = _Fetcher(self.blocks.fetch, self.blocks.ahead, threads)
        waiting: deque[tuple[BatchRequest, int]] = deque()
        rows = ahead = 0
        for request, new in self._with_new_blocks():
            fetcher.want(new)
            waiting.append((request, len(new)))
            rows, ahead = rows + len(request.rows), ahead + len(new)
            while waiting and (ahead - waiting[0][1] >= threads or rows > _MOST_ROWS):
                first, count = waiting.popleft()
                rows, ahead = rows - len(first.rows), ahead - count
                yield first
        yield from (request for request, _ in waiting)

    def is_delivered(self) -> None:
        """Is told of each batch that has been read, so that not more is fetched than there is room for."""
        if self._fetcher is not None:
            self._fetcher.go_on()

    def end(self) -> None:
        """Stops fetching. Whoever reads the batches says so: the last are handed out before what they need is there."""
        if self._fetcher is not None:
            self._fetcher.end()

    def _with_new_blocks(self) -> Iterator[tuple[BatchRequest, list[int]]]:
        """Yields each batch with the blocks that no earlier batch of its epoch has."""
        epoch, known = None, set[int]()
        for request in self.requests:
            if request.epoch != epoch:
                epoch, known = request.epoch, {ANYWHERE}
            found = dict.fromkeys(self.blocks.numbers[request.rows].tolist())
            new = [block for block in found if block not in known]
            known.update(new)
            yield request, new


class _Fetcher:
    """Threads that fetch blocks in the order in which they are needed, up to `ahead` that no batch has needed yet.

    Loader workers are handed batches long before they read them. What is fetched too early would make those go that
    they have still to read.
    """

    def __init__(self, fetch: Callable[[int], None], ahead: int, threads: int) -> None:
        self._fetch = fetch
        self._allowed = ahead
        self._wanted: deque[int] = deque()
        self._of_batches: deque[int] = deque()  # how many blocks each batch is the first to need
        self._changed = threading.Condition()
        self._ended = False
        for _ in range(threads):
            # A daemon: nobody waits for a copy at the end of a run.
            threading.Thread(target=self._work, daemon=True, name="fetch ahead").start()

    def want(self, blocks: list[int]) -> None:
        """Is told which blocks the next batch is the first to need."""
        with self._changed:
            self._wanted.extend(blocks)
            self._of_batches.append(len(blocks))
            self._changed.notify_all()

    def go_on(self) -> None:
        """Is told that one more batch has been read."""
        with self._changed:
            self._allowed += self._of_batches.popleft() if self._of_batches else 0
            self._changed.notify_all()

    def end(self) -> None:
        """Lets the threads end."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or (self._wanted and self._allowed > 0))
                if self._ended:
                    return
                block = self._wanted.popleft()
                self._allowed -= 1
            # Whoever reads the rows meets the same, and says which rows.
            with suppress(Exception):
                self._fetch(block)
