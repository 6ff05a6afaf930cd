"""Settings of the environment modality."""

from __future__ import annotations

from pydantic import Field, model_validator

from geobind_core import ModalityConfig


class EnvironmentConfig(ModalityConfig):
    """Which variables there are, what is usual for them, and how large the network is."""

    variables: tuple[str, ...] = Field(
        min_length=1, description="Names of the variables, in the order in which the data has them."
    )
    mean: tuple[float, ...] | None = Field(None, description="Mean of each variable; default: they are squashed.")
    std: tuple[float, ...] | None = Field(None, description="Standard deviation of each variable, with `mean`.")
    width: int = Field(512, ge=1, description="Units of a hidden layer.")
    depth: int = Field(4, ge=0, description="Residual blocks.")
    embed_dim: int = Field(512, ge=1, description="D of the encoder.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of a block's hidden units that are left out in training."
    )

    @model_validator(mode="after")
    def _numbers_fit(self) -> EnvironmentConfig:
        if len(set(self.variables)) < len(self.variables):
            raise ValueError("`variables` has a name twice")
        if (self.mean is None) != (self.std is None):
            raise ValueError("`mean` and `std` belong together; give both or neither")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != len(self.variables):
                raise ValueError(f"`{name}` has {len(values)} numbers, `variables` has {len(self.variables)} names")
        if not all(value > 0 for value in self.std or ()):
            raise ValueError(f"`std` is {list(self.std or ())}; expected numbers above 0; leave out what never varies")
        if self.pretrained is not None:
            raise ValueError("`pretrained` is not supported; an environment encoder is trained in a stage")
        return self
