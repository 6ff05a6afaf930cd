"""Accelerate, set up for one stage."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, ProjectConfiguration

from geobind_core.config.models import RunConfig
from geobind_core.errors import ConfigError


def make_accelerator(run: RunConfig, stage_folder: Path) -> Accelerator:
    """Returns an accelerator with the run's precision and trackers.

    Raises:
        ConfigError: Accelerate refuses them, or was launched with several processes.
    """
    logging_folder = stage_folder.parent.parent / "tensorboard"
    # Accelerate keeps the precision for as long as the process lives; another chain may ask for another.
    AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            mixed_precision=run.mixed_precision,
            log_with=run.log_with or None,
            project_config=ProjectConfiguration(project_dir=str(stage_folder), logging_dir=str(logging_folder)),
            step_scheduler_with_optimizer=False,
        )
    except ValueError as error:
        raise ConfigError(f"Accelerate refuses mixed_precision or log_with: {error}") from error
    if accelerator.distributed_type != DistributedType.NO:
        raise ConfigError(
            f"found {accelerator.num_processes} processes ({accelerator.distributed_type.value}); "
            "this version trains in one process.",
            hint="Start it with `geobind run`, or with `accelerate launch --num_processes 1`.",
        )
    accelerator.init_trackers(stage_folder.name)
    return accelerator
