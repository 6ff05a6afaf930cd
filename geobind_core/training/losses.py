"""The losses that come with the core. Their arithmetic is imported when they are built."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from geobind_core.plugins.loss import Loss, LossConfig

if TYPE_CHECKING:
    from geobind_core.training.infonce import InfoNCEModule

SameLabel = Literal["negative", "ignore", "positive"]


class InfoNCEConfig(LossConfig):
    """Settings of InfoNCE."""

    same_label: SameLabel = Field(
        "negative", description="What rows with equal labels are to each other: negative, ignore, positive."
    )


class InfoNCE(Loss[InfoNCEConfig]):
    """Cross-entropy over the batch: the own item against all others (van den Oord et al. 2018)."""

    name: ClassVar[str] = "infonce"
    Config = InfoNCEConfig

    def build(self) -> InfoNCEModule:
        """Builds the module."""
        from geobind_core.training.infonce import InfoNCEModule

        return InfoNCEModule(self.config)
