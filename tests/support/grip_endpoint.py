"""A GRIP proxy's publish endpoint that records, passes on, refuses or hangs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests


class GripEndpoint:
    """One HTTP server on a free port.

    Attributes:
        url: Its control URI.
        bodies: What was accepted, decoded, in order.
        paths, headers: Of each request, accepted or not.
        status: What it answers; refused when 400 or above.
        hang: While set, it takes requests and does not answer.
        hang_for: If not "", it hangs only for what has this text in it.
        hung_count: How many requests it has not answered.
        poison: If not "", it refuses for good whatever has this text in it.
        forward: Control URI of a proxy to which it passes on what it accepts.
        is_mute: It takes in what is published, and ends the connection without an answer.
    """

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.hang = threading.Event()
        self.hang_for = ""
        self.hung_count = 0
        self.poison = ""
        self.forward = ""
        self.is_mute = False
        self._released = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                endpoint.paths.append(self.path)
                endpoint.headers.append(dict(self.headers))
                text = body.decode()
                if endpoint.hang.is_set() and endpoint.hang_for in text:
                    endpoint.hung_count += 1
                    endpoint._released.wait(30)
                    self.close_connection = True
                    return
                status = endpoint.status
                if endpoint.poison and endpoint.poison in text:
                    status = 400
                if status < 400 and endpoint.forward:
                    status = endpoint._pass_on(self.path, body, dict(self.headers))
                if status < 400:
                    endpoint.bodies.append(json.loads(body))
                if endpoint.is_mute:
                    self.close_connection = True
                    return
                self.send_response(status)
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

    def _pass_on(self, path: str, body: bytes, headers: dict[str, str]) -> int:
        kept = {
            k: v for k, v in headers.items() if k in ("Authorization", "Content-Type")
        }
        answer = requests.post(self.forward + path, body, headers=kept, timeout=5)
        return answer.status_code

    @property
    def events(self) -> list[tuple[str, int, str]]:
        """What stored_events finds in what was accepted."""
        return stored_events(self.items)

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


def stored_events(items: Iterable[dict[str, Any]]) -> list[tuple[str, int, str]]:
    """Return the proxy's channel, the id and the first line of data of each stored event.

    An item may have several events, and says so by its ids.
    """
    found = []
    for item in items:
        if "id" not in item or not item["id"].isdecimal():
            continue
        texts = item["http-stream"]["content"].removesuffix("\n\n").split("\n\n")
        last = int(item["id"])
        if item["prev-id"].isdecimal():
            assert int(item["prev-id"]) == last - len(texts), item
        for eid, text in enumerate(texts, last - len(texts) + 1):
            assert text.partition("\n")[0].endswith(f":{eid}"), item
            data = text.partition("data: ")[2].partition("\n")[0]
            found.append((item["channel"], eid, data))
    return found
