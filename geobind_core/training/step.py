"""One step: embeddings, loss, gradients; in one pass, or in two when the batch does not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.operations import find_batch_size, slice_tensors
from torch import nn

from geobind_core.plugins.modality import EncoderOutput
from geobind_core.training.edges import BatchRows, EdgeLosses


class StageModel(nn.Module):
    """The trained encoders of a stage as one module, so that Accelerate wraps them once.

    Args:
        encoders: Modality -> its encoder.
        needed: Modality -> what is kept of its output beside the embedding; None keeps everything.
            DDP expects a gradient of whatever comes out.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], needed: Mapping[str, Collection[str]] | None = None) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self._needed = needed

    def forward(self, inputs: Mapping[str, Any]) -> dict[str, EncoderOutput]:
        outputs = {name: encoder(inputs[name]) for name, encoder in self.encoders.items()}
        if self._needed is None:
            return outputs
        return {name: _only(output, self._needed[name]) for name, output in outputs.items()}


def _only(output: EncoderOutput, needed: Collection[str]) -> EncoderOutput:
    return EncoderOutput(output.embedding, **{name: getattr(output, name) for name in needed})


@dataclass(frozen=True)
class Step:
    """One batch, as far as this process has it.

    Attributes:
        inputs: Modality -> this process's rows, of the trained modalities.
        anchors: Modality -> embeddings of the same rows, of the frozen ones.
        rows: Which rows the batch has, over all processes.
    """

    inputs: Mapping[str, Any]
    anchors: Mapping[str, EncoderOutput]
    rows: BatchRows


