"""A real Pushpin, with the configuration that the project ships."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil

from deploy.pushpin import PushpinConfig
from tests.support.processes import Process, free_port, is_listening

KEY = "tests-only-0123456789-0123456789-0123456789"


class _Pushpin(Process):
    """Its runner, and the parts that it has started, each in a group of its own."""

    def __init__(self, argv: Sequence[str]) -> None:
        super().__init__(argv, death_signal=signal.SIGTERM)
        self._parts: list[psutil.Process] = []

    def find_parts(self) -> None:
        """Note the parts: they outlive a runner that is killed."""
        self._parts = psutil.Process(self.pid).children(recursive=True)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to all of it."""
        super().send_signal(number)
        for part in self._parts:
            with contextlib.suppress(psutil.NoSuchProcess):
                part.send_signal(number)

    def kill(self) -> None:
        """SIGKILL all of it; its ports are free afterwards."""
        super().kill()
        psutil.wait_procs(self._parts, timeout=10)


class Pushpin:
    """One proxy in front of one web process."""

    def __init__(self, backend_port: int, *, publish_port: int | None = None) -> None:
        if shutil.which("pushpin") is None:
            raise AssertionError("Pushpin is missing: apt-get install pushpin")
        self.port = free_port()
        self._directory = Path(tempfile.mkdtemp(prefix="pp-", dir="/tmp"))
        self.config = PushpinConfig(
            directory=self._directory,
            backend=f"127.0.0.1:{backend_port}",
            key=KEY,
            port=self.port,
            publish_port=publish_port or free_port(),
            standby_port=free_port(),
            zmq_port=free_port(),
            sub_port=free_port(),
            command_port=free_port(),
            metrics_port=free_port(),
        )
        self.url = f"http://127.0.0.1:{self.port}"
        self.grip_url = self.config.grip_url
        self.process = self.start()

    def start(self) -> Process:
        """Start it, again if it was stopped, on the same ports."""
        self.process = process = _Pushpin(self.config.command())
        for port in (self.config.publish_port, self.port):
            process.wait_until(partial(is_listening, port), "Pushpin listens")
        process.find_parts()
        return process

    def freeze(self) -> None:
        """Stop the clock of all its processes; `thaw` goes on."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.thaw()
        self.process.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def log(self) -> str:
        """Return its own log."""
        return self.process.output() + "".join(
            path.read_text(errors="replace")
            for path in (self._directory / "log").iterdir()
            if os.path.isfile(path)
        )
