"""A GRIP proxy's publish endpoint that records, refuses or hangs."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class GripEndpoint:
    """One HTTP server on a free port.

    Attributes:
        url: Its control URI.
        bodies: What was accepted, decoded, in order.
        paths, headers: Of each request, accepted or not.
        status: What it answers; refused when 400 or above.
        hang: While set, it takes requests and does not answer.
        is_mute: It takes in what is published, and ends the connection without an answer.
    """

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.hang = threading.Event()
        self.is_mute = False
        self._released = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                endpoint.paths.append(self.path)
                endpoint.headers.append(dict(self.headers))
                if endpoint.hang.is_set():
                    endpoint._released.wait(30)
                    self.close_connection = True
                    return
                if endpoint.status < 400:
                    endpoint.bodies.append(json.loads(body))
                if endpoint.is_mute:
                    self.close_connection = True
                    return
                self.send_response(endpoint.status)
                self.send_header("Content-Length", "3")
                self.end_headers()
                self.wfile.write(b"ok\n")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    @property
    def items(self) -> list[dict[str, Any]]:
        """All accepted items, in order."""
        return [item for body in self.bodies for item in body["items"]]

    def __enter__(self) -> GripEndpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
