"""The stage kind `align`: trains encoders towards frozen ones."""

from __future__ import annotations

from typing import ClassVar

from geobind_core.config.models import AlignConfig
from geobind_core.plugins.stage_kind import StageContext, StageKind, StageResult


class Align(StageKind[AlignConfig]):
    """Trains the encoders of `train` so that they agree with those of `anchor`, pair by pair."""

    name: ClassVar[str] = "align"
    Config = AlignConfig

    def trains(self) -> tuple[str, ...]:
        """Returns the modalities whose weights the stage changes."""
        return tuple(self.config.train)

    def uses(self) -> tuple[str, ...]:
        """Returns the anchors."""
        return tuple(self.config.anchor or ())

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Returns the pairs of modalities that the stage aligns."""
        return tuple(pair.modalities for pair in self.config.pairs or ())

    def run(self, context: StageContext) -> StageResult:
        """Trains."""
        from geobind_core.training.loop import train

        return train(self.config, context)
