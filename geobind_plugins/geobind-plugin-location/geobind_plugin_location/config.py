"""Settings of the location modality."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from geobind_core import ModalityConfig

_ONLY_FOR = {"legendre_polys": "spherical_harmonics", "sigmas": "random_fourier", "frequencies": "random_fourier"}


class LocationConfig(ModalityConfig):
    """Which encoder, and how large; what is not given is as published."""

    encoder: Literal["spherical_harmonics", "random_fourier"] = Field(
        "spherical_harmonics", description="spherical_harmonics: SatCLIP's; random_fourier: GeoCLIP's."
    )
    legendre_polys: int | None = Field(
        None, ge=1, le=100, description="Harmonics of so many degrees, L; their number is L^2; default: 10."
    )
    sigmas: tuple[float, ...] | None = Field(
        None, min_length=1, description="Spread of the frequencies of each scale; default: 1, 16, 256."
    )
    frequencies: int | None = Field(None, ge=1, description="Frequencies of each scale; default: 256.")
    width: int | None = Field(None, ge=1, description="Units of a hidden layer; default: 512, with Fourier 1024.")
    depth: int | None = Field(None, ge=1, description="Hidden layers; default: 2, with Fourier 3.")
    embed_dim: int | None = Field(None, ge=1, description="D of the encoder; default: 256, with Fourier 512.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of hidden units that are left out in training.")

    @model_validator(mode="after")
    def _of_one_encoder(self) -> LocationConfig:
        for name, encoder in _ONLY_FOR.items():
            if getattr(self, name) is not None and encoder != self.encoder:
                raise ValueError(f"`{name}` is a setting of `encoder: {encoder}`, not of `{self.encoder}`")
        if not all(sigma > 0 for sigma in self.sigmas or ()):
            raise ValueError(f"`sigmas` is {list(self.sigmas or ())}; expected numbers above 0")
        if self.pretrained is not None:
            raise ValueError("`pretrained` is not supported; a location encoder is trained in a stage")
        return self
