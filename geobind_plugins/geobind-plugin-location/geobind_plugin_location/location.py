"""The location modality."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from geobind_core import DataError, Modality, Preview
from geobind_plugin_location.config import LocationConfig

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from geobind_core import Exporter

    Place = npt.NDArray[np.float64]
    """Longitude from -180 up to but not 180, latitude, in degrees: `[2]`."""


class Location(Modality[LocationConfig]):
    """Where a place is: longitude and latitude in degrees, WGS 84.

    A batch is `[B, 2]` float32. Rounding to 32 bits moves a place by less than a metre; the finest
    waves that the published encoders have are 20 km long.
    """

    name: ClassVar[str] = "location"
    Config = LocationConfig

    def build_encoder(self) -> nn.Module:
        """Builds the encoder, `[B, 2]` degrees -> `[B, D]`."""
        from geobind_plugin_location.encoders import build

        return build(self.config)

    def exports(self) -> Mapping[str, Exporter]:
        """Returns safetensors."""
        from geobind_plugin_location.plain_export import PlainExporter

        return {"safetensors": PlainExporter()}

    def read(self, cell: Any) -> Place:
        """Takes a longitude and a latitude: two numbers, or a text such as `8.54, 47.37`.

        Longitudes from 0 to 360 are understood. A place has one pair of numbers only: 180 becomes -180, and
        at a pole the longitude is 0.

        Raises:
            DataError: They are not two numbers, or no place on Earth.
        """
        import numpy as np

        longitude, latitude = _numbers(cell)
        if not (-180 <= longitude <= 360 and -90 <= latitude <= 90):
            swapped = abs(longitude) <= 90 < abs(latitude) <= 180
            raise DataError(
                f"longitude {longitude:g}, latitude {latitude:g} is no place on Earth.",
                hint="Longitude comes first." if swapped else "Expected degrees, WGS 84.",
            )
        if longitude >= 180:
            longitude -= 360
        return np.array([0.0 if abs(latitude) == 90 else longitude, latitude])

    def transform(self, sample: Place, *, train: bool, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """Rounds to 32 bits."""
        import numpy as np

        return sample.astype(np.float32)

    def draw(self, rng: np.random.Generator) -> Place:
        """Draws a place on Earth; every square kilometre is as likely as any other."""
        import numpy as np

        return np.array([rng.uniform(-180, 180), math.degrees(math.asin(rng.uniform(-1, 1)))])

    def example_cells(self, rng: np.random.Generator) -> list[Any]:
        """Returns places as tables have them."""
        return [(8.54, 47.37), [359.5, -33.0], "-70.25, -89.5", self.draw(rng)]

    def inspect(self, cell: Any) -> Mapping[str, str | int | float]:
        """Returns longitude and latitude."""
        longitude, latitude = self.read(cell).tolist()
        return {"longitude": longitude, "latitude": latitude}

    def preview(self, cell: Any, size: int = 256) -> Preview:
        """Returns the place as people write it, such as `47.37000° N, 8.54000° E`; `size` is for pictures."""
        longitude, latitude = self.read(cell).tolist()
        north, east = "S" if latitude < 0 else "N", "W" if longitude < 0 else "E"
        return Preview("text/plain", f"{abs(latitude):.5f}° {north}, {abs(longitude):.5f}° {east}".encode())


def _numbers(cell: Any) -> tuple[float, float]:
    values = cell.split(",") if isinstance(cell, str) else cell
    try:
        if isinstance(cell, bytes):
            raise TypeError
        longitude, latitude = (float(value) for value in values)
    except (TypeError, ValueError):
        raise DataError(f"found {cell!r}; expected a longitude and a latitude.") from None
    return longitude, latitude
