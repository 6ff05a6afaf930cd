"""The state of an unfinished stage: written whole, and only continued by the stage that wrote it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from geobind_core.data.samples import BadSample, describe
from geobind_core.errors import RunFolderError
from geobind_core.files import read_json, recover_folder, replacing_folder, temporary_beside, write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

    from geobind_core.training.processes import Processes

FOLDER = "checkpoint"
_STATE = "stage_state.json"


@dataclass
class StageState:
    """How far a stage is.

    Attributes:
        fingerprint: Identifies the stage's inputs; another one's checkpoint is not continued.
        step: Steps done.
        seconds: Training time so far.
        bad: Bad samples found so far.
        saved_step: The step of the last checkpoint; None before the first.
    """

    fingerprint: str
    step: int = 0
    seconds: float = 0.0
    bad: list[BadSample] = field(default_factory=list)
    saved_step: int | None = None


def save(accelerator: Accelerator, processes: Processes, stage_folder: Path, state: StageState) -> None:
    """Writes a checkpoint in place of the last; all processes write their parts of it.

    Raises:
        RunFolderError: It cannot be written, on a full disk for one. The last checkpoint stays.
    """
    target = stage_folder / FOLDER
    if processes.is_main:
        with replacing_folder(target) as temporary:
            processes.wait()
            _write_part(accelerator, processes, temporary, state)
    else:
        processes.wait()
        _write_part(accelerator, processes, temporary_beside(target), state)
    state.saved_step = state.step


def _write_part(accelerator: Accelerator, processes: Processes, folder: Path, state: StageState) -> None:
    from safetensors import SafetensorError

    from geobind_core.training.failures import safe_until

    problem = ""
    try:
        accelerator.save_state(str(folder))
        if processes.is_main:
            bad = [[b.key, b.modality, b.reason] for b in state.bad]
            record = {"fingerprint": state.fingerprint, "step": state.step, "seconds": state.seconds, "bad": bad}
            write_json(folder / _STATE, record)
    # torch says RuntimeError and safetensors something of its own where the disk says ENOSPC.
    except (OSError, RuntimeError, SafetensorError) as error:
        problem = describe(error)
    problems = [p for p in processes.all_objects(problem) if p]
    if problems:
        raise RunFolderError(
            f"the checkpoint of step {state.step} cannot be written: {problems[0]}.",
            place=str(folder.parent),
            hint=f"{safe_until(state.saved_step)} Make room, then run the same command again.",
        )


def read_state(stage_folder: Path, fingerprint: str) -> StageState | None:
    """Returns how far the checkpoint in a stage's folder is; None without one of this fingerprint."""
    recover_folder(stage_folder / FOLDER)
    raw = read_json(stage_folder / FOLDER / _STATE)
    if not isinstance(raw, dict) or raw.get("fingerprint") != fingerprint:
        return None
    bad = [BadSample(*b) for b in raw["bad"]]
    return StageState(fingerprint, raw["step"], raw["seconds"], bad, saved_step=raw["step"])


def restore(accelerator: Accelerator, stage_folder: Path) -> None:
    """Puts models, optimizer, schedule and random states back to where the checkpoint has them.

    Raises:
        RunFolderError: The checkpoint is damaged.
    """
    from geobind_core.training.failures import is_out_of_memory

    folder = stage_folder / FOLDER
    try:
        accelerator.load_state(str(folder))
    except MemoryError:
        raise
    except Exception as error:  # whatever torch, safetensors and pickle make of a damaged file
        if is_out_of_memory(error):
            raise
        raise RunFolderError(
            f"the checkpoint cannot be read: {describe(error)}.",
            place=str(folder),
            hint="Remove this folder, then run the same command again; the stage begins anew, finished ones are safe.",
        ) from error


def remove(stage_folder: Path) -> None:
    """Removes the checkpoint of a stage, if there is one, and what was left of one that was cut off."""
    for folder in (stage_folder / FOLDER, *stage_folder.glob(f".{FOLDER}.*")):
        shutil.rmtree(folder, ignore_errors=True)
