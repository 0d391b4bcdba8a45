"""Hand out a folder over HTTP, to this machine alone unless another address is given."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Quiet(SimpleHTTPRequestHandler):
    """Files of one folder, without a line for each request, and never from a browser's cache."""

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()


def serve(folder: Path, host: str, port: int) -> ThreadingHTTPServer:
    """A server of ``folder``, bound and not yet running: call ``serve_forever``.

    Args:
        folder: what is handed out.
        host: address to bind; ``127.0.0.1`` is reached from this machine alone.
        port: 0 for any free one.

    Raises:
        ValueError: if the address cannot be bound.
    """
    try:
        return ThreadingHTTPServer((host, port), partial(Quiet, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise ValueError(f"host={host!r}, port={port} cannot be bound ({error}): choose another --port") from error
