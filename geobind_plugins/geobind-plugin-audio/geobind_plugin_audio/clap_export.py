"""Folders that `ClapAudioModelWithProjection` and `ClapFeatureExtractor` of transformers open."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geobind_core import Exporter, ExportError, ExportPart, Stored, Written
from geobind_plugin_audio.clap import ClapEncoder, quiet_transformers
from geobind_plugin_audio.config import AudioConfig

WEIGHTS = "model.safetensors"
_LAST, _BEFORE = "audio_projection.linear2", "audio_projection.linear1"


class ClapExporter(Exporter):
    """The audio half of a CLAP, with the feature extractor that makes its spectrograms."""

    library = "transformers"

    def write(self, parts: Sequence[ExportPart], folder: Path, *, logit_scale: float | None) -> Written:
        from safetensors.torch import save

        (part,) = parts
        encoder, settings = part.encoder, part.modality.config
        assert isinstance(encoder, ClapEncoder)
        network = deepcopy(encoder.clap.config)
        state = {name: tensor.detach().clone() for name, tensor in encoder.clap.state_dict().items()}
        if part.projection is not None:
            _fold(state, part, network.projection_dim)
            network.projection_dim = part.embed_dim
        network.architectures, network.dtype = ["ClapAudioModelWithProjection"], torch.float32
        extractor = _extractor(encoder, settings)
        network.save_pretrained(folder)
        extractor.save_pretrained(folder)
        (folder / WEIGHTS).write_bytes(save(state, metadata={"format": "pt"}))
        notes = [f"hears {settings.seconds:g} s at {settings.sample_rate} Hz; cut longer recordings yourself"]
        if settings.seconds != int(settings.seconds):
            notes.append(f"give the feature extractor max_length={_samples(settings)}: its own are whole seconds")
        if encoder.fused:
            notes.append("give the model is_longer=False: of short recordings the feature extractor calls one long")
        tensors = {f"clap.{name}": Stored(WEIGHTS, (name,)) for name in state}
        return Written({part.name: tensors}, 'ClapAudioModelWithProjection.from_pretrained("{folder}")', notes)

    def embed(self, folder: Path, part: ExportPart, samples: Sequence[Any]) -> torch.Tensor:
        from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor

        settings = part.modality.config
        extractor = ClapFeatureExtractor.from_pretrained(folder)
        with quiet_transformers():
            loaded: Any = ClapAudioModelWithProjection.from_pretrained(folder, output_loading_info=True)
        model, report = loaded
        # transformers makes up what a file does not have, and only says so.
        if report["missing_keys"]:
            raise ExportError(f"transformers misses {', '.join(sorted(report['missing_keys']))}.")
        features = extractor(
            [sample.numpy() for sample in samples],
            sampling_rate=settings.sample_rate,
            max_length=_samples(settings),
            return_tensors="pt",
        )["input_features"]
        longer = torch.zeros(len(features), 1, dtype=torch.bool)
        embedding: torch.Tensor = model.eval()(features.float(), is_longer=longer).audio_embeds
        return embedding


def _samples(settings: AudioConfig) -> int:
    return round(settings.seconds * settings.sample_rate)


def _extractor(encoder: ClapEncoder, settings: AudioConfig) -> Any:
    """Returns the feature extractor that makes the encoder's spectrograms.

    Raises:
        ExportError: It has other filters.
    """
    from transformers import ClapFeatureExtractor

    features, usual = encoder.features, "htk" if encoder.fused else "slaney"
    if features.mel_scale not in (None, usual):
        raise ExportError(
            f"ClapFeatureExtractor has {usual} filters for a model {'with' if encoder.fused else 'without'} fusion; "
            f"this one has mel_scale: {features.mel_scale}."
        )
    whole = settings.seconds == int(settings.seconds)
    return ClapFeatureExtractor(
        feature_size=encoder.clap.config.num_mel_bins,
        sampling_rate=settings.sample_rate,
        hop_length=features.hop_length,
        max_length_s=int(settings.seconds) if whole else settings.seconds,
        fft_window_size=features.fft_window,
        frequency_min=features.min_hz,
        frequency_max=min(features.max_hz, settings.sample_rate / 2),
        truncation="fusion" if encoder.fused else "rand_trunc",
        padding="repeatpad",
    )


def _fold(state: dict[str, torch.Tensor], part: ExportPart, raw_dim: int) -> None:
    """Multiplies the last layer by the space's projection: two linear maps in a row are one.

    CLAP's last two layers have one width. Where the space is wider, the layer before gets units that are always 0
    and that nothing listens to.

    Raises:
        ExportError: The space is narrower, and units would have to go.
    """
    assert part.projection is not None
    more = part.embed_dim - raw_dim
    activation = part.encoder.clap.config.projection_hidden_act  # type: ignore[union-attr]
    if more < 0:
        raise ExportError(
            f"'{part.name}' has {raw_dim} dimensions and the space {part.embed_dim}; CLAP of transformers cannot "
            "narrow its last layer.",
            hint="`--to hub` takes it as it is.",
        )
    if more and activation != "relu":
        raise ExportError(f"'{part.name}' has projection_hidden_act: {activation}; only relu can be made wider.")
    projection = part.projection.double()  # [D, raw]
    weight = projection @ state[f"{_LAST}.weight"].double()
    state[f"{_LAST}.weight"] = nn.functional.pad(weight, (0, more)).float()  # [D, D]
    state[f"{_LAST}.bias"] = (projection @ state[f"{_LAST}.bias"].double()).float()
    state[f"{_BEFORE}.weight"] = nn.functional.pad(state[f"{_BEFORE}.weight"], (0, 0, 0, more))
    state[f"{_BEFORE}.bias"] = nn.functional.pad(state[f"{_BEFORE}.bias"], (0, more))
