"""Serving the page: a socket, a browser, an end."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable

import uvicorn

from geobind_core.errors import ConfigError
from geobind_core.explore.explorer import Explorer
from geobind_core.explore.server import build_app

_SECONDS_TO_END = 2


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket that has the port. It takes no connections before there is somebody to answer them.

    Args:
        host: An address or a name of this machine.
        port: 0 takes any that is free.

    Raises:
        ConfigError: The port is in use or may not be used, or this is no address of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(found[0], socket.SOCK_STREAM)
        if os.name == "posix":  # a port that was just given up can be used again
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(found[4])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} is in use."
        elif error.errno == errno.EACCES:
            message = f"port {port} may not be used by you."
        else:
            raise ConfigError(
                f"cannot listen here: {error.strerror or error}.", place=f"--host {host}", hint="Try 127.0.0.1."
            ) from error
        raise ConfigError(message, place="--port", hint="Choose another; 0 takes any that is free.") from error
    return listening


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def serve(
    explorer: Explorer, listening: socket.socket, host: str, *, limit: int, started: Callable[[str], None], browse: bool
) -> None:
    """Serves until somebody presses Ctrl-C.

    Args:
        explorer: What is explored.
        listening: From `bind`.
        host: What it listens on.
        limit: Bytes of files in a request.
        started: Told the address when the page can be opened.
        browse: Whether to open it in a browser.
    """
    everywhere = host in ("", "0.0.0.0", "::")
    names = [socket.gethostname(), socket.getfqdn()] if everywhere else [host]
    app = build_app(explorer, names=names, any_address=everywhere, limit=limit)
    url = f"http://{_written('127.0.0.1' if everywhere else host)}:{listening.getsockname()[1]}/"
    server = _Server(
        uvicorn.Config(
            app, log_level="error", access_log=False, lifespan="off", server_header=False,
            timeout_graceful_shutdown=_SECONDS_TO_END, limit_concurrency=256,
        ),
        lambda: _greet(url, started, browse),
    )  # fmt: skip
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises it anew once it has ended
        return


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, greet: Callable[[], None]) -> None:
        super().__init__(config)
        self._greet = greet

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._greet()


def _greet(url: str, started: Callable[[str], None], browse: bool) -> None:
    started(url)
    if browse and _has_display():
        # Some browsers return only when they are closed.
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def _has_display() -> bool:
    """Whether there is a screen for a browser; without one, a text browser would take the terminal."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _written(host: str) -> str:
    return f"[{host}]" if ":" in host else host
