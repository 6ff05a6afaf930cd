"""What a stage keeps frozen: its anchors, and the trunks of encoders of which only the head is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from geobind_core.config.models import AlignConfig
from geobind_core.errors import ConfigError, TrainingError
from geobind_core.plugins.modality import EncoderOutput
from geobind_core.plugins.stage_kind import StageContext
from geobind_core.space.encoder import SpaceEncoder, content_hash, project
from geobind_core.training.edges import Edge, needed_fields
from geobind_core.training.step import join, slices_of


@dataclass(frozen=True)
class FrozenPart:
    """A network, or the trunk of one, that the stage does not change.

    Attributes:
        name: The modality.
        is_trunk: Whether it is the trunk of an encoder whose projection is trained.
        augmented: Whether its samples are augmented.
        cached: Whether its output is read from the cache.
        views: How many views of a sample the cache has.
    """

    name: str
    is_trunk: bool
    augmented: bool
    cached: bool
    views: int = 1

    def network(self, encoder: SpaceEncoder) -> nn.Module:
        """Returns the network that is frozen."""
        return encoder.encoder if self.is_trunk else encoder

    def embed(self, encoder: SpaceEncoder, batch: Any) -> EncoderOutput:
        """Returns its output for a batch: unit-norm embeddings, or the trunk's own `[B, raw_dim]`."""
        output: EncoderOutput = encoder.trunk(batch) if self.is_trunk else encoder(batch)
        return output


class TrunkHead(nn.Module):
    """The projection of an encoder whose trunk is frozen: the trunk's output `[B, raw_dim]` to `[B, D]`."""

    def __init__(self, encoder: SpaceEncoder) -> None:
        super().__init__()
        self.projection = encoder.projection

    def forward(self, features: torch.Tensor) -> EncoderOutput:
        return project(EncoderOutput(features), self.projection)


def frozen_parts(config: AlignConfig, edges: Sequence[Edge], context: StageContext) -> tuple[FrozenPart, ...]:
    """Returns what a stage keeps frozen, and what of it can be cached.

    Raises:
        ConfigError: A trunk has no head, or a loss needs more of it than an embedding.
    """
    parts = []
    for name in (*(config.anchor or ()), *config.freeze_trunk):
        is_trunk = name in config.freeze_trunk
        needed = needed_fields(edges, name)
        if is_trunk and context.encoders[name].projection is None:
            raise ConfigError(
                f"the trunk of '{name}' is frozen, and it has no projection that could be trained.",
                place=f"stage {config.name}, freeze_trunk",
                hint=f"Set modalities.{name}.projection: linear.",
            )
        if is_trunk and needed:
            raise ConfigError(
                f"the trunk of '{name}' is frozen, and a loss needs its {', '.join(needed)}; a projection has none.",
                place=f"stage {config.name}, freeze_trunk",
            )
        augmented = name in config.augment
        # What differs from epoch to epoch, or is more than an embedding, is not worth its place on a disk.
        cached = config.anchor_cache != "off" and not needed and (not augmented or config.anchor_views is not None)
        views = min(config.anchor_views or 1, config.epochs) if augmented else 1
        parts.append(FrozenPart(name, is_trunk, augmented, cached, views))
    return tuple(parts)


def embed_live(
    part: FrozenPart, encoder: SpaceEncoder, batch: Any, slices: int, accelerator: Accelerator
) -> EncoderOutput:
    """Embeds a batch of what is frozen, in so many slices."""
    with torch.no_grad(), accelerator.autocast():
        output = join([part.embed(encoder, piece) for piece in slices_of(batch, slices)])
    # As the cache has it, whatever autocast made of it.
    output.embedding = output.embedding.float()
    return output


@contextmanager
def frozen(context: StageContext, config: AlignConfig, device: torch.device) -> Iterator[None]:
    """Keeps what is frozen so while the block runs, and makes sure that it was.

    Raises:
        TrainingError: The weights of some of it changed.
    """
    watched: dict[str, nn.Module] = {}
    for name in (*(config.anchor or ()), *config.freeze_trunk):
        encoder = context.encoders[name]
        encoder.freeze()
        watched[name] = encoder.encoder if name in config.freeze_trunk else encoder
    before = {name: content_hash(network) for name, network in watched.items()}
    for network in watched.values():
        network.to(device)
    yield
    for name, network in watched.items():
        if content_hash(network.cpu()) != before[name]:
            raise TrainingError(
                f"the frozen encoder of '{name}' changed during the stage; its result is not kept.",
                place=str(context.folder),
                hint="A plugin or a module shared between modalities writes to it.",
            )
