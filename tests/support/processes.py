"""Real processes for tests: on free ports of 127.0.0.1, and none is left behind."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Ports:
    """Gives out free ports, each to one process of this machine only.

    Between the choice and the server's `bind` pass seconds, in which other tests, of other
    processes, choose as well. So a port is a byte of a file, locked for as long as the
    process lives that chose it.
    """

    def __init__(self, path: str, first: int, count: int) -> None:
        self._path = path
        self._first = first
        self._count = count
        self._chosen: set[int] = set()  # a process's own lock does not keep itself out
        self._file: int | None = None

    def choose(self) -> int:
        """Return a port that is free, was never returned before and is nobody else's.

        Raises:
            RuntimeError: There is none.
        """
        if self._file is None:  # and is never closed, with which the locks would end
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        start = int.from_bytes(os.urandom(2))
        for step in range(self._count):
            port = self._first + (start + step) % self._count
            if port not in self._chosen and self._is_free(self._file, port):
                self._chosen.add(port)
                return port
        raise RuntimeError("no free port")

    @staticmethod
    def _is_free(file: int, port: int) -> bool:
        with contextlib.suppress(OSError), socket.socket() as listener:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            listener.bind(("127.0.0.1", port))
            return True
        return False


# Below the range of outgoing connections.
_ports = Ports(f"{tempfile.gettempdir()}/es-ports-{os.getuid()}", 10_000, 20_000)


def free_port() -> int:
    """Return a free port that no other test will choose."""
    return _ports.choose()


def wait_for(condition: Callable[[], T | None], what: str, *, timeout: float = 15) -> T:
    """Return the first true value of the condition.

    Raises:
        AssertionError: It was not true in time.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout} s: {what}")


def is_listening(port: int) -> bool:
    """Say whether something accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _die_with_parent(number: signal.Signals) -> None:
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, number)


class Process:
    """A command in a process group of its own, with its output in a file.

    It dies with this process, by the kernel's hand if need be: by SIGKILL, or by the
    `death_signal` on which it ends what it has started in other groups.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        user: tuple[int, int] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.argv = list(argv)
        log, self._log = tempfile.mkstemp(prefix="es-log-")
        weakref.finalize(self, os.unlink, self._log)
        self._stop_signal = stop_signal
        uid, gid = user or (None, None)
        self._popen = subprocess.Popen(
            self.argv,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=partial(_die_with_parent, death_signal),
            user=uid,
            group=gid,
            extra_groups=[] if uid is not None else None,
        )
        os.close(log)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    def output(self) -> str:
        """Return what it has written so far."""
        return Path(self._log).read_text(errors="replace")

    def wait_until(
        self, condition: Callable[[], T | None], what: str, *, timeout: float = 30
    ) -> T:
        """Wait, and fail at once with its output if it dies meanwhile."""

        def check() -> T | None:
            if not self.is_running:
                raise AssertionError(f"{self.argv} ended:\n{self.output()[-5000:]}")
            return condition()

        try:
            return wait_for(check, what, timeout=timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output()[-5000:]}") from None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self, timeout: float = 15) -> int:
        return self._popen.wait(timeout)

    def kill(self) -> None:
        """SIGKILL the whole group."""
        self.send_signal(signal.SIGKILL)
        self._popen.wait(10)

    def stop(self) -> None:
        """Ask it to end; kill it, and what it has started, if it does not."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, self._stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(10)
        self.send_signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(5)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def python(*arguments: str, env: Mapping[str, str] | None = None) -> Process:
    """Start this interpreter."""
    return Process([sys.executable, *arguments], env=env)
