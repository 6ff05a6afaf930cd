"""Comparing what plugins return, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from geobind_core.testing.check import CheckError

if TYPE_CHECKING:
    import torch

CLOSE = 1e-4
"""How far two computations of the same embedding may lie apart, relative to the largest number in it."""


def same(first: Any, second: Any) -> bool | None:
    """Whether two values are equal to the bit, NaN with NaN; None where that cannot be told."""
    if type(first) is not type(second):
        return False
    if hasattr(first, "detach"):
        first, second = first.detach().cpu().numpy(), second.detach().cpu().numpy()
    if hasattr(first, "getbands"):  # a PIL image
        first, second = np.asarray(first), np.asarray(second)
    if isinstance(first, np.ndarray | np.generic | float):
        first, second = np.asarray(first), np.asarray(second)
        if first.dtype != second.dtype or first.shape != second.shape:
            return False
        return bool(np.array_equal(first, second, equal_nan=first.dtype.kind in "fc"))
    if isinstance(first, Mapping):
        return _all(same(first[k], second[k]) for k in first) if first.keys() == second.keys() else False
    if isinstance(first, list | tuple):
        return _all(map(same, first, second)) if len(first) == len(second) else False
    if isinstance(first, str | bytes | int | None.__class__):
        return bool(first == second)
    return None


def _all(answers: Any) -> bool | None:
    listed = list(answers)
    return False if False in listed else None if None in listed else True


def map_tensors(batch: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Applies a function to every tensor of a batch.

    Raises:
        CheckError: It consists of something else.
    """
    if hasattr(batch, "detach"):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(value, change) for key, value in batch.items()}
    raise CheckError(f"a batch holds {type(batch).__name__}; expected a tensor, or a dictionary of tensors")


def rows_of(batch: Any, rows: slice) -> Any:
    """Returns some rows of a batch."""
    return map_tensors(batch, lambda tensor: tensor[rows])


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Returns the largest difference of two tensors, relative to the largest number in them."""
    largest = max(float(first.abs().max()), float(second.abs().max()), 1e-12)
    return float((first - second).abs().max()) / largest
