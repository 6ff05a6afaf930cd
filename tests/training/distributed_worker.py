"""The cases of `test_processes.py`: batches that are to have the same gradients however many processes share them.

The test imports this file for the figures of one process, and starts it twice, as a launcher does, for
those of two: `RANK=0 WORLD_SIZE=2 ... python distributed_worker.py FOLDER`.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch import nn

from geobind_core.config.models import AlignConfig, RunConfig
from geobind_core.data.paired import PairedData
from geobind_core.plugins.loss import LossOutput
from geobind_core.plugins.modality import EncoderOutput
from geobind_core.plugins.source import Observations
from geobind_core.space.encoder import SpaceEncoder
from geobind_core.training import checkpoint
from geobind_core.training.accelerator import make_accelerator, processes_of
from geobind_core.training.edges import BatchRows, Edge, EdgeLosses, needed_fields
from geobind_core.training.losses import InfoNCE, InfoNCEConfig, Sigmoid, SigmoidConfig
from geobind_core.training.processes import Processes
from geobind_core.training.step import StageModel, Step, gradients, leaves_out_parameters, slice_count
from geobind_core.training.updates import Updates, full_state

DIM = 6
ROWS = 64
LABELS = [None if row % 7 == 3 else f"kind {row % 4}" for row in range(ROWS)]


class TokenLoss(nn.Module):
    """A loss of a plugin: sees the whole batch and all that encoders return, and knows of no processes."""

    def forward(self, first: EncoderOutput, second: EncoderOutput, same_label: torch.Tensor | None) -> LossOutput:
        assert second.tokens is not None
        assert second.mask is not None
        assert second.log_variance is not None
        local = torch.einsum("bd,ntd->bnt", first.embedding, second.tokens).masked_fill(~second.mask, -torch.inf)
        logits = 3 * local.amax(-1) - second.log_variance.exp().mean(-1)
        if same_label is not None:
            logits = logits.masked_fill(same_label & ~torch.eye(len(logits), dtype=torch.bool), -torch.inf)
        return LossOutput(nn.functional.cross_entropy(logits, torch.arange(len(logits))))


class Tokens(InfoNCE):
    needs = ("tokens", "log_variance")

    def build(self) -> nn.Module:  # type: ignore[override]
        return TokenLoss()


class TokenEncoder(nn.Module):
    """Takes a dictionary; returns tokens, a mask and a variance beside the embedding."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Linear(4, DIM)
        self.variance = nn.Linear(DIM, DIM)
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> EncoderOutput:
        tokens = self.dropout(self.tokens(batch["values"]))
        weights = batch["mask"].to(tokens.dtype).unsqueeze(-1)
        pooled = (tokens * weights).sum(1) / weights.sum(1)
        return EncoderOutput(pooled, tokens, batch["mask"], self.variance(pooled).tanh())


def _temperature(value: float) -> dict[str, float]:
    return {"init_temperature": value}


LOSSES: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "infonce": lambda settings: InfoNCE(InfoNCEConfig.model_validate(settings)),
    "sigmoid": lambda settings: Sigmoid(SigmoidConfig.model_validate(settings)),
    "tokens": lambda settings: Tokens(InfoNCEConfig()),
}
# Pairs, what they are weighed with, and what differs from the loss of the case.
STAGES: dict[str, list[tuple[str, str, float, dict[str, Any]]]] = {
    "two towers": [("one", "anchor", 1.0, {"logit_scale": _temperature(0.2)})],
    "three modalities": [
        ("one", "two", 1.0, {"logit_scale": _temperature(0.1)}),
        ("two", "three", 2.0, {"logit_scale": _temperature(0.2)}),
        ("one", "three", 3.0, {"logit_scale": _temperature(0.4)}),
    ],
    "tokens": [("one", "three", 3.0, {"name": "tokens"}), ("three", "anchor", 1.0, {})],
}


