"""What a stage kind is: what a step of the chain does. `align` is the core's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from geobind_core.config.models import RunConfig, StageConfig
from geobind_core.plugins.loss import Loss
from geobind_core.plugins.modality import Modality

if TYPE_CHECKING:
    from geobind_core.data.paired import PairedData
    from geobind_core.progress import Reporter
    from geobind_core.space.encoder import SpaceEncoder

ConfigT = TypeVar("ConfigT", bound=StageConfig)


@dataclass(frozen=True)
class StageContext:
    """What a stage gets to work with.

    Attributes:
        run: Settings that hold for every stage: seed, precision, trackers, loader.
        folder: The stage's own folder, `stages/01-<name>`; it exists.
        fingerprint: Identifies everything that the result depends on; a checkpoint with another
            fingerprint must not be continued.
        modalities: The modality of each name that the stage trains or uses.
        encoders: The network of each such name, with its current weights. The stage changes those
            that it trains in place, and no other.
        data: The rows of the stage's data set, or None for a stage without data.
        make_loss: Makes a loss of the settings in a pair: registered name and all.
        reporter: Where progress goes.
    """

    run: RunConfig
    folder: Path
    fingerprint: str
    modalities: Mapping[str, Modality[Any]]
    encoders: Mapping[str, SpaceEncoder]
    data: PairedData | None
    make_loss: Callable[[Mapping[str, Any]], Loss[Any]]
    reporter: Reporter


@dataclass(frozen=True)
class StageResult:
    """What a stage reports when it is done; stored in `stage.json`."""

    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageInfo:
    """What the life-cycle hooks are told about a stage."""

    name: str
    number: int
    folder: Path
    trains: tuple[str, ...]
    anchors: tuple[str, ...]


class StageKind(Generic[ConfigT]):
    """What a step of the chain does. Subclass it, set `name`, and implement `run`.

    Constructing one must be cheap and import no torch: plans are made without training.
    """

    name: ClassVar[str]
    Config: ClassVar[type[StageConfig]] = StageConfig

    config: ConfigT

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def trains(self) -> tuple[str, ...]:
        """Returns the modalities whose weights the stage changes."""
        return ()

    def uses(self) -> tuple[str, ...]:
        """Returns the modalities that the stage reads and keeps frozen."""
        return ()

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Returns the pairs of modalities that the stage aligns."""
        return ()

    def run(self, context: StageContext) -> StageResult:
        """Does the work. It must be able to go on after having been killed."""
        raise TypeError(f"{type(self).__name__} does not define run()")
