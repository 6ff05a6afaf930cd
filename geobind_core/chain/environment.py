"""What a stage ran on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

from geobind_core.config.models import RunConfig


def environment(run: RunConfig) -> dict[str, Any]:
    """Returns device, number of processes, precision and versions, as `stage.json` has them. Imports torch."""
    import torch
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    state = PartialState()
    is_cuda = state.device.type == "cuda"
    device = torch.cuda.get_device_name(state.device) if is_cuda else f"{state.device.type}, {os.cpu_count()} cores"
    # Without a precision of its own, a run has that of `accelerate config`, which Accelerate knows once it has begun.
    chosen = AcceleratorState().mixed_precision if AcceleratorState._shared_state else run.mixed_precision
    return {
        "device": device,
        "processes": state.num_processes,
        "mixed_precision": chosen or "no",
        "python": platform.python_version(),
        **{name: version(name) for name in ("geobind", "torch", "accelerate")},
    }
