"""The environment modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from geobind_core import DataError, Modality, Preview
from geobind_plugin_environment.config import EnvironmentConfig

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    Values = npt.NDArray[np.float64]
    """A number per variable, NaN where it is missing: `[V]`."""


class Environment(Modality[EnvironmentConfig]):
    """What is measured at a place: a vector of numbers, some of which may be missing.

    A batch is `[B, V]` float32, NaN where a number is missing.
    """

    name: ClassVar[str] = "environment"
    Config = EnvironmentConfig
    with_gaps: ClassVar[bool] = True

    def build_encoder(self) -> nn.Module:
        """Builds the encoder, `[B, V]` -> `[B, D]`."""
        from geobind_plugin_environment.encoder import EnvironmentEncoder

        return EnvironmentEncoder(self.config)

    def read(self, cell: Any) -> Values:
        """Takes numbers in the order of `variables`: a list, an array, or a tuple of columns. None and NaN are missing.

        Raises:
            DataError: There are more or fewer than variables, one is infinite or no number, or all are missing.
        """
        import numpy as np

        names = self.config.variables
        try:
            values = np.atleast_1d(np.array(cell, dtype=np.float64))
        except (TypeError, ValueError):
            raise DataError(f"found {cell!r}; expected {len(names)} numbers.") from None
        if values.shape != (len(names),):
            raise DataError(
                f"found an array of shape {values.shape}; expected {len(names)} numbers.",
                hint=f"`variables` is {', '.join(names)}.",
            )
        infinite = [name for name, value in zip(names, values.tolist(), strict=True) if abs(value) == float("inf")]
        if infinite:
            raise DataError(f"{', '.join(infinite)}: infinite.")
        if np.isnan(values).all():
            raise DataError("all variables are missing.")
        return values

    def transform(self, sample: Values, *, train: bool, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """Rounds to 32 bits."""
        import numpy as np

        return sample.astype(np.float32)

    def example_cells(self, rng: np.random.Generator) -> list[Any]:
        """Returns rows of numbers of all sizes, the last of them with a gap if there is more than one variable."""
        count = len(self.config.variables)
        rows = [rng.normal(scale=10.0**power, size=count).tolist() for power in range(4)]
        return [*rows[:3], [*rows[3][:-1], None] if count > 1 else rows[3]]

    def inspect(self, cell: Any) -> Mapping[str, str | int | float]:
        """Returns the variables by name, without those that are missing, and how many are."""
        named = self._named(cell)
        return {**named, "missing": len(self.config.variables) - len(named)}

    def preview(self, cell: Any, size: int = 256) -> Preview:
        """Returns a line for each variable that is not missing; `size` is for pictures."""
        return Preview("text/plain", "\n".join(f"{n}: {v:.4g}" for n, v in self._named(cell).items()).encode())

    def _named(self, cell: Any) -> dict[str, float]:
        found = zip(self.config.variables, self.read(cell).tolist(), strict=True)
        return {name: value for name, value in found if value == value}
