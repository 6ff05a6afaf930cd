"""A YAML file as plain data, with the line of every value, so that an error can point at it."""

from __future__ import annotations

import re
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

    def locate(self, path: PathInDocument, line: int | None = None) -> str:
        """Returns `file:line path`, or the `--set` that has changed the value.

        Args:
            path: Where; for what is not in the document, the nearest enclosing line is given.
            line: The line, when it is not that of the path.
        """
        written, value = self._written(path)
        for length in range(len(written), 0, -1):
            if written[:length] in self.overrides:
                return f"--set {self.overrides[written[:length]]}"
        if path and isinstance(value, dict) and written == self._written(path[:-1])[0]:
            written = (*written, path[-1])  # the key of a mapping that should have it
        return f"{self.path}:{line or self.line(path)} {readable(written)}".rstrip()

    def line(self, path: PathInDocument) -> int:
        """Returns the line of a path, or of the nearest enclosing one."""
        written, _ = self._written(path)
        return next((self.lines[written[:n]] for n in range(len(written), -1, -1) if written[:n] in self.lines), 1)

    def _written(self, path: PathInDocument) -> tuple[PathInDocument, Any]:
        """Returns the steps of a path that are in the document, and the value that they lead to."""
        # pydantic puts the tags of unions into its paths; what is not in the document is left out.
        value, kept = self.data, []
        for step in path:
            inside = (isinstance(value, dict) and step in value) or (
                isinstance(value, list) and isinstance(step, int) and step < len(value)
            )
            if inside:
                value = value[step]
                kept.append(step)
        return tuple(kept), value


def readable(path: PathInDocument) -> str:
    """Returns `stages[1].train` for `("stages", 1, "train")`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


class _Loader(yaml.SafeLoader):
    """Reads plain values as YAML 1.2 does, and so as editors do.

    `no` and `on` are words, `5e-5` is a number and `2020-01-01` is text, none of which PyYAML thinks.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012  # PyYAML's own way


for _kind, _pattern, _first in (
    ("merge", r"<<", "<"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), list(_first))


def parse(path: Path) -> Document:
    """Reads a YAML file.

    Raises:
        ConfigError: The file is missing, is not text, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            "no such file.", place=str(path), hint=f"`geobind init {path}` writes the default chain."
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}.", place=str(path)) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError("not text in UTF-8.", place=f"{path}:{line}") from error
    document = Document(path, None)
    try:
        root = yaml.compose(text, Loader=_Loader)
        if root is not None:
            document.data = _build(root, (), document, ())
    except yaml.YAMLError as error:
        reason, line = _yaml_problem(error, text)
        hint = "Indent with spaces, not with tabs." if "'\\t'" in reason else ""
        raise ConfigError(f"not valid YAML: {reason}.", place=f"{path}:{line}", hint=hint) from error
    if not isinstance(document.data, dict):
        kinds = ((type(None), "an empty file"), (list, "a list"), (object, "a plain value"))
        found = next(words for kind, words in kinds if isinstance(document.data, kind))
        raise ConfigError(
            f"expected a mapping with binding, modalities, data and stages, found {found}.", place=str(path)
        )
    return document


def parse_value(text: str) -> Any:
    """Reads one YAML value.

    Raises:
        ValueError: It is not valid.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
        return None if root is None else _build(root, (), Document(Path(), None), ())
    except yaml.YAMLError as error:
        raise ValueError(_yaml_problem(error, text)[0]) from error


def _yaml_problem(error: yaml.YAMLError, text: str) -> tuple[str, int]:
    """Returns what is wrong and on which line."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character {error.character:#x} is not allowed", text.count("\n", 0, error.position) + 1
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        return ", ".join(filter(None, (error.context, error.problem))), mark.line + 1 if mark else 1
    return str(error), 1


def _wrong(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, node.start_mark)


def _build(node: yaml.Node, path: PathInDocument, document: Document, around: tuple[yaml.Node, ...]) -> Any:
    document.lines.setdefault(path, node.start_mark.line + 1)
    if node in around:
        raise _wrong(node, "a value that contains itself by an alias")
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        mapping = {}
        for key, (key_node, value_node) in _entries(node, path, document, around).items():
            document.lines[(*path, key)] = key_node.start_mark.line + 1
            mapping[key] = _build(value_node, (*path, key), document, (*around, node))
        return mapping
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return [_build(item, (*path, i), document, (*around, node)) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.ScalarNode):
        raise _wrong(node, f"the tag {node.tag} is not known here")
    try:
        return _Loader("").construct_object(node)
    except ValueError as error:  # such as an explicit !!int before a word
        raise _wrong(node, str(error)) from error


def _entries(
    node: yaml.MappingNode, path: PathInDocument, document: Document, around: tuple[yaml.Node, ...]
) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Returns key and value by name; what `<<` brings in yields to what is written."""
    own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key_node, value_node in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            for source in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                if not isinstance(source, yaml.MappingNode) or source in (*around, node):
                    raise _wrong(source, "'<<' takes another mapping, or a list of such")
                merged = {**_entries(source, path, document, (*around, node)), **merged}
            continue
        if not isinstance(key_node, yaml.ScalarNode):
            raise _wrong(key_node, "a key must be a word")
        key = str(key_node.value)
        if key in own:
            first = own[key][0].start_mark.line + 1
            problem = Problem(
                (*path, key),
                f"'{key}' is given twice; the first stands on line {first}.",
                line=key_node.start_mark.line + 1,
            )
            # What an alias repeats is reported once.
            if all((p.line, p.message) != (problem.line, problem.message) for p in document.problems):
                document.problems.append(problem)
        own[key] = (key_node, value_node)
    return {**merged, **own}
