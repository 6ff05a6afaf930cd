"""The base of all settings, and the kinds of value that several of them share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from geobind_core.config.problems import NAME_PATTERN

Name = Annotated[str, Field(pattern=NAME_PATTERN)]

TEXT = {"type": "string"}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


OneOrMore = Annotated[
    list[str],
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [TEXT, {"type": "array", "items": TEXT}]}),
]


class StrictModel(BaseModel):
    """Base of all settings: unknown keys are errors, and settings do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
