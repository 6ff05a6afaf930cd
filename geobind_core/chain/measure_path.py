"""Measuring a space on data of no chain: a table, shards, a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from geobind_core.chain.extras import check_evaluate, resolve_metrics
from geobind_core.chain.measure import own_similarities
from geobind_core.chain.model import Chain
from geobind_core.chain.resolve import Resolver, chain_of
from geobind_core.chain.run_folder import RunFolder
from geobind_core.config import overrides
from geobind_core.config.document import Document
from geobind_core.config.models import EvaluateConfig, LoaderConfig
from geobind_core.errors import ConfigError, DataError
from geobind_core.plugins.manager import PluginManager
from geobind_core.plugins.source import SplitConfig
from geobind_core.progress import Reporter

Part = Literal["train", "validation", "test", "all"]

_DATA, _EVALUATE = "data.", "evaluate."


def measure_path(
    folder: Path,
    path: Path,
    fields: Sequence[str],
    assignments: Sequence[str],
    part: Part | None,
    plugins: PluginManager,
    reporter: Reporter,
    *,
    legacy_strict: bool = False,
) -> dict[str, Any]:
    """Measures every pair of modalities of a space that some data has both of. Writes nothing.

    Args:
        folder: A run folder, whose settings under `evaluate` hold; or a space alone, with the defaults.
        path: A table, shards, or a folder; see `open_path`.
        fields: Each `modality=column`.
        assignments: Overrides: `evaluate.…=value`, and `data.…=value` of the data set.
        part: Which rows; default: `test` where the data has splits, and else all.
        plugins: Looks names up.
        reporter: Where progress goes.
        legacy_strict: Give recalls as older papers count them, too.

    Returns:
        What `metrics.json` has, but for what only a chain has.

    Raises:
        GeoBindError: Something is at fault.
    """
    from accelerate import PartialState

    from geobind_core.data.paired import PairedData, with_gaps
    from geobind_core.data_tools.opened import open_path
    from geobind_core.evaluation.held_out import Embedder
    from geobind_core.evaluation.labels import class_numbers
    from geobind_core.evaluation.matrix import Measures, evaluate_pairs, largest_gallery
    from geobind_core.evaluation.zero_shot import classify
    from geobind_core.space.space import Space

    space = Space.load(folder, device=PartialState().device, plugins=plugins)
    chain = chain_of(folder, plugins)
    of_data = [text.removeprefix(_DATA) for text in assignments if text.startswith(_DATA)]
    others = [text for text in assignments if not text.startswith(_DATA)]
    for text in others:
        if not text.startswith(_EVALUATE):
            raise ConfigError("expected evaluate.SETTING=VALUE, or data.SETTING=VALUE.", place=f"--set {text}")
    resolver = _settings(folder, chain, others, plugins)
    config = resolver.validate(EvaluateConfig, resolver.document.data["evaluate"], ("evaluate",))
    metrics = resolve_metrics(resolver)
    check_evaluate(resolver, space.modalities, [path.stem])
    resolver.raise_problems()
    assert config is not None

    opened = open_path(path, fields, of_data, plugins, reporter, modality_of=space.modality)
    data, has_splits = opened.data, opened.observations.split is not None or opened.source.config.split is not None
    if part == "all" or (part is None and not has_splits):
        settings = opened.source.config.model_copy(update={"split": SplitConfig(by="none")})
        data, part = PairedData(opened.name, opened.observations, settings, with_gaps(opened.modalities)), "train"
    loader, seed = (chain.config.loader, chain.config.seed) if chain else (LoaderConfig(), 0)
    embedder = Embedder(space, data, config, loader, reporter, part or config.split)
    measures = Measures(config, metrics, own_similarities(chain) if chain else {}, seed, legacy_strict)
    pairs, zero_shot = {}, {}
    modalities = [name for name in space.modalities if name in data.fields and data.column_has_values(name)]
    if len(modalities) >= 2:
        held_out = embedder.held_out(modalities, seed, measures.further_fields())
        pairs = evaluate_pairs(held_out, space.record, measures, reporter).pairs
    for name, task in config.zero_shot.items():
        if task.modality not in data.fields:
            raise DataError(f"no field for '{task.modality}'.", place=f"evaluate.zero_shot.{name}.modality")
        labels = class_numbers(name, task, data, opened.observations.table, embedder.rows([task.modality]))
        zero_shot[name] = classify(name, task, embedder, labels, seed)
    if not pairs and not zero_shot:
        raise DataError(
            f"the data has {', '.join(modalities) or 'no modality'} of the space; expected two modalities, "
            "or a classification.",
            place=data.place,
            hint=f"The space has {', '.join(space.modalities)}. Say which column is what: --field MODALITY=COLUMN.",
        )
    classified = {"zero_shot": zero_shot} if zero_shot else {}
    skipped = {"skipped": {data.name: found}} if (found := embedder.skipped()) else {}
    return {"format": 1, "gallery": largest_gallery(pairs), "pairs": pairs, **classified, **skipped}


def _settings(folder: Path, chain: Chain | None, assignments: Sequence[str], plugins: PluginManager) -> Resolver:
    """Returns the section `evaluate` of a run, without what is about the data of its chain, and with overrides."""
    evaluate: dict[str, Any] = {}
    if chain is not None:
        evaluate = chain.config.evaluate.model_dump(mode="json", exclude={"data", "zero_shot", "maps"})
    document = Document(RunFolder(folder).chain if chain else folder, {"evaluate": evaluate})
    for assignment in assignments:
        overrides.apply(document, assignment)
    return Resolver(document, plugins, folder)
