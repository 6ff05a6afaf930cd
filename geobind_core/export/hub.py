"""A folder that is ready for the Hugging Face Hub: the whole space, and a model card made from its lineage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from geobind_core.config.evaluate import headline_recall
from geobind_core.export.lineage import Lineage
from geobind_core.files import write_json, write_text
from geobind_core.plugins.manager import PluginManager
from geobind_core.space.exported import ExportRecord
from geobind_core.space.lineage import SpaceRecord
from geobind_core.space.space import Space, write_modality

CARD = "README.md"
_UNKNOWN = "unknown"  # the Hub's own word for a licence that is not stated
_TASK = "feature-extraction"
_METRICS = ("recall@1", "recall@10", "median_rank")


def write_hub(
    space: Space, record: ExportRecord, lineage: Lineage, folder: Path, license_name: str | None
) -> tuple[str, Sequence[str]]:
    """Writes the space and its card, and reads the space again.

    Returns:
        The line of Python that loads it, and what a person should know.

    Raises:
        SpaceError: What was written is not what was read.
    """
    for name, entry in record.space.modalities.items():
        (folder / name).mkdir()
        write_modality(space.weights(name), entry, folder / name)
    write_json(folder / "space.json", record.space.model_dump(mode="json"))
    write_text(folder / CARD, model_card(record.space, lineage, record.geobind, license_name))
    Space.load(folder, plugins=PluginManager([])).verify()
    notes = [] if license_name else ["no licence was given for the weights; the card says so. State it with --license"]
    silent = [name for name, facts in lineage.data.items() if not facts.license]
    if silent:
        notes.append(f"no licence is stated for the data {', '.join(silent)}; `license:` in the chain's `data` does")
    if not lineage.stages:
        notes.append("no run folder is around this space; the card says nothing of stages, data and metrics")
    return 'Space.load("{folder}")', notes


def model_card(record: SpaceRecord, lineage: Lineage, version: str, license_name: str | None) -> str:
    """Returns the model card: front matter that the Hub reads, and a page that people read."""
    environment = Environment(
        loader=PackageLoader("geobind_core.export"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    pairs = _measured_pairs(record, lineage)
    body = environment.get_template("README.md.jinja").render(
        name=lineage.name or "space",
        record=record,
        lineage=lineage,
        version=version,
        license=license_name,
        plugins=sorted({(entry.distribution, entry.version) for entry in record.modalities.values()}),
        pairs=pairs,
        recall=headline_recall(next(iter(pairs.values()), {})),
        emergent=[key for key, figures in pairs.items() if figures.get("emergent")],
        example=next(iter(record.modalities)),
    )
    return f"---\n{_front_matter(record, lineage, pairs, license_name)}\n---\n\n{body}"


def _front_matter(
    record: SpaceRecord, lineage: Lineage, pairs: Mapping[str, Mapping[str, Any]], license_name: str | None
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=_TASK,
            task_name="Retrieval between modalities",
            dataset_type=_source(lineage, figures),
            dataset_name=str(figures.get("data", "")) or "held-out rows",
            metric_type=metric,
            metric_name=f"{metric}, {_words(key)} ({'emergent' if figures.get('emergent') else 'trained'})",
            metric_value=figures[metric],
        )
        for key, figures in pairs.items()
        for metric in _METRICS
        if metric in figures
    ]
    name = lineage.name or "space"
    card = ModelCardData(
        license=(license_name or _UNKNOWN).lower(),
        library_name="geobind",
        pipeline_tag=_TASK,
        tags=["geobind", "multimodal", "embeddings", "cross-modal-retrieval", "geospatial", *sorted(record.modalities)],
        base_model=sorted(_on_the_hub(lineage)) or None,
        datasets=sorted(lineage.data) or None,
        metrics=[m for m in _METRICS if any(m in figures for figures in pairs.values())] or None,
        model_name=name,
        eval_results=results or None,
    )
    return str(card.to_yaml())


def _measured_pairs(record: SpaceRecord, lineage: Lineage) -> dict[str, Mapping[str, Any]]:
    """Returns the figures of those pairs of which both modalities are here."""
    names = {f"{a}_to_{b}" for a in record.modalities for b in record.modalities if a != b}
    return {key: figures for key, figures in (lineage.metrics.get("pairs") or {}).items() if key in names}


def _words(key: str) -> str:
    return key.replace("_to_", " to ").replace("_", " ")


def _source(lineage: Lineage, figures: Mapping[str, Any]) -> str:
    facts = lineage.data.get(str(figures.get("data")))
    return facts.source if facts else "table"


def _on_the_hub(lineage: Lineage) -> set[str]:
    names = (name.removeprefix("hf-hub:") for name in lineage.pretrained.values())
    return {name for name in names if name.count("/") == 1 and " " not in name}


def _cell(value: Any) -> str:
    """Returns a value as a cell of a Markdown table."""
    if value is None or value == "":
        return "not stated"
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())
