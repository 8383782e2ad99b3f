"""Commands to a browser by WebSocket: Chromium's DevTools protocol, and WebDriver BiDi.

For what Playwright hides, as it shows every tab to its page as visible, and for Firefox, of
which Playwright takes none but its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect


class RemoteError(Exception):
    """The browser refuses a command."""


class Remote:
    """One connection to a browser; commands one after the other."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._count = 0

    def call(self, method: str, session: str = "", /, **parameters: Any) -> Any:
        """Return the result of a command; events that come before it are dropped."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": parameters}
        if session:
            command["sessionId"] = session
        self._socket.send(json.dumps(command))
        deadline = time.monotonic() + 30
        while True:
            answer = json.loads(self._socket.recv(deadline - time.monotonic()))
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RemoteError(f"{method}: {answer}")
                return answer["result"]


@contextmanager
def connecting(address: str) -> Iterator[Remote]:
    """Connect to a browser, whatever its answers' size."""
    with connect(address, max_size=None, proxy=None) as socket:
        yield Remote(socket)
