"""The state of an unfinished stage: written whole, and only continued by the stage that wrote it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from geobind_core.data.samples import BadSample
from geobind_core.files import read_json, recover_folder, replacing_folder, write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

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
    """

    fingerprint: str
    step: int = 0
    seconds: float = 0.0
    bad: list[BadSample] = field(default_factory=list)


def save(accelerator: Accelerator, stage_folder: Path, state: StageState) -> None:
    """Writes a checkpoint in place of the last."""
    with replacing_folder(stage_folder / FOLDER) as temporary:
        accelerator.save_state(str(temporary))
        write_json(
            temporary / _STATE,
            {
                "fingerprint": state.fingerprint,
                "step": state.step,
                "seconds": state.seconds,
                "bad": [[b.key, b.modality, b.reason] for b in state.bad],
            },
        )


def read_state(stage_folder: Path, fingerprint: str) -> StageState | None:
    """Returns how far the checkpoint in a stage's folder is; None without one of this fingerprint."""
    recover_folder(stage_folder / FOLDER)
    raw = read_json(stage_folder / FOLDER / _STATE)
    if not isinstance(raw, dict) or raw.get("fingerprint") != fingerprint:
        return None
    return StageState(fingerprint, raw["step"], raw["seconds"], [BadSample(*b) for b in raw["bad"]])


def restore(accelerator: Accelerator, stage_folder: Path) -> None:
    """Puts models, optimizer, schedule and random states back to where the checkpoint has them."""
    accelerator.load_state(str(stage_folder / FOLDER))


def remove(stage_folder: Path) -> None:
    """Removes the checkpoint of a stage, if there is one, and what was left of one that was cut off."""
    for folder in (stage_folder / FOLDER, *stage_folder.glob(f".{FOLDER}.*")):
        shutil.rmtree(folder, ignore_errors=True)
