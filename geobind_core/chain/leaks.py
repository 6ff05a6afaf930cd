"""Checks before a run that what is held out has not been trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from geobind_core.chain.datasets import DataSets
from geobind_core.chain.model import Chain
from geobind_core.config.models import ChainConfig
from geobind_core.data.leaks import Part, SameFiles, near_places, same_files
from geobind_core.data.paired import Rows
from geobind_core.errors import DataError
from geobind_core.progress import Reporter

_LISTED = 5


def check_leaks(chain: Chain, datasets: DataSets, measured: Iterable[str], reporter: Reporter) -> list[str]:
    """Compares what will be measured on with what is trained on, over all data sets of a chain.

    Args:
        chain: The chain.
        datasets: Its data sets.
        measured: The data sets that are measured on.
        reporter: Where warnings go.

    Returns:
        What was warned of.

    Raises:
        DataError: Files are the same, or places are too near and `strict_splits` is set.
    """
    warnings = []
    for problem, is_error in find_leaks(chain, datasets, measured):
        if is_error:
            raise problem
        warnings.append(str(problem))
        reporter.warn(warnings[-1])
    return warnings


def find_leaks(chain: Chain, datasets: DataSets, measured: Iterable[str]) -> Iterator[tuple[DataError, bool]]:
    """Yields what held-out rows have in common with training rows, and whether the settings call it an error.

    Args:
        chain: The chain.
        datasets: Its data sets. Training rows of those that are not open are left out.
        measured: The data sets that are measured on.
    """
    training = _training(chain, datasets)
    for name in measured:
        data = datasets.open(name)
        held_out = Part(data, data.rows(chain.config.evaluate.split, []))
        yield from _near_places(chain.config, held_out, training)
        for modality, made in chain.modalities.items():
            if modality in data.fields and made.modality.reads_files:
                yield from _same_files(chain.config, modality, held_out, training)


def _training(chain: Chain, datasets: DataSets) -> list[Part]:
    """Returns the rows that some stage trains on. What is done on data that is not needed any more is left out."""
    rows: dict[str, Rows] = {}
    for stage in chain.stages:
        for name in filter(datasets.is_open, stage.config.data_sets):
            found = datasets.open(name).rows("train", [*stage.trains(), *stage.uses()])
            rows[name] = np.union1d(rows.get(name, found), found)
    return [Part(datasets.open(name), found) for name, found in rows.items()]


def _near_places(config: ChainConfig, held_out: Part, training: Sequence[Part]) -> Iterator[tuple[DataError, bool]]:
    found = near_places(held_out, training, config.split_distance_km) if config.split_distance_km > 0 else None
    if found is None:
        return
    yield (
        DataError(
            f"{found.near:,} of {found.known:,} held-out places are less than {config.split_distance_km:g} km from a "
            f"training place, the nearest {_distance(found.nearest_km)} ('{found.example}').",
            place=f"{held_out.data.place}.split",
            hint="Figures will be too good. split: {by: blocks, buffer_km: …} keeps them apart; split_distance_km says "
            "what is near.",
        ),
        config.strict_splits,
    )


def _same_files(
    config: ChainConfig, modality: str, held_out: Part, training: Sequence[Part]
) -> Iterator[tuple[DataError, bool]]:
    if config.identical_files == "off":
        return
    parts = [_with(part, modality) for part in training if modality in part.data.fields]
    found = same_files(modality, _with(held_out, modality), parts)
    if found.pairs:
        yield _same(held_out.data.place, modality, found), config.identical_files == "error"


def _with(part: Part, modality: str) -> Part:
    return Part(part.data, part.rows[part.data.filled(modality)[part.rows]])


def _same(place: str, modality: str, found: SameFiles) -> DataError:
    listed = ", ".join(f"'{held_out}' is '{train}'" for held_out, train in found.pairs[:_LISTED])
    more = ", …" if len(found.pairs) > _LISTED else ""
    checked = f" ({found.checked} of {found.files} were compared)" if found.checked < found.files else ""
    return DataError(
        f"{len(found.pairs)} held-out files of '{modality}' are training files as well{checked}: {listed}{more}.",
        place=f"{place}.split",
        hint="Take them out or put both into the same split. Where equal files are no mistake (empty tiles, silence): "
        "identical_files: warn.",
    )


def _distance(km: float) -> str:
    return f"{km * 1000:.0f} m" if km < 1 else f"{km:.2f} km"
