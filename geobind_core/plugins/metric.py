"""What a metric plugin is: figures of one retrieval, from one kind of observation to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from pydantic import Field

from geobind_core.config.models import StrictModel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ConfigT = TypeVar("ConfigT", bound="MetricConfig")


class MetricConfig(StrictModel):
    """The settings of a metric under `evaluate.metrics`; subclass it to add your own."""

    name: str = Field(description="Registered name of the metric.")


@dataclass(frozen=True)
class Retrieval:
    """How the items of one modality found those of another, on the held-out rows of a data set.

    The arrays are read-only.

    Attributes:
        query: The modality that asks.
        gallery: The modality that is searched.
        gallery_size: N, how many items are searched.
        ranks: `[Q]` int64, from 1: where the right item came, as in recall@k.
        nearest: `[Q]` int64, the number of the gallery's item that came first, 0 to N-1. Where several
            tie for that, it is a wrong one, and of those the first.
        query_places: `[Q, 2]` longitude and latitude in degrees, NaN where a row has none; None where
            the data set has none at all.
        gallery_places: `[N, 2]` likewise, of the gallery's items.
    """

    query: str
    gallery: str
    gallery_size: int
    ranks: npt.NDArray[np.int64]
    nearest: npt.NDArray[np.int64]
    query_places: npt.NDArray[np.float64] | None = None
    gallery_places: npt.NDArray[np.float64] | None = None


class Metric(Generic[ConfigT]):
    """Further figures of every ordered pair of modalities. Subclass it, set `name`, and implement `compute`.

    Example:
        >>> class MeanRank(Metric):
        ...     name = "mean_rank"
        ...     def compute(self, retrieval):
        ...         return {"mean_rank": retrieval.ranks.mean()}
        >>> import numpy as np
        >>> metric = MeanRank(MetricConfig(name="mean_rank"))
        >>> found = metric.compute(Retrieval("audio", "text", 9, np.array([1, 4]), np.array([0, 5])))
        >>> float(found["mean_rank"])
        2.5
    """

    name: ClassVar[str]
    Config: ClassVar[type[MetricConfig]] = MetricConfig

    config: ConfigT

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def compute(self, retrieval: Retrieval) -> Mapping[str, float]:
        """Returns figures by name; they stand beside the recalls in `metrics.json`.

        A figure that this retrieval cannot have, for want of places, is left out. The pair and its
        direction are in the key of the pair already.
        """
        raise TypeError(f"{type(self).__name__} does not define compute()")
