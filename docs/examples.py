"""Shows doctests under `Example:` as code; griffe knows the heading in the plural only."""

from __future__ import annotations

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Writes `Example:` as `Examples:` before docstrings are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every object that has been read."""
        if obj.docstring is not None:
            lines = obj.docstring.value.split("\n")
            obj.docstring.value = "\n".join("Examples:" if line.strip() == "Example:" else line for line in lines)