@dataclass(frozen=True)
class Case:
    """A stage, a loss and a batch.

    Attributes:
        stage: One of `STAGES`.
        sizes: The rows that each process has.
        loss: Settings of the loss.
        micro: The micro-batch size.
        dtype: Of weights and data.
        steps: How many steps are taken, each with other rows.
        random: Random negatives of each process.
        lengths: The tokens that each process pads its rows to.
        labels: Whether the data set has labels.
        dropout: Share of units that are dropped.
        divided: Whether FSDP2 divides the parameters.
    """

    stage: str
    sizes: tuple[int, ...] = (6, 6)
    loss: tuple[tuple[str, Any], ...] = ()
    micro: int | None = None
    dtype: torch.dtype = torch.float64
    steps: int = 1
    random: tuple[int, ...] = (0, 0)
    lengths: tuple[int, ...] = (7, 7)
    labels: bool = False
    dropout: float = 0.0
    divided: bool = False

    @property
    def name(self) -> str:
        """Names it in a test's id."""
        parts = [self.stage, "+".join(map(str, self.sizes)), *(f"{k}={v}" for k, v in self.loss)]
        parts += [f"micro={self.micro}"] if self.micro else []
        parts += [str(self.dtype).removeprefix("torch.")] if self.dtype != torch.float64 else []
        parts += [f"{self.steps} steps"] if self.steps > 1 else []
        parts += [f"random={'+'.join(map(str, self.random))}"] if any(self.random) else []
        parts += [f"tokens={'+'.join(map(str, self.lengths))}"] if self.lengths != (7, 7) else []
        parts += ["labels"] if self.labels else []
        parts += [f"dropout={self.dropout}"] if self.dropout else []
        return " ".join([*parts, *(["divided"] if self.divided else [])])


def loss(**settings: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(settings.items())


ONE_WAY = loss(direction="first_to_second")
BACKWARDS = loss(direction="second_to_first")
# A batch, in halves; with an odd number of rows; with some that could not be read.
BATCHES: list[tuple[tuple[int, ...], int | None]] = [
    ((6, 6), None), ((6, 6), 3), ((5, 6), None), ((5, 6), 4), ((9, 3), None), ((3, 9), 4),
]  # fmt: skip


def _cases() -> Iterator[Case]:
    for sizes, micro in BATCHES:
        for stage, settings in (("two towers", ()), ("two towers", ONE_WAY), ("three modalities", ())):
            yield Case(stage, sizes, settings, micro)
            yield Case(stage, sizes, settings, micro, torch.float32)
        yield Case("tokens", sizes, (), micro, lengths=(4, 7))
        yield Case("tokens", sizes, (), micro, lengths=(7, 3), labels=True)
        for treat_as in ("negative", "ignore", "positive"):
            yield Case("three modalities", sizes, loss(same_label=treat_as), micro, labels=True)
    yield Case("two towers", (6, 6), BACKWARDS)
    yield Case("three modalities", (5, 6), BACKWARDS, 3)
    for treat_as in ("ignore", "positive"):
        yield Case("two towers", (5, 6), (*ONE_WAY, *loss(same_label=treat_as)), 4, labels=True)
    for stage, settings, micro in itertools.product(("two towers", "three modalities"), ((), ONE_WAY), (None, 4)):
        yield Case(stage, (5, 6), (*settings, *loss(queue=20)), micro, steps=4)
        yield Case(stage, (5, 6), (*settings, *loss(random_negatives=7)), micro, random=(3, 4))
    yield Case("three modalities", (6, 3), loss(queue=20, same_label="ignore"), 4, steps=4, labels=True)
    yield Case("two towers", (6, 3), loss(random_negatives=7, same_label="positive"), random=(2, 3), labels=True)
    yield Case("three modalities", (6, 5), loss(queue=9, random_negatives=4), 3, steps=3, random=(3, 1))
    yield Case("three modalities", (5, 6), loss(random_negatives=2), random=(0, 2))
    for sizes, micro in (((6, 6), 3), ((5, 6), None), ((3, 9), 4)):
        yield Case("three modalities", sizes, (), micro, dropout=0.4)
    for sizes, micro in BATCHES:
        for stage in ("two towers", "three modalities"):
            yield Case(stage, sizes, loss(name="sigmoid"), micro)
        yield Case("three modalities", sizes, loss(name="sigmoid"), micro, torch.float32)
    for treat_as in ("ignore", "positive"):
        yield Case("three modalities", (5, 6), loss(name="sigmoid", same_label=treat_as), 4, labels=True)
    for sizes, micro in BATCHES:
        yield Case("two towers", sizes, (), micro, divided=True)
        yield Case("three modalities", sizes, (), micro, divided=True)
    yield Case("tokens", (5, 6), (), 4, lengths=(4, 7), divided=True)
    yield Case("three modalities", (5, 6), loss(queue=20), 4, steps=4, divided=True)
    yield Case("three modalities", (3, 9), (), 4, dropout=0.4, divided=True)


CASES = {case.name: case for case in _cases()}


# ---------------------------------------------------------------------- what a case is made of


def net(inputs: int, outputs: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, outputs))


