"""Hand out one page over HTTP, to this machine alone unless another address is given."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def serve(page: str, host: str, port: int) -> ThreadingHTTPServer:
    """A server of an HTML page, bound and not yet running: call ``serve_forever``.

    Args:
        page: what is handed out, at every path.
        host: address to bind; ``127.0.0.1`` is reached from this machine alone.
        port: 0 for any free one.

    Raises:
        ValueError: if the address cannot be bound.
    """
    body = page.encode()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise ValueError(f"host={host!r}, port={port} cannot be bound ({error}): choose another --port") from error
