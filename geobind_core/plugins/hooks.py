"""The hooks that a plugin may implement. All are optional.

A plugin is a module named by an entry point of the group `geobind`. The name of the entry point is
the name of what it provides (`audio`, `synthetic_earth`); one module may stand behind several names.
Reading those names takes no import, so a command loads just the plugins that it needs.

A plugin may say which version of this interface it is written for, as `geobind_api = 1` in its
module. One that is written for a newer version, or for one that is gone, is not loaded, and
`geobind plugins` says which versions work. A hook or an argument that is to go is deprecated first:
plugins that implement it still work, with a warning.

Each implementation is called by itself: one that raises harms no other plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import typer

    from geobind_core.plugins.loss import Loss
    from geobind_core.plugins.metric import Metric
    from geobind_core.plugins.modality import Modality
    from geobind_core.plugins.source import Source
    from geobind_core.plugins.stage_kind import StageInfo, StageKind

PROJECT = "geobind"
API_VERSION = 1
"""The version of this interface; it goes up when plugins have to change."""
OLDEST_API_VERSION = 1
"""The oldest version whose plugins still work."""
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def geobind_register_modalities() -> Iterable[type[Modality[Any]]]:  # type: ignore[empty-body]
    """Returns the modalities that this plugin provides.

    Example:
        >>> from geobind_core import Modality, hookimpl
        >>> class Thermal(Modality):
        ...     name = "thermal"
        >>> @hookimpl
        ... def geobind_register_modalities():
        ...     return [Thermal]
        >>> [modality.name for modality in geobind_register_modalities()]
        ['thermal']
    """


@hookspec
def geobind_register_losses() -> Iterable[type[Loss[Any]]]:  # type: ignore[empty-body]
    """Returns the losses that this plugin provides.

    Example:
        >>> from geobind_core import Loss, hookimpl
        >>> class Hinge(Loss):
        ...     name = "hinge"
        >>> @hookimpl
        ... def geobind_register_losses():
        ...     return [Hinge]
        >>> [loss.name for loss in geobind_register_losses()]
        ['hinge']
    """


@hookspec
def geobind_register_sources() -> Iterable[type[Source[Any]]]:  # type: ignore[empty-body]
    """Returns the kinds of data set that this plugin can read.

    Example:
        >>> from geobind_core import Source, hookimpl
        >>> class FieldNotes(Source):
        ...     name = "field_notes"
        >>> @hookimpl
        ... def geobind_register_sources():
        ...     return [FieldNotes]
        >>> [source.name for source in geobind_register_sources()]
        ['field_notes']
    """


@hookspec
def geobind_register_stage_kinds() -> Iterable[type[StageKind[Any]]]:  # type: ignore[empty-body]
    """Returns the kinds of stage that this plugin can run.

    Example:
        >>> from geobind_core import StageKind, hookimpl
        >>> class BuildIndex(StageKind):
        ...     name = "index"
        >>> @hookimpl
        ... def geobind_register_stage_kinds():
        ...     return [BuildIndex]
        >>> [kind.name for kind in geobind_register_stage_kinds()]
        ['index']
    """


@hookspec
def geobind_register_metrics() -> Iterable[type[Metric[Any]]]:  # type: ignore[empty-body]
    """Returns the metrics that this plugin provides; a chain asks for them in `evaluate.metrics`.

    Example:
        >>> from geobind_core import Metric, hookimpl
        >>> class MeanRank(Metric):
        ...     name = "mean_rank"
        ...     def compute(self, retrieval):
        ...         return {"mean_rank": retrieval.ranks.mean()}
        >>> @hookimpl
        ... def geobind_register_metrics():
        ...     return [MeanRank]
        >>> [metric.name for metric in geobind_register_metrics()]
        ['mean_rank']
    """


@hookspec
def geobind_register_commands() -> Iterable[tuple[str, typer.Typer | Callable[..., Any]]]:  # type: ignore[empty-body]
    """Returns the commands that this plugin adds: `geobind NAME`, or a group of them, `geobind NAME VERB`.

    A function becomes one command, its arguments as typer reads them; a `typer.Typer` becomes a group.
    The names that GeoBind has itself stay its own. `geobind --help` does not list them, for it
    imports no plugin; `geobind plugins` does.

    Example:
        >>> import typer
        >>> from geobind_core import hookimpl
        >>> def count(space: str, limit: int = 10) -> None:
        ...     "Count what is in a space."
        >>> index = typer.Typer(help="Look for places among millions.")
        >>> @index.command()
        ... def build(space: str) -> None:
        ...     "Build an index."
        >>> @hookimpl
        ... def geobind_register_commands():
        ...     return [("count", count), ("index", index)]
        >>> [name for name, _ in geobind_register_commands()]
        ['count', 'index']
    """


@hookspec
def geobind_stage_started(stage: StageInfo) -> None:
    """Called before a stage runs; not for a stage that is skipped because it is done.

    Example:
        >>> from geobind_core import hookimpl
        >>> @hookimpl
        ... def geobind_stage_started(stage):
        ...     print(f"{stage.number}. {stage.name} trains {', '.join(stage.trains)}")
        >>> from geobind_core import StageInfo
        >>> from pathlib import Path
        >>> geobind_stage_started(StageInfo("audio", 2, Path("."), ("audio",), ("satellite",)))
        2. audio trains audio
    """


@hookspec
def geobind_stage_finished(stage: StageInfo, summary: dict[str, Any]) -> None:
    """Called after a stage has finished and its weights are stored.

    Example:
        >>> from geobind_core import hookimpl
        >>> @hookimpl
        ... def geobind_stage_finished(stage, summary):
        ...     print(f"{stage.name}: loss {summary['loss']:.2f}")
        >>> from geobind_core import StageInfo
        >>> from pathlib import Path
        >>> geobind_stage_finished(
        ...     StageInfo("audio", 2, Path("."), ("audio",), ("satellite",)), {"loss": 1.234})
        audio: loss 1.23
    """
