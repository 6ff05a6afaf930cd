"""What is known of the encoders of a space: where each came from, and what it was aligned to."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT = 1
"""Version of the layout of `space.json`."""


class ModalityRecord(BaseModel):
    """One modality of a space, as `space.json` has it.

    Attributes:
        plugin: Registered name of the modality's class.
        distribution: The distribution that provided it, and `version`.
        config: The settings that rebuild the network without its pretrained weights.
        raw_dim: Dimension of the encoder before any projection.
        projected: Whether a linear projection follows.
        content_hash: Hash of all its weights.
        stage: The stage that trained it; None for weights that came pretrained.
        aligned_to: Modality -> content hash of those it was trained against.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    plugin: str
    distribution: str
    version: str
    config: dict[str, object]
    raw_dim: int
    projected: bool
    content_hash: str
    stage: str | None = None
    aligned_to: dict[str, str] = Field(default_factory=dict)


class TrainedPair(BaseModel):
    """Two modalities that a stage has drawn together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    modalities: tuple[str, str]
    stage: str


class SpaceRecord(BaseModel):
    """`space.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    embed_dim: int
    binding: str
    modalities: dict[str, ModalityRecord]
    pairs: list[TrainedPair]

    def trained_pairs(self) -> dict[frozenset[str], str]:
        """Returns the pairs that a stage trained, with the stage's name; all others are emergent."""
        return {frozenset(pair.modalities): pair.stage for pair in self.pairs}
