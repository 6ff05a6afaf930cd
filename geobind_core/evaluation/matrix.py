"""The matrix of all ordered pairs of modalities, trained and emergent alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import normalize

from geobind_core.config.models import EvaluateConfig
from geobind_core.evaluation.examples import RetrievalExample, examples_of
from geobind_core.evaluation.figures import figures_of, intervals_of, legacy_figures
from geobind_core.evaluation.held_out import HeldOut
from geobind_core.evaluation.metrics import further_figures
from geobind_core.evaluation.ranks import count_right_items
from geobind_core.evaluation.retrieve import Found, retrieve
from geobind_core.evaluation.similarity import dot_scores, output_rows, retrieve_by, scores_by
from geobind_core.plugins.loss import Loss, Similarity
from geobind_core.plugins.metric import Metric, Retrieval
from geobind_core.plugins.modality import EncoderOutput
from geobind_core.progress import Reporter
from geobind_core.space.lineage import SpaceRecord

_EXAMPLES_EACH = 3


@dataclass(frozen=True)
class Measures:
    """What is measured, and by what.

    Attributes:
        config: The settings.
        metrics: What is measured beside the ranks, by what messages call it.
        losses: The loss that trained a pair, where it brings a similarity of its own.
        seed: Decides which rows are taken, and how queries are drawn anew.
        legacy_strict: Whether recalls are also given as older papers count them.
    """

    config: EvaluateConfig
    metrics: Mapping[str, Metric[Any]] = field(default_factory=dict)
    losses: Mapping[frozenset[str], Loss[Any]] = field(default_factory=dict)
    seed: int = 0
    legacy_strict: bool = False

    def further_fields(self) -> dict[str, tuple[str, ...]]:
        """Returns the fields of `EncoderOutput` that similarities need beside the embedding, by modality."""
        needed: dict[str, tuple[str, ...]] = {}
        for pair, loss in self.losses.items():
            for name in pair:
                needed[name] = tuple(sorted({*needed.get(name, ()), *loss.needs}))
        return needed


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one data set, and what there is to show of it.

    Attributes:
        held_out: The rows that were ranked, and their embeddings.
        pairs: `{"satellite_to_audio": {"recall@1": …, …}, …}`, see `docs/pages/run-folder.md`.
        examples: For each of the pairs, some queries and what was found.
    """

    held_out: HeldOut
    pairs: dict[str, dict[str, Any]]
    examples: dict[str, tuple[RetrievalExample, ...]]


@dataclass(frozen=True)
class _Pair:
    """One or several modalities that ask, and the one that is searched."""

    query: tuple[str, ...]
    gallery: str

    @property
    def asking(self) -> str:
        return "+".join(self.query)

    @property
    def name(self) -> str:
        return f"{self.asking}_to_{self.gallery}"


