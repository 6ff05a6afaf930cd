"""The web application: routes to answers, work in threads, errors as sentences."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files as resources
from typing import Any, TypeVar

from fastapi import FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from geobind_core.data_tools.media import kind_of
from geobind_core.errors import GeoBindError
from geobind_core.explore import answers
from geobind_core.explore.explorer import Explorer
from geobind_core.explore.guards import Guard
from geobind_core.explore.readers import RefusedError
from geobind_core.explore.requests import Expectation, Query

T = TypeVar("T")
BodyT = TypeVar("BodyT", bound=BaseModel)

UPLOAD_LIMIT = 32 * 2**20
"""Bytes of a request, by default."""

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_MOST_WAITING = 16  # queries; who comes then is told to try again
_MOST_FILES = 8
_LONGEST_FIELD = 64 * 2**10  # the JSON beside the files
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def build_app(
    explorer: Explorer, *, names: Collection[str] = (), any_address: bool = False, limit: int = UPLOAD_LIMIT
) -> FastAPI:
    """Returns the application.

    Args:
        explorer: What is explored.
        names: Host names of the server beside those of this machine to itself.
        any_address: Whether it listens on all addresses.
        limit: Bytes of files in a request.
    """
    app = FastAPI(title="GeoBind explore", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, names=names, any_address=any_address, limit=limit)
    _add_errors(app)
    _add_page(app)
    _add_api(app, explorer, limit)
    return app


def _add_errors(app: FastAPI) -> None:
    """Turns every error into the same JSON: error, hint, choices. Paths of this machine are in none of them."""

    def answer(status: int, message: str, hint: str = "", choices: Sequence[str] = ()) -> JSONResponse:
        return JSONResponse({"error": message, "hint": hint, "choices": list(choices)}, status)

    @app.exception_handler(RefusedError)
    def refused(_: Request, error: RefusedError) -> JSONResponse:
        return answer(error.status, error.message, error.hint, error.choices)

    @app.exception_handler(GeoBindError)
    def failed(_: Request, error: GeoBindError) -> JSONResponse:
        return answer(422, error.message, error.hint)

    @app.exception_handler(HTTPException)
    def wrong(_: Request, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(422, "; ".join(str(e["msg"]) for e in error.errors()))


def _add_page(app: FastAPI) -> None:
    """Adds the page and its parts, read once: no request names a file."""
    static = {
        entry.name: (entry.read_bytes(), _TYPES[suffix])
        for entry in resources("geobind_core.explore").joinpath("static").iterdir()
        if (suffix := f".{entry.name.rpartition('.')[2]}") in _TYPES
    }

    def served(name: str) -> Response:
        if name not in static:
            raise HTTPException(404, "There is no such file.")
        content, kind = static[name]
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    @app.get("/")
    async def page() -> Response:
        return served("index.html")

    @app.get("/static/{name}")
    async def part(name: str) -> Response:
        return served(name)


def _add_api(app: FastAPI, explorer: Explorer, limit: int) -> None:
    encoding = ThreadPoolExecutor(1, thread_name_prefix="encode")
    looking = ThreadPoolExecutor(4, thread_name_prefix="look")
    waiting = 0

    async def run(pool: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)

    async def encode(work: Callable[..., T], *arguments: Any) -> T:
        nonlocal waiting
        if waiting >= _MOST_WAITING:
            raise RefusedError(503, "Too many queries at once.", "Try again in a moment.")
        waiting += 1
        try:
            return await run(encoding, work, *arguments)
        finally:
            waiting -= 1

    @app.get("/api/space")
    async def space() -> Response:
        return JSONResponse(answers.describe_space(explorer, limit))

    @app.get("/api/collections/{collection}/places")
    async def places(collection: int = Path(ge=0)) -> Response:
        content = await run(looking, answers.places_of, explorer, collection)
        return Response(content, media_type="application/octet-stream")

    @app.get("/api/collections/{collection}/rows/{row}")
    async def place(collection: int = Path(ge=0), row: int = Path(ge=0)) -> Response:
        return JSONResponse(await run(looking, answers.answer_place, explorer, collection, row))

    @app.post("/api/query")
    async def query(request: Request) -> Response:
        wanted, uploads = await _read_body(request, Query)
        found = await encode(answers.answer_query, explorer, wanted, uploads)
        if isinstance(found, tuple):
            return Response(found[1], media_type=found[0])
        return JSONResponse(found)

    @app.post("/api/expect")
    async def expect(request: Request) -> Response:
        wanted, uploads = await _read_body(request, Expectation)
        return JSONResponse(await encode(answers.answer_expectation, explorer, wanted, uploads))

    @app.get("/media/{collection}/{row}/{modality}")
    async def media(
        request: Request, collection: int = Path(ge=0), row: int = Path(ge=0), modality: int = Path(ge=0)
    ) -> Response:
        return await run(looking, _media, explorer, collection, row, modality, request.headers.get("range"))


async def _read_body(request: Request, kind: type[BodyT]) -> tuple[BodyT, list[bytes]]:
    """Returns what is asked, and the files that came with it: JSON, or a form with `query` and `files`."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if media_type == "application/json":
            return kind.model_validate_json(await request.body()), []
        if media_type != "multipart/form-data":
            raise RefusedError(
                415, f"The body is '{media_type[:100]}'.", "Expected application/json or multipart/form-data."
            )
        async with request.form(max_files=_MOST_FILES, max_fields=1, max_part_size=_LONGEST_FIELD) as form:
            written, uploads = form.get("query"), form.getlist("files")
            if not isinstance(written, str) or any(isinstance(upload, str) for upload in uploads):
                raise RefusedError(422, "Expected a field `query` of JSON, and `files`.")
            contents = [await upload.read() for upload in uploads if not isinstance(upload, str)]
            return kind.model_validate_json(written), contents
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'query'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False, include_context=False)[:5]
        )
        raise RefusedError(422, f"The query is not valid. {found}.") from error


def _media(explorer: Explorer, number: int, row: int, modality: int, wanted: str | None) -> Response:
    collection = explorer.row(number, row)
    if modality >= len(explorer.space.modalities) or (
        (name := explorer.space.modalities[modality]) not in explorer.kinds[number]
    ):
        raise RefusedError(404, f"There is no modality {modality} to show.")
    try:
        preview = explorer.previews.get(number, collection, row, name)
    except Exception:  # decoders raise what they like, with paths in it
        raise RefusedError(404, f"The {name} of row {row} cannot be read.") from None
    if preview is None or kind_of(preview) is None:
        raise RefusedError(404, f"Row {row} has no {name}.")
    # A text may look like a page; it is never one.
    kind = "text/plain; charset=utf-8" if kind_of(preview) == "text" else preview.media_type
    return _ranged(preview.data, kind, wanted)


def _ranged(data: bytes, media_type: str, wanted: str | None) -> Response:
    """Returns all of a file, or the part that a player asks for."""
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "private, max-age=3600"}
    match = _RANGE.fullmatch(wanted.strip()) if wanted else None
    if match is None or not (match[1] or match[2]):  # several parts at once: as good as none
        return Response(data, media_type=media_type, headers=headers)
    if match[1]:
        start, end = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
    else:
        start, end = max(0, len(data) - int(match[2])), len(data) - 1
    if start > end:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
    return Response(data[start : end + 1], 206, media_type=media_type, headers=headers)
