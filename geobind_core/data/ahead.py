"""Files that batches will need are fetched while earlier batches are trained on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

from torch.utils.data import Sampler

from geobind_core.data.order import ANYWHERE, Blocks

if TYPE_CHECKING:
    from geobind_core.data.loading import Batches, BatchRequest

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

    def __len__(self) -> int:
        return len(self.requests)  # type: ignore[arg-type] # a sampler need not have a length; these have

    def __iter__(self) -> Iterator[BatchRequest]:
        queue: SimpleQueue[int | None] = SimpleQueue()
        waiting: deque[tuple[BatchRequest, int]] = deque()
        rows = ahead = 0
        try:
            if self.blocks.fetch is not None:
                _start(self.blocks.fetch, queue, self.blocks.ahead)
            for request, new in self._with_new_blocks():
                for block in new:
                    queue.put(block)
                waiting.append((request, len(new)))
                rows, ahead = rows + len(request.rows), ahead + len(new)
                while waiting and (ahead - waiting[0][1] >= self.blocks.ahead or rows > _MOST_ROWS):
                    first, count = waiting.popleft()
                    rows, ahead = rows - len(first.rows), ahead - count
                    yield first
            yield from (request for request, _ in waiting)
        finally:
            for _ in range(self.blocks.ahead):
                queue.put(None)

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


def _start(fetch: Callable[[int], None], queue: SimpleQueue[int | None], threads: int) -> None:
    def work() -> None:
        for block in iter(queue.get, None):
            # Whoever reads the rows meets the same, and says which rows.
            with suppress(Exception):
                fetch(block)

    for _ in range(threads):
        # A daemon: nobody waits for a copy at the end of a run.
        threading.Thread(target=work, daemon=True, name="fetch ahead").start()
