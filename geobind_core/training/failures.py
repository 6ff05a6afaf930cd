"""What goes wrong in the middle of training, in words: what happened, what is safe, what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from geobind_core.errors import TrainingError

_FINITE_HINT = (
    "Try a lower optimizer.lr, optimizer.clip_norm: 1.0, or mixed_precision: bf16 instead of fp16; "
    "then run the same command again."
)
_LOADER_HINT = "Lower loader.workers or loader.decoded_cache_mib, then run the same command again."


def safe_until(checkpointed: int | None) -> str:
    """Says what is safe."""
    if checkpointed is None:
        return "There was no checkpoint of this stage yet; finished stages are safe."
    return f"The checkpoint of step {checkpointed} is intact; finished stages are safe."


def not_finite(loss: torch.Tensor | None, modules: Iterable[nn.Module]) -> str:
    """Says what is not finite, the loss or what it did to the weights: a loss can be, and its gradient not."""
    if loss is not None and not torch.isfinite(loss):
        return f"the loss is {float(loss)} at"
    # An isfinite of each would wait for the device each time.
    named = [(name, p) for module in modules for name, p in module.named_parameters()]
    if not named:
        return ""
    finite = torch.stack([torch.isfinite(_local(p)).all() for _, p in named]).tolist()
    broken = [name for (name, _), good in zip(named, finite, strict=True) if not good]
    return f"{len(broken)} weights, such as {broken[0]}, are not finite after" if broken else ""


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """Returns a parameter, or this process's part of one that is divided among several."""
    to_local = getattr(parameter, "to_local", None)
    local: torch.Tensor = to_local() if callable(to_local) else parameter
    return local


def not_finite_error(found: str, step: int, place: str, checkpointed: int | None) -> TrainingError:
    """Returns the error of a loss or weights that are not finite."""
    return TrainingError(f"{found} step {step}.", place=place, hint=f"{safe_until(checkpointed)} {_FINITE_HINT}")


def out_of_memory_error(
    error: Exception, rows: int, fits: Callable[[int], bool], place: str, checkpointed: int | None
) -> TrainingError:
    """Returns the error of a step that did not fit in memory, with the micro-batch size that would.

    Args:
        error: The error that was raised.
        rows: Rows that were in the networks at a time.
        fits: Tries so many rows, and says whether they fit.
        place: The stage.
        checkpointed: The step of the last checkpoint.
    """
    size = rows // 2
    while size and not fits(size):
        size //= 2
    advice = (
        f"micro_batch_size: {size} fits, as has just been tried; it changes neither the loss nor what is done already."
        if size
        else "Not even one row at a time fits; choose a smaller model, mixed_precision: bf16, or a larger device."
    )
    return TrainingError(
        f"out of memory with {rows} rows in the networks at a time ({_first_line(error)}).",
        place=place,
        hint=f"{safe_until(checkpointed)} {advice}",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is torch's word for an accelerator, or a CPU, that has no more memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, Exception) and should_reduce_batch_size(error)
    )


def translated(error: Exception, place: str, checkpointed: int | None) -> TrainingError | None:
    """Returns in words what can go wrong anywhere in a stage; None for what nobody expects."""
    if is_worker_error(error):
        return worker_error(error, place, checkpointed)
    if isinstance(error, MemoryError):
        return TrainingError(
            f"out of main memory ({_first_line(error)}).",
            place=place,
            hint=f"{safe_until(checkpointed)} {_LOADER_HINT}",
        )
    if is_out_of_memory(error):
        return TrainingError(
            f"out of memory ({_first_line(error)}).",
            place=place,
            hint=f"{safe_until(checkpointed)} Set a lower micro_batch_size, which changes nothing that is done "
            "already; or choose a smaller model, mixed_precision: bf16, or a larger device.",
        )
    return None


def worker_error(error: Exception, place: str, checkpointed: int | None) -> TrainingError:
    """Returns the error of a loader process that died."""
    return TrainingError(
        f"a loader process died: {_first_line(error)}.",
        place=place,
        hint=f"{safe_until(checkpointed)} Killed processes are mostly out of memory. {_LOADER_HINT}",
    )


def is_worker_error(error: BaseException) -> bool:
    """Whether an error is torch's word for a loader process that died."""
    words = ("DataLoader worker", "Pin memory thread")  # which ends when a worker does
    return isinstance(error, RuntimeError) and str(error).startswith(words)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
