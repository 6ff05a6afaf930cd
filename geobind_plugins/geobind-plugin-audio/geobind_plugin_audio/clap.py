"""CLAP's audio tower from transformers, with its features computed in batches by torchaudio."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import ClapAudioConfig, ClapAudioModelWithProjection
from transformers.utils import logging as transformers_logging

from geobind_core import WeightsError, require_hub_files
from geobind_plugin_audio.config import AudioConfig, FeatureConfig
from geobind_plugin_audio.features import LogMel

_OWN_MODELS = Path(__file__).parent / "models"
_FEATURE_FILES = ("preprocessor_config.json", "processor_config.json")
_FUSED_VIEWS = 4


@dataclass(frozen=True)
class _Resolved:
    network: ClapAudioConfig
    features: FeatureConfig


class ClapEncoder(nn.Module):
    """Waveforms to embeddings: `[B, samples]` float32 -> `[B, D]`.

    The features equal those of transformers' `ClapFeatureExtractor`, in decibels relative to 1. A
    model with fusion is given the same spectrogram four times, as that extractor does for recordings
    that are no longer than the model hears.
    """

    def __init__(self, clap: ClapAudioModelWithProjection, features: FeatureConfig, sample_rate: int) -> None:
        super().__init__()
        network = clap.config
        self.clap = clap
        self.features = features
        self.embed_dim = int(network.projection_dim)
        self.fused = bool(network.enable_fusion)
        scale = features.mel_scale or ("htk" if self.fused else "slaney")
        self.spectrogram = LogMel(features, scale, sample_rate, network.num_mel_bins)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        # Powers span ten orders of magnitude; float32 also where the network runs in less.
        with torch.autocast(waveforms.device.type, enabled=False), torch.no_grad():
            mel = self.spectrogram(waveforms.float()).transpose(1, 2).unsqueeze(1)  # [B, 1, T, mel]
        longer = None
        if self.fused:
            mel = mel.expand(-1, _FUSED_VIEWS, -1, -1)
            longer = torch.zeros(len(mel), 1, dtype=torch.bool, device=mel.device)
        embedding: torch.Tensor = self.clap(input_features=mel, is_longer=longer).audio_embeds
        return embedding


def build(config: AudioConfig) -> ClapEncoder:
    """Builds the encoder that a configuration describes, with its weights.

    Raises:
        WeightsError: They cannot be had, or are not CLAP's.
    """
    resolved = _resolve(config)
    _check_length(config, resolved)
    if config.pretrained is None:
        clap = ClapAudioModelWithProjection(resolved.network)
    else:
        clap = _loaded(config.pretrained, resolved.network)
    return ClapEncoder(clap, resolved.features, config.sample_rate)


def _loaded(name: str, network: ClapAudioConfig) -> Any:
    hint = "Expected a repository or folder with config.json and model.safetensors, as save_pretrained writes them."
    with quiet_transformers():
        try:
            loaded: Any = ClapAudioModelWithProjection.from_pretrained(name, config=network, output_loading_info=True)
        except Exception as error:  # safetensors, pickle and the Hub each have their own
            raise WeightsError(f"no CLAP weights can be loaded from '{name}': {error}", hint=hint) from error
    clap, report = loaded
    # transformers makes up what a file does not have, and only says so.
    missing = sorted(report["missing_keys"])
    if missing:
        raise WeightsError(f"'{name}' lacks {len(missing)} of CLAP's weights, such as {missing[0]}.", hint=hint)
    return clap.float()  # half precision is the trainer's choice, not the file's


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers from reporting that CLAP's text half goes unused, and from its bars."""
    logging: Any = transformers_logging  # some of its functions have no types
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _check_length(config: AudioConfig, resolved: _Resolved) -> None:
    """Makes sure that the network can take a spectrogram of the length that is asked for."""
    samples, features, network = round(config.seconds * config.sample_rate), resolved.features, resolved.network
    longest = network.spec_size * (network.spec_size // network.num_mel_bins) * features.hop_length
    if not features.fft_window // 2 < samples < longest:
        shortest, rate = features.fft_window // 2 + 1, config.sample_rate
        raise WeightsError(
            f"seconds: {config.seconds:g} does not fit the network, which hears {shortest / rate:.3g} to "
            f"{(longest - 1) / rate:.4g} s at sample_rate: {rate}."
        )


def rebuilt(config: AudioConfig, encoder: nn.Module) -> AudioConfig:
    """Returns settings that rebuild an encoder with nothing to look up."""
    assert isinstance(encoder, ClapEncoder)
    network = json.loads(encoder.clap.config.to_json_string(use_diff=True))
    for noise in ("transformers_version", "dtype", "architectures", "model_type"):
        network.pop(noise, None)
    update = {"model": network, "features": encoder.features, "pretrained": None, "init_from": None}
    return config.model_copy(update=update)


def _resolve(config: AudioConfig) -> _Resolved:
    network, features = ClapAudioConfig(), FeatureConfig()
    if isinstance(config.model, dict):
        network = _network(config.model)
    elif config.model is not None:
        own = _OWN_MODELS / f"{config.model}.json"
        if not own.is_file():
            names = ", ".join(sorted(path.stem for path in _OWN_MODELS.glob("*.json")))
            raise WeightsError(
                f"no model '{config.model}'. Available: {names}.",
                hint="For published weights give `pretrained` and leave `model` out.",
            )
        described = json.loads(own.read_text(encoding="utf-8"))
        network, features = _network(described["model"]), FeatureConfig(**described["features"])
    elif config.pretrained is not None:
        network, features = _published(config.pretrained)
    return _Resolved(network, config.features or features)


def _network(fields: dict[str, Any]) -> ClapAudioConfig:
    known = ClapAudioConfig().to_dict()
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise WeightsError(f"ClapAudioConfig has no field {', '.join(unknown)}.")
    try:
        return ClapAudioConfig(**fields)
    except Exception as error:  # of another kind with each version of transformers
        raise WeightsError(f"ClapAudioConfig refuses the model that is written out: {error}") from error


def _published(name: str) -> tuple[ClapAudioConfig, FeatureConfig]:
    local = Path(name).is_dir()
    if not local:
        require_hub_files(name, ("config.json",))
        require_hub_files(name, ("model.safetensors", "pytorch_model.bin"))
    try:
        with quiet_transformers():
            network = ClapAudioConfig.from_pretrained(name)
    except Exception as error:  # of another kind with each version of transformers
        raise WeightsError(
            f"no CLAP configuration can be loaded from '{name}': {error}",
            hint="Expected a repository or folder with config.json, as save_pretrained writes it.",
        ) from error
    return network, _published_features(name, local=local)


def _published_features(name: str, *, local: bool) -> FeatureConfig:
    found = (_local_file(name, file) if local else _hub_file(name, file) for file in _FEATURE_FILES)
    path = next((path for path in found if path is not None), None)
    if path is None:
        return FeatureConfig()
    try:
        published = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"the file is damaged: {error}", place=str(path)) from error
    published = published.get("feature_extractor", published)  # as a processor has it
    names = {
        "fft_window": "fft_window_size",
        "hop_length": "hop_length",
        "min_hz": "frequency_min",
        "max_hz": "frequency_max",
    }
    return FeatureConfig(**{own: published[theirs] for own, theirs in names.items() if theirs in published})


def _local_file(folder: str, file: str) -> Path | None:
    path = Path(folder) / file
    return path if path.is_file() else None


def _hub_file(repository: str, file: str) -> Path | None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except EntryNotFoundError:
        return None
