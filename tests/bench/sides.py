"""The sides: this project, the peer, and what they run on."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.support.postgres import Postgres
from tests.support.processes import (
    ROOT,
    Process,
    free_port,
    is_listening,
    wait_for,
)
from tests.support.processes import python as start_python
from tests.support.pushpin import Pushpin
from tests.support.stack import Stack
from tests.support.valkey import Valkey

HERE = Path(__file__).resolve().parent
PEER = HERE / "peer"
SEND = str(HERE / "send.py")
CHANNELMANAGER = "eventstream.channelmanager.DefaultChannelManager"


def cpu_seconds(process: Process) -> float:
    """Return the CPU time of a process and all that it has started, in seconds."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        for each in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                # Of children that have ended, too: a PostgreSQL backend, for instance.
                total += times.user + times.system
                total += times.children_user + times.children_system
    return total


def memory_bytes(process: Process) -> int:
    """Return the memory that is a process's own, its children's included."""
    root = psutil.Process(process.pid)
    return sum(
        int(each.memory_full_info().uss)
        for each in [root, *root.children(recursive=True)]
    )


class Side:
    """One side of a comparison, installed: processes are started case by case."""

    name: str

    def __init__(self) -> None:
        self.env: dict[str, str] = {}
        self.python = sys.executable
        self.parts: dict[str, Process] = {}
        self.exits = ExitStack()

    def send(self, *arguments: object, side: str = "") -> dict[str, Any]:
        """Run a sending process to its end and return its answer."""
        return self.collect(self.start_send(*arguments, side=side))

    def start_send(self, *arguments: object, side: str = "") -> subprocess.Popen[str]:
        """Start a sending process."""
        argv = [self.python, SEND, side or self.name, *map(str, arguments)]
        return subprocess.Popen(
            argv, cwd=self.cwd, env={**os.environ, **self.env, "PYTHONPATH": str(self.cwd)},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def collect(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Return the answer of a sending process."""
        out, _ = process.communicate(timeout=600)
        if process.returncode:
            assert isinstance(process.args, list)
            what = " ".join(process.args[2:])  # without the interpreter and its file
            raise RuntimeError(f"{what!r} ended with {process.returncode}: {out}")
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result

    @property
    def cwd(self) -> Path:
        return ROOT

    def cpu(self) -> dict[str, float]:
        """Return each part's CPU time so far."""
        return {name: cpu_seconds(part) for name, part in self.parts.items()}

    def close(self) -> None:
        self.exits.close()


class Ours(Side):
    """This project: web process, Celery worker, Valkey, and Pushpin if wanted."""

    name = "ours"

    def __init__(
        self,
        postgres: Postgres,
        *,
        with_pushpin: bool,
        template: str,
        settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.postgres = postgres
        self.database = "b" + os.urandom(4).hex()
        url = postgres.create_database(self.database, template=template)
        chosen = {
            "EVENTSTREAM_CHANNELMANAGER_CLASS": CHANNELMANAGER,
            # Where a proxy holds all streams deploy.md has no bus, and the peer has none.
            **({"EVENTSTREAM_REDIS": None} if with_pushpin else {}),
            **(settings or {}),
        }
        self.stack = Stack(
            database_url=url,
            with_pushpin=with_pushpin,
            is_migrated=True,
            # What deploy.md recommends.
            env={
                "ES_SET": json.dumps(chosen),
                "ES_POOL": "10",
                "ES_DB_OPTIONS": '{"prepare_threshold": 5}',
            },
        )
        self.exits.callback(self.stack.close)
        self.env = self.stack.env
        self.parts["postgres"] = postgres.process
        if self.stack.valkey is not None:
            self.parts["valkey"] = self.stack.valkey.process
        if self.stack.pushpin is not None:
            self.parts["pushpin"] = self.stack.pushpin.process

    @property
    def port(self) -> int:
        pushpin = self.stack.pushpin
        return pushpin.port if pushpin is not None else self.stack.web_port

    def path(self, channel: str) -> str:
        return f"/events/?channel={channel}"

    def event_id(self, channel: str, number: int) -> str:
        return f"{channel}:{number}"

    def start_web(self, server: str = "uvicorn") -> Process:
        """Start a web process: by uvicorn, by two processes of it, or by granian."""
        if server == "granian":
            web = self._start_granian()
        else:
            extra = ("--workers", "2") if server == "uvicorn-2" else ()
            web = self.stack.start_web(extra=extra)
        self.parts["web"] = web
        return web

    def _start_granian(self) -> Process:
        port = self.stack.web_port
        process = start_python(
            "-m", "granian", "--interface", "asgi", "--port", str(port),
            # With its default the 1,025th stream never opens.
            "--backpressure", "20000", "--no-ws", "--log-level", "warning",
            "--loop", "uvloop", "tests.asgi:application",
            env=self.env,
        )  # fmt: skip
        self.exits.callback(process.stop)
        process.wait_until(lambda: is_listening(port), "granian listens")
        return process

    def start_worker(self) -> Process:
        self.parts["worker"] = self.stack.start_worker()
        return self.parts["worker"]

    def stop(self) -> None:
        """End web and worker at once: what they would leave behind goes with them."""
        for name in ("web", "worker"):
            part = self.parts.pop(name, None)
            if part is not None:
                part.kill()


class Peer(Side):
    """django-eventstream, in a virtual environment of the benchmark's own."""

    name = "peer"

    def __init__(
        self,
        postgres: Postgres,
        python: Path,
        *,
        with_pushpin: bool,
        with_redis: bool,
        template: str,
    ) -> None:
        super().__init__()
        self.python = str(python)
        name = "b" + os.urandom(4).hex()
        url = postgres.create_database(name, template=template)
        self.web_port = free_port()
        self.env = {"DJANGO_SETTINGS_MODULE": "settings", "ES_DB": url}
        self.parts["postgres"] = postgres.process
        if with_redis:
            valkey = self.exits.enter_context(Valkey())
            self.env["ES_REDIS_PORT"] = str(valkey.port)
            self.parts["valkey"] = valkey.process
        self.port = self.web_port
        if with_pushpin:
            pushpin = Pushpin(self.web_port)
            self.exits.callback(pushpin.close)
            self.env["GRIP_URL"] = pushpin.grip_url
            # As on the other side. Streams that it holds itself each keep a connection, and
            # with a pool there could be no more than it has.
            self.env["ES_POOL"] = "10"
            self.port = pushpin.port
            self.parts["pushpin"] = pushpin.process

    @classmethod
    def migrate(cls, python: Path, url: str) -> None:
        """Make its tables."""
        env = {"DJANGO_SETTINGS_MODULE": "settings", "ES_DB": url}
        subprocess.run(
            [str(python), "manage.py", "migrate", "-v", "0"],
            cwd=PEER, env={**os.environ, **env}, check=True,
        )  # fmt: skip

    @property
    def cwd(self) -> Path:
        return PEER

    def path(self, channel: str) -> str:
        return f"/events/?channel={channel}"

    def event_id(self, channel: str, number: int) -> str:
        return f"{channel}:{number}"

    def start_web(self) -> Process:
        process = Process(
            [
                self.python, "-m", "uvicorn", "project:application",
                "--port", str(self.web_port), "--log-level", "critical",
                "--timeout-graceful-shutdown", "2",
            ],
            env=self.env, cwd=PEER,
        )  # fmt: skip
        self.exits.callback(process.stop)
        process.wait_until(lambda: is_listening(self.web_port), "the peer listens")
        self.parts["web"] = process
        return process

    def start_worker(self) -> None:
        """It has none: it publishes from the sender."""

    def stop(self) -> None:
        """End the web process at once, as on the other side."""
        part = self.parts.pop("web", None)
        if part is not None:
            part.kill()


class LoadClient:
    """The load client's process."""

    def __init__(self, port: int, paths: list[str], **options: object) -> None:
        argv = [
            sys.executable,
            "-m",
            "tests.bench.load",
            "127.0.0.1",
            str(port),
            *paths,
        ]
        for name, value in options.items():
            flag = f"--{name.replace('_', '-')}"
            if value is True:
                argv.append(flag)
            else:
                for each in value if isinstance(value, list) else [value]:
                    argv += [flag, str(each)]
        self.process = Process(argv)

    def _line(self, number: int) -> dict[str, Any] | None:
        lines = self.process.output().splitlines()
        if len(lines) > number and lines[number].endswith("}"):
            found: dict[str, Any] = json.loads(lines[number])
            return found
        return None

    def until_open(self, *, timeout: float = 120) -> dict[str, Any]:
        """Wait until every stream is open."""
        return self.process.wait_until(
            lambda: self._line(0), "all streams are open", timeout=timeout
        )

    def result_so_far(self) -> dict[str, Any] | None:
        """Return what was received, if it has ended."""
        for number in (1, 0):
            line = self._line(number)
            if line is not None and "deliveries" in line:
                return line
        return None

    def result(self, *, timeout: float = 300) -> dict[str, Any]:
        """Wait for the end, and return what was received."""

        found = wait_for(
            self.result_so_far, "the load client has ended", timeout=timeout
        )
        self.process.stop()
        return found


@contextmanager
def load(port: int, paths: list[str], **options: object) -> Iterator[LoadClient]:
    """Give a load client that is ended with the block."""
    client = LoadClient(port, paths, **options)
    try:
        yield client
    finally:
        client.process.stop()
