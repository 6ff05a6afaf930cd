"""One thing that is wrong in a configuration, and how pydantic's findings become such."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: Where, in the document.
        message: What was found and what was expected.
        hint: What to do about it.
        line: The line, when it is not that of `path`.
    """

    path: tuple[str | int, ...]
    message: str
    hint: str = ""
    line: int | None = None


def suggest(name: object, available: typing.Iterable[str]) -> str:
    """Returns `Available: a, b. Did you mean 'a'?`."""
    names = sorted(available)
    near = get_close_matches(str(name), names, 1)
    return f"Available: {', '.join(names) or 'none'}." + (f" Did you mean '{near[0]}'?" if near else "")


def from_pydantic(error: ValidationError, model: type[BaseModel], prefix: tuple[str | int, ...]) -> list[Problem]:
    """Turns pydantic's findings into problems, with the names that would have been right."""
    problems = []
    for finding in error.errors(include_url=False):
        path, kind, found = finding["loc"], finding["type"], finding["input"]
        if kind == "extra_forbidden":
            known = _fields_at(model, path[:-1])
            message = f"unknown key '{path[-1]}'. {suggest(path[-1], known)}"
        elif kind == "missing":
            message = f"'{path[-1]}' is required{_described(model, path)}."
        elif kind == "value_error":
            message = str(finding["ctx"]["error"]) + "."
        elif kind in ("union_tag_invalid", "literal_error"):
            expected = finding["ctx"].get("expected_tags") or finding["ctx"].get("expected", "")
            message = f"found {_shown(found)}; expected one of {expected}."
            names = [part.strip(" '") for part in expected.replace(" or ", ",").split(",")]
            value = found.get("name") if isinstance(found, dict) else found
            near = get_close_matches(str(value), names, 1)
            message += f" Did you mean '{near[0]}'?" if near else ""
        else:
            expectation = finding["msg"][0].lower() + finding["msg"][1:]
            message = f"found {_shown(found)}; {expectation}{_described(model, path)}."
        problems.append(Problem((*prefix, *path), message))
    return problems


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _described(model: type[BaseModel], path: tuple[str | int, ...]) -> str:
    fields = _models_at(model, path[:-1])
    for candidate in fields:
        info = candidate.model_fields.get(str(path[-1])) if path else None
        if info is not None and info.description:
            return f" ({info.description.rstrip('.')})"
    return ""


def _fields_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    return [name for candidate in _models_at(model, path) for name in candidate.model_fields]


def _models_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[type[BaseModel]]:
    """Returns the models that may stand at a path: more than one where there is a union."""
    candidates: list[type[BaseModel]] = [model]
    for step in path:
        following = []
        for candidate in candidates:
            if isinstance(step, str) and step in candidate.model_fields:
                following += _models_in(candidate.model_fields[step].annotation)
            elif any(step == f.default or step in _literals(f.annotation) for f in candidate.model_fields.values()):
                following.append(candidate)  # the tag of a union
        # An index into a list leads to the list's own element models.
        candidates = following or ([] if isinstance(step, str) else candidates)
    return candidates


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]
    return []


def _literals(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
