"""The network of one modality, as the engine sees it: encoder, projection, unit norm."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from geobind_core.errors import PluginError
from geobind_core.plugins.modality import EncoderOutput

_HINT = "Mend the plugin; `geobind plugins check` tries its encoder."


class SpaceEncoder(nn.Module):
    """A plugin's encoder, with a linear projection into the space where one is needed.

    Args:
        encoder: A batch to `[B, D]` or an `EncoderOutput`.
        raw_dim: D of the encoder.
        embed_dim: D of the space.
        projected: Whether to put a linear map without bias between the two.
        name: The modality, for messages.
    """

    def __init__(self, encoder: nn.Module, raw_dim: int, embed_dim: int, *, projected: bool, name: str = "") -> None:
        super().__init__()
        self.name = name
        self.encoder = encoder
        self.raw_dim = raw_dim
        self.embed_dim = embed_dim
        self.projection = nn.Linear(raw_dim, embed_dim, bias=False) if projected else None
        # A plugin may have fixed a part of its encoder; a stage that trains it leaves that part alone.
        self._fixed = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        # safetensors refuses to load into a tensor that is a part of a larger storage, such as the window
        # of torchaudio's spectrograms, and so would a checkpoint be refused.
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.untyped_storage().nbytes() != tensor.nbytes:
                tensor.data = tensor.data.clone()

    def forward(self, batch: Any) -> EncoderOutput:
        """Returns the embeddings `[B, D]`: float32 and of unit norm, also under autocast.

        Raises:
            PluginError: The encoder returns something else than its `[B, raw_dim]`.
        """
        return project(self.trunk(batch), self.projection)

    def trunk(self, batch: Any) -> EncoderOutput:
        """Returns the encoder's own output `[B, raw_dim]`.

        Raises:
            PluginError: It is something else.
        """
        output = as_output(self.encoder(batch))
        value: Any = output.embedding
        if not (isinstance(value, torch.Tensor) and value.is_floating_point()) or value.shape[1:] != (self.raw_dim,):
            raise PluginError(
                f"{_whose(self.name)} returned {kind_of(value)}; expected floating-point numbers "
                f"[B, {self.raw_dim}], or an EncoderOutput with them.",
                hint=_HINT,
            )
        return output

    def freeze(self) -> None:
        """Makes it frozen in both senses: evaluation mode and no gradients."""
        self.eval()
        self.requires_grad_(False)

    def unfreeze(self, *, trunk: bool = True) -> None:
        """Makes it ready to be trained, all but what the plugin itself has fixed.

        Args:
            trunk: Whether the encoder is trained too, or the projection alone.
        """
        self.train()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in self._fixed)
        if not trunk:
            self.encoder.eval()
            self.encoder.requires_grad_(False)


def project(output: EncoderOutput, projection: nn.Module | None) -> EncoderOutput:
    """Takes an encoder's own output `[B, raw_dim]` into the space: `[B, D]`, of unit norm."""
    embedding = output.embedding if projection is None else projection(output.embedding)
    # Not below float32, whatever autocast made of it; float64 stays.
    embedding = embedding if embedding.dtype == torch.float64 else embedding.float()
    return replace(output, embedding=nn.functional.normalize(embedding, dim=-1))


def require_rows(output: EncoderOutput, samples: int, name: str) -> EncoderOutput:
    """Returns an output, which must have a row for each sample: what belongs together is known by its place.

    Raises:
        PluginError: It has more, or fewer.
    """
    for field, value in vars(output).items():
        if value is not None and len(value) != samples:
            what = "" if field == "embedding" else f" of `{field}`"
            raise PluginError(f"{_whose(name)} returned {len(value)} rows{what} for {samples} samples.", hint=_HINT)
    return output


def kind_of(value: Any) -> str:
    """Returns what kind of thing something is, such as `torch.float32 [8, 512]` or `list`, for messages."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


def _whose(name: str) -> str:
    return f"the encoder of '{name}'" if name else "the encoder"


def as_output(value: Any) -> EncoderOutput:
    """Returns what an encoder returned as an `EncoderOutput`."""
    return value if isinstance(value, EncoderOutput) else EncoderOutput(value)


def content_hash(module: nn.Module) -> str:
    """Returns a hash of all parameters and buffers that are saved: names, types, shapes, values."""
    return state_hash(module.state_dict())


def state_hash(state: Mapping[str, torch.Tensor]) -> str:
    """Returns the same of a network's state, as a file has it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        value = tensor.detach().to("cpu").contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}:".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def raw_dimension(encoder: nn.Module, example: Any) -> int:
    """Returns D of an encoder's `[B, D]`, by a run over one batch.

    Raises:
        ValueError: The output is not `[B, D]`.
    """
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        embedding = as_output(encoder(example)).embedding
    encoder.train(training)
    if embedding.ndim != 2:
        raise ValueError(f"the encoder returned shape {tuple(embedding.shape)}; expected [B, D]")
    return int(embedding.shape[1])
