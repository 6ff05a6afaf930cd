"""What a chain asks of plugins beside its stages: figures, and plugins that only look on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def load_onlookers(resolver: Resolver) -> None:
    """Loads the plugins under `plugins`, which nothing else in the file names."""
    named = resolver.document.data.get("plugins")
    for i, name in enumerate(named if isinstance(named, list) else [named] if isinstance(named, str) else ()):
        try:
            resolver.plugins.require(str(name))
        except PluginError as error:
            path = ("plugins", i) if isinstance(named, list) else ("plugins",)
            resolver.problem(path, error.message, error.hint)
