"""A YAML file as plain data, with the line of every value, so that an error can point at it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from geobind_core.config.problems import Problem
from geobind_core.errors import ConfigError

PathInDocument = tuple[str | int, ...]


@dataclass
class Document:
    """A parsed file.

    Attributes:
        path: The file.
        data: Its content.
        lines: The line (from 1) of every value, by path; of a mapping's entry, the line of its key.
        overrides: Paths that `--set` has changed, with the text that did.
        problems: What was found wrong while parsing.
    """

    path: Path
    data: Any
    lines: dict[PathInDocument, int] = field(default_factory=dict)
    overrides: dict[PathInDocument, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def locate(self, path: PathInDocument) -> str:
        """Returns `file:line path` for a path, or for the nearest enclosing one that was written."""
        # pydantic puts the tags of unions into its paths; what is not in the document is left out.
        written = self._written(path)
        for length in range(len(path), 0, -1):
            if path[:length] in self.overrides:
                return f"--set {self.overrides[path[:length]]}"
        line = next((self.lines[written[:n]] for n in range(len(written), -1, -1) if written[:n] in self.lines), 1)
        text = readable(path if len(written) >= len(path) - 1 and self._missing_key(path) else written)
        return f"{self.path}:{line} {text}".rstrip()

    def line(self, path: PathInDocument) -> int:
        """Returns the line of a path, or of the nearest enclosing one."""
        written = self._written(path)
        return next((self.lines[written[:n]] for n in range(len(written), -1, -1) if written[:n] in self.lines), 0)

    def _written(self, path: PathInDocument) -> PathInDocument:
        value, kept = self.data, []
        for step in path:
            inside = (isinstance(value, dict) and step in value) or (
                isinstance(value, list) and isinstance(step, int) and step < len(value)
            )
            if inside:
                value = value[step]
                kept.append(step)
        return tuple(kept)

    def _missing_key(self, path: PathInDocument) -> bool:
        """Whether the path is that of an absent key of a mapping that is there."""
        return bool(path) and self._written(path[:-1]) == path[:-1] and isinstance(path[-1], str)


def readable(path: PathInDocument) -> str:
    """Returns `stages[1].train` for `("stages", 1, "train")`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def parse(path: Path) -> Document:
    """Reads a YAML file.

    Raises:
        ConfigError: The file is missing, is not text, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            "no such file.", place=str(path), hint=f"`geobind init {path.name}` writes the default chain."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", place=str(path)) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        document = Document(path, None)
        if root is not None:
            loader = yaml.SafeLoader("")
            document.data = _build(root, (), loader, document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"not valid YAML: {error.problem or error.context}", place=place) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}", place=str(path)) from error
    if not isinstance(document.data, dict):
        found = "an empty file" if document.data is None else f"a {type(document.data).__name__}"
        raise ConfigError(
            f"expected a mapping with binding, modalities, data and stages, found {found}.", place=str(path)
        )
    return document


def _build(node: yaml.Node, path: PathInDocument, loader: yaml.SafeLoader, document: Document) -> Any:
    document.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        merged = any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value)
        loader.flatten_mapping(node)
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.MarkedYAMLError(None, None, "a key must be a word", key_node.start_mark)
            key = str(key)
            if key in mapping and not merged:
                document.problems.append(
                    Problem(
                        (*path, key),
                        f"'{key}' is given twice; the first stands on line {document.lines[(*path, key)]}.",
                        line=key_node.start_mark.line + 1,
                    )
                )
            document.lines[(*path, key)] = key_node.start_mark.line + 1
            mapping[key] = _build(value_node, (*path, key), loader, document)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, i), loader, document) for i, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)
