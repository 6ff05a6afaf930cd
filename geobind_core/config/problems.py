"""One thing that is wrong in a configuration, and how pydantic's findings become such."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

if typing.TYPE_CHECKING:
    from pydantic_core import ErrorDetails


NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]*$"
"""Names become folders and parts of metric names, so they are kept plain."""

_WORDS = ((None, "nothing"), (True, "true"), (False, "false"))


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
        path = finding["loc"]
        if path and path[-1] == "[key]":  # pydantic's way to say that not the value but its key is wrong
            path = path[:-1]
        if finding["type"] in ("union_tag_invalid", "union_tag_not_found"):
            path = (*path, finding["ctx"]["discriminator"].strip("'"))
        elif finding["type"] == "missing" and isinstance(path[-1], int):
            path = path[:-1]
        problems.append(Problem((*prefix, *path), _message(finding, model, path)))
    return problems


def _message(finding: ErrorDetails, model: type[BaseModel], path: tuple[str | int, ...]) -> str:
    kind, found, context = finding["type"], finding["input"], finding.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key '{path[-1]}'. {suggest(path[-1], _fields_at(model, path[:-1]))}"
    if kind == "missing" and path == finding["loc"]:
        return f"'{path[-1]}' is required{_described(model, path)}."
    if kind == "missing":
        return f"found {_shown(found)}; expected more values{_described(model, path)}."
    if kind == "value_error":
        return f"{context['error']}".removesuffix(".") + "."
    if kind == "union_tag_not_found":
        return f"'{path[-1]}' is required. {suggest('', _choices(model, path))}"
    if kind == "union_tag_invalid":
        return f"found {_shown(context['tag'])}. {suggest(context['tag'], _choices(model, path))}"
    if kind == "literal_error":
        names = [part.strip(" '") for part in context["expected"].replace(" or ", ",").split(",")]
        near = get_close_matches(str(found), names, 1)
        return f"found {_shown(found)}; expected {context['expected']}." + (
            f" Did you mean '{near[0]}'?" if near else ""
        )
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        example = f", such as {{name: {found}}}" if isinstance(found, str) and "name" in _fields_at(model, path) else ""
        expectation = f"expected a mapping{example}"
    elif kind == "string_pattern_mismatch" and context["pattern"] == NAME_PATTERN:
        expectation = "expected a name: letters, digits, _ and -, a letter first"
    elif finding["msg"].startswith("Input should be "):
        number = "a number " if kind.startswith(("greater", "less")) else ""
        expectation = f"expected {number}{finding['msg'].removeprefix('Input should be ')}"
    else:
        expectation = finding["msg"][0].lower() + finding["msg"][1:]
    return f"found {_shown(found)}; {expectation}{_described(model, path)}."


def _shown(value: Any) -> str:
    text = next((word for known, word in _WORDS if value is known), None) or repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _choices(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Returns the words that may stand at the path of a union's tag."""
    fields = [candidate.model_fields[str(path[-1])] for candidate in _models_at(model, path[:-1])]
    return [str(word) for field in fields for word in _literals(field.annotation)]


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
