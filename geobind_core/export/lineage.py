"""What is known of how a space was trained: from its run folder, or from an earlier export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from geobind_core.errors import SpaceError
from geobind_core.files import read_json
from geobind_core.space.exported import EXPORT, is_export, read_export
from geobind_core.space.space import Space

_FROM_SUMMARY = ("steps", "rows", "seconds", "loss", "logit_scale")


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageFacts(_Facts):
    """One stage. `loss` is the name of the loss, `final_loss` its last value, `seconds` the time it took."""

    name: str
    kind: str
    trains: list[str]
    anchors: list[str]
    pairs: list[tuple[str, str]] = Field(default_factory=list)
    data: list[str] = Field(default_factory=list)
    loss: str | None = None
    batch_size: int | None = None
    epochs: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    augment: dict[str, list[str]] = Field(default_factory=dict)
    steps: int | None = None
    rows: int | None = None
    seconds: float | None = None
    final_loss: float | None = None
    logit_scale: float | None = None


class DataFacts(_Facts):
    """One data set, without where it lies."""

    source: str
    license: str | None = None
    citation: str | None = None
    homepage: str | None = None


class Lineage(_Facts):
    """What a model card says of the training.

    Attributes:
        name: Of the run; None where the space came without one.
        stages: In their order.
        data: By the name that the chain has for it.
        pretrained: Modality -> the published weights that it started from.
        init_from: Modality -> the modality whose weights it started from.
        metrics: `gallery` and `pairs` of `metrics.json`.
    """

    name: str | None = None
    seed: int | None = None
    stages: list[StageFacts] = Field(default_factory=list)
    data: dict[str, DataFacts] = Field(default_factory=dict)
    pretrained: dict[str, str] = Field(default_factory=dict)
    init_from: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)


def lineage_of(space: Space) -> Lineage:
    """Returns what is known of a space: from the run around it, or from the export that it is.

    Raises:
        SpaceError: The record of the export is damaged.
    """
    if is_export(space.folder):
        try:
            return Lineage.model_validate(read_export(space.folder).lineage)
        except ValidationError as error:
            raise SpaceError(f"the lineage is damaged: {error}", place=str(space.folder / EXPORT)) from error
    run = space.folder.parent
    return _of_run(run) if (run / "chain.yaml").is_file() else Lineage()


def trained_scale(lineage: Lineage, modalities: Sequence[str]) -> tuple[float, str] | None:
    """Returns a logit scale and the stage that ended with it.

    That is the last stage that drew two of the modalities together, or else the last that trained the first one.
    """
    scaled = [stage for stage in lineage.stages if stage.logit_scale]
    together = [s for s in scaled if any(set(pair) <= set(modalities) for pair in s.pairs)]
    found = together or [s for s in scaled if modalities[0] in s.trains]
    return (float(found[-1].logit_scale or 0), found[-1].name) if found else None


def _of_run(run: Path) -> Lineage:
    try:
        chain = yaml.safe_load((run / "chain.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        chain = None
    chain = chain if isinstance(chain, dict) else {}
    modalities = chain.get("modalities") or {}
    order = [stage.get("name") for stage in chain.get("stages") or []]
    records = [read_json(path) for path in sorted((run / "stages").glob("[0-9]*/stage.json"))]
    done = {r["name"]: r for r in records if isinstance(r, dict) and r.get("status") == "done" and "name" in r}
    metrics = read_json(run / "metrics.json") or {}
    return Lineage(
        name=chain.get("name"),
        seed=chain.get("seed"),
        stages=[_stage(done[name]) for name in order if name in done],
        data={name: _data(settings) for name, settings in (chain.get("data") or {}).items()},
        pretrained={name: _public(s["pretrained"]) for name, s in modalities.items() if s.get("pretrained")},
        init_from={name: s["init_from"] for name, s in modalities.items() if s.get("init_from")},
        metrics={key: metrics[key] for key in ("gallery", "pairs") if key in metrics},
    )


def _stage(record: Mapping[str, Any]) -> StageFacts:
    """Takes the settings that a stage ran with; a kind of stage from a plugin may have few of them."""
    settings, summary = (record.get("inputs") or {}).get("stage") or {}, record.get("summary") or {}
    data, optimizer = settings.get("data"), settings.get("optimizer") or {}
    pairs = settings.get("pairs") or []
    known = {key: summary.get(key) for key in _FROM_SUMMARY}
    return StageFacts(
        name=record["name"],
        kind=record.get("kind", "align"),
        trains=record.get("trains") or [],
        anchors=record.get("anchors") or [],
        pairs=[tuple(pair["modalities"]) for pair in pairs],
        data=[data] if isinstance(data, str) else list(data or ()),
        loss=pairs[0]["loss"].get("name") if pairs and pairs[0].get("loss") else None,
        batch_size=settings.get("batch_size"),
        epochs=settings.get("epochs"),
        optimizer=optimizer.get("name"),
        learning_rate=optimizer.get("lr"),
        augment=settings.get("augment") or {},
        final_loss=known.pop("loss"),
        **known,
    )


def _data(settings: Mapping[str, Any]) -> DataFacts:
    return DataFacts(**{key: settings.get(key) for key in DataFacts.model_fields if key in settings})


def _public(pretrained: str) -> str:
    """Returns where weights came from; of a local path only its last part, which says nothing of the machine."""
    path = Path(pretrained).expanduser()
    return f"a local copy of {path.name}" if path.is_absolute() or path.exists() else pretrained
