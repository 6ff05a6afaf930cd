"""What may be asked: the body of a query, checked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_Weight = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]
_Row = Annotated[int, Field(ge=0, strict=True)]
_Degrees = Annotated[float, Field(ge=-360, le=360, allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(_Body):
    """One thing to search by.

    Attributes:
        text: A text.
        file: The number of an uploaded file, from 0.
        place: A collection and a row of it: its embedding.
        coordinates: Longitude and latitude, degrees, WGS 84.
        modality: Who reads it; may be left out where only one can.
        weight: How much it counts; a negative one leads away from it.
    """

    text: Annotated[str, Field(max_length=10_000)] | None = None
    file: _Row | None = None
    place: tuple[_Row, _Row] | None = None
    coordinates: tuple[_Degrees, _Degrees] | None = None
    modality: Annotated[str, Field(max_length=200)] | None = None
    weight: _Weight = 1.0

    @model_validator(mode="after")
    def _one(self) -> Part:
        given = [n for n in ("text", "file", "place", "coordinates") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"found {' and '.join(given) or 'none'} of text, file, place, coordinates; expected one")
        if self.weight == 0:
            raise ValueError("the weight is 0; expected another number")
        return self


class Query(_Body):
    """What to search, and by what.

    Attributes:
        parts: What to search by; the query is their weighted sum.
        collection: Number of the collection to search in.
        gallery: Which modality to compare with; default: the collection's first.
        k: How many hits.
        bbox: Only hits in here: west, south, east, north in degrees.
        format: `json`; or all rows, the best first, as `csv` or `geojson`.
    """

    parts: Annotated[tuple[Part, ...], Field(min_length=1, max_length=8)]
    collection: _Row = 0
    gallery: Annotated[str, Field(max_length=200)] | None = None
    k: Annotated[int, Field(ge=1, le=200)] = 20
    bbox: tuple[_Degrees, _Degrees, _Degrees, _Degrees] | None = None
    format: Literal["json", "csv", "geojson"] = "json"


class Expectation(_Body):
    """For what to say what the space expects.

    Attributes:
        parts: As in a query.
        k: How many of each modality.
    """

    parts: Annotated[tuple[Part, ...], Field(min_length=1, max_length=8)]
    k: Annotated[int, Field(ge=1, le=20)] = 4
