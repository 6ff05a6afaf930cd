"""The kit for losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

from pydantic import ValidationError

from geobind_core.plugins.loss import Loss, LossOutput
from geobind_core.testing.check import Check, Definition, checks_of, require
from geobind_core.testing.loss_subject import ROWS, SEED, LossSubject, Pair
from geobind_core.testing.packaging import PACKAGING_CHECKS

if TYPE_CHECKING:
    import torch


def _value(subject: LossSubject) -> None:
    import torch

    for labelled in (False, True):
        found = subject.value(subject.loss.build(), subject.pair(labelled=labelled))
        require(isinstance(found, LossOutput), f"it returns {type(found).__name__}; expected a LossOutput")
        require(found.value.ndim == 0, f"`value` has shape {tuple(found.value.shape)}; expected a scalar")
        with_labels = "with labels" if labelled else "without labels"
        require(torch.isfinite(found.value), f"{with_labels} the value is {found.value.item()}")
        for name, log in found.logs.items():
            if isinstance(log, int | float):
                continue
            require(not log.requires_grad, f"logs['{name}'] is not detached, and would keep the graph of every step")
            require(log.numel() == 1, f"logs['{name}'] has shape {tuple(log.shape)}; expected a number")


def _gradients(subject: LossSubject) -> None:
    import torch

    module, pair = subject.loss.build(), _with_gradients(subject.pair())
    subject.value(module, pair).value.backward()  # type: ignore[no-untyped-call]
    inputs = {"first": pair.first, "second": pair.second}
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for name, tensor in {**inputs, **trained}.items():
        require(tensor.grad is not None, f"no gradient reaches {name}")
        require(torch.isfinite(tensor.grad).all(), f"the gradient of {name} is not finite")  # type: ignore[arg-type]
    moving = sum(float(tensor.grad.abs().sum()) for tensor in inputs.values() if tensor.grad is not None)
    require(moving > 0, "the gradients of both sides are zero")


def _with_gradients(pair: Pair) -> Pair:
    return replace(pair, first=pair.first.clone().requires_grad_(), second=pair.second.clone().requires_grad_())


def _differences(subject: LossSubject) -> None:
    """Compares slopes with differences, along random directions."""
    import torch

    module, generator = subject.loss.build().double(), torch.Generator().manual_seed(SEED)
    pair = subject.pair(double=True)
    tensors = [pair.first, pair.second, *[p for p in module.parameters() if p.requires_grad]]
    values = [tensor.detach().clone() for tensor in tensors]

    def at(distance: float, directions: Sequence[torch.Tensor]) -> tuple[LossOutput, list[torch.Tensor]]:
        moved = [(v + distance * d).requires_grad_() for v, d in zip(values, directions, strict=True)]
        parameters = (p for p in module.parameters() if p.requires_grad)
        with torch.no_grad():
            for parameter, value in zip(parameters, moved[2:], strict=True):
                parameter.copy_(value)
        return subject.value(module, Pair(moved[0], moved[1])), moved

    for _ in range(3):
        directions = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in values]
        module.zero_grad()
        found, moved = at(0.0, directions)
        found.value.backward()  # type: ignore[no-untyped-call]
        leaves = [*moved[:2], *[p for p in module.parameters() if p.requires_grad]]
        slope = sum(
            float((leaf.grad * d).sum()) for leaf, d in zip(leaves, directions, strict=True) if leaf.grad is not None
        )
        exact = found.value.dtype == torch.float64
        step, allowed = (1e-6, 1e-4) if exact else (1e-2, 5e-2)
        with torch.no_grad():
            ahead, behind = (float(at(sign * step, directions)[0].value) for sign in (1, -1))
        measured = (ahead - behind) / (2 * step)
        wrong = abs(measured - slope) / max(abs(measured), abs(slope), 1e-3)
        require(wrong <= allowed, f"the gradient says {slope:.6g} along a direction, differences say {measured:.6g}")


def _order_of_rows(subject: LossSubject) -> None:
    import torch

    for labelled in (False, True):
        pair, module = subject.pair(labelled=labelled), subject.loss.build()
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(SEED))
        labels = None if pair.labels is None else pair.labels[order]
        found = [subject.value(module, p) for p in (pair, Pair(pair.first[order], pair.second[order], labels))]
        before, after = (float(output.value.detach()) for output in found)
        require(_close(before, after), f"the rows in another order give {after:.7g} for {before:.7g}")


def _close(first: float, second: float) -> bool:
    return abs(first - second) <= 1e-5 * max(abs(first), abs(second), 1e-3)


def _shares(subject: LossSubject) -> None:
    import torch

    module = subject.loss.build()
    if not callable(getattr(module, "forward_local", None)):
        raise SkipTest("forward_local() is not defined: every process computes the whole loss")
    for labelled in (False, True):
        whole, parts = (_with_gradients(subject.pair(labelled=labelled)) for _ in range(2))
        total = subject.value(module, whole).value
        total.backward()  # type: ignore[no-untyped-call]
        shares = [subject.value(module, parts, share).value for share in (slice(0, 3), slice(3, ROWS))]
        added = torch.stack(shares).sum()
        added.backward()  # type: ignore[no-untyped-call]
        right = _close(float(total.detach()), float(added.detach()))
        require(right, f"shares of 3 and {ROWS - 3} rows add up to {added.item():.7g}, the whole is {total.item():.7g}")
        for name, one, other in (("first", whole.first, parts.first), ("second", whole.second, parts.second)):
            if one.grad is None or other.grad is None:
                continue  # of which the check gradients speaks
            agree = torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-6)
            require(agree, f"the shares give another gradient of `{name}` than the whole")


def _directions(subject: LossSubject) -> None:
    pair = subject.pair()
    found = {}
    for direction in ("first_to_second", "second_to_first", "both"):
        try:
            config = type(subject.config).model_validate({**subject.settings(), "direction": direction})
        except ValidationError:
            continue
        module = subject.owner(config).build()
        found[direction] = [
            float(subject.value(module, p).value.detach()) for p in (pair, Pair(pair.second, pair.first))
        ]
    require(found, "the settings allow none of first_to_second, second_to_first and both")
    if {"first_to_second", "second_to_first"} <= found.keys():
        one, other = found["first_to_second"][0], found["second_to_first"][1]
        require(_close(one, other), f"first_to_second is {one:.7g}; second_to_first of the sides exchanged {other:.7g}")


def _prefers_what_belongs_together(subject: LossSubject) -> None:
    pair, module = subject.pair(), subject.loss.build()
    right = float(subject.value(module, pair).value.detach())
    wrong = float(subject.value(module, Pair(pair.first, pair.second.roll(1, 0))).value.detach())
    require(right < wrong, f"rows that belong together have the loss {right:.4g}, exchanged ones {wrong:.4g}")


def _state(subject: LossSubject) -> None:
    import torch
    from safetensors.torch import load, save

    module, pair = subject.loss.build(), subject.pair()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    again = subject.loss.build()
    again.load_state_dict(load(save({k: v.detach().clone() for k, v in module.state_dict().items()})))
    before, after = (float(subject.value(m, pair).value.detach()) for m in (module, again))
    require(before == after, f"with its saved state, a loss built anew gives {after:.7g} for {before:.7g}")


LOSS_CHECKS: tuple[Definition[Any], ...] = (
    *PACKAGING_CHECKS,
    Definition(
        "value",
        "A stage can take a step: a finite scalar, with labels and without, and numbers for the log.",
        "Return LossOutput(value, logs), with `.detach()` on what is logged; keep logits finite where a row has no "
        "negative left.",
        _value,
    ),
    Definition(
        "gradients",
        "Both sides and the parameters of the loss are trained.",
        "Look for detach(), argmax and item() between the embeddings and the value.",
        _gradients,
    ),
    Definition(
        "differences",
        "The gradient is that of the value; a backward pass written by hand has no slip.",
        "Compare with torch.autograd.gradcheck in float64, term by term.",
        _differences,
    ),
    Definition(
        "order_of_rows",
        "The loss of a batch does not depend on the order in which it was read.",
        "Look for indices that are taken for rows, and for labels that do not follow their rows.",
        _order_of_rows,
    ),
    Definition(
        "shares",
        "Several processes train what one would: the shares of `forward_local` add up to the loss.",
        "Divide by the rows of the whole batch, not by this process's; row i's partner is `offset + i` of the whole.",
        _shares,
    ),
    Definition(
        "directions",
        "`direction` in a stage means the same for every loss.",
        "first_to_second: rows of `first` ask and those of `second` answer; restrict the setting where there is none.",
        _directions,
    ),
    Definition(
        "prefers_what_belongs_together",
        "Training draws together what belongs together.",
        "Look for a sign, or for a similarity taken for a distance.",
        _prefers_what_belongs_together,
    ),
    Definition(
        "state",
        "A stage that goes on after an interruption has the same logit scale as before.",
        "What is learned is to be a Parameter of the module, what is counted a buffer.",
        _state,
    ),
)


def loss_checks(
    loss: Loss[Any] | type[Loss[Any]], *, expected_failures: Mapping[str, str] | None = None
) -> list[Check]:
    """Returns the checks of a loss.

    Args:
        loss: An instance, or a class, which is then used with its default settings.
        expected_failures: Check -> why it is known to fail, beside what the class itself declares.

    Raises:
        ValueError: An expected failure names no check, or has no reason.
        pydantic.ValidationError: A class needs settings.
    """
    instance = loss(loss.Config()) if isinstance(loss, type) else loss
    return checks_of(LOSS_CHECKS, LossSubject(instance), type(instance), expected_failures)
