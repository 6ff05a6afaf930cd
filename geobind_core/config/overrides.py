"""`--set stages.audio.epochs=3`: one value of the document changed from the command line."""

from __future__ import annotations

from typing import Any

from geobind_core.config.document import Document, PathInDocument, parse_value
from geobind_core.config.problems import suggest
from geobind_core.errors import ConfigError


def apply(document: Document, assignment: str) -> None:
    """Changes one value of the document, in place.

    Args:
        document: The parsed file.
        assignment: `path=value`. Steps of the path are separated by dots; a list's element is named
            by its number (from 0) or, where its elements have names, by name. The value is YAML.

    Raises:
        ConfigError: The assignment has no `=`, or its path leads nowhere.
    """
    dotted, equals, text = assignment.partition("=")
    place = f"--set {assignment}"
    steps = [step for step in dotted.strip().split(".") if step]
    if not equals or not steps:
        raise ConfigError("expected PATH=VALUE.", place=place, hint="For example: --set stages.audio.epochs=3")
    try:
        value = parse_value(text)
    except ValueError as error:
        raise ConfigError(f"the value is not valid YAML: {error}.", place=place) from error
    container: Any = document.data
    path: PathInDocument = ()
    for number, step in enumerate(steps):
        key = _key(container, step, place)
        path = (*path, key)
        if number == len(steps) - 1:
            container[key] = value
        elif isinstance(container, dict):
            if container.get(key) is None:
                # What is made here is the assignment's doing, should it not belong here.
                container[key] = {}
                document.overrides[path] = assignment
            container = container[key]
        else:
            container = container[key]
    document.overrides[path] = assignment


def _key(container: Any, step: str, place: str) -> str | int:
    if isinstance(container, dict):
        return step
    if not isinstance(container, list):
        raise ConfigError(f"'{step}': there is a plain value here, not a mapping or list.", place=place)
    if step.isdecimal() and int(step) < len(container):
        return int(step)
    names = {str(item["name"]): i for i, item in enumerate(container) if isinstance(item, dict) and "name" in item}
    if step not in names:
        raise ConfigError(f"no element '{step}'. {suggest(step, names)}", place=place)
    return names[step]
