"""Ranks of a whole gallery: against the matrix product alone, and against faiss's exact search."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import torch

from geobind_core.evaluation.retrieve import retrieve

from .measure import Settings, interleaved, median, peak_memory, timed
from .results import Goal, Row

NAME = "ranks"
_TOP = 100


def _embeddings(count: int, dimension: int, likeness: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    query = torch.nn.functional.normalize(torch.randn(count, dimension, generator=generator), dim=-1)
    noise = torch.nn.functional.normalize(torch.randn(count, dimension, generator=generator), dim=-1)
    return query, torch.nn.functional.normalize(likeness * query + noise, dim=-1)


def prepare(count: int, dimension: int) -> Callable[[], object]:
    """Returns a retrieval, for `peak_memory`; threads and work spaces are there already."""
    retrieve(*_embeddings(64, dimension, 0.2))
    query, gallery = _embeddings(count, dimension, 0.2)
    if sys.platform == "linux":  # what was freed while drawing them would hide what is taken from now on
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return lambda: retrieve(query, gallery)


def _faiss(query: torch.Tensor, gallery: torch.Tensor) -> Callable[[], object]:
    import faiss

    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery.numpy())
    return lambda: index.search(query.numpy(), _TOP)


def run(settings: Settings) -> list[Row]:
    """Embeddings with low ranks and with any; then memory, in a process of its own."""
    count, dimension = (600, 32) if settings.quick else (10_000, 512)
    shape = f"{count:,} x {count:,} x {dimension}"
    repeats = settings.repeats if settings.quick else max(settings.repeats, 5)
    rows = []
    for likeness, what in ((0.2, "trained"), (0.0, "untrained")):
        query, gallery = _embeddings(count, dimension, likeness)
        product = torch.empty(count, count)
        sides: dict[str, Callable[[], object]] = {
            "ours": lambda q=query, g=gallery: retrieve(q, g),
            "product": lambda q=query, g=gallery, out=product: torch.mm(q, g.T, out=out),
            "faiss": _faiss(query, gallery),
        }
        for side in sides.values():
            side()  # warms up
        raw = interleaved({name: lambda side=side: timed(side) for name, side in sides.items()}, repeats)
        ours, floor, faiss = (median(raw[name]) for name in ("ours", "product", "faiss"))
        rows.append(
            Row(NAME, f"{what} embeddings", "s", ours, floor, "product", ours / floor, Goal("<=", 1.2), shape, raw)
        )
        rows.append(
            Row(
                NAME,
                f"{what} embeddings",
                "s",
                ours,
                faiss,
                f"IndexFlatIP top-{_TOP}",
                faiss / ours,
                Goal(">=", 4),
                shape,
                {name: raw[name] for name in ("ours", "faiss")},
            )
        )
        del product, sides
    peak = peak_memory(f"{__name__}:{prepare.__name__}", {"count": count, "dimension": dimension}) / 2**20
    rows.append(
        Row(
            NAME,
            "memory beside the embeddings",
            "MiB",
            peak,
            count * count * 4 / 2**20,
            "all similarities",
            goal=Goal("<=", 64),
            note=f"{shape}; peak over what was there before",
            raw={"ours": [peak]},
        )
    )
    return rows
