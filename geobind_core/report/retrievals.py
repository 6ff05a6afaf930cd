"""Example retrievals as the page shows them: what was asked, what was found, and where the right answer came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from geobind_core.evaluation.examples import Kind, RetrievalExample
from geobind_core.evaluation.matrix import Evaluation
from geobind_core.report.matrix import Pair
from geobind_core.report.previews import Album, Observation, kilometres

Labels = npt.NDArray[np.int64]

_MOST_EACH = 2  # of good, median and bad ones
_FEW_PAIRS = 20  # with more pairs there is one of each


@dataclass(frozen=True)
class Answer:
    """Something that was found.

    Attributes:
        rank: Where it came; None for a right answer whose own rank is not known.
        score: Its similarity.
        is_right: Whether it is a right answer.
        is_same_place: Whether it is of the row that asked.
        kilometres: How far it is from where the query is; None where that is not known.
        seen: The observation.
    """

    rank: int | None
    score: float
    is_right: bool
    is_same_place: bool
    kilometres: float | None
    seen: Observation


@dataclass(frozen=True)
class ExampleView:
    """One query.

    Attributes:
        kind: Which part of the ranks it stands for.
        rank: Where the first right answer came.
        asked: The observations that asked.
        answers: What came first.
        right: The query's own item, where it is not among them.
    """

    kind: Kind
    rank: int
    asked: tuple[Observation, ...]
    answers: tuple[Answer, ...]
    right: Answer | None

    def observations(self) -> list[Observation]:
        """Returns everything that it shows."""
        return [*self.asked, *(a.seen for a in self.answers), *([self.right.seen] if self.right else [])]


@dataclass(frozen=True)
class PairExamples:
    """The examples of one pair."""

    pair: Pair
    examples: tuple[ExampleView, ...]


def retrieval_examples(
    pairs: Sequence[Pair], evaluations: Mapping[str, Evaluation], album: Album
) -> tuple[list[PairExamples], int]:
    """Chooses examples of each pair, as many as the album has room for.

    Args:
        pairs: The pairs of the matrix.
        evaluations: What was measured, by data set.
        album: Makes the previews.

    Returns:
        The examples, and how many were left out for want of room.
    """
    views: dict[str, list[ExampleView]] = {}
    labels: dict[str, list[Labels]] = {}
    left_out = 0
    for turn in range(1 if len(pairs) > _FEW_PAIRS else _MOST_EACH):
        for pair in pairs:
            evaluation = evaluations.get(str(pair.figures.get("data")))
            if evaluation is None:
                continue
            if pair.name not in labels:
                labels[pair.name] = _labels(pair, evaluation)
            for example in _of_turn(evaluation.examples.get(pair.name, ()), turn):
                view = _view(example, pair, evaluation, labels[pair.name], album)
                size = sum(observation.size for observation in view.observations())
                if turn and not album.fits(size):  # of the first turn, what has no room is left out by itself
                    left_out += 1
                    continue
                views.setdefault(pair.name, []).append(_taken(view, album))
    order: Sequence[Kind] = ("good", "median", "bad")
    found = [
        PairExamples(pair, tuple(sorted(views[pair.name], key=lambda view: order.index(view.kind))))
        for pair in pairs
        if pair.name in views
    ]
    return found, left_out


def _of_turn(examples: Sequence[RetrievalExample], turn: int) -> list[RetrievalExample]:
    """Returns the first example of each kind, or the second, and so on."""
    of_kind: dict[Kind, list[RetrievalExample]] = {}
    for example in examples:
        of_kind.setdefault(example.kind, []).append(example)
    return [listed[turn] for listed in of_kind.values() if turn < len(listed)]


def _labels(pair: Pair, evaluation: Evaluation) -> list[Labels]:
    return [] if pair.is_composed else evaluation.held_out.data.pair_labels(pair.query, pair.gallery)


def _view(
    example: RetrievalExample, pair: Pair, evaluation: Evaluation, labels: Sequence[Labels], album: Album
) -> ExampleView:
    data, asked_by = evaluation.held_out.data, pair.figures.get("composed") or [pair.query]
    own = example.query_row

    def answer(row: int, score: float, rank: int | None) -> Answer:
        alike = any(codes[row] == codes[own] >= 0 for codes in labels)
        return Answer(
            rank,
            score,
            row == own or alike or rank == example.rank,
            row == own,
            kilometres(data.places, own, row),
            album.look_at(data, pair.gallery, row),
        )

    answers = tuple(answer(row, score, rank) for rank, (row, score) in enumerate(example.found, start=1))
    is_there = any(found.is_same_place for found in answers)
    # Where others are right as well, the rank may be that of another than the query's own.
    rank = example.rank if not labels or example.rank > len(answers) else None
    return ExampleView(
        example.kind,
        example.rank,
        tuple(album.look_at(data, name, own) for name in asked_by),
        answers,
        None if is_there else answer(own, example.own_score, rank),
    )


def _taken(view: ExampleView, album: Album) -> ExampleView:
    return replace(
        view,
        asked=tuple(album.take(seen) for seen in view.asked),
        answers=tuple(replace(found, seen=album.take(found.seen)) for found in view.answers),
        right=view.right and replace(view.right, seen=album.take(view.right.seen)),
    )
