"""Who may ask, how much they may send, and what a browser may do with the answer."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    # Nothing but what this server sends: no other host, no inline script, no frame, no form.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self' blob:; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
}
_HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[\w.-]+))(?::\d{1,5})?", re.ASCII)
_SPARE = 64 * 2**10  # of a request, for all but the files
_OWN_NAMES = ("localhost", "127.0.0.1", "::1")


class Guard:
    """Stands before the application.

    - The `Host` header must be a name of this server, or else a page elsewhere could have its own name
      point here (DNS rebinding).
    - What is sent must come from this server's page, or from no page at all.
    - No body is longer than the limit; it is counted while it comes.

    Args:
        app: The application.
        names: Further host names that are this server's.
        any_address: Whether it listens on all addresses: then any address will do, though not any name.
        limit: Bytes of files in a request; for all else there is some room.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], any_address: bool, limit: int) -> None:
        self._app = app
        self._names = {*_OWN_NAMES, *(name.lower() for name in names)}
        self._any_address = any_address
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    answered.setdefault(name, value)
            await send(message)

        if (refusal := self._refusal(scope["method"], headers)) is not None:
            await _refuse(*refusal, send_guarded)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit + _SPARE:
                raise HTTPException(413, self._too_long())
            return message

        await self._app(scope, receive_counted, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not self._is_own(host):
            return 403, f"This server is not '{host[:200]}'. Open it at the address that it printed."
        if method in ("GET", "HEAD"):
            return None
        origin = headers.get("origin")
        elsewhere = origin is not None and origin.partition("://")[2].lower() != host.lower()
        if elsewhere or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "This was sent by a page of another server."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._limit + _SPARE:
            return 413, self._too_long()
        return None

    def _is_own(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = (match["address"] or match["name"]).lower()
        return name in self._names or (self._any_address and _is_address(name))

    def _too_long(self) -> str:
        return f"This is more than {self._limit / 2**20:.4g} MiB, the most that this server takes."


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _refuse(status: int, message: str, send: Any) -> None:
    body = json.dumps({"error": message, "hint": "", "choices": []}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # What was not read of a body is in the way of the next request.
    headers += [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
