"""What a chain asks of plugins beside its stages: figures, and plugins that only look on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from geobind_core.config.document import PathInDocument
from geobind_core.config.problems import suggest
from geobind_core.errors import PluginError
from geobind_core.plugins.metric import Metric

if TYPE_CHECKING:
    from geobind_core.chain.resolve import Resolver


def resolve_metrics(resolver: Resolver) -> dict[str, Metric[Any]]:
    """Returns the metrics of `evaluate.metrics` by what messages call them: their names and who provides them."""
    evaluate = resolver.document.data.get("evaluate")
    listed = evaluate.get("metrics") if isinstance(evaluate, dict) else None
    metrics: dict[str, Metric[Any]] = {}
    for i, raw in enumerate(listed if isinstance(listed, list) else ()):
        path = ("evaluate", "metrics", i)
        settings = {"name": raw} if isinstance(raw, str) else raw
        if not isinstance(settings, dict):  # which has been reported
            continue
        if "name" not in settings:
            resolver.problem(path, "'name' is required: the registered name of a metric.")
            continue
        provided = resolver.find("metric", settings["name"], (*path, "name") if isinstance(raw, dict) else path)
        config = resolver.validate(provided.cls.Config, settings, path) if provided else None
        if config is None:
            continue
        known_as = f"metric {provided.name} of {provided.distribution} {provided.version}"
        if known_as in metrics:
            resolver.problem(path, f"metric '{provided.name}' is given twice.")
        metrics[known_as] = provided.cls(config)
    return metrics


def check_evaluate(resolver: Resolver, modalities: Sequence[str], data_sets: Sequence[str]) -> None:
    """Notes names under `evaluate` that stand for nothing in the chain."""
    evaluate = resolver.document.data.get("evaluate")
    settings: dict[str, Any] = evaluate if isinstance(evaluate, dict) else {}
    named: list[tuple[PathInDocument, str, object]] = []
    listed = settings.get("data")
    named += [(("data", i), "data set", name) for i, name in enumerate(listed if isinstance(listed, list) else ())]
    composed = settings.get("compose")
    for i, parts in enumerate(composed if isinstance(composed, list) else ()):
        named += [(("compose", i, j), "modality", n) for j, n in enumerate(parts if isinstance(parts, list) else ())]
    tasks = settings.get("zero_shot")
    compared: dict[PathInDocument, object] = {("maps",): settings.get("maps")}
    compared |= {("zero_shot", task): raw for task, raw in (tasks if isinstance(tasks, dict) else {}).items()}
    for place, raw in compared.items():
        for key, kind in (("data", "data set"), ("modality", "modality"), ("text", "modality")):
            if isinstance(raw, dict) and key in raw:
                named.append(((*place, key), kind, raw[key]))
    for path, kind, name in named:
        known = data_sets if kind == "data set" else modalities
        if isinstance(name, str) and name not in known:
            resolver.problem(("evaluate", *path), f"no {kind} '{name}'. {suggest(name, known)}")


def load_onlookers(resolver: Resolver) -> None:
    """Loads the plugins under `plugins`, which nothing else in the file names."""
    named = resolver.document.data.get("plugins")
    for i, name in enumerate(named if isinstance(named, list) else [named] if isinstance(named, str) else ()):
        try:
            resolver.plugins.require(str(name))
        except PluginError as error:
            path = ("plugins", i) if isinstance(named, list) else ("plugins",)
            resolver.problem(path, error.message, error.hint)
