"""The page on the kit names every check, with the sentence that the check itself says."""

from pathlib import Path
from typing import Any

import pytest

from geobind_core.testing.loss import LOSS_CHECKS
from geobind_core.testing.modality import MODALITY_CHECKS
from geobind_core.testing.packaging import PACKAGING_CHECKS
from geobind_core.testing.source import SOURCE_CHECKS

PAGE = Path(__file__).parents[2] / "docs/pages/reference/testing.md"
COMMON = len(PACKAGING_CHECKS)


@pytest.mark.parametrize(
    ("heading", "checks"),
    [
        ("of every plugin", PACKAGING_CHECKS),
        ("of a modality", MODALITY_CHECKS[COMMON:]),
        ("of a loss", LOSS_CHECKS[COMMON:]),
        ("of a source", SOURCE_CHECKS[COMMON:]),
    ],
)
def test_table(heading: str, checks: Any) -> None:
    section = PAGE.read_text(encoding="utf-8").split(f"## What is checked {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{check.name}` | {check.protects} |" for check in checks]


@pytest.mark.parametrize("checks", [MODALITY_CHECKS, LOSS_CHECKS, SOURCE_CHECKS], ids=["modality", "loss", "source"])
def test_every_check_has_a_sentence_and_a_hint(checks: Any) -> None:
    assert len({check.name for check in checks}) == len(checks)
    for check in checks:
        assert check.protects.endswith(".")
        assert check.hint.endswith(".")