def evaluate_pairs(held_out: HeldOut, record: SpaceRecord, measures: Measures, reporter: Reporter) -> Evaluation:
    """Measures every ordered pair of modalities, and composed queries, on the held-out rows of one data set.

    Args:
        held_out: The rows and their embeddings. All pairs are ranked among the same rows.
        record: Says which pairs were trained.
        measures: What to measure.
        reporter: Is told of figures that are left out.
    """
    pairs, examples = {}, {}
    for pair in _pairs_of(list(held_out.outputs), measures.config.compose):
        labels = _labels(held_out, pair)
        found, scores = _retrieved(held_out, pair, labels, measures)
        count, ks = len(found.ranks), measures.config.recall_at
        figures = {
            **figures_of(found.ranks, count_right_items(count, labels), ks),
            **intervals_of(found.ranks, ks, measures.config.bootstrap, measures.seed),
            # Only the very row counts, whatever else has the same label.
            **({"strict": _strict(held_out, pair, measures)} if labels else {}),
            **(legacy_figures(found.ranks, ks) if measures.legacy_strict else {}),
            "gallery": count,
            "data": held_out.data.name,
            **_lineage(pair, record),
        }
        places = None if held_out.places is None else _read_only(held_out.places)
        ranks, nearest = _read_only(found.ranks.numpy()), _read_only(found.nearest.numpy())
        retrieval = Retrieval(pair.asking, pair.gallery, count, ranks, nearest, places, places)
        pairs[pair.name] = {**figures, **further_figures(measures.metrics, retrieval, figures, reporter)}
        examples[pair.name] = examples_of(found, held_out.rows, scores, each=_EXAMPLES_EACH, seed=measures.seed)
    return Evaluation(held_out, pairs, examples)


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns what metrics may look at: one that sorted the ranks would change the figures of those after it."""
    view = array.view()
    view.flags.writeable = False
    return view


def _pairs_of(modalities: Sequence[str], compose: Sequence[Sequence[str]]) -> list[_Pair]:
    pairs = [_Pair((query,), gallery) for query, gallery in permutations(modalities, 2)]
    for parts in compose:
        if set(parts) <= set(modalities):
            pairs += [_Pair(tuple(parts), gallery) for gallery in modalities if gallery not in parts]
    return pairs


def _retrieved(
    held_out: HeldOut, pair: _Pair, labels: Sequence[torch.Tensor], measures: Measures
) -> tuple[Found, Callable[[torch.Tensor], torch.Tensor]]:
    """Returns what was found, and how to score some queries against the gallery."""
    gallery = held_out.outputs[pair.gallery]
    similarity, query = _similarity(pair, measures), _query(held_out, pair)
    if similarity is None:
        found = retrieve(query.embedding, gallery.embedding, labels)
        return found, lambda rows: dot_scores(query.embedding[rows], gallery.embedding)
    found = retrieve_by(similarity, query, gallery, labels)
    return found, lambda rows: scores_by(similarity, output_rows(query, rows), gallery)


def _similarity(pair: _Pair, measures: Measures) -> Similarity | None:
    loss = measures.losses.get(frozenset((*pair.query, pair.gallery))) if len(pair.query) == 1 else None
    return loss.similarity() if loss is not None else None


def _query(held_out: HeldOut, pair: _Pair) -> EncoderOutput:
    if len(pair.query) == 1:
        return held_out.outputs[pair.query[0]]
    parts = [held_out.outputs[name].embedding for name in pair.query]
    return EncoderOutput(normalize(torch.stack(parts).sum(dim=0), dim=-1))


def _strict(held_out: HeldOut, pair: _Pair, measures: Measures) -> dict[str, Any]:
    found, _ = _retrieved(held_out, pair, (), measures)
    return figures_of(found.ranks, count_right_items(len(found.ranks), ()), measures.config.recall_at)


def _labels(held_out: HeldOut, pair: _Pair) -> list[torch.Tensor]:
    """Returns the labels that decide what is right. Of a composed query, only what agrees in all its parts is."""
    data, rows = held_out.data, held_out.rows
    if len(pair.query) == 1:
        return [torch.from_numpy(codes[rows]) for codes in data.pair_labels(pair.query[0], pair.gallery)]
    of_parts = [data.labels(name) for name in pair.query]
    found = [labels for labels in (data.labels(pair.gallery),) if labels is not None]
    known = [labels for labels in of_parts if labels is not None]
    if len(known) == len(of_parts):
        together = np.unique(np.stack(known, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
        found.append(np.where(np.stack(known).min(axis=0) < 0, -1, together))
    return [torch.from_numpy(codes[rows].astype(np.int64)) for codes in found]


def _lineage(pair: _Pair, record: SpaceRecord) -> dict[str, Any]:
    """Returns what training had to do with a pair. A composed one is emergent unless each of its parts was trained."""
    trained = record.trained_pairs()
    stages = [trained.get(frozenset((name, pair.gallery))) for name in pair.query]
    emergent = None in stages
    where = None if emergent else ", ".join(dict.fromkeys(str(stage) for stage in stages))
    composed = {"composed": list(pair.query)} if len(pair.query) > 1 else {}
    return {"emergent": emergent, "trained_in": where, **composed}


def largest_gallery(pairs: Mapping[str, Mapping[str, Any]]) -> int:
    """Returns the size of the largest gallery among pairs."""
    return max((int(figures["gallery"]) for figures in pairs.values()), default=0)
