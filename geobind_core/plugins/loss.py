"""What a loss plugin is: a class that builds a module for one pair of modalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import Field

from geobind_core.config.models import StrictModel

if TYPE_CHECKING:
    import torch
    from torch import nn

    from geobind_core.plugins.modality import EncoderOutput

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
        logs: Further figures for the log, by name: numbers, or detached scalars. Under a name that the stage has itself
            (`step`, `epoch`, `loss`, `lr`, `samples_per_second`, `event`) they are called `<loss>_<name>`.
    """

    value: torch.Tensor
    logs: Mapping[str, torch.Tensor | float] = field(default_factory=dict)


@dataclass(frozen=True)
class ExtraItems:
    """Further items of a gallery, beside those of the batch: a queue of past ones, or random ones.

    Attributes:
        embedding: `[M, D]`, unit norm.
        rows: `[M]` row numbers, -1 where an item is no row of the data set. A query's own row among
            them is no negative.
        labels: `[M, K]` as in `LocalPair`, or None.
    """

    embedding: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor | None = None


@dataclass(frozen=True)
class LocalPair:
    """A pair of modalities on one of several processes: its own rows, and those of all processes.

    Attributes:
        first: The first modality of this process's own rows, `[B, D]`.
        second: The second modality of the same rows.
        all_first: The first modality of the whole batch, `[N, D]`, with a gradient that reaches the
            process that a row belongs to. In one process it is `first`.
        all_second: The second modality of the whole batch.
        offset: Own row i is row `offset + i` of the whole batch.
        rows: `[N]` row numbers of the whole batch.
        labels: `[N, K]` numbers of labels, -1 for none, or None without labels. Two rows have the
            same label if they agree in any of the K columns.
        extra_first: Further first items, for queries of the second modality.
        extra_second: Further second items, for queries of the first modality.
    """

    first: EncoderOutput
    second: EncoderOutput
    all_first: EncoderOutput
    all_second: EncoderOutput
    offset: int
    rows: torch.Tensor
    labels: torch.Tensor | None = None
    extra_first: ExtraItems | None = None
    extra_second: ExtraItems | None = None


class Similarity(Protocol):
    """How close queries and items of a gallery are; higher is closer. It is called with tiles of both."""

    def __call__(self, query: EncoderOutput, gallery: EncoderOutput) -> torch.Tensor:
        """Returns `[B, N]` for B queries and N items.

        Args:
            query: What the encoder of the one modality returned, in float64: the embedding, and those
                of the loss's `needs` that it has.
            gallery: Likewise of the other modality.
        """


class Loss(Generic[ConfigT]):
    """A kind of loss. One instance serves one pair of modalities of a stage.

    `build` returns an `nn.Module` whose `forward(first, second, same_label)` takes two
    `EncoderOutput`s with unit-norm embeddings `[N, D]`, row i of one belonging to row i of the
    other, and `same_label`, a boolean `[N, N]` or None, and returns a `LossOutput`. `first` and
    `second` follow the pair as written; the direction in the settings has been resolved to
    `first_to_second`, `second_to_first` or `both` before. Learnable parameters of the module
    (a logit scale) are trained with the encoders.

    On several processes each computes the whole loss of the gathered batch, so that a loss need not
    know of them. A module may save that work by a method `forward_local(pair)`, which takes a
    `LocalPair` and returns this process's share: shares add up to the loss of the batch. It is then
    called instead of `forward`, on one process too, and it alone is given extra negatives.
    """

    name: ClassVar[str]
    Config: ClassVar[type[LossConfig]] = LossConfig

    needs: ClassVar[tuple[str, ...]] = ()
    """Fields of `EncoderOutput` that it uses beside the embedding; the others are None. Anchors that must give
    them are not cached."""

    expected_failures: ClassVar[Mapping[str, str]] = {}
    """Checks of `geobind_core.testing` that are known to fail, each with the reason."""

    config: ConfigT

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def build(self) -> nn.Module:
        """Builds the module."""
        raise TypeError(f"{type(self).__name__} does not define build()")

    def similarity(self) -> Similarity | None:
        """Returns what the pair is ranked by in the evaluation; None, the default: by the cosine.

        A loss that trains another measure than the cosine returns it here. What it learned itself,
        such as a scale, is not there any more; a scale does not change an order.
        """
        return None
