"""What the page asks of a space: one vector for a query, similarities with galleries, observations."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from geobind_core.data_tools.media import Kind, kind_of
from geobind_core.explore.collection import Collection
from geobind_core.explore.gallery import Gallery, Vector
from geobind_core.explore.media import Previews
from geobind_core.explore.readers import Readers, RefusedError
from geobind_core.explore.requests import Part
from geobind_core.index.query import QueryPart, combined, embed_query
from geobind_core.space.space import Space

_KEPT_EMBEDDINGS = 512
_PROBED_ROWS = 5


@dataclass
class Preparation:
    """A gallery that is being embedded.

    Attributes:
        done: Rows embedded.
        total: Rows to embed; 0 before that is known.
        failed: Why there will be no gallery.
    """

    done: int = 0
    total: int = 0
    failed: str = ""


@dataclass
class Explorer:
    """A space with the collections that are looked at.

    Attributes:
        name: The run's, or the space's.
        space: The space.
        collections: Told apart by their numbers.
        galleries: (collection, modality) -> embeddings; more may come while the page is open.
        preparing: (collection, modality) -> how far it is.
        encoding: Held while a network works for a query: one at a time, so that there is time for all else.
    """

    name: str
    space: Space
    collections: Sequence[Collection]
    galleries: dict[tuple[int, str], Gallery] = field(default_factory=dict)
    preparing: dict[tuple[int, str], Preparation] = field(default_factory=dict)
    encoding: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.readers = Readers.of(self.space)
        self.previews = Previews(self.space)
        self.kinds: list[dict[str, Kind]] = [
            {
                modality: kind
                for modality in self.space.modalities
                if modality in found.filled and (kind := self._kind(number, found, modality)) is not None
            }
            for number, found in enumerate(self.collections)
        ]
        self._embedded: OrderedDict[tuple[str, bytes], Vector] = OrderedDict()

    def _kind(self, number: int, collection: Collection, modality: str) -> Kind | None:
        """Returns how observations of a modality are shown, as the first of them that can be read is."""
        for row in collection.filled[modality].nonzero()[0][:_PROBED_ROWS].tolist():
            try:
                preview = self.previews.get(number, collection, row, modality)
            except Exception:  # decoders raise what they like; the next row may be readable
                continue
            return None if preview is None else kind_of(preview)
        return None

    def collection(self, number: int) -> Collection:
        """Returns a collection.

        Raises:
            RefusedError: There is none of that number.
        """
        if number >= len(self.collections):
            raise RefusedError(404, f"There is no collection {number}.")
        return self.collections[number]

    def row(self, number: int, row: int) -> Collection:
        """Returns the collection of a row.

        Raises:
            RefusedError: There is none, or no such row in it.
        """
        collection = self.collection(number)
        if row >= len(collection):
            raise RefusedError(404, f"There is no row {row}; '{collection.name}' has {len(collection):,}.")
        return collection

    def gallery(self, number: int, modality: str | None) -> Gallery:
        """Returns what queries are compared with; without a modality, the collection's first.

        Raises:
            RefusedError: There is none, or not yet.
        """
        collection = self.collection(number)
        there = [name for at, name in list(self.galleries) if at == number]  # more may just be coming
        if modality is None and there:
            return self.galleries[number, there[0]]
        if modality in there:
            return self.galleries[number, modality]
        if (preparation := self.preparing.get((number, modality or ""))) is not None:
            if preparation.failed:
                raise RefusedError(422, f"'{modality}' could not be embedded.", preparation.failed)
            raise RefusedError(
                503, f"'{modality}' is still being embedded: {preparation.done} of {preparation.total} rows.", "Wait."
            )
        raise RefusedError(
            422, f"No embeddings of '{modality}' for '{collection.name}'.", f"There are {', '.join(there) or 'none'}."
        )

    def vector_of_row(self, number: int, row: int, modality: str | None = None) -> tuple[str, Vector]:
        """Returns the embedding of a row: of a modality, or of the first that it has one of.

        Raises:
            RefusedError: It has none.
        """
        self.row(number, row)
        names = [modality] if modality is not None else [name for at, name in list(self.galleries) if at == number]
        for name in names:
            if (found := self.gallery(number, name).vector(row)) is not None:
                return name, found
        raise RefusedError(
            422, f"Row {row} has no embedding{f' of {modality}' if modality else ''}.", "Choose another."
        )

    def warm_up(self) -> None:
        """Loads what reads texts, so that the first query does not have to wait for it."""
        for name in self.readers.text:
            with self.encoding:
                self.space.embed(name, self.readers.examples[:1])

    def embed(self, parts: Sequence[Part], files: Sequence[bytes]) -> tuple[list[str], Vector]:
        """Returns who read each part of a query, and its embedding `[D]`.

        Args:
            parts: What to search by.
            files: The content of uploaded files.

        Raises:
            RefusedError: A part cannot be read.
            DataError: They cancel each other.
        """
        found = [self._embed(part, files) for part in parts]
        return [name for name, _ in found], combined([v for _, v in found], [part.weight for part in parts])

    def _embed(self, part: Part, files: Sequence[bytes]) -> tuple[str, Vector]:
        if part.place is not None:
            return self.vector_of_row(*part.place, part.modality)
        if part.text is not None:
            name = self.readers.of_text(part.text, part.modality)
            return name, self._encode(QueryPart(name, part.text), part.text.encode("utf-8", "surrogatepass"))
        if part.coordinates is not None:
            name = self.readers.of_coordinates(part.modality)
            return name, self._encode(QueryPart(name, list(part.coordinates)), repr(part.coordinates).encode())
        if part.file is None or part.file >= len(files):
            raise RefusedError(422, f"There is no file {part.file}; {len(files)} came with the query.")
        content = files[part.file]
        name = self.readers.of_file(self.space, content, part.modality)
        return name, self._encode(QueryPart(name, content), content)

    def _encode(self, part: QueryPart, content: bytes) -> Vector:
        """Embeds an observation, unless it is among the latest that were."""
        key = (part.modality, hashlib.sha256(content).digest())
        with self.encoding:
            if key not in self._embedded:
                self._embedded[key] = embed_query(self.space, [part])
                if len(self._embedded) > _KEPT_EMBEDDINGS:
                    self._embedded.popitem(last=False)
            self._embedded.move_to_end(key)
            return self._embedded[key]
