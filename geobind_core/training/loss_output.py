"""What a loss returned, looked at before a step goes on with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from geobind_core.errors import PluginError
from geobind_core.plugins.loss import LossOutput
from geobind_core.space.encoder import kind_of

OWN_NAMES = frozenset({"step", "epoch", "loss", "lr", "samples_per_second", "event"})
"""What a stage logs itself."""


def checked(found: Any, loss: str, *, trains: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns the value that a loss returned, and its logs as scalars without a gradient.

    A log that is called like one of `OWN_NAMES` is called `<loss>_<name>` instead.

    Args:
        found: What it returned.
        loss: Its registered name.
        trains: Whether it was given anything that a gradient has to reach.

    Raises:
        PluginError: It is no `LossOutput`, or what is in it cannot be used.
    """
    if not isinstance(found, LossOutput):
        raise _wrong(loss, kind_of(found), "a LossOutput")
    value: Any = found.value
    if not isinstance(value, torch.Tensor) or value.ndim or not value.is_floating_point():
        raise _wrong(loss, f"a `value` that is {kind_of(value)}", "a scalar tensor of floating-point numbers")
    if trains and torch.is_grad_enabled() and not value.requires_grad:
        raise _wrong(loss, "a `value` without a gradient", "one that depends on the embeddings; was it detached?")
    if not isinstance(found.logs, Mapping):
        raise _wrong(loss, f"`logs` that are {kind_of(found.logs)}", "a dictionary of scalars by name")
    return value, {_free(name, loss): _scalar(log, name, loss, value.device) for name, log in found.logs.items()}


def _scalar(log: Any, name: str, loss: str, device: torch.device) -> torch.Tensor:
    if isinstance(log, int | float):
        return torch.full((), float(log), device=device)
    if not isinstance(log, torch.Tensor) or log.numel() != 1:
        raise _wrong(loss, f"logs['{name}'] that is {kind_of(log)}", "a scalar, detached")
    return log.detach().reshape(()).float()


def _free(name: Any, loss: str) -> str:
    if not isinstance(name, str):
        raise _wrong(loss, f"logs with the name {name!r}", "a text")
    return f"{loss}_{name}" if name in OWN_NAMES else name


def _wrong(loss: str, found: str, expected: str) -> PluginError:
    return PluginError(
        f"the loss '{loss}' returned {found}; expected {expected}.",
        hint=f"Mend the plugin; `geobind plugins check {loss}` tries it.",
    )
