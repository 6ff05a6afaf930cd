"""How plugins come into this interpreter: where names that are not there are to be had, and the command."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from importlib.util import find_spec

from geobind_core.plugins.names import normalise

_PREFIX = "geobind-plugin-"
_PUBLISHED: dict[str, dict[str, tuple[str, ...]]] = {
    "geobind-plugin-imagery": {"modality": ("satellite", "ground_image", "text")},
    "geobind-plugin-audio": {"modality": ("audio",)},
    "geobind-plugin-location": {"modality": ("location",)},
    "geobind-plugin-environment": {"modality": ("environment",)},
    "geobind-plugin-synthetic-earth": {"source": ("synthetic_earth",)},
}


def published_by(kind: str, name: str) -> str | None:
    """Returns the distribution of GeoBind's own plugins that provides a name, if one does.

    An index for the message about a name that is not there and nothing else: a distribution called
    after the name, which anybody may publish, would be a bad guess for `satellite`.
    """
    for distribution, kinds in _PUBLISHED.items():
        if normalise(name) in kinds.get(kind, ()):
            return distribution
    return None


def installer(action: str = "install") -> str:
    """Returns the command that installs into this very interpreter; environments made by uv have no pip.

    Args:
        action: `install` or `uninstall`.
    """
    if find_spec("pip") is not None:
        return f"{sys.executable} -m pip {action}"
    return f"uv pip {action} --python {sys.executable}"


def provider_of(kind: str, name: str, distribution: str = "") -> str:
    """Returns the distribution that may provide a name: the one on record, our own, or what would be called after it.

    Args:
        kind: What it is.
        name: Its registered name.
        distribution: Who provided it, where that is on record.
    """
    known = distribution or published_by(kind, name)
    return known or f"{_PREFIX}{name.replace('_', '-').removeprefix(_PREFIX)}"


def installed_version(distribution: str) -> str | None:
    """Returns the version of a distribution, None where it is not installed."""
    try:
        return version_of(distribution)
    except PackageNotFoundError:
        return None


def install_hint(kind: str, name: str, distribution: str = "", *, guess: bool = True) -> str:
    """Returns what to do about a name that no installed plugin provides; nothing if that is not known.

    Args:
        kind: What it is that is missing.
        name: Its registered name.
        distribution: Who provided it, where that is on record.
        guess: Whether to fall back on the distribution that would be called after the name.
    """
    known = distribution or published_by(kind, name)
    if known:
        return f"{known} provides it; install that: {installer()} {known}"
    if not guess:
        return ""
    return f"If a plugin provides it, install that: {installer()} {provider_of(kind, name)}"
