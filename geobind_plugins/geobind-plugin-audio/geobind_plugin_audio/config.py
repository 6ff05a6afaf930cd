"""Settings of the audio modality."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from geobind_core import ModalityConfig


class FeatureConfig(BaseModel):
    """How a waveform becomes a log-mel spectrogram; names and defaults of CLAP's feature extractor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fft_window: int = Field(1024, ge=16, description="Samples of a Fourier transform.")
    hop_length: int = Field(480, ge=1, description="Samples between two of them.")
    min_hz: float = Field(50.0, ge=0, description="Lowest frequency of the mel filters, in Hz.")
    max_hz: float = Field(14_000.0, gt=0, description="Highest frequency of the mel filters, in Hz.")
    mel_scale: Literal["slaney", "htk"] | None = Field(
        None, description="Shape of the mel filters; default: htk for a model with fusion, else slaney."
    )


class AudioConfig(ModalityConfig):
    """Which CLAP, and how much of a recording it hears."""

    model: str | dict[str, Any] | None = Field(
        None,
        description="`geobind-tiny`, or fields of transformers' ClapAudioConfig; default: that of "
        "`pretrained`, or else the published HTSAT.",
    )
    pretrained: str | None = Field(
        None, description="CLAP on the Hub, such as laion/clap-htsat-unfused, or a local folder."
    )
    sample_rate: int = Field(48_000, ge=1_000, description="Recordings are resampled to this, in Hz.")
    seconds: float = Field(10.0, gt=0, description="Length that the network hears.")
    features: FeatureConfig | None = Field(
        None, description="The spectrogram; default: that of `model` or `pretrained`."
    )
