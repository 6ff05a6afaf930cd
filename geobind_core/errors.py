"""The exceptions that GeoBind raises.

Every error says what happened, where, and what to do about it::

    GeoBindError
    ├── InputError              the input is at fault; the command line exits with code 2
    │   ├── ConfigError         stages.yaml is not valid (carries every problem of the file)
    │   ├── DataError           a table, an image, a recording is missing or unusable
    │   ├── WeightsError        pretrained weights are not to be had, or do not fit
    │   ├── PluginError         a plugin is missing, broken or in conflict
    │   ├── SpaceError          a saved space is damaged or not compatible
    │   ├── ExportError         a format cannot express a network, or the folder is not to be written
    │   └── RunFolderError      the run folder is not writable, in use, or holds something else
    └── TrainingError           training went wrong: not finite, or something frozen moved

This module imports nothing, so that raising an error never fails.
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_FAILURE = 1
EXIT_INPUT = 2
EXIT_INTERRUPTED = 130


class GeoBindError(Exception):
    """Base of all errors of GeoBind.

    Args:
        message: What happened and what was expected.
        place: Where: a file with its line, a stage, a modality, a key of a table.
        hint: What to do about it.
    """

    exit_code = EXIT_FAILURE

    def __init__(self, message: str, *, place: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.place = place
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}" if self.place else self.message
        return f"{text}\n  {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (loader workers); the default reduction would lose the
        # keyword arguments.
        return (_rebuild, (type(self), self.message, self.place, self.hint))


def _rebuild(kind: type[GeoBindError], message: str, place: str, hint: str) -> GeoBindError:
    return kind(message, place=place, hint=hint)


class InputError(GeoBindError):
    """What the user gave cannot be used as it is."""

    exit_code = EXIT_INPUT


class ConfigError(InputError):
    """A configuration is not valid."""


class DataError(InputError):
    """Data is missing or unusable."""


class WeightsError(InputError):
    """Weights are not to be had, or do not fit the encoder."""


class PluginError(InputError):
    """A plugin is missing, broken or in conflict with another."""


class SpaceError(InputError):
    """A saved space is damaged, or does not belong with another."""


class ExportError(InputError):
    """A space cannot be written in a format, or not into this folder."""


class RunFolderError(InputError):
    """The run folder cannot be written, is in use, or is not one."""


class TrainingError(GeoBindError):
    """Training cannot go on."""


class CombinedError(InputError):
    """Several independent errors, shown together so that all can be mended at once.

    Args:
        errors: The errors, in the order in which they are to be shown.
    """

    def __init__(self, errors: Sequence[GeoBindError]) -> None:
        super().__init__("\n".join(str(error) for error in errors))
        self.errors = tuple(errors)
        # Several errors are the input's fault only if each of them is.
        self.exit_code = max(
            (error.exit_code for error in errors if error.exit_code != EXIT_INPUT),
            default=EXIT_INPUT,
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (CombinedError, (self.errors,))


def raise_all(errors: Sequence[GeoBindError]) -> None:
    """Raises nothing, the one error, or a `CombinedError` of all."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise CombinedError(errors)
