"""What a loss plugin is: a class that builds a module for one pair of modalities."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, TypeVar

from pydantic import Field

from geobind_core.config.models import StrictModel

if TYPE_CHECKING:
    import torch
    from torch import nn

ConfigT = TypeVar("ConfigT", bound="LossConfig")

Direction = Literal["train_to_anchor", "anchor_to_train", "first_to_second", "second_to_first", "both"]


class LogitScaleConfig(StrictModel):
    """The factor in front of the similarities; temperature is its inverse."""

    init_temperature: float = Field(0.07, gt=0, description="Temperature at the start; the scale is 1 / it.")
    learnable: bool = Field(True, description="Whether the scale is trained.")
    min: float = Field(1.0, gt=0, description="The scale is kept at or above this.")
    max: float = Field(100.0, gt=0, description="The scale is kept at or below this.")


class LossConfig(StrictModel):
    """The settings of a loss in a stage; subclass it to add your own."""

    name: str = Field("infonce", description="Registered name of the loss.")
    direction: Direction = Field(
        "both",
        description=(
            "Which side asks: train_to_anchor is the paper's eq. 1, both is symmetric (eqs. 2-4). "
            "first_to_second and second_to_first speak of the order within an explicit pair."
        ),
    )
    logit_scale: LogitScaleConfig = LogitScaleConfig()


@dataclass
class LossOutput:
    """What a loss returns.

    Attributes:
        value: Scalar, with a gradient.
        logs: Further numbers for the log, by name, detached.
    """

    value: torch.Tensor
    logs: dict[str, torch.Tensor] = field(default_factory=dict)


class Loss(Generic[ConfigT]):
    """A kind of loss. One instance serves one pair of modalities of a stage.

    `build` returns an `nn.Module` whose `forward(first, second, same_label)` takes two
    `EncoderOutput`s with unit-norm embeddings `[B, D]`, row i of one belonging to row i of the
    other, and `same_label`, a boolean `[B, B]` or None, and returns a `LossOutput`. `first` and
    `second` follow the pair as written; the direction in the settings has been resolved to
    `first_to_second`, `second_to_first` or `both` before. Learnable parameters of the module
    (a logit scale) are trained with the encoders.
    """

    name: ClassVar[str]
    Config: ClassVar[type[LossConfig]] = LossConfig

    config: ConfigT

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def build(self) -> nn.Module:
        """Builds the module."""
        raise TypeError(f"{type(self).__name__} does not define build()")
