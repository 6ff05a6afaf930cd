"""What a stage sets up before its first step, and puts back after its last."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import nn

from geobind_core.config.models import AlignConfig, CosineWarmup
from geobind_core.data.loading import BatchRequest, Column, Shard, TrainingBatches, batches, plan_workers
from geobind_core.data.paired import PairedData, Rows
from geobind_core.data.samples import BadSample, SampleReader
from geobind_core.errors import ConfigError, DataError
from geobind_core.plugins.modality import Augmentation, Modality
from geobind_core.plugins.stage_kind import StageContext
from geobind_core.space.embed import to_device
from geobind_core.training.anchors import cached_column
from geobind_core.training.edges import Edge, EdgeLosses, needed_fields
from geobind_core.training.frozen import FrozenPart, TrunkHead, frozen_parts
from geobind_core.training.processes import Processes
from geobind_core.training.seeds import derived_seed
from geobind_core.training.step import StageModel, batch_norms, depends_on_slices, leaves_out_parameters
from geobind_core.training.updates import Updates, full_state

_PROBED = 8

NoteBad = Callable[[list[BadSample]], None]


@dataclass(frozen=True)
class Prepared:
    """A stage ready to take steps.

    Attributes:
        rows: The training rows that can be read.
        batch_size: Rows of a batch over all processes.
        steps_per_epoch: Steps of an epoch.
        total_steps: Steps of the stage.
        loader: Yields this process's part of each batch that is still to be done.
        columns: Modalities whose embeddings come from the cache.
        live: What is frozen and embedded in every step.
        random_room: The most random negatives that a process has of a trained modality in a step.
        losses: The edges.
        updates: The model and its optimizer.
    """

    rows: Rows
    batch_size: int
    steps_per_epoch: int
    total_steps: int
    loader: Any
    columns: Mapping[str, Column]
    live: tuple[FrozenPart, ...]
    random_room: int
    losses: EdgeLosses
    updates: Updates


def prepare(
    config: AlignConfig,
    context: StageContext,
    data: PairedData,
    accelerator: Accelerator,
    processes: Processes,
    rows: Rows,
    start_step: int,
    note_bad: NoteBad,
) -> Prepared:
    """Embeds what is frozen, and sets up data, networks and optimizer.

    Args:
        config: The stage's settings.
        context: The stage's context; what is frozen is so already, and on the device.
        data: The data set.
        accelerator: Accelerate.
        processes: The processes of the stage.
        rows: The training rows that have a cell for every modality.
        start_step: Steps that have been done before.
        note_bad: Told what cannot be read; raises when it is too much.
    """
    place = f"stage {config.name}"
    seed = derived_seed(context.run.seed, config.name)
    device = accelerator.device
    edges = [Edge(*p.modalities, loss=context.make_loss(p.loss), weight=p.weight) for p in config.pairs or ()]
    parts = frozen_parts(config, edges, context)
    _require_rows(rows, f"have all of {', '.join([*config.train, *(config.anchor or ())])}", place, data)

    def reader(name: str, *, train: bool) -> SampleReader:
        modality = context.modalities[name].with_augment([Augmentation.parse(a) for a in config.augment.get(name, ())])
        return SampleReader(data, name, modality, train=train, seed=seed)

    columns: dict[str, Column] = {}
    for part in parts:
        if part.cached:
            columns[part.name], bad = cached_column(
                part, config, context, reader(part.name, train=part.augmented), rows, accelerator, processes
            )
            note_bad(bad)
            keys = {b.key for b in bad}
            rows = rows[[data.key(row) not in keys for row in rows.tolist()]] if keys else rows
    _require_rows(rows, "can be read", place, data)

    live = tuple(part for part in parts if not part.cached)
    trunks = {part.name for part in parts if part.is_trunk}
    readers = {m: reader(m, train=m not in trunks) for m in config.train if m not in columns}
    readers |= {part.name: reader(part.name, train=part.augmented) for part in live}
    workers, room = plan_workers(readers, rows, context.run.loader, device)
    for one in readers.values():
        one.keep_up_to(room)
    random = _random_counts(edges)
    # Of what is frozen, other rows are taken, from the cache or not: both give the same loss.
    free = set(random) - {part.name for part in parts}
    drawn = [m for m in random if m in free and type(context.modalities[m]).draw is not Modality.draw]
    sampler = TrainingBatches(
        rows,
        config.batch_size,
        config.epochs,
        seed,
        start_step,
        Shard(processes.index, processes.count),
        random,
        drawn,
        data.order,
        data.near(rows),
    )
    encoders: dict[str, nn.Module] = {}
    for name in config.train:
        context.encoders[name].unfreeze(trunk=name not in trunks)
        for module in batch_norms(context.encoders[name]) if config.batch_norm == "frozen" else ():
            module.eval()
        encoders[name] = TrunkHead(context.encoders[name]) if name in trunks else context.encoders[name]
    _check_batches(config, context, sampler.batch_size, len(rows), processes)
    model = StageModel(encoders, {name: needed_fields(edges, name) for name in encoders})
    if accelerator.distributed_type == DistributedType.FSDP:
        model = copy.deepcopy(model)  # it will be taken apart for good
    elif context.run.channels_last or (context.run.channels_last is None and device.type == "cuda"):
        _lay_out(model, torch.channels_last)
    if processes.count > 1 and accelerator.ddp_handler is not None:
        whole = {name: readers[name] for name in config.train if name not in trunks}
        probe = StageModel({name: encoders[name] for name in whole}).to(device)
        accelerator.ddp_handler.find_unused_parameters = _leaves_out_parameters(probe, whole, rows)
    set_seed(seed, device_specific=processes.count > 1)
    embed_dim = context.encoders[config.train[0]].embed_dim
    losses = EdgeLosses(edges, data, embed_dim, processes).to(device)
    total = sampler.steps_per_epoch * config.epochs
    _check_warmup(config, context, sampler.steps_per_epoch, total)
    updates = Updates(accelerator, config, model, losses, steps_per_epoch=sampler.steps_per_epoch, total_steps=total)
    loader = batches(readers, sampler, workers=workers, pin_memory=device.type == "cuda", columns=columns)
    random_room = -(-max((random[m] for m in config.train if m in random), default=0) // processes.count)
    return Prepared(
        rows, sampler.batch_size, sampler.steps_per_epoch, total, loader, columns, live, random_room, losses, updates
    )


def finish(config: AlignConfig, context: StageContext, accelerator: Accelerator, prepared: Prepared) -> None:
    """Leaves the trained encoders whole, frozen and on the CPU."""
    model = accelerator.unwrap_model(prepared.updates.model, keep_fp32_wrapper=False, keep_torch_compile=False)
    # Running statistics are of the rows that a process has seen; the next stage needs the same network everywhere.
    prepared.losses.processes.copy_from_main(model.buffers())
    if accelerator.distributed_type == DistributedType.FSDP:
        state = full_state(model)
        target = StageModel({name: _trained(context, name, model.encoders[name]) for name in config.train})
        target.load_state_dict(state)
    _lay_out(model, torch.contiguous_format)
    for name in config.train:
        context.encoders[name].cpu().freeze()


def _leaves_out_parameters(model: StageModel, readers: Mapping[str, SampleReader], rows: Rows) -> bool:
    """Tries a few rows. Where none of them can be read, the answer is the safe one."""
    if not readers:
        return False
    request = BatchRequest(0, 0, rows[:_PROBED])
    example = next(iter(batches(readers, [request], workers=0, pin_memory=False)))
    device = next(model.parameters()).device
    return len(example["rows"]) < 2 or leaves_out_parameters(model, to_device(example["inputs"], device))


def _trained(context: StageContext, name: str, module: nn.Module) -> nn.Module:
    return TrunkHead(context.encoders[name]) if isinstance(module, TrunkHead) else context.encoders[name]


def _require_rows(rows: Rows, what: str, place: str, data: PairedData) -> None:
    if len(rows) < 2:
        raise DataError(f"{len(rows)} training rows {what}; expected at least 2.", place=f"{place}, data.{data.name}")


def _random_counts(edges: list[Edge]) -> dict[str, int]:
    """Returns how many random items of each modality a step needs: what the most demanding pair asks for."""
    counts: dict[str, int] = {}
    for edge in edges:
        for name in edge.galleries() if edge.random_negatives() else ():
            counts[name] = max(counts.get(name, 0), edge.random_negatives())
    return counts


def _check_batches(config: AlignConfig, context: StageContext, size: int, rows: int, processes: Processes) -> None:
    """Refuses batches that cannot be, and warns of those that are not what was asked for."""
    place = f"stage {config.name}"
    if size < processes.count:
        raise ConfigError(
            f"a batch of {size} rows cannot be divided among {processes.count} processes.",
            place=place,
            hint="Raise batch_size, or start fewer processes.",
        )
    if size < config.batch_size:
        context.reporter.warn(
            f"{place}: {rows} rows make one batch of {rows}, not of {config.batch_size}; "
            "the pool of negatives is smaller than asked for"
        )
    seen = min(config.micro_batch_size or size, -(-size // processes.count))
    for name in config.train if seen < size else ():
        if depends_on_slices(context.encoders[name]):
            context.reporter.warn(
                f"{place}: '{name}' has batch normalisation, which sees {seen} rows at a time and not {size}; "
                "micro_batch_size and the number of processes change its result a little, unless batch_norm: frozen"
            )


def _check_warmup(config: AlignConfig, context: StageContext, steps_per_epoch: int, total_steps: int) -> None:
    """Warns of a learning rate that never gets where it should."""
    if not isinstance(config.scheduler, CosineWarmup):
        return
    warmup = config.scheduler.warmup * (steps_per_epoch if config.scheduler.unit == "epoch" else 1)
    if warmup > total_steps:
        reached = config.optimizer.lr * total_steps / (warmup + 1)
        context.reporter.warn(
            f"stage {config.name}: the warm-up takes {warmup:g} steps and the stage has {total_steps}; the learning "
            f"rate rises to {reached:.2g} and not to {config.optimizer.lr:g}. Lower scheduler.warmup, or train longer."
        )


def _lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    """Arranges the weights of convolutions in memory; their values stay."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
