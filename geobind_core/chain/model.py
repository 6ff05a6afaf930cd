"""A chain that has been checked: every name resolved to what it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geobind_core.config.models import ChainConfig
from geobind_core.plugins.loss import Loss
from geobind_core.plugins.manager import PluginManager
from geobind_core.plugins.metric import Metric
from geobind_core.plugins.modality import Modality
from geobind_core.plugins.registry import Provided
from geobind_core.plugins.source import Source
from geobind_core.plugins.stage_kind import StageKind


@dataclass(frozen=True)
class ChainModality:
    """A modality of the chain and who provides it."""

    modality: Modality[Any]
    provided: Provided


@dataclass(frozen=True)
class Chain:
    """A chain ready to be planned.

    Attributes:
        name: Names the run folder.
        path: The file it came from.
        config: The settings; `document` is what was written, with overrides applied.
        modalities: By name, in the order of the file.
        sources: By name.
        stages: In order; defaults (anchors, pairs, directions) are filled in.
        plugins: The manager that resolved the names.
        metrics: What is measured beside ranks, by what messages call it: its name and who provides it.
    """

    name: str
    path: Path
    config: ChainConfig
    document: Mapping[str, Any]
    modalities: Mapping[str, ChainModality]
    sources: Mapping[str, Source[Any]]
    stages: tuple[StageKind[Any], ...]
    plugins: PluginManager
    metrics: Mapping[str, Metric[Any]] = field(default_factory=dict)

    def make_loss(self, settings: Mapping[str, Any]) -> Loss[Any]:
        """Makes a loss of resolved settings."""
        cls = self.plugins.find("loss", settings["name"]).cls
        loss: Loss[Any] = cls(cls.Config.model_validate(settings))
        return loss
