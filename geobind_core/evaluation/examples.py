"""Some queries to look at: good, median and bad ones, and what was found for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from geobind_core.evaluation.retrieve import Found
from geobind_core.evaluation.similarity import top_of

Kind = Literal["good", "median", "bad"]

_SHOWN = 3
_PERCENT: dict[Kind, tuple[int, int]] = {"good": (0, 10), "median": (45, 55), "bad": (90, 100)}


@dataclass(frozen=True)
class RetrievalExample:
    """One query, and what was found for it. All rows are numbers of rows of the data set.

    Attributes:
        query_row: The row that asked; its own item of the gallery is the right one.
        rank: Where the right one came.
        found: What came first, best first: the row, and its similarity.
        kind: Which part of the ranks it stands for.
        own_score: The similarity of its own item.
    """

    query_row: int
    rank: int
    found: tuple[tuple[int, float], ...]
    kind: Kind
    own_score: float


def choose_queries(ranks: npt.NDArray[np.int64], each: int, seed: int) -> list[tuple[Kind, int]]:
    """Returns queries out of the best tenth of the ranks, the middle tenth and the worst tenth.

    Args:
        ranks: `[N]`.
        each: How many of each kind, at most.
        seed: Decides which of them.
    """
    order, rng = np.argsort(ranks, kind="stable"), np.random.default_rng(seed)
    chosen: list[tuple[Kind, int]] = []
    taken: set[int] = set()
    for kind, (low, high) in _PERCENT.items():
        start, stop = low * len(order) // 100, -(-high * len(order) // 100)
        pool = [query for query in order[start:stop].tolist() if query not in taken]
        drawn = sorted(rng.permutation(len(pool))[:each].tolist())
        taken |= {pool[i] for i in drawn}
        chosen += [(kind, pool[i]) for i in drawn]
    return chosen


def examples_of(
    found: Found,
    rows: npt.NDArray[np.int64],
    scores: Callable[[torch.Tensor], torch.Tensor],
    *,
    each: int,
    seed: int,
) -> tuple[RetrievalExample, ...]:
    """Returns examples of one retrieval.

    Args:
        found: The ranks.
        rows: `[N]`, which rows of the data set were ranked.
        scores: Returns `[B, N]` similarities of some queries, given their numbers `[B]`.
        each: How many of each kind, at most.
        seed: Decides which.
    """
    chosen = choose_queries(found.ranks.numpy(), each, seed)
    queries = torch.tensor([query for _, query in chosen])
    against_all = scores(queries)
    values, items = top_of(against_all, min(_SHOWN, len(rows)), queries)
    own = against_all[torch.arange(len(queries)), queries]
    return tuple(
        RetrievalExample(
            query_row=int(rows[query]),
            rank=int(found.ranks[query]),
            found=tuple((int(rows[item]), value) for item, value in zip(of_items, of_values, strict=True)),
            kind=kind,
            own_score=own_score,
        )
        for (kind, query), of_items, of_values, own_score in zip(
            chosen, items.tolist(), values.tolist(), own.tolist(), strict=True
        )
    )
