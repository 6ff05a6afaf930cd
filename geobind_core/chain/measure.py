"""Measuring a finished run: `metrics.json` and `report.html`, unless they are up to date."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from geobind_core.chain.datasets import DataSets
from geobind_core.chain.leaks import find_leaks
from geobind_core.chain.model import Chain
from geobind_core.chain.run_folder import STAGE_FILE, RunFolder
from geobind_core.errors import DataError
from geobind_core.files import read_json, write_json
from geobind_core.plugins.loss import Loss
from geobind_core.progress import Reporter

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from geobind_core.evaluation.matrix import Evaluation, Measures
    from geobind_core.report.score_maps import ScoredPlaces
    from geobind_core.space.space import Space


@dataclass
class _Measured:
    """What was measured: on each data set, each classification, the maps for the report; and what was left out."""

    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    zero_shot: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, dict[str, Any]] = field(default_factory=dict)
    maps: list[ScoredPlaces] = field(default_factory=list)


def measure(
    chain: Chain,
    run: RunFolder,
    datasets: DataSets,
    reporter: Reporter,
    *,
    again: bool = False,
    only: str | None = None,
    legacy_strict: bool = False,
    leaks: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measures every pair of modalities that some data set has both of, on its held-out rows.

    Args:
        chain: The chain.
        run: Its run folder, with a space.
        datasets: The chain's data sets.
        reporter: Where progress goes.
        again: Measure even if nothing has changed since.
        only: The one data set to measure on. Then nothing is written.
        legacy_strict: Give recalls as older papers count them, too.
        leaks: What was warned of held-out rows before the stages ran; default: it is looked for now.

    Returns:
        The content of `metrics.json`.
    """
    found = read_json(run.metrics)
    stored: dict[str, Any] = found if isinstance(found, dict) else {}
    inputs = _inputs(chain, run, stored.get("inputs") or {})
    if not again and stored.get("inputs") == inputs and run.report.is_file():
        reporter.say("measured already; nothing changed since")
        return stored

    reporter.say("measuring: every pair of modalities on held-out rows", style="bold")
    from accelerate import PartialState

    from geobind_core.evaluation.matrix import Measures, largest_gallery
    from geobind_core.space.space import Space

    space = Space.load(run.space, device=PartialState().device, plugins=chain.plugins)
    config = chain.config
    measures = Measures(config.evaluate, chain.metrics, own_similarities(chain), config.seed, legacy_strict)
    measured = _measured(chain, space, datasets, measures, reporter, only)
    pairs: dict[str, dict[str, Any]] = {}
    for name, evaluation in measured.evaluations.items():
        for pair, figures in evaluation.pairs.items():
            if pair not in pairs or _trained_on(chain, figures["trained_in"])[:1] == (name,):
                pairs[pair] = figures
    if not pairs and not measured.zero_shot:
        raise DataError("no data set has two modalities of the space; there is nothing to measure.")
    unsaid = [] if leaks is not None else [str(e) for e, _ in find_leaks(chain, datasets, measured.evaluations)]
    unsaid += [*_changed_since(chain, run, inputs["content"]), *_unfinished(chain, run)]
    for warning in unsaid:
        reporter.warn(warning)
    warnings = [*(leaks or ()), *unsaid]
    metrics = {
        "format": 1,
        "gallery": largest_gallery(pairs),
        "pairs": pairs,
        **({"zero_shot": measured.zero_shot} if measured.zero_shot else {}),
        **({"skipped": measured.skipped} if measured.skipped else {}),
        **({"warnings": warnings} if warnings else {}),
        "stages": [_stage_summary(run, stage.config.name) for stage in chain.stages],
        "inputs": inputs,
    }
    if only is None:
        write_json(run.metrics, metrics)
        _write_report(chain, run, space, datasets, measured, metrics)
    return metrics


