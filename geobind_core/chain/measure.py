"""Measuring a finished run: `metrics.json` and `report.html`, unless they are up to date."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from geobind_core.chain.datasets import DataSets
from geobind_core.chain.model import Chain
from geobind_core.chain.run_folder import STAGE_FILE, RunFolder
from geobind_core.errors import DataError
from geobind_core.files import read_json, write_json
from geobind_core.progress import Reporter


def measure(
    chain: Chain, run: RunFolder, datasets: DataSets, reporter: Reporter, *, again: bool = False
) -> dict[str, Any]:
    """Measures every pair of modalities that some data set has both of, on its held-out rows.

    Args:
        chain: The chain.
        run: Its run folder, with a space.
        datasets: The chain's data sets.
        reporter: Where progress goes.
        again: Measure even if nothing has changed since.

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

    from geobind_core.evaluation.matrix import evaluate_data, largest_gallery
    from geobind_core.report.page import write_report
    from geobind_core.space.space import Space

    space = Space.load(run.space, device=PartialState().device, plugins=chain.plugins)
    pairs: dict[str, dict[str, Any]] = {}
    for name, modalities in evaluated(chain, datasets, space.modalities).items():
        datasets.require_rows(name, chain.config.evaluate.split, modalities)
        data, config = datasets.open(name), chain.config
        found = evaluate_data(
            space, data, modalities, config.evaluate, config.loader, reporter, config.seed, chain.metrics
        )
        for pair, figures in found.items():
            if pair not in pairs or _trained_on(chain, figures["trained_in"])[:1] == (name,):
                pairs[pair] = figures
    if not pairs:
        raise DataError("no data set has two modalities of the space; there is nothing to measure.")
    metrics = {
        "format": 1,
        "gallery": largest_gallery(pairs),
        "pairs": pairs,
        "stages": [_stage_summary(run, stage.config.name) for stage in chain.stages],
        "inputs": inputs,
    }
    write_json(run.metrics, metrics)
    write_report(run.path, space.record, metrics)
    return metrics


def evaluated(chain: Chain, datasets: DataSets, bound: Iterable[str]) -> dict[str, list[str]]:
    """Returns the data sets to measure on, each with its modalities among those that are bound, two or more."""
    bound, found = set(bound), {}
    for name in _names(chain):
        data = datasets.open(name)
        modalities = [m for m in chain.modalities if m in bound and m in data.fields and data.column_has_values(m)]
        if len(modalities) >= 2:
            found[name] = modalities
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
    names = _names(chain)
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


def _content(chain: Chain, name: str) -> str | None:
    try:
        return chain.sources[name].fingerprint()
    except DataError:
        return None
