"""Accelerate, set up for one stage, and the processes that it was launched with."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, ProjectConfiguration

from geobind_core.config.models import RunConfig
from geobind_core.errors import ConfigError
from geobind_core.training.processes import Processes


def on_cpu() -> bool:
    """Whether Accelerate has to be told that there are several processes on the CPU; it does not look by itself."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()


def make_accelerator(run: RunConfig, stage_folder: Path) -> Accelerator:
    """Returns an accelerator with the run's precision and trackers.

    Raises:
        ConfigError: Accelerate refuses them, or was launched in a way that stages are not trained in.
    """
    logging_folder = stage_folder.parent.parent / "tensorboard"
    # Accelerate keeps the precision for as long as the process lives; another chain may ask for another. And it
    # would take the second stage with FSDP for one without.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(
            cpu=on_cpu(),
            mixed_precision=run.mixed_precision,
            dynamo_backend="inductor" if run.compile else None,
            log_with=run.log_with or None,
            project_config=ProjectConfiguration(project_dir=str(stage_folder), logging_dir=str(logging_folder)),
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[DistributedDataParallelKwargs()],
        )
    except ValueError as error:
        raise ConfigError(f"Accelerate refuses mixed_precision or log_with: {error}") from error
    kind = accelerator.distributed_type
    data_parallel = kind.value.startswith("MULTI_") or (kind == DistributedType.FSDP and accelerator.is_fsdp2)
    if not (data_parallel or (kind == DistributedType.NO and int(os.environ.get("WORLD_SIZE", "1")) == 1)):
        raise ConfigError(
            f"Accelerate was launched as {kind.value}; stages are trained in one process, with DDP or with FSDP2.",
            hint="Choose multi-GPU, or FSDP with fsdp_version: 2, in `accelerate config`.",
        )
    if kind == DistributedType.FSDP and accelerator.mixed_precision == "fp16":
        raise ConfigError(
            "fp16 scales the loss, which FSDP2 does not allow for here.", hint="Set mixed_precision: bf16."
        )
    if kind == DistributedType.FSDP and accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
        raise ConfigError(
            "fsdp_cpu_ram_efficient_loading leaves all processes but the first without the weights they start from.",
            hint="Set fsdp_cpu_ram_efficient_loading: false in `accelerate config`.",
        )
    accelerator.init_trackers(stage_folder.name)
    return accelerator


def processes_of(state: PartialState | Accelerator) -> Processes:
    """Returns the processes that Accelerate was launched with."""
    local_count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Processes(state.process_index, state.num_processes, state.local_process_index, local_count)
