"""What the processes of a stage say to each other: row numbers, embeddings with gradients, decisions."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from geobind_core.errors import EXIT_FAILURE, TrainingError
from geobind_core.plugins.modality import EncoderOutput

# One process may embed or write for hours while the others wait for it.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Agreement:
    """What all processes know of a batch before they embed it.

    Attributes:
        rows: `[N]` row numbers of the whole batch, process after process.
        sizes: How many of them each process has.
        flags: For each decision, whether any process is for it.
    """

    rows: torch.Tensor
    sizes: tuple[int, ...]
    flags: tuple[bool, ...]


class Processes:
    """The processes of a stage, seen from one of them. With one process nothing is sent.

    Small things that the processes decide on go by way of the CPU, so that the accelerator is not
    waited for.

    Args:
        index: The number of this process.
        count: How many there are; more than one need an initialised `torch.distributed`.
        local_index: The number of this process on its machine.
        local_count: How many there are on its machine.
    """

    def __init__(self, index: int = 0, count: int = 1, local_index: int = 0, local_count: int = 1) -> None:
        self.index = index
        self.count = count
        self.local_index = local_index
        self.local_count = local_count
        self._cpu: Any = dist.new_group(backend="gloo", timeout=_PATIENCE) if count > 1 else None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.index == 0

    def share(self, rows: Sequence[Any] | Any) -> Any:
        """Returns this process's part of an array: its consecutive n-th."""
        start, end = len(rows) * self.index // self.count, len(rows) * (self.index + 1) // self.count
        return rows[start:end]

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.count > 1:
            with self._meeting():
                dist.barrier(group=self._cpu)

    def agree(self, rows: torch.Tensor, room: int, *flags: bool) -> Agreement:
        """Tells the others the row numbers and flags of this process, and returns those of all.

        Args:
            rows: `[B]` row numbers, on the CPU.
            room: The largest B that any process may have.
            flags: Decisions; each is taken if any process is for it.
        """
        if self.count == 1:
            return Agreement(rows, (len(rows),), flags)
        said = torch.full((1 + len(flags) + room,), -1, dtype=torch.long)
        said[0] = len(rows)
        said[1 : 1 + len(flags)] = torch.tensor(flags, dtype=torch.long)
        said[1 + len(flags) : 1 + len(flags) + len(rows)] = rows
        heard = [torch.empty_like(said) for _ in range(self.count)]
        with self._meeting():
            dist.all_gather(heard, said, group=self._cpu)
        sizes = tuple(int(h[0]) for h in heard)
        parts = [h[1 + len(flags) : 1 + len(flags) + size] for h, size in zip(heard, sizes, strict=True)]
        return Agreement(
            torch.cat(parts), sizes, tuple(any(bool(h[1 + i] > 0) for h in heard) for i in range(len(flags)))
        )

    def any(self, flag: bool) -> bool:
        """Whether any process says yes."""
        return self.agree(torch.empty(0, dtype=torch.long), 0, flag).flags[0]

    def all_objects(self, value: Any) -> list[Any]:
        """Returns the values of all processes, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with self._meeting():
            dist.all_gather_object(values, value, group=self._cpu)
        return values

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        """Ends this process with few words when another has ended, which has said why."""
        try:
            yield
        except RuntimeError as error:
            if not any(text in str(error) for text in ("by peer", "Broken pipe")):
                raise
            if not self.is_main:
                sys.exit(EXIT_FAILURE)
            raise TrainingError("another process has ended.", hint="If it said why, that stands above.") from None

    def gather(self, output: EncoderOutput, sizes: Sequence[int]) -> EncoderOutput:
        """Puts the rows of all processes together; gradients find their way back to the process of a row.

        Args:
            output: This process's rows.
            sizes: How many rows each process has.
        """
        if self.count == 1:
            return output
        gathered: dict[str, Any] = {}
        for field in fields(output):
            value = getattr(output, field.name)
            if isinstance(value, torch.Tensor):
                same = self._same_length(value) if field.name in ("tokens", "mask") else value
                gathered[field.name] = self._gather(same, sizes)
        return replace(output, **gathered)

    def _gather(self, tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        # A collective moves the same number of rows from each process; what is added goes away again.
        padded = nn.functional.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, max(sizes) - len(tensor)))
        everything: torch.Tensor = _AllGather.apply(padded.contiguous())  # type: ignore[no-untyped-call]
        return torch.cat([part[:size] for part, size in zip(everything, sizes, strict=True)])

    def _same_length(self, tensor: torch.Tensor) -> torch.Tensor:
        """Pads `[B, T, ...]` to the T of the process with most tokens; masks say which are real."""
        longest = max(self.all_objects(tensor.shape[1]))
        return nn.functional.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, longest - tensor.shape[1]))

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces gradients by their mean over the processes, as is done for the networks themselves."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.count

    @torch.no_grad()
    def copy_from_main(self, tensors: Iterable[torch.Tensor]) -> None:
        """Gives tensors the values that they have on the main process."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def total(self, share: torch.Tensor) -> torch.Tensor:
        """Returns the sum of a detached tensor over the processes."""
        if self.count == 1:
            return share
        total = share.clone()
        dist.all_reduce(total)
        return total


class _AllGather(torch.autograd.Function):
    """`[B, ...]` of each process to `[processes, B, ...]` on all. `torch.distributed.nn` had it, deprecated since."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        # Every process has a part of the loss; the gradient of a row is the sum over all of them.
        own = torch.empty_like(grad[0])
        dist.reduce_scatter_tensor(own, grad.flatten(0, 1).contiguous())
        return own
