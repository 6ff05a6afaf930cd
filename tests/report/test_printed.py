"""The tables of figures on terminals of any width and in files: no figure is ever cut."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from geobind_core.report.printed import metrics_table

KM = 11_260.4


def pair(emergent: bool, **further: float) -> dict[str, Any]:
    recalls = {"recall@1": 0.1234, "recall@10": 0.5678}
    chances = {f"chance_{name}": 0.0123 for name in recalls}
    others = {"median_rank": 1234.5, "mean_reciprocal_rank": 0.3, "gallery": 20_000, "emergent": emergent}
    where = {"trained_in": None if emergent else "first, second", "intervals": {"recall@10": [0.512, 0.623]}}
    return {**recalls, **chances, **others, **where, "strict": recalls, **further}


METRICS = {
    "pairs": {
        "text_to_satellite": pair(True, median_km=KM),
        "ground_image_to_satellite": pair(False, median_km=KM, within_25_km=0.01, within_2500_km=0.25),
    },
    "zero_shot": {
        "land": {
            "modality": "satellite", "text": "text", "data": "earth", "label": "land_cover", "accuracy@1": 0.4,
            "mean_per_class_recall": 0.3, "chance_accuracy@1": 0.1, "largest_class": 0.2, "classes": ["a", "b"],
            "rows": 12_345,
        }
    },
}  # fmt: skip
FIGURES = ("0.123", "0.568 [0.512, 0.623]", "0.012", "11,260", "0.01", "0.25", "20,000", "12,345", "first, second")
HEADERS = (
    "recall@1 ",
    "median_km",
    "within_25_km",
    "within_2500_km",
    "strict recall@10",
    "mean per class",
    "trained in",
)


def printed(width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(metrics_table(METRICS), crop=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 60, 80, 120, 10_000])
def test_nothing_is_cut_on_a_terminal_of_any_width(width: int) -> None:
    lines = printed(width)
    text = "\n".join(lines)
    assert "…" not in text
    assert "e+" not in text
    for wanted in (*FIGURES, *HEADERS):
        assert wanted in text
    if width >= 60:  # as much as the first column and the widest other
        assert max(map(len, lines)) <= width


def test_a_wide_line_holds_all_of_a_pair_and_a_narrow_one_says_which_pair_it_is() -> None:
    of_pair = [line for line in printed(10_000) if "ground_image -> satellite" in line]
    assert len(of_pair) == 1
    assert of_pair[0].split()[3:] == [
        "0.123", "0.568", "[0.512,", "0.623]", "1,234", "0.300", "0.012", "0.568", "11,260", "0.01", "0.25", "20,000",
        "first,", "second",
    ]  # fmt: skip
    narrow = printed(60)
    parts = [line for line in narrow if "query -> gallery" in line]
    assert len(parts) > 2
    assert sum("ground_image -> satellite" in line for line in narrow) == len(parts)
