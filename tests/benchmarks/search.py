"""Search over a million embeddings of 512 dimensions on the disk: exact and approximate, time, memory and recall.

The embeddings are drawn, since a million places are not at hand: places of 2,000 kinds around a surface of 32
dimensions that is bent into 512, with a little noise. So are those of trained encoders: neighbours are near, and
most of the 512 directions say little. Queries are drawn alike; those of "another modality" are turned aside by a
direction that they have in common, at cosine similarities of about 0.5, as texts lie beside images. Directions
drawn evenly are what no index can search faster, since nothing is near anything; they are shown as well.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from geobind_plugin_imagery.text import Text

from geobind_core.data.geography import Places
from geobind_core.index.approximate import ApproximateIndex, lists_path
from geobind_core.index.columns import Columns
from geobind_core.index.file import EmbeddingIndex
from geobind_core.index.record import IndexRecord
from geobind_core.index.search import scores, search
from geobind_core.index.write import Parts, assemble
from geobind_core.progress import Reporter
from geobind_core.space.encoder import SpaceEncoder, content_hash
from geobind_core.space.lineage import ModalityRecord, SpaceRecord
from geobind_core.space.space import assemble as assemble_space
from geobind_core.space.space import save_encoder

from .data import tiny_clip
from .measure import ROOT, Settings, median, resident
from .results import Goal, Row

NAME = "search"
_PART = 8_192
_KINDS, _SURFACE = 2_000, 32
_QUERIES = 50
Floats = npt.NDArray[np.float32]


def run(settings: Settings) -> list[Row]:
    """Writes the embeddings, and searches them."""
    rows, width = (6_000, 32) if settings.quick else (1_000_000, 512)
    space = save_space(settings.folder / "space", width)
    clustered = write_index(settings.folder / "clustered.parquet", rows, width, space, even=False)
    quiet = Reporter(quiet=True)
    started = time.perf_counter()
    ApproximateIndex.open(EmbeddingIndex.open(clustered), quiet)
    building = time.perf_counter() - started

    commands = [_command(settings.folder / "space", clustered) for _ in range(max(3, settings.repeats))]
    raw = settings.folder / "raw.f32"
    with raw.open("wb") as file:
        for _, chunk in EmbeddingIndex.open(clustered).chunks():
            file.write(chunk.tobytes())
    asked = [f"{name}-{number}" for number in range(max(3, settings.repeats)) for name in ("exact", "near", "floor")]
    found = [_in_own_process(clustered, raw, name.partition("-")[0]) for name in asked]
    sides = {
        side: [result["seconds"] for name, result in zip(asked, found, strict=True) if name.startswith(side)]
        for side in ("exact", "near", "floor")
    }
    peak = {
        side: max(result["mib"] for name, result in zip(asked, found, strict=True) if name.startswith(side))
        for side in ("exact", "near")
    }
    exact, near, floor = (median(sides[side]) for side in ("exact", "near", "floor"))
    sizes = f"{clustered.stat().st_size / 2**20:.0f} MiB, lists {_size_of_lists(clustered):.0f} MiB"
    what = f"{rows:,} x {width}"
    out = [
        Row(
            NAME,
            f"exact top 10 of {what} from disk",
            "s",
            exact,
            floor,
            "numpy over a raw mapped file",
            goal=Goal("<=", 3),
            note=f"warm file cache, imports apart; {sizes}",
            raw=sides,
        ),
        Row(
            NAME,
            "its peak memory, whole process",
            "MiB",
            peak["exact"],
            goal=Goal("<=", 1024),
            note="torch imported; without the encoder of the query",
        ),
        Row(
            NAME,
            "the command `geobind search`, exact: time",
            "s",
            median(seconds for seconds, _ in commands),
            note="from start to end: imports of torch and open_clip, encoder, search",
            raw={"command": [seconds for seconds, _ in commands]},
        ),
        Row(
            NAME,
            "the command `geobind search`, exact: peak memory",
            "MiB",
            max(mib for _, mib in commands),
            goal=Goal("<=", 1024),
            note="most of it is what open_clip imports",
        ),
        Row(
            NAME,
            "approximate against exact",
            "s",
            near,
            exact,
            "exact",
            ratio=near / exact,
            goal=Goal("<=", 0.1),
            note=f"opening included; made once, in {building:.0f} s; peak {peak['near']:.0f} MiB",
            raw=sides,
        ),
    ]
    for kind, goal in (("same modality", Goal(">=", 0.95)), ("another modality", Goal(">=", 0.95))):
        queries = draw(_QUERIES, width, np.random.default_rng(99), even=False)
        if kind == "another modality":
            queries = _aside(queries)
        recall = recall_of(clustered, queries)
        out.append(Row(NAME, f"recall@10 of approximate, queries of {kind}", "", recall, goal=goal))
    few = rows // 10
    even = write_index(settings.folder / "even.parquet", few, width, space, even=True)
    recall = recall_of(even, draw(_QUERIES, width, np.random.default_rng(99), even=True))
    out.append(
        Row(NAME, f"recall@10, {few:,} directions drawn evenly", "", recall, note="no structure to use: search exactly")
    )
    shutil.rmtree(settings.folder)  # gigabytes that the next benchmark may need
    return out


def draw(count: int, width: int, rng: np.random.Generator, *, even: bool) -> Floats:
    """Draws embeddings `[count, width]` of unit norm."""
    if even:
        vectors = rng.standard_normal((count, width), dtype=np.float32)
    else:
        fixed = np.random.default_rng(1)
        bend = fixed.standard_normal((_SURFACE, width), dtype=np.float32) / np.float32(np.sqrt(_SURFACE))
        kinds = fixed.standard_normal((_KINDS, _SURFACE), dtype=np.float32)
        on_surface = kinds[rng.integers(0, _KINDS, count)]
        on_surface = on_surface + np.float32(0.6) * rng.standard_normal((count, _SURFACE), dtype=np.float32)
        vectors = np.tanh(on_surface @ bend)
        vectors += np.float32(0.05) * rng.standard_normal((count, width), dtype=np.float32)
    return _unit(vectors)


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _aside(queries: Floats) -> Floats:
    """Turns queries aside by 60 degrees, all towards the same direction, as another modality lies."""
    gap = np.random.default_rng(7).standard_normal(queries.shape[1]).astype(np.float32)
    return _unit(queries + np.float32(np.sqrt(3)) * gap / np.linalg.norm(gap))


def save_space(folder: Path, width: int) -> SpaceRecord:
    """Saves a space of a small text encoder, with random weights."""
    modality = Text(Text.Config(model={**tiny_clip(), "embed_dim": width}))
    network = SpaceEncoder(modality.build_encoder(), width, width, projected=False)
    record = ModalityRecord(
        plugin="text",
        distribution="geobind-plugin-imagery",
        version=version("geobind-plugin-imagery"),
        config=modality.rebuild_config(network.encoder).model_dump(mode="json"),
        raw_dim=width,
        projected=False,
        content_hash=content_hash(network),
    )
    space = SpaceRecord(embed_dim=width, binding="text", modalities={"text": record}, pairs=[])
    save_encoder(network, record, folder.parent / "weights")
    assemble_space(folder, space, {"text": folder.parent / "weights"})
    return space


def write_index(path: Path, rows: int, width: int, space: SpaceRecord, *, even: bool) -> Path:
    """Writes an index of drawn embeddings, as `geobind embed` does."""
    rng = np.random.default_rng(2)
    parts = Parts.beside(path, -(-rows // _PART))
    parts.claim({})
    for part in range(parts.count):
        numbers = np.arange(part * _PART, min(rows, (part + 1) * _PART))
        parts.write(part, numbers, draw(len(numbers), width, rng, even=even), [])
    record = IndexRecord(
        modality="text",
        content_hash=space.modalities["text"].content_hash,
        embed_dim=width,
        dtype="float32",
        space=space,
        data="drawn",
        split=None,
        root=".",
    )
    columns = Columns(
        keys=pa.array([f"place-{number:07d}" for number in range(rows)]),
        places=Places.of(rng.uniform(-180, 180, rows), rng.uniform(-90, 90, rows)),
        times=None,
        further={},
        cells={},
        root=".",
    )
    assemble(path, parts, columns, record)
    parts.remove()
    return path


def _size_of_lists(path: Path) -> float:
    return lists_path(EmbeddingIndex.open(path)).stat().st_size / 2**20


def recall_of(path: Path, queries: Floats) -> float:
    """Returns the share of the ten nearest that an approximate search finds."""
    index = EmbeddingIndex.open(path)
    lists = ApproximateIndex.open(index, Reporter(quiet=True))
    similarities = scores(index, queries)
    right = 0
    for query, all_scores in zip(queries, similarities, strict=True):
        nearest = np.argpartition(all_scores, -10)[-10:]
        right += len({hit.row for hit in lists.search(query, 10)} & set(nearest.tolist()))
    return right / (10 * len(queries))


# ---------------------------------------------------------------------- one search in a process of its own


# What the system says of a child's memory begins with that of its parent, so the command tells its own.
_TELLING = """
import sys
from geobind_core.cli import main

