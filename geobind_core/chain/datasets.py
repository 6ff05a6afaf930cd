"""The data sets of a chain, opened when they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import pyarrow as pa

from geobind_core.chain.model import Chain
from geobind_core.config.models import StageConfig
from geobind_core.config.problems import suggest
from geobind_core.data.mixed import MixedData
from geobind_core.data.paired import PairedData, with_gaps
from geobind_core.data.samples import BadSample, SampleReader, probe_rows
from geobind_core.data.splits import Split
from geobind_core.errors import DataError, GeoBindError, raise_all
from geobind_core.plugins.source import observations_of
from geobind_core.progress import Reporter, Task


@dataclass
class DataSets:
    """Opens each data set once."""

    chain: Chain
    reporter: Reporter
    _opened: dict[str, PairedData] = field(default_factory=dict)

    def open(self, name: str) -> PairedData:
        """Returns a data set, making it first where its source makes it.

        Raises:
            DataError: It is missing or unusable.
            PluginError: Its source returns something else than rows.
        """
        if name not in self._opened:
            source = self.chain.sources[name]
            with self.reporter.task(f"data {name}", 1, "places") as task:
                source.prepare(_Forward(task))
            gaps = with_gaps({name: found.modality for name, found in self.chain.modalities.items()})
            self._opened[name] = PairedData(name, observations_of(source), source.config, gaps)
            for note in (*source.notes(), *self._opened[name].notes):
                self.reporter.warn(f"data {name}: {note}")
            # What was needed for reading is more than the table takes, and is kept for the next table.
            for pool in (pa.default_memory_pool(), pa.system_memory_pool()):
                pool.release_unused()
        return self._opened[name]

    def of_stage(self, config: StageConfig) -> PairedData | None:
        """Returns the data of a stage, several data sets as one; None for a stage without."""
        opened = {name: self.open(name) for name in config.data_sets}
        if len(opened) > 1:
            return MixedData(opened, config.data if isinstance(config.data, dict) else None)
        return next(iter(opened.values()), None)

    def is_open(self, name: str) -> bool:
        """Whether a data set has been needed before."""
        return name in self._opened

    def require_rows(self, name: str, split: Split, modalities: Iterable[str]) -> None:
        """Makes sure that a split has rows with all of these modalities.

        Raises:
            DataError: A modality has no field, or there are fewer than 2 such rows.
        """
        data, wanted = self.open(name), list(modalities)
        for modality in wanted:
            if modality not in data.fields:
                raise DataError(
                    f"no field for '{modality}'. {suggest(modality, data.fields)}",
                    place=f"data.{name}",
                    hint=f"Map it: data.{name}.fields.{modality}: <column>",
                )
        complete = len(data.rows(split, wanted))
        if complete < 2:
            raise DataError(
                f"split '{split}' has {data.count(split)} rows, {complete} of them with all of "
                f"{', '.join(wanted)}; expected at least 2.",
                place=f"data.{name}.split",
                hint="Look at `split`, and at the columns that `fields` names for empty cells.",
            )

    def require_readable(self, name: str, split: Split, modalities: Sequence[str]) -> None:
        """Makes sure that a split has rows that can be read, by trying a few of those with all of these modalities.

        Nothing is tried where a large file would have to be fetched for it.

        Raises:
            DataError, CombinedError: None of the rows that were tried has a modality that can be read.
        """
        errors: list[GeoBindError] = []
        data = self.open(name)
        rows = probe_rows(data, data.rows(split, modalities)) if data.blocks is None else []
        for modality in modalities:
            reader = SampleReader(data, modality, self.chain.modalities[modality].modality, train=False, seed=0)
            bad = list(takewhile(lambda sample: isinstance(sample, BadSample), map(reader.read, rows)))
            if bad and len(bad) == len(rows):
                columns = ", ".join(data.fields[modality])
                errors.append(
                    DataError(
                        f"'{modality}' can be read in none of {len(rows)} rows that were tried; the first is "
                        f"{bad[0].key}: {bad[0].reason}",
                        place=f"data.{name}.fields.{modality}",
                        hint=f"Compare what is in {columns} with the settings under modalities.{modality}.",
                    )
                )
        raise_all(errors)


@dataclass
class _Forward:
    """Passes a source's progress on to a task on the screen."""

    task: Task

    def __call__(self, done: int, total: int, text: str) -> None:
        self.task.update(done, total, text)