def _write_report(
    chain: Chain, run: RunFolder, space: Space, datasets: DataSets, measured: _Measured, metrics: Mapping[str, Any]
) -> None:
    from geobind_core.report.page import Subject, write_report
    from geobind_core.report.surroundings import DataView

    used = dict.fromkeys(name for stage in chain.stages for name in stage.config.data_sets)
    opened = [name for name in dict.fromkeys([*used, *measured.evaluations]) if datasets.is_open(name)]
    subject = Subject(
        folder=run.path,
        stages={stage.config.name: run.find_stage(stage.config.name) for stage in chain.stages},
        record=space.record,
        metrics=metrics,
        evaluations=measured.evaluations,
        modalities={name: space.modality(name) for name in space.modalities},
        maps=measured.maps,
        data=[DataView.of(datasets.open(name), chain.sources[name], list(space.modalities)) for name in opened],
    )
    write_report(run.report, subject)


def _measured(
    chain: Chain, space: Space, datasets: DataSets, measures: Measures, reporter: Reporter, only: str | None
) -> _Measured:
    """Measures on each data set."""
    from geobind_core.evaluation.held_out import Embedder
    from geobind_core.evaluation.matrix import evaluate_pairs
    from geobind_core.evaluation.zero_shot import classify
    from geobind_core.report.score_maps import score_places

    config, seed, found = chain.config.evaluate, chain.config.seed, _Measured()
    measured, labels = evaluated(chain, datasets, space.modalities), classified(chain, datasets)
    mapped = [config.maps.data] if config.maps is not None and only is None else []
    for name in dict.fromkeys([*measured, *(task.data for task in config.zero_shot.values()), *mapped]):
        if only not in (None, name):
            continue
        embedder = Embedder(space, datasets.open(name), config, chain.config.loader, reporter)
        if modalities := measured.get(name):
            datasets.require_rows(name, config.split, modalities)
            held_out = embedder.held_out(modalities, seed, measures.further_fields())
            found.evaluations[name] = evaluate_pairs(held_out, space.record, measures, reporter)
        for known_as, task in config.zero_shot.items():
            if task.data == name:
                found.zero_shot[known_as] = classify(known_as, task, embedder, labels[known_as], seed)
        if config.maps is not None and name in mapped:
            found.maps += score_places(config.maps, embedder, seed)
        if skipped := embedder.skipped():
            found.skipped[name] = skipped
    return found


def evaluated(chain: Chain, datasets: DataSets, bound: Iterable[str]) -> dict[str, list[str]]:
    """Returns the data sets to measure on, each with its modalities among those that are bound, two or more."""
    bound, found = set(bound), {}
    for name in _names(chain):
        data = datasets.open(name)
        modalities = [m for m in chain.modalities if m in bound and m in data.fields and data.column_has_values(m)]
        if len(modalities) >= 2:
            found[name] = modalities
    return found


def require_measurable(chain: Chain, datasets: DataSets, bound: Iterable[str]) -> list[str]:
    """Makes sure that there is data for all that is measured.

    Args:
        chain: The chain.
        datasets: Its data sets.
        bound: The modalities that the space will have.

    Returns:
        The data sets whose pairs are measured.

    Raises:
        DataError: There is not.
    """
    measured, config = evaluated(chain, datasets, bound), chain.config.evaluate
    for name, modalities in measured.items():
        datasets.require_rows(name, config.split, modalities)
    classified(chain, datasets)
    if config.maps is not None:
        datasets.require_rows(config.maps.data, config.split, [config.maps.modality])
    return list(measured)


def classified(chain: Chain, datasets: DataSets) -> dict[str, npt.NDArray[np.int64]]:
    """Returns, for each of `evaluate.zero_shot`, the number of the class of each row of its data set.

    Raises:
        DataError: A column is missing, or a label is in no class.
    """
    from geobind_core.evaluation.labels import class_numbers

    found = {}
    for name, task in chain.config.evaluate.zero_shot.items():
        data, split = datasets.open(task.data), chain.config.evaluate.split
        datasets.require_rows(task.data, split, [task.modality])
        table = chain.sources[task.data].observations().table
        found[name] = class_numbers(name, task, data, table, data.rows(split, [task.modality]))
    return found


