"""`log.jsonl`: what a stage has measured and what it could not read, a line each."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geobind_core.data.samples import BadSample
from geobind_core.files import naming, write_text

LOG = "log.jsonl"


@dataclass(frozen=True)
class StageLog:
    """The log of a stage in its folder."""

    folder: Path

    def trim(self, step: int) -> None:
        """Takes out what was logged after the checkpoint that the stage goes on from; all of it at step 0."""
        path = self.folder / LOG
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if step and path.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line).get("step", 0) <= step]
        write_text(path, "".join(kept))

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line. JSON has no word for numbers that are not finite; they are null."""
        path = self.folder / LOG
        record = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def append_bad(self, sample: BadSample, step: int) -> None:
        """Adds a line about a sample that could not be read in a step."""
        named = {"key": sample.key, "modality": sample.modality, "reason": sample.reason}
        self.append({"event": "bad_sample", "step": step, **named})
