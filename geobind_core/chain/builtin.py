"""What the core registers itself, through the very hooks that plugins use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from geobind_core.data.huggingface import HuggingFace
from geobind_core.data.soundingearth import SoundingEarth
from geobind_core.data.table import Table
from geobind_core.data.webdataset import WebDataset
from geobind_core.evaluation.metrics import MedianKm, WithinKm
from geobind_core.plugins.hooks import hookimpl
from geobind_core.plugins.loss import Loss
from geobind_core.plugins.manager import PluginManager
from geobind_core.plugins.metric import Metric
from geobind_core.plugins.source import Source
from geobind_core.plugins.stage_kind import StageKind
from geobind_core.training.align import Align
from geobind_core.training.losses import InfoNCE, Sigmoid


@hookimpl
def geobind_register_losses() -> list[type[Loss[Any]]]:
    """InfoNCE and the pairwise sigmoid loss."""
    return [InfoNCE, Sigmoid]


@hookimpl
def geobind_register_sources() -> list[type[Source[Any]]]:
    """Tables with files beside them, SoundingEarth, what Hugging Face's `datasets` writes, and shards."""
    return [Table, SoundingEarth, HuggingFace, WebDataset]


@hookimpl
def geobind_register_stage_kinds() -> list[type[StageKind[Any]]]:
    """Aligning."""
    return [Align]


@hookimpl
def geobind_register_metrics() -> list[type[Metric[Any]]]:
    """How far off the first answer is."""
    return [MedianKm, WithinKm]


def plugin_manager(
    disabled: Iterable[str] = (), commands: Iterable[str] = (), warn: Callable[[str], None] | None = None
) -> PluginManager:
    """Returns a manager with the core's own registrations; the arguments are those of `PluginManager`."""
    return PluginManager([sys.modules[__name__]], disabled, commands, warn)