def model_of(case: Case) -> StageModel:
    torch.manual_seed(1)
    encoders = {
        "one": SpaceEncoder(net(3, DIM, case.dropout), DIM, DIM, projected=False),
        "two": SpaceEncoder(net(5, 9, case.dropout), 9, DIM, projected=True),
        "three": SpaceEncoder(TokenEncoder(case.dropout), DIM, DIM, projected=False),
    }
    edges = edges_of(case)
    used = {name: needed_fields(edges, name) for edge in edges for name in (edge.first, edge.second)}
    model = StageModel({name: encoder for name, encoder in encoders.items() if name in used}, used)
    return model.to(case.dtype).train()


def edges_of(case: Case) -> list[Edge]:
    edges = []
    for first, second, weight, own in STAGES[case.stage]:
        settings = {"name": "infonce", **dict(case.loss), **own}
        edges.append(Edge(first, second, LOSSES[settings["name"]](settings), weight))
    return edges


def losses_of(case: Case, processes: Processes) -> EdgeLosses:
    names = ("one", "two", "three", "anchor")
    table = pa.table({"key": [str(i) for i in range(ROWS)], "x": [0.0] * ROWS, "label": LABELS})
    labels = dict.fromkeys(names, "label") if case.labels else {}
    data = PairedData("d", Observations(table, Path(), dict.fromkeys(names, "x"), labels=labels))
    return EdgeLosses(edges_of(case), data, DIM, processes).to(case.dtype)


@dataclass(frozen=True)
class Batch:
    """A batch and its random negatives, before any process has its part."""

    rows: torch.Tensor
    random: torch.Tensor
    inputs: Mapping[str, Any]
    anchor: torch.Tensor


