"""`geobind plugins new`: a distribution with one modality that works."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from geobind_core import files
from geobind_core.errors import PluginError
from geobind_core.plugins.discovery import discover
from geobind_core.plugins.installing import installer

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LONGEST = 40
_TAKEN = ("Any", "Field", "Modality", "ModalityConfig")  # what the module imports


@dataclass(frozen=True)
class PluginNames:
    """What is called after a modality.

    Attributes:
        name: The modality: `sea_ice`.
        distribution: What is installed: `geobind-plugin-sea-ice`.
        module: What is imported: `geobind_plugin_sea_ice`.
        cls: The class: `SeaIce`.
    """

    name: str
    distribution: str
    module: str
    cls: str

    @classmethod
    def of(cls, name: str) -> PluginNames:
        """Returns the names for a modality.

        Raises:
            PluginError: It cannot be the name of one.
        """
        words = "".join(word.capitalize() for word in name.split("_"))
        if not _NAME.fullmatch(name) or len(name) > _LONGEST:
            raise PluginError(
                f"'{name}' cannot be the name of a plugin; expected at most {_LONGEST} small letters, digits and "
                "underscores, a letter first.",
                hint="For example: sea_ice",
            )
        if words in _TAKEN or keyword.iskeyword(words):
            raise PluginError(f"a class '{words}' would hide what its module needs.", hint="Choose another name.")
        return cls(name, f"geobind-plugin-{name.replace('_', '-')}", f"geobind_plugin_{name}", words)

    def files(self) -> dict[str, str]:
        """Returns what is written: path in the folder -> template."""
        return {
            "pyproject.toml": "pyproject.toml.jinja",
            f"{self.module}.py": "module.py.jinja",
            f"tests/test_{self.name}.py": "test.py.jinja",
            "README.md": "README.md.jinja",
            ".gitignore": "gitignore.jinja",
        }


def new_plugin(name: str, out: Path) -> Path:
    """Writes a complete distribution with one modality.

    Args:
        name: Name of the modality.
        out: Where the folder `geobind-plugin-<name>` is to be.

    Returns:
        That folder.

    Raises:
        PluginError: The name cannot be used or is taken, or the folder exists.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    names = PluginNames.of(name)
    owners = [record.who for record in discover() if record.answers_to(name)]
    if owners:
        raise PluginError(
            f"'{name}' is provided by {owners[0]}; with two providers neither would be used.",
            hint="Choose another name.",
        )
    folder = out / names.distribution
    if folder.exists():
        raise PluginError("it exists already.", place=str(folder), hint="Choose another name, or --out.")
    templates = Environment(
        loader=PackageLoader("geobind_core.plugins"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    values = {**vars(names), "geobind": _core_version()}
    with files.replacing_folder(folder) as temporary:
        for path, template in names.files().items():
            (temporary / path).parent.mkdir(exist_ok=True)
            (temporary / path).write_text(templates.get_template(template).render(values), encoding="utf-8")
    return folder


def _core_version() -> str:
    try:
        return version("geobind")
    except PackageNotFoundError:  # running from a source tree that was never installed
        return "0"


NEXT_STEPS = """\
next:
  {install} -e {folder}
  geobind plugins check {name}

Then make {module}.py yours. In a chain, with COLUMN the column of your data set:
  modalities:
    {name}: {{numbers: 6}}
  data:
    DATA: {{…, fields: {{{name}: COLUMN}}}}
  stages:
    - {{name: {name}, train: {name}, data: DATA}}"""


def next_steps(folder: Path, name: str) -> str:
    """Returns what to do with a new plugin."""
    names = PluginNames.of(name)
    # A bare word would be taken for a package of the index.
    shown = folder if folder.is_absolute() else f"./{folder}"
    return NEXT_STEPS.format(install=installer(), folder=shown, name=name, module=names.module)
