"""The kit for modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geobind_core.plugins.modality import Modality
from geobind_core.testing.check import Check, Definition, checks_of
from geobind_core.testing.modality_subject import ModalitySubject
from geobind_core.testing.network import NETWORK_CHECKS
from geobind_core.testing.packaging import PACKAGING_CHECKS
from geobind_core.testing.reading import READING_CHECKS

MODALITY_CHECKS: tuple[Definition[Any], ...] = (*PACKAGING_CHECKS, *READING_CHECKS, *NETWORK_CHECKS)
_NOTHING_READS = (None, b"", b"\x00 no observation")
_NO_FILE = Path("/no/such/folder/no-such-file")


def modality_checks(
    modality: Modality[Any] | type[Modality[Any]],
    cells: Sequence[Any] | None = None,
    *,
    unreadable: Sequence[Any] | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> list[Check]:
    """Returns the checks of a modality.

    Args:
        modality: An instance, or a class, which is then used with its default settings. Choose a small
            network: it is built several times.
        cells: At least two different cells as `read` takes them; files as absolute paths or bytes. Without
            them `example_cells()` of the modality, and without those what it draws; then `read` is not checked.
        unreadable: Cells that must be refused; by default a missing value, bytes of nothing, and for
            modalities of files a path where there is none.
        expected_failures: Check -> why it is known to fail, beside what the class itself declares.

    Raises:
        ValueError: An expected failure names no check, or has no reason.
        pydantic.ValidationError: A class needs settings.
    """
    instance = modality(modality.Config()) if isinstance(modality, type) else modality
    if unreadable is None:
        unreadable = (*_NOTHING_READS, _NO_FILE) if instance.reads_files else _NOTHING_READS
    subject = ModalitySubject(instance, cells, unreadable)
    return checks_of(MODALITY_CHECKS, subject, type(instance), expected_failures)
