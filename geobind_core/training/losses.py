"""The losses that come with the core. Their arithmetic is imported when they are built."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from geobind_core.plugins.loss import LogitScaleConfig, Loss, LossConfig

if TYPE_CHECKING:
    from geobind_core.training.infonce import InfoNCEModule
    from geobind_core.training.sigmoid import SigmoidModule

SameLabel = Literal["negative", "ignore", "positive"]


class InfoNCEConfig(LossConfig):
    """Settings of InfoNCE."""

    same_label: SameLabel = Field(
        "negative", description="What rows with equal labels are to each other: negative, ignore, positive."
    )
    queue: int = Field(
        0, ge=0, description="Past items of the other modality, kept as further negatives; Sat2Cap keeps 9,000."
    )
    random_negatives: int = Field(
        0, ge=0, description="Items of rows drawn at random in each step, as further negatives, as in GeoCLIP."
    )


class InfoNCE(Loss[InfoNCEConfig]):
    """Cross-entropy over the batch: the own item against all others (van den Oord et al. 2018)."""

    name: ClassVar[str] = "infonce"
    Config = InfoNCEConfig

    def build(self) -> InfoNCEModule:
        """Builds the module."""
        from geobind_core.training.infonce import InfoNCEModule

        return InfoNCEModule(self.config)


class SigmoidScaleConfig(LogitScaleConfig):
    """The factor in front of the similarities, with SigLIP's start."""

    init_temperature: float = Field(0.1, gt=0, description="Temperature at the start; the scale is 1 / it.")


class SigmoidConfig(LossConfig):
    """Settings of the pairwise sigmoid loss."""

    name: str = Field("sigmoid", description="Registered name of the loss.")
    direction: Literal["both"] = Field("both", description="A loss of pairs has no direction: both is all there is.")
    logit_scale: SigmoidScaleConfig = SigmoidScaleConfig()
    init_bias: float = Field(-10.0, description="What is added to the scaled similarities, at the start.")
    learnable_bias: bool = Field(True, description="Whether it is trained.")
    same_label: SameLabel = Field(
        "negative", description="What rows with equal labels are to each other: negative, ignore, positive."
    )


class Sigmoid(Loss[SigmoidConfig]):
    """Each pair by itself: does it belong together or not (Zhai et al. 2023)?"""

    name: ClassVar[str] = "sigmoid"
    Config = SigmoidConfig

    def build(self) -> SigmoidModule:
        """Builds the module."""
        from geobind_core.training.sigmoid import SigmoidModule

        return SigmoidModule(self.config)
