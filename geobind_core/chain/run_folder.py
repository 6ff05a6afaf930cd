"""The run folder: where things are in it, and that only one run at a time is in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from geobind_core.errors import RunFolderError
from geobind_core.files import read_json, recover_folder, write_json, write_text

STAGE_FILE = "stage.json"


@dataclass(frozen=True)
class RunFolder:
    """`runs/<name>`."""

    path: Path

    @property
    def space(self) -> Path:
        """The space."""
        return self.path / "space"

    @property
    def metrics(self) -> Path:
        """What was measured."""
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.path / "report.html"

    @property
    def chain(self) -> Path:
        """The resolved configuration."""
        return self.path / "chain.yaml"

    def stage_folder(self, number: int, name: str) -> Path:
        """Returns the folder that a stage has at this place of the chain."""
        return self.path / "stages" / f"{number:02d}-{name}"

    def find_stage(self, name: str) -> Path:
        """Returns the folder of a stage, whatever number it had when it ran; one that is not there if it never did."""
        # 00 is what was stored before the first stage, and no stage, whatever a stage is called.
        numbered = (p for p in (self.path / "stages").glob(f"[0-9]*-{name}") if not p.name.startswith("00-"))
        found = sorted(p for p in numbered if p.name.split("-", 1)[1] == name)
        return found[0] if found else self.path / "stages" / name

    def claim_stage_folder(self, number: int, name: str) -> Path:
        """Returns a stage's folder, made or renamed to its present place in the chain."""
        wanted, found = self.stage_folder(number, name), self.find_stage(name)
        if number > 0 and found.exists() and found != wanted:
            found.replace(wanted)
        wanted.mkdir(parents=True, exist_ok=True)
        return wanted

    @staticmethod
    def weights(stage_folder: Path, modality: str) -> Path:
        """Returns where a stage keeps the weights of a modality."""
        return stage_folder / "encoders" / modality

    def has_weights(self, stage_folder: Path, modality: str) -> bool:
        """Whether a stage has stored the weights of a modality."""
        recover_folder(self.weights(stage_folder, modality))
        return (self.weights(stage_folder, modality) / "model.safetensors").is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process. The lock goes with the process, however it ends.

        Raises:
            RunFolderError: It cannot be written, or another run is in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise RunFolderError(
                "another run is in this folder.",
                place=str(self.path),
                hint="Wait until it has ended, or give this one a folder of its own with --out.",
            ) from None
        except OSError as error:
            raise RunFolderError(
                f"the run folder cannot be written: {error.strerror or error}.",
                place=str(self.path),
                hint="Choose another with --out.",
            ) from error
        try:
            yield
        finally:
            lock.release()

    def write_chain(self, document: Mapping[str, Any], chain_file: Path) -> None:
        """Writes `chain.yaml`, and beside it where the chain came from."""
        text = yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=100)
        write_text(self.chain, f"# The configuration of this run, with every default filled in.\n{text}")
        write_json(self.path / "run.json", {"chain_file": str(chain_file.absolute())})

    def chain_base(self) -> Path:
        """Returns the folder that relative paths of `chain.yaml` start at.

        Raises:
            RunFolderError: This is not a run folder.
        """
        record = read_json(self.path / "run.json")
        chain_file = record.get("chain_file") if isinstance(record, dict) else None
        if not isinstance(chain_file, str) or not self.chain.is_file():
            raise RunFolderError(
                "no run here: chain.yaml or run.json is missing.",
                place=str(self.path),
                hint="Give the folder that `geobind run` wrote, such as runs/stages.",
            )
        return Path(chain_file).parent