def own_similarities(chain: Chain) -> dict[frozenset[str], Loss[Any]]:
    """Returns the losses that bring a similarity of their own, by the pair that they trained last."""
    found: dict[frozenset[str], Loss[Any]] = {}
    for stage in chain.stages:
        for pair in getattr(stage.config, "pairs", None) or ():
            loss = chain.make_loss(pair.loss)
            found.pop(frozenset(pair.modalities), None)
            if loss.similarity() is not None:
                found[frozenset(pair.modalities)] = loss
    return found


def _names(chain: Chain) -> list[str]:
    if chain.config.evaluate.data is not None:
        return chain.config.evaluate.data
    return list(dict.fromkeys(name for stage in chain.stages for name in stage.config.data_sets))


def _trained_on(chain: Chain, stage: str | None) -> tuple[str, ...]:
    return next((s.config.data_sets for s in chain.stages if s.config.name == stage), ())


def _stage_summary(run: RunFolder, name: str) -> dict[str, Any]:
    record = read_json(run.find_stage(name) / STAGE_FILE) or {}
    kept = ("name", "kind", "status", "trains", "anchors", "seconds", "summary")
    return {key: record[key] for key in kept if key in record}


def _inputs(chain: Chain, run: RunFolder, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns everything that the figures depend on."""
    space = read_json(run.space / "space.json") or {}
    names = list(dict.fromkeys([*_names(chain), *(task.data for task in chain.config.evaluate.zero_shot.values())]))
    known = stored.get("content") or {}
    metrics = {name: metric.config.model_dump(mode="json") for name, metric in chain.metrics.items()}
    return {
        "space": {name: m["content_hash"] for name, m in space.get("modalities", {}).items()},
        "pairs": space.get("pairs"),
        "evaluate": chain.config.evaluate.model_dump(mode="json", exclude={"metrics"}),
        "data": {
            name: chain.sources[name].config.model_dump(mode="json", include={"fields", "labels", "split"})
            for name in names
        },
        # What was measured on data that is gone stays measured.
        "content": {name: _content(chain, name) or known.get(name) for name in names},
        "seed": chain.config.seed,
        # Under names with the versions that compute them. Runs without any may be older than this key.
        **({"metrics": metrics} if metrics else {}),
    }


def _changed_since(chain: Chain, run: RunFolder, contents: Mapping[str, str | None]) -> Iterator[str]:
    """Yields what was other data when a stage trained on it. Held-out rows may have been training rows then.

    `contents` has fingerprints that are known already: of shards at addresses each takes a request for every shard.
    """
    for name in dict.fromkeys(name for stage in chain.stages for name in stage.config.data_sets):
        now, stages = contents.get(name) or _content(chain, name), []
        for stage in chain.stages:
            record = read_json(run.find_stage(stage.config.name) / STAGE_FILE) or {}
            data = (record.get("inputs") or {}).get("data") or {}
            then = (data if stage.config.data == name else data.get(name) or {}).get("content")
            if name in stage.config.data_sets and None not in (then, now) and then != now:
                stages.append(f"'{stage.config.name}'")
        if stages:
            yield (
                f"data.{name} has changed since stage {', '.join(stages)} trained on it. Rows that are held out now "
                "may have been trained on."
            )


def _unfinished(chain: Chain, run: RunFolder) -> Iterator[str]:
    """Yields which stages are not done, if any: what they would bind is not in the space."""
    names = [stage.config.name for stage in chain.stages]
    missing = [name for name in names if _stage_summary(run, name).get("status") != "done"]
    if missing:
        listed = ", ".join(f"'{name}'" for name in missing)
        yield f"the chain is not finished; measured without stage {listed}. The same `geobind run` goes on."


def _content(chain: Chain, name: str) -> str | None:
    try:
        return chain.sources[name].fingerprint()
    except DataError:
        return None
