"""A table of a million rows: what is in the first batch, and how much memory that takes."""

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.data import write_photos
from tests.benchmarks.large_table import first_batch, write_chain

MILLION = 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_million_rows(tmp_path: Path, clip_architecture: dict[str, Any], suffix: str) -> None:
    write_photos(tmp_path / "images", "photo", 24, 64)
    few, many = (first_batch(write_chain(tmp_path, n, suffix, clip_architecture)) for n in (1_000, MILLION))
    assert many["rows"] == MILLION
    assert 0.8 * MILLION < many["train"] < 0.95 * MILLION
    assert (many["batch"], many["bad"], many["actions"]) == (256, 0, ["run"])
    # The table takes 115 MiB; the libraries without it take more than all the rest.
    assert many["mib"] - few["mib"] < 512
