"""CLAP's spectrograms, in batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram
from transformers.audio_utils import mel_filter_bank

from geobind_plugin_audio.config import FeatureConfig

_ROWS = 16  # of a batch at a time on an accelerator: the Fourier transforms of ten seconds take 25 MB
_FRAMES = 128  # of a row at a time on a CPU: what they take stays in its cache


class LogMel(nn.Sequential):
    """Waveforms `[..., samples]` to decibels relative to 1, `[..., bands, T]`, as transformers' `ClapFeatureExtractor`.

    Fourier transforms have 64 bits. With 32, their rounding is louder than what lies 80 dB under the loudest tone, and
    field recordings have such bands. Powers are sums of squares; 32 bits are enough from there on.

    Args:
        features: The settings.
        scale: `slaney` or `htk`.
        sample_rate: Of the waveforms, in Hz.
        bands: Number of mel filters.
    """

    def __init__(self, features: FeatureConfig, scale: str, sample_rate: int, bands: int) -> None:
        top = min(features.max_hz, sample_rate / 2)
        mel = MelSpectrogram(
            sample_rate,
            n_fft=features.fft_window,
            hop_length=features.hop_length,
            f_min=features.min_hz,
            f_max=top,
            n_mels=bands,
            norm="slaney" if scale == "slaney" else None,
            mel_scale=scale,
        )
        super().__init__(mel, AmplitudeToDB("power"))
        self.size, self.hop = features.fft_window, features.hop_length
        # The same filters with 64 bits: what is loud may lie at the very foot of one.
        filters = torch.from_numpy(
            mel_filter_bank(
                num_frequency_bins=self.size // 2 + 1,
                num_mel_filters=bands,
                min_frequency=features.min_hz,
                max_frequency=top,
                sampling_rate=sample_rate,
                norm="slaney" if scale == "slaney" else None,
                mel_scale=scale,
            )
        )
        mel.mel_scale.fb.copy_(filters)  # [frequencies, bands]
        self.used = int(filters.any(dim=1).nonzero().max()) + 1

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        rows = waveforms.reshape(-1, waveforms.shape[-1])
        # On a CPU, one row does not depend on another by a bit.
        count = 1 if rows.device.type == "cpu" else _ROWS
        decibels = torch.cat([self._decibels(rows[start : start + count]) for start in range(0, len(rows), count)])
        return decibels.transpose(1, 2).reshape(*waveforms.shape[:-1], -1, decibels.shape[1])

    def _decibels(self, rows: torch.Tensor) -> torch.Tensor:
        mel: Any = self[0]
        wide = torch.float32 if rows.device.type == "mps" else torch.float64  # which has no other
        window = torch.hann_window(self.size, dtype=wide, device=rows.device)
        ends = (self.size // 2, self.size // 2)
        whole = nn.functional.pad(rows.to(wide).unsqueeze(1), ends, mode="reflect").squeeze(1)
        frames = whole.unfold(1, self.size, self.hop)  # [B, T, size]
        powers = []
        for some in torch.split(frames, _FRAMES if rows.device.type == "cpu" else frames.shape[1], dim=1):
            waves = torch.fft.rfft(some * window)[..., : self.used].to(torch.complex64)  # [B, T, frequencies]
            powers.append(torch.view_as_real(waves).square().sum(-1) @ mel.mel_scale.fb[: self.used])
        decibels: torch.Tensor = self[1](torch.cat(powers, dim=1))  # [B, T, bands]
        return decibels
