"""What a process does up to the first batch of a chain: `python -m tests.benchmarks.first_batch CHAIN`."""

import json
import sys
import time
from pathlib import Path
from typing import Any


def first_batch(path: Path) -> dict[str, Any]:
    """Plans a chain, opens its data, reads a batch; returns seconds, memory, and what it found."""
    started = time.monotonic()
    # All imports are part of it.
    from geobind_core.chain.builtin import plugin_manager
    from geobind_core.chain.datasets import DataSets
    from geobind_core.chain.plan import make_plan
    from geobind_core.chain.resolve import load_chain
    from geobind_core.chain.run_folder import RunFolder
    from geobind_core.progress import Reporter

    chain = load_chain(path, plugin_manager())
    actions = [plan.action for plan in make_plan(chain, RunFolder(path.parent / "run"))]
    stage = chain.stages[0]
    data = DataSets(chain, Reporter(quiet=True)).of_stage(stage.config)
    assert data is not None

    from geobind_core.data.loading import TrainingBatches, batches
    from geobind_core.data.samples import SampleReader

    rows = data.rows("train", stage.trains())
    modalities = {name: chain.modalities[name].modality for name in stage.trains()}
    readers = {name: SampleReader(data, name, modality, train=True, seed=0) for name, modality in modalities.items()}
    sampler = TrainingBatches(rows, 256, 10, 0, order=data.order)
    batch = next(iter(batches(readers, sampler, workers=0, pin_memory=False)))
    seconds = time.monotonic() - started

    from .measure import resident

    return {
        "seconds": seconds,
        "mib": resident("VmHWM") / 2**20,
        "rows": len(data),
        "train": len(rows),
        "batch": len(batch["rows"]),
        "bad": len(batch["bad"]),
        "actions": actions,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(first_batch(Path(sys.argv[1]))) + "\n")
