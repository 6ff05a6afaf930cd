"""GeoBind: one embedding space for many modalities, bound through satellite images.

The public names. They are looked up lazily, so that importing the package imports no torch::

    from geobind_core import Space
    space = Space.load("runs/demo/space")
    sounds = space.embed("audio", ["bird.flac", "surf.flac"])     # [2, D] float32, unit norm

Writing a plugin takes `Modality`, `ModalityConfig` and `hookimpl`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geobind_core.errors import DataError as DataError
    from geobind_core.errors import ExportError as ExportError
    from geobind_core.errors import GeoBindError as GeoBindError
    from geobind_core.errors import WeightsError as WeightsError
    from geobind_core.hub import require_hub_files as require_hub_files
    from geobind_core.plugins.export import Exporter as Exporter
    from geobind_core.plugins.export import ExportPart as ExportPart
    from geobind_core.plugins.export import Stored as Stored
    from geobind_core.plugins.export import Written as Written
    from geobind_core.plugins.hooks import hookimpl as hookimpl
    from geobind_core.plugins.loss import ExtraItems as ExtraItems
    from geobind_core.plugins.loss import LocalPair as LocalPair
    from geobind_core.plugins.loss import Loss as Loss
    from geobind_core.plugins.loss import LossConfig as LossConfig
    from geobind_core.plugins.loss import LossOutput as LossOutput
    from geobind_core.plugins.metric import Metric as Metric
    from geobind_core.plugins.metric import MetricConfig as MetricConfig
    from geobind_core.plugins.metric import Retrieval as Retrieval
    from geobind_core.plugins.modality import Augmentation as Augmentation
    from geobind_core.plugins.modality import EncoderOutput as EncoderOutput
    from geobind_core.plugins.modality import Modality as Modality
    from geobind_core.plugins.modality import ModalityConfig as ModalityConfig
    from geobind_core.plugins.modality import Preview as Preview
    from geobind_core.plugins.source import Observations as Observations
    from geobind_core.plugins.source import Progress as Progress
    from geobind_core.plugins.source import Reference as Reference
    from geobind_core.plugins.source import Source as Source
    from geobind_core.plugins.source import SourceConfig as SourceConfig
    from geobind_core.plugins.stage_kind import StageContext as StageContext
    from geobind_core.plugins.stage_kind import StageInfo as StageInfo
    from geobind_core.plugins.stage_kind import StageKind as StageKind
    from geobind_core.plugins.stage_kind import StageResult as StageResult
    from geobind_core.space.space import Space as Space

_HOMES = {
    "Augmentation": "plugins.modality",
    "DataError": "errors",
    "EncoderOutput": "plugins.modality",
    "ExportError": "errors",
    "ExportPart": "plugins.export",
    "Exporter": "plugins.export",
    "ExtraItems": "plugins.loss",
    "GeoBindError": "errors",
    "LocalPair": "plugins.loss",
    "Loss": "plugins.loss",
    "LossConfig": "plugins.loss",
    "LossOutput": "plugins.loss",
    "Metric": "plugins.metric",
    "MetricConfig": "plugins.metric",
    "Modality": "plugins.modality",
    "ModalityConfig": "plugins.modality",
    "Observations": "plugins.source",
    "Preview": "plugins.modality",
    "Progress": "plugins.source",
    "Reference": "plugins.source",
    "Retrieval": "plugins.metric",
    "Source": "plugins.source",
    "SourceConfig": "plugins.source",
    "Space": "space.space",
    "StageContext": "plugins.stage_kind",
    "StageInfo": "plugins.stage_kind",
    "StageKind": "plugins.stage_kind",
    "StageResult": "plugins.stage_kind",
    "Stored": "plugins.export",
    "WeightsError": "errors",
    "Written": "plugins.export",
    "hookimpl": "plugins.hooks",
    "require_hub_files": "hub",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'geobind_core' has no attribute '{name}'")
    return getattr(import_module(f"geobind_core.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__doc__"]