try:
    main()
except SystemExit as end:
    assert not end.code, end.code
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
sys.stderr.write(f"{int(peak.split()[1]) / 1024}\\n")
"""


def _command(space: Path, index: Path) -> tuple[float, float]:
    """Returns the seconds and the MiB that the command takes."""
    command = [sys.executable, "-c", _TELLING, "search", str(space), str(index), "text=waves on a beach"]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return time.perf_counter() - started, float(done.stderr.splitlines()[-1])


def _in_own_process(path: Path, raw: Path, side: str) -> dict[str, Any]:
    command = [sys.executable, "-m", __name__, str(path), str(raw), side]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _sides(path: Path, raw: Path, side: str) -> Iterator[None]:
    """Yields when what belongs to no search has been done; ends when the search has."""
    if side == "near":
        import faiss

        faiss.omp_get_max_threads()
    width = EmbeddingIndex.open(path).embed_dim
    query = draw(1, width, np.random.default_rng(5), even=False)[0]
    yield
    if side == "floor":
        mapped = np.memmap(raw, dtype=np.float32, mode="r").reshape(-1, width)
        np.argpartition(mapped @ query, -10)[-10:]
        return
    index = EmbeddingIndex.open(path)
    found = (
        search(index, query, 10)
        if side == "exact"
        else ApproximateIndex.open(index, Reporter(quiet=True)).search(query, 10)
    )
    assert len(found) == 10


def _search_once(path: str, raw: str, side: str) -> None:
    steps = _sides(Path(path), Path(raw), side)
    next(steps)
    started = time.perf_counter()
    for _ in steps:
        pass
    seconds = time.perf_counter() - started
    sys.stdout.write(json.dumps({"seconds": seconds, "mib": resident("VmHWM") / 2**20}) + "\n")


if __name__ == "__main__":
    _search_once(*sys.argv[1:])
