"""The answers to what the page asks, ready for JSON."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from geobind_core.data_tools.media import kind_of, text_of
from geobind_core.explore.collection import Collection
from geobind_core.explore.explorer import Explorer
from geobind_core.explore.gallery import Gallery, Vector, best
from geobind_core.explore.readers import RefusedError
from geobind_core.explore.requests import Expectation, Query
from geobind_core.index.search import in_box

Json = dict[str, Any]

_LOOKED_AT = 20  # texts that say the same are shown once; so many more are looked at for each that is shown


def describe_space(explorer: Explorer, upload_limit: int) -> Json:
    """Returns what there is to explore."""
    space, readers = explorer.space, explorer.readers
    galleries = list(explorer.galleries.items())
    return {
        "name": explorer.name,
        "embed_dim": space.embed_dim,
        "binding": space.record.binding,
        "modalities": list(space.modalities),
        "reads": {"text": readers.text, "files": readers.files, "coordinates": readers.coordinates},
        "examples": readers.examples,
        "upload_limit": upload_limit,
        "collections": [
            {
                "name": found.name,
                "rows": len(found),
                "has_places": found.places is not None,
                "shows": explorer.kinds[number],
                "galleries": [{"modality": name, "rows": len(g)} for (at, name), g in galleries if at == number],
                "preparing": [
                    {"modality": name, "done": p.done, "total": p.total, "failed": p.failed}
                    for (at, name), p in list(explorer.preparing.items())
                    if at == number
                ],
            }
            for number, found in enumerate(explorer.collections)
        ],
    }


def places_of(explorer: Explorer, number: int) -> bytes:
    """Returns longitudes and latitudes of a collection: `[N, 2]` float32, little-endian; NaN where not known."""
    places = explorer.collection(number).places
    if places is None:
        raise RefusedError(404, "This collection has no coordinates.")
    return np.stack([places.longitude, places.latitude], axis=-1).astype("<f4").tobytes()


def answer_query(explorer: Explorer, query: Query, files: Sequence[bytes]) -> Json | tuple[str, str]:
    """Searches. Returns the answer as JSON, or another format's media type with its content."""
    started = time.perf_counter()
    gallery = explorer.gallery(query.collection, query.gallery)
    modalities, vector = explorer.embed(query.parts, files)
    embedded = time.perf_counter()
    collection = explorer.collection(query.collection)
    similarities = gallery.similarities(vector)
    wanted = _inside(collection, query.bbox)
    if query.format != "json":
        return _exported(collection, similarities, wanted, query.format)
    rows = best(similarities, query.k, wanted)
    known = similarities[~np.isnan(similarities)]
    return {
        "collection": query.collection,
        "gallery": gallery.modality,
        "parts": [{"modality": m, "weight": p.weight} for m, p in zip(modalities, query.parts, strict=True)],
        "hits": [_hit(explorer, query.collection, row, float(similarities[row])) for row in rows.tolist()],
        "compared": len(known),
        "range": [float(known.min()), float(known.max())],
        "scores": base64.b64encode(similarities.astype("<f4").tobytes()).decode(),
        "seconds": {"embed": round(embedded - started, 4), "search": round(time.perf_counter() - embedded, 4)},
    }


def _inside(collection: Collection, bbox: tuple[float, float, float, float] | None) -> npt.NDArray[np.bool_] | None:
    if bbox is None:
        return None
    if collection.places is None:
        raise RefusedError(422, "This collection has no coordinates to filter by.")
    return in_box(collection.places, bbox)


def _exported(
    collection: Collection, similarities: Vector, wanted: npt.NDArray[np.bool_] | None, kind: str
) -> tuple[str, str]:
    rows = best(similarities, len(similarities), wanted).tolist()
    found = [(collection.key(row), collection.place(row), round(float(similarities[row]), 6)) for row in rows]
    if kind == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["key", "longitude", "latitude", "score"])
        writer.writerows([key, *(place or ("", "")), score] for key, place, score in found)
        return "text/csv; charset=utf-8", text.getvalue()
    features = [
        {
            "type": "Feature",
            "id": key,
            "geometry": None if place is None else {"type": "Point", "coordinates": place},
            "properties": {"key": key, "score": score},
        }
        for key, place, score in found
    ]
    return "application/geo+json", json.dumps({"type": "FeatureCollection", "features": features}, ensure_ascii=False)


def answer_place(explorer: Explorer, number: int, row: int) -> Json:
    """Returns everything that was observed in a row."""
    explorer.row(number, row)
    return _hit(explorer, number, row, None)


def answer_expectation(explorer: Explorer, wanted: Expectation, files: Sequence[bytes]) -> Json:
    """Returns what the space expects where, or with what, a query is: the nearest of every gallery."""
    modalities, vector = explorer.embed(wanted.parts, files)
    only = wanted.parts[0] if len(wanted.parts) == 1 else None
    return {
        "parts": [{"modality": m, "weight": p.weight} for m, p in zip(modalities, wanted.parts, strict=True)],
        "expected": [
            _expected(explorer, number, gallery, vector, wanted.k, only.place if only is not None else None)
            for (number, _), gallery in list(explorer.galleries.items())
        ],
    }


def _expected(
    explorer: Explorer, number: int, gallery: Gallery, vector: Vector, k: int, place: tuple[int, int] | None
) -> Json:
    similarities = gallery.similarities(vector)
    row = place[1] if place is not None and place[0] == number else None
    own = None
    if row is not None and not math.isnan(similarities[row]):
        own = {"score": float(similarities[row]), "rank": int((similarities >= similarities[row]).sum())}
        similarities[row] = np.nan  # what is there is no expectation
    kind = explorer.kinds[number].get(gallery.modality)
    items: list[Json] = []
    said: set[str] = set()
    for candidate in best(similarities, k * _LOOKED_AT if kind == "text" else k).tolist():
        found = _hit(explorer, number, candidate, float(similarities[candidate]), (gallery.modality,))
        text = next((o["text"] for o in found["observations"] if "text" in o), None)
        if text is None or text not in said:
            items.append(found)
        if text is not None:
            said.add(text)
        if len(items) == k:
            break
    return {
        "collection": number, "modality": gallery.modality, "kind": kind, "of": len(gallery), "own": own,
        "items": items,
    }  # fmt: skip


def _hit(
    explorer: Explorer, number: int, row: int, score: float | None, modalities: Sequence[str] | None = None
) -> Json:
    collection = explorer.collections[number]
    place = collection.place(row)
    return {
        "collection": number,
        "row": row,
        "key": collection.key(row),
        "score": score,
        "longitude": None if place is None else place[0],
        "latitude": None if place is None else place[1],
        "observations": [
            shown
            for name, kind in explorer.kinds[number].items()
            if (modalities is None or name in modalities) and collection.filled[name][row]
            if (shown := _observation(explorer, number, row, name, kind)) is not None
        ],
    }


def _observation(explorer: Explorer, number: int, row: int, modality: str, kind: str) -> Json | None:
    """Returns a text, or where a picture or a recording is to be had: those are made when they are asked for."""
    if kind != "text":
        place = explorer.space.modalities.index(modality)
        return {"modality": modality, "kind": kind, "url": f"media/{number}/{row}/{place}"}
    try:
        preview = explorer.previews.get(number, explorer.collections[number], row, modality)
    except Exception:  # decoders raise what they like
        return None
    if preview is None or kind_of(preview) != "text":
        return None
    return {"modality": modality, "kind": "text", "text": text_of(preview)}
