"""The held-out rows of a data set, embedded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from geobind_core.config.models import EvaluateConfig, LoaderConfig
from geobind_core.data.paired import PairedData, Rows
from geobind_core.data.samples import BadSample, BadSampleCount, SampleReader
from geobind_core.data.splits import Split
from geobind_core.errors import DataError
from geobind_core.evaluation.similarity import output_rows
from geobind_core.plugins.modality import EncoderOutput
from geobind_core.progress import Reporter
from geobind_core.space.embed import EmbeddedRows, embed_rows
from geobind_core.space.space import Space

_LISTED = 20


@dataclass(frozen=True)
class HeldOut:
    """Rows that could be read in all of some modalities.

    Attributes:
        data: The data set.
        rows: `[N]` numbers of rows of the data set.
        outputs: Modality -> what its encoder returned, rows `[N, …]` on the CPU.
    """

    data: PairedData
    rows: Rows
    outputs: Mapping[str, EncoderOutput]

    @property
    def places(self) -> npt.NDArray[np.float64] | None:
        """`[N, 2]` longitudes and latitudes, or None where the data has none."""
        if self.data.places is None:
            return None
        places = self.data.places.take(self.rows)
        return np.stack([places.longitude, places.latitude], axis=-1) if places.known.any() else None


@dataclass
class Embedder:
    """Embeds rows of one data set.

    Args:
        space: The space.
        data: The data set.
        config: How many at a time, and how many may be unreadable.
        loader: How to read.
        reporter: Where progress goes.
        split: The rows that are held out; default: those of the settings.
    """

    space: Space
    data: PairedData
    config: EvaluateConfig
    loader: LoaderConfig
    reporter: Reporter
    split: Split | None = None
    _known: dict[str, EmbeddedRows] = field(default_factory=dict)
    _unreadable: dict[str, dict[int, BadSample]] = field(default_factory=dict)

    def rows(self, modalities: Sequence[str]) -> Rows:
        """Returns the held-out rows that have all of some modalities."""
        return self.data.rows(self.split or self.config.split, modalities)

    def held_out(self, modalities: Sequence[str], seed: int, further: Mapping[str, Sequence[str]]) -> HeldOut:
        """Embeds the held-out rows that have all of some modalities, `config.gallery` of them at most.

        Args:
            modalities: Of the space and of the data set.
            seed: Decides which rows, when there are more.
            further: Modality -> fields of `EncoderOutput` to keep beside the embedding.

        Raises:
            DataError: No rows are held out, or too many cannot be read.
        """
        readable = rows = some_rows(self.rows(modalities), self.config.gallery, seed)
        bad = self._count_of(rows)
        for name in modalities:
            self._known[name] = embedded = self._embed(name, rows, bad, further.get(name, ()))
            readable = readable[np.isin(readable, embedded.rows.numpy())]
        if len(readable) < 2:
            raise DataError(
                f"{len(readable)} held-out rows can be read; expected at least 2.", place=f"data.{self.data.name}"
            )
        outputs = {}
        for name in modalities:
            embedded = self._known[name]
            wanted = torch.from_numpy(np.isin(embedded.rows.numpy(), readable))
            outputs[name] = output_rows(EncoderOutput(embedded.embeddings, **embedded.further), wanted)
        return HeldOut(self.data, readable, outputs)

    def embed(self, name: str, rows: Rows) -> tuple[Rows, torch.Tensor]:
        """Returns those of some rows that can be read, and their embeddings. What is embedded already is not again.

        Raises:
            DataError: Too many cannot be read.
        """
        parts = [self._known[name]] if name in self._known else []
        unreadable, bad = self._unreadable.get(name, {}), self._count_of(rows)
        bad.add([unreadable[row] for row in rows.tolist() if row in unreadable])
        seen = [part.rows.numpy() for part in parts] + [np.array(list(unreadable), dtype=rows.dtype)]
        missing = rows[~np.isin(rows, np.concatenate(seen))]
        if len(missing) or not parts:
            parts.append(self._embed(name, missing, bad, ()))
        bad.require_few()
        numbers = np.concatenate([part.rows.numpy() for part in parts])
        found = np.flatnonzero(np.isin(numbers, rows))
        found = found[np.argsort(numbers[found])]
        return numbers[found], torch.cat([part.embeddings for part in parts])[torch.from_numpy(found)]

    def _embed(self, name: str, rows: Rows, bad: BadSampleCount, further: Sequence[str]) -> EmbeddedRows:
        reader = SampleReader(self.data, name, self.space.modality(name), train=False, seed=0)
        encoder = self.space.encoder(name)
        with self.reporter.task(f"  {self.data.name}: {name}", len(rows), "rows") as task:
            embedded = embed_rows(
                reader,
                encoder,
                rows,
                batch_size=self.config.batch_size,
                loader=self.loader,
                device=next(encoder.parameters()).device,
                advance=task.advance,
                further=further,
            )
        samples = {sample.key: sample for sample in embedded.bad}
        unreadable = rows[~np.isin(rows, embedded.rows.numpy())].tolist()
        self._unreadable.setdefault(name, {}).update({row: samples[self.data.key(row)] for row in unreadable})
        for sample in bad.add(embedded.bad):
            self.reporter.warn(f"left out of the evaluation: {sample}")
        bad.require_few()
        return embedded

    def skipped(self) -> dict[str, Any] | None:
        """Returns what could not be read so far, as `metrics.json` has it; None if there is nothing."""
        samples = [sample for of_one in self._unreadable.values() for _, sample in sorted(of_one.items())]
        return {"samples": len(samples), "first": list(map(asdict, samples[:_LISTED]))} if samples else None

    def _count_of(self, rows: Rows) -> BadSampleCount:
        place = f"evaluation on data.{self.data.name}"
        return BadSampleCount(len(rows), self.config.max_bad_samples, place, "evaluate.max_bad_samples")


def some_rows(rows: Rows, most: int, seed: int) -> Rows:
    """Returns the rows, or so many of them drawn at random, in order."""
    if len(rows) <= most:
        return rows
    chosen: Rows = rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])]
    return chosen
