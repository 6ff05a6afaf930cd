"""One step: embeddings, loss, gradients; in one pass, or in two when the batch does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.operations import find_batch_size, slice_tensors
from torch import nn

from geobind_core.plugins.modality import EncoderOutput
from geobind_core.training.edges import EdgeLosses


class StageModel(nn.Module):
    """The trained encoders of a stage as one module, so that Accelerate wraps them once."""

    def __init__(self, encoders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)

    def forward(self, inputs: Mapping[str, Any]) -> dict[str, EncoderOutput]:
        return {name: encoder(inputs[name]) for name, encoder in self.encoders.items()}


def gradients(
    accelerator: Accelerator,
    model: nn.Module,
    losses: EdgeLosses,
    inputs: Mapping[str, Any],
    anchors: Mapping[str, EncoderOutput],
    rows: torch.Tensor,
    micro_batch_size: int | None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Adds the gradients of one batch to the parameters.

    With a `micro_batch_size` below the batch's size, only that many rows are in the networks at a
    time, yet all rows are each other's negatives and the gradients are those of the whole batch:
    the batch is embedded without gradients, the loss is taken on the embeddings, and each slice is
    run again to carry the gradient of its embeddings into the weights (Gao et al. 2021, GradCache).
    The random state is replayed, so that both runs of a slice drop the same units.

    Args:
        accelerator: Accelerate.
        model: The prepared `StageModel`.
        losses: The stage's edges.
        inputs: Modality -> batch, of the trained modalities.
        anchors: Modality -> embeddings, of the frozen ones.
        rows: `[B]` row numbers, on the CPU.
        micro_batch_size: Rows in the networks at a time; None for all.

    Returns:
        The loss, detached, and what is to be logged.
    """
    size = len(rows)
    if micro_batch_size is None or micro_batch_size >= size:
        loss, logs = losses({**model(inputs), **anchors}, rows)
        accelerator.backward(loss)
        return loss.detach(), logs

    spans = [slice(start, min(start + micro_batch_size, size)) for start in range(0, size, micro_batch_size)]
    slices = [{name: _slice(batch, span) for name, batch in inputs.items()} for span in spans]
    states, parts = [], []
    with torch.no_grad():
        for piece in slices:
            states.append(_random_state(accelerator.device))
            parts.append(model(piece))
    leaves = {name: _as_leaves([part[name] for part in parts]) for name in parts[0]}
    loss, logs = losses({**leaves, **anchors}, rows)
    accelerator.backward(loss)

    after = _random_state(accelerator.device)
    for span, piece, state in zip(spans, slices, states, strict=True):
        _restore_random_state(state, accelerator.device)
        outputs = model(piece)
        tensors, given = [], []
        for name, output in outputs.items():
            for field in _tensor_fields(output):
                leaf = getattr(leaves[name], field)
                if leaf.grad is not None:
                    tensors.append(getattr(output, field))
                    given.append(leaf.grad[span])
        # Not accelerator.backward: the gradients that are passed on carry the loss scale already.
        torch.autograd.backward(tensors, given)
    _restore_random_state(after, accelerator.device)
    return loss.detach(), logs


def _slice(batch: Any, span: slice) -> Any:
    if find_batch_size(batch) is None:
        raise TypeError("collate must return tensors with B rows for micro-batches to be cut from")
    return slice_tensors(batch, span)


def _tensor_fields(output: EncoderOutput) -> list[str]:
    """Returns the fields that carry gradients."""
    return [
        f.name
        for f in fields(output)
        if isinstance(value := getattr(output, f.name), torch.Tensor) and value.is_floating_point()
    ]


def _as_leaves(parts: list[EncoderOutput]) -> EncoderOutput:
    joined: dict[str, Any] = {
        f.name: None if getattr(parts[0], f.name) is None else torch.cat([getattr(p, f.name) for p in parts])
        for f in fields(EncoderOutput)
    }
    output = replace(parts[0], **joined)
    for name in _tensor_fields(output):
        getattr(output, name).requires_grad_(True)
    return output


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore_random_state(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