def batch_of(case: Case, step: int) -> Batch:
    generator = torch.Generator().manual_seed(100 + step)
    count, random = sum(case.sizes), sum(case.random)
    rows = torch.randperm(ROWS, generator=generator)[:count]
    drawn = torch.randint(ROWS, (random,), generator=generator)
    drawn[: random // 3] = rows[: random // 3]  # some are in the batch as well
    total = count + random
    # The tokens of a row are as many as its process pads to, at most.
    longest = [length for size, length in zip(case.sizes, case.lengths, strict=False) for _ in range(size)]
    mask = torch.rand(total, 7, generator=generator) > 0.4
    mask[:, 0] = True
    mask &= torch.arange(7) < torch.tensor([*longest, *[3] * random])[:, None]

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(case.dtype)

    inputs = {"one": values(total, 3), "two": values(total, 5)}
    inputs["three"] = {"values": values(total, 7, 4), "mask": mask}
    return Batch(rows, drawn, inputs, nn.functional.normalize(values(total, DIM), dim=-1))


def step_of(case: Case, batch: Batch, model: nn.Module, index: int | None) -> Step:
    """Returns what a process has of a batch; all of it for None."""
    count, sizes = sum(case.sizes), case.sizes
    own = range(count) if index is None else range(sum(sizes[:index]), sum(sizes[: index + 1]))
    more = range(sum(case.random)) if index is None else range(sum(case.random[:index]), sum(case.random[: index + 1]))
    at = torch.tensor([*own, *(count + i for i in more)])
    length = max(case.lengths) if index is None else case.lengths[index]
    inputs = {
        name: {k: v[at, :length] for k, v in value.items()} if isinstance(value, dict) else value[at]
        for name, value in batch.inputs.items()
        if name in model.encoders  # type: ignore[operator]
    }
    anchors = {"anchor": EncoderOutput(batch.anchor[at])} if "anchor" in str(STAGES[case.stage]) else {}
    drawn = {name: batch.random[list(more)] for name in (*inputs, *anchors)} if any(case.random) else {}
    return Step(inputs, anchors, BatchRows(batch.rows, (count,) if index is None else sizes, drawn))


# ---------------------------------------------------------------------- one process, or one of two


def figures_of(
    case: Case,
    processes: Processes,
    take: Callable[[StageModel, EdgeLosses, Batch], torch.Tensor],
    model: StageModel,
) -> dict[str, torch.Tensor]:
    """Takes the steps of a case; returns the loss and the gradients of each, and the queues at the end.

    Args:
        case: The case.
        processes: The processes of its losses.
        take: Adds the gradients of a batch, and returns this process's share of its loss.
        model: The model, as it is.
    """
    losses = losses_of(case, processes)
    found: dict[str, torch.Tensor] = {}
    for step in range(case.steps):
        share = take(model, losses, batch_of(case, step))
        found[f"{step} loss"] = processes.total(share)
        for name, parameter in [*model.named_parameters(), *losses.named_parameters()]:
            gradient = parameter.grad
            if gradient is not None:
                whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
                found[f"{step} {name.removeprefix('module.')}"] = whole.clone()
                with torch.no_grad():
                    parameter -= 0.5 * gradient
                parameter.grad = None
    found |= {f"buffer {name}": buffer.clone() for name, buffer in losses.named_buffers()}
    found |= {f"weights {name.removeprefix('module.')}": tensor for name, tensor in full_state(model).items()}
    return found


def alone(case: Case, accelerator: Any, micro: int | None = None) -> dict[str, torch.Tensor]:
    """One process, by `gradients`, with the whole batch."""

    def take(model: StageModel, losses: EdgeLosses, batch: Batch) -> torch.Tensor:
        torch.manual_seed(17)
        return gradients(accelerator, model, losses, step_of(case, batch, model, None), micro)[0]

    return figures_of(case, Processes(), take, model_of(case))


def one_graph(case: Case) -> dict[str, torch.Tensor]:
    """One process and one graph over all slices of all processes, each under the random state it has there."""

    def take(model: StageModel, losses: EdgeLosses, batch: Batch) -> torch.Tensor:
        parts = []
        count = slice_count(max(case.sizes), case.micro)
        for index in range(len(case.sizes)):
            torch.manual_seed(17 + index)
            inputs = step_of(case, batch, model, index).inputs
            ends = [case.sizes[index] * (i + 1) // count for i in range(count)]
            parts += [model(_sliced(inputs, start, end)) for start, end in itertools.pairwise([0, *ends])]
        whole = step_of(case, batch, model, None)
        outputs = {name: _joined([part[name] for part in parts]) for name in parts[0]}
        value, _ = losses({**outputs, **whole.anchors}, whole.rows)
        value.backward()
        return value.detach()

    return figures_of(case, Processes(), take, model_of(case))


def _sliced(batch: Any, start: int, end: int) -> Any:
    return {k: _sliced(v, start, end) for k, v in batch.items()} if isinstance(batch, Mapping) else batch[start:end]


def _joined(parts: Sequence[EncoderOutput]) -> EncoderOutput:
    fields = {k: None if v is None else torch.cat([vars(p)[k] for p in parts]) for k, v in vars(parts[0]).items()}
    return replace(parts[0], **fields)


def together(case: Case, accelerator: Any, processes: Processes) -> dict[str, torch.Tensor]:
    """This process's view of two."""
    model: Any = model_of(case)
    if case.divided:
        model, accelerator = _divided(model), _LikeAccelerate()
    else:
        probe = step_of(case, batch_of(case, 0), model, processes.index).inputs
        accelerator.ddp_handler.find_unused_parameters = leaves_out_parameters(model, probe)
        model = accelerator.prepare(model)
    encoders = getattr(model, "module", model)

    def take(model: Any, losses: EdgeLosses, batch: Batch) -> torch.Tensor:
        step = step_of(case, batch, encoders, processes.index)
        torch.manual_seed(17 + processes.index)
        return gradients(accelerator, model, losses, step, case.micro)[0]

    return figures_of(case, processes, take, model)


class _LikeAccelerate:
    """What `gradients` uses of Accelerate, as it is there with FSDP2, which it does not offer on a CPU."""

    device = torch.device("cpu")

    def backward(self, value: torch.Tensor) -> None:
        value.backward()

    @contextmanager
    def no_sync(self, model: Any) -> Iterator[None]:
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)


def _divided(model: StageModel) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for encoder in model.encoders.values():
        fully_shard(encoder, mesh=mesh)
    return fully_shard(model, mesh=mesh)


# ---------------------------------------------------------------------- optimizer, schedule, checkpoint

TRAINED = Case("three modalities", (5, 6), micro=4)
"""Has parameters that take no part: what the encoder of `three` says of its variance, which no loss uses."""


def trained(processes: Processes, folder: Path) -> dict[str, torch.Tensor]:
    """Takes four steps; after the second, writes a checkpoint. Another run reads it and takes the other two."""
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = accelerator_of(folder)
    first, losses = _updates(accelerator, processes)
    found = _steps(accelerator, first, losses, range(2))
    checkpoint.save(accelerator, processes, folder, checkpoint.StageState("fingerprint", step=2))
    found |= _steps(accelerator, first, losses, range(2, 4))
    accelerator.free_memory()

    accelerator = accelerator_of(folder)  # as the next stage has it
    second, losses = _updates(accelerator, processes)
    with torch.no_grad():
        for parameter in (*second.model.parameters(), *losses.parameters()):
            parameter.zero_()
    checkpoint.restore(accelerator, folder)
    found |= {f"restored {key}": value for key, value in _steps(accelerator, second, losses, range(2, 4)).items()}
    accelerator.free_memory()
    return found


def accelerator_of(folder: Path) -> Any:
    return make_accelerator(RunConfig.model_validate({"log_with": []}), folder / "stages" / "01-stage")


def _updates(accelerator: Any, processes: Processes) -> tuple[Updates, EdgeLosses]:
    settings = {
        "optimizer": {"lr": 1e-2, "clip_norm": 0.05, "eps": 1e-2},  # AdamW must not undo the clipping
        "scheduler": {"name": "cosine_warmup", "warmup": 2},
    }
    config = AlignConfig.model_validate({"name": "stage", "train": ["one"], "data": "d", **settings})
    if accelerator.ddp_handler is not None:
        accelerator.ddp_handler.find_unused_parameters = True
    losses = losses_of(TRAINED, processes)
    return Updates(accelerator, config, model_of(TRAINED), losses, steps_per_epoch=4, total_steps=4), losses


def _steps(accelerator: Any, updates: Updates, losses: EdgeLosses, steps: range) -> dict[str, torch.Tensor]:
    found = {}
    processes = losses.processes
    encoders = getattr(updates.model, "module", updates.model)
    for number in steps:
        index = processes.index if processes.count > 1 else None
        step = step_of(TRAINED, batch_of(TRAINED, number), encoders, index)
        share, _ = gradients(accelerator, updates.model, losses, step, TRAINED.micro)
        found[f"{number} loss"] = processes.total(share)
        found[f"{number} lr"] = torch.tensor(updates.lr, dtype=torch.float64)
        updates.step()
        updates.pass_time()
    for name, tensor in {**full_state(encoders), **full_state(losses)}.items():
        found[f"{steps.stop} {name}"] = tensor.clone()
    return found


def _force_fsdp() -> None:
    """Makes Accelerate believe in a GPU, without which it has no FSDP; what it does then works on a CPU."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_TORCH_DEVICE": "cpu"}
    PartialState._prepare_backend = lambda self, *_: ("gloo", DistributedType.MULTI_GPU)


# ---------------------------------------------------------------------- what processes say


def said(processes: Processes) -> dict[str, Any]:
    """Everything that processes agree on, of one of them."""
    agreed = processes.agree(torch.arange(3 + processes.index), 4, processes.index == 1, False)
    return {
        "rows": agreed.rows.tolist(),
        "sizes": agreed.sizes,
        "flags": agreed.flags,
        "nobody": processes.any(False),
        "somebody": processes.any(processes.index == 0),
        "objects": processes.all_objects(f"from {processes.index}"),
        "share": processes.share(list(range(5))),
        "main": processes.is_main,
    }


def main(folder: Path) -> None:
    accelerator = accelerator_of(folder)
    processes = processes_of(accelerator)
    assert processes.count == 2, os.environ
    found = {}
    for name, case in CASES.items():
        found |= {f"{name}|{key}": tensor for key, tensor in together(case, accelerator, processes).items()}
    found |= {f"ddp|{key}": tensor for key, tensor in trained(processes, folder / "ddp").items()}
    _force_fsdp()
    assert accelerator_of(folder).is_fsdp2
    found |= {f"fsdp|{key}": tensor for key, tensor in trained(processes, folder / "fsdp").items()}
    save_file({key: tensor.contiguous() for key, tensor in found.items()}, folder / f"{processes.index}.safetensors")
    (folder / f"{processes.index}.json").write_text(json.dumps(said(processes)))
    processes.wait()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
