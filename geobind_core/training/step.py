"""One step: embeddings, loss, gradients; in one pass, or in two when the batch does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    The random state is replayed, so that both runs of a slice drop the same units, and what a network
    counts in its buffers is counted once. Batch normalisation sees a slice at a time; it alone makes
    the result depend on the slices.

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

    spans = spans_of(size, micro_batch_size)
    cut = {name: slices_of(batch, spans) for name, batch in inputs.items()}
    slices = [{name: pieces[i] for name, pieces in cut.items()} for i in range(len(spans))]
    states, parts = [], []
    buffers = [buffer.clone() for buffer in model.buffers()]
    with torch.no_grad():
        for piece in slices:
            states.append(_random_state(accelerator.device))
            parts.append(model(piece))
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
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
                tensor, leaf = getattr(output, field), getattr(leaves[name], field)
                if tensor.requires_grad and leaf.grad is not None:
                    tensors.append(tensor)
                    given.append(leaf.grad[span])
        # Not accelerator.backward: the gradients that are passed on carry the loss scale already.
        torch.autograd.backward(tensors, given)
    _restore_random_state(after, accelerator.device)
    return loss.detach(), logs


def depends_on_slices(network: nn.Module) -> bool:
    """Whether a network sees its batch as a whole, so that slices give another result: batch normalisation."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def spans_of(size: int, micro_batch_size: int | None) -> list[slice]:
    """Returns the slices of a batch; the last may be smaller."""
    step = micro_batch_size or size
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def slices_of(batch: Any, spans: Sequence[slice]) -> list[Any]:
    """Cuts a batch, a tensor or a dictionary of tensors, into slices."""
    if len(spans) == 1:
        return [batch]
    try:
        rows = find_batch_size(batch)
    except TypeError:  # it found something else first
        rows = None
    if rows is None:
        raise TypeError("collate must return tensors with B rows for micro-batches to be cut from")
    return [slice_tensors(batch, span) for span in spans]


def _tensor_fields(output: EncoderOutput) -> list[str]:
    """Returns the fields that carry gradients."""
    return [
        f.name
        for f in fields(output)
        if isinstance(value := getattr(output, f.name), torch.Tensor) and value.is_floating_point()
    ]


def join(parts: Sequence[EncoderOutput]) -> EncoderOutput:
    """Puts the outputs of slices together again."""
    joined: dict[str, Any] = {
        f.name: None if getattr(parts[0], f.name) is None else torch.cat([getattr(p, f.name) for p in parts])
        for f in fields(parts[0])
    }
    return replace(parts[0], **joined)


def _as_leaves(parts: Sequence[EncoderOutput]) -> EncoderOutput:
    output = join(parts)
    for name in _tensor_fields(output):
        getattr(output, name).requires_grad_(True)
    return output


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore_random_state(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