def gradients(
    accelerator: Accelerator, model: nn.Module, losses: EdgeLosses, step: Step, micro_batch_size: int | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Adds the gradients of one batch to the parameters: their mean over the processes, as Accelerate has it.

    With a `micro_batch_size` below this process's rows, only that many rows are in the networks at a
    time, yet all rows are each other's negatives and the gradients are those of the whole batch:
    the batch is embedded without gradients, the loss is taken on the embeddings, and each slice is
    run again to carry the gradient of its embeddings into the weights (Gao et al. 2021, GradCache).
    The last slice keeps what it needs for its gradient, and is not run twice. The random state is
    replayed, so that both runs of a slice drop the same units, and what a network counts in its
    buffers is counted once. Batch normalisation sees a slice at a time; it alone makes the result
    depend on the slices.

    Args:
        accelerator: Accelerate.
        model: The prepared `StageModel`.
        losses: The stage's edges.
        step: The batch.
        micro_batch_size: Rows in the networks at a time; None for all.

    Returns:
        This process's share of the loss, detached, and what is to be logged.
    """
    processes = losses.processes
    # All processes take the same number of slices, whatever some could not read: they meet in each.
    count = slices_of_step(step.rows.sizes, step.rows.random_room, micro_batch_size)
    if count == 1:
        loss, logs = losses({**model(step.inputs), **step.anchors}, step.rows)
        accelerator.backward(loss * processes.count)  # the mean over the processes shall be the sum of the shares
    else:
        loss, logs = _two_passes(accelerator, model, losses, step, count)
    processes.average_gradients(losses.parameters())
    return loss.detach(), logs


def _two_passes(
    accelerator: Accelerator, model: nn.Module, losses: EdgeLosses, step: Step, count: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    cut = {name: slices_of(batch, count) for name, batch in step.inputs.items()}
    slices = [{name: pieces[i] for name, pieces in cut.items()} for i in range(count)]
    states, parts = [], []
    buffers = [buffer.clone() for buffer in model.buffers()]
    # Processes exchange gradients once a step, with the last slice that is run again.
    with accelerator.no_sync(model):
        with torch.no_grad():
            for piece in slices[:-1]:
                states.append(_random_state(accelerator.device))
                parts.append(model(piece))
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        kept = model(slices[-1])
        leaves = {name: _as_leaves([*(part[name] for part in parts), kept[name]]) for name in kept}
        loss, logs = losses({**leaves, **step.anchors}, step.rows)
        accelerator.backward(loss * losses.processes.count)
        given = {name: _cut_gradients(leaf, count) for name, leaf in leaves.items()}
        _carry_back(kept, given, count - 1)
    del kept

    after = _random_state(accelerator.device)
    for i, state in enumerate(states):
        _restore_random_state(state, accelerator.device)
        with nullcontext() if i == count - 2 else accelerator.no_sync(model):
            _carry_back(model(slices[i]), given, i)
    _restore_random_state(after, accelerator.device)
    return loss.detach(), logs


def leaves_out_parameters(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether some parameters take no part in the embeddings: DDP waits for their gradients if it is not told.

    Networks from libraries have such parts; CLAP's projection for fusion is one. Nothing changes, buffers included.
    """
    buffers = [buffer.clone() for buffer in model.buffers()]
    parameters = [p for p in model.parameters() if p.requires_grad]
    embeddings = [output.embedding.sum() for output in model(inputs).values()]
    gradients = torch.autograd.grad(embeddings, parameters, allow_unused=True)
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return any(gradient is None for gradient in gradients)


def depends_on_slices(network: nn.Module) -> bool:
    """Whether a network sees its batch as a whole, so that slices give another result: batch normalisation."""
    return any(module.training for module in batch_norms(network))


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """Returns the batch normalisations of a network."""
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def slice_count(size: int, micro_batch_size: int | None) -> int:
    """Returns into how many slices a batch is cut, so that none has more than `micro_batch_size` rows."""
    return 1 if micro_batch_size is None else -(-size // micro_batch_size)


def slices_of_step(sizes: Sequence[int], random_room: int, micro_batch_size: int | None) -> int:
    """Returns into how many slices all processes cut a step; some row of the batch is in each of them.

    Args:
        sizes: Rows of the batch that each process has.
        random_room: The most random negatives that any of them has of a modality.
        micro_batch_size: Rows in the networks at a time.
    """
    needed = slice_count(max(sizes), micro_batch_size)
    return max(needed, min(slice_count(max(sizes) + random_room, micro_batch_size), *sizes))


def slices_of(batch: Any, count: int) -> list[Any]:
    """Cuts a batch, a tensor or a dictionary of tensors, into slices of nearly equal size."""
    if count == 1:
        return [batch]
    try:
        rows = find_batch_size(batch)
    except TypeError:  # it found something else first
        rows = None
    if rows is None:
        raise TypeError("collate must return tensors with B rows for micro-batches to be cut from")
    ends = [rows * (i + 1) // count for i in range(count)]
    return [slice_tensors(batch, slice(start, end)) for start, end in zip([0, *ends], ends, strict=False)]


def join(parts: Sequence[EncoderOutput]) -> EncoderOutput:
    """Puts the outputs of slices together again."""
    joined: dict[str, Any] = {
        f.name: None if getattr(parts[0], f.name) is None else torch.cat([getattr(p, f.name) for p in parts])
        for f in fields(parts[0])
    }
    return replace(parts[0], **joined)


def _as_leaves(parts: Sequence[EncoderOutput]) -> EncoderOutput:
    with torch.no_grad():
        output = join(parts)
    for name in _float_fields(output):
        getattr(output, name).requires_grad_(True)
    return output


def _float_fields(output: EncoderOutput) -> list[str]:
    """Returns the fields that may carry gradients."""
    return [
        f.name
        for f in fields(output)
        if isinstance(value := getattr(output, f.name), torch.Tensor) and value.is_floating_point()
    ]


def _cut_gradients(leaf: EncoderOutput, count: int) -> dict[str, list[torch.Tensor]]:
    """Returns the gradient of each field that has one, slice by slice."""
    gradients = {name: getattr(leaf, name).grad for name in _float_fields(leaf)}
    return {name: slices_of(gradient, count) for name, gradient in gradients.items() if gradient is not None}


def _carry_back(
    outputs: Mapping[str, EncoderOutput], given: Mapping[str, Mapping[str, Sequence[torch.Tensor]]], number: int
) -> None:
    """Carries the gradients of the outputs of one slice into the weights."""
    pairs = [
        (getattr(output, field), pieces[number])
        for name, output in outputs.items()
        for field, pieces in given[name].items()
        if getattr(output, field).requires_grad
    ]
    # Not accelerator.backward: the gradients that are passed on carry the loss scale already.
    torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore_random_state(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
