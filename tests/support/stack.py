"""Web, worker and beat processes of the tests' project, around real servers."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from tests.support.postgres import Postgres
from tests.support.processes import (
    ROOT,
    Process,
    free_port,
    is_listening,
    python,
    wait_for,
)
from tests.support.pushpin import Pushpin
from tests.support.valkey import Valkey

WORKER = [
    "-P", "threads", "-c", "4", "-Q", "celery,eventstream", "-l", "INFO",
    "--without-mingle",  # a second at each start, waiting for other workers' revoked tasks
]  # fmt: skip

_ADDRESSES = {"ES_DB", "ES_SQLITE", "ES_REDIS", "ES_GRIP"}
_migrated: dict[tuple[tuple[str, str], ...], bytes] = {}
"""What `migrate` has made of an empty SQLite file, by the environment it had."""

# Beat counts from then on.
_WRITTEN_NOW = "UPDATE django_celery_beat_periodictask SET date_changed = "


def migrated_database(server: Postgres, name: str) -> str:
    """Create a database that has our tables, a copy of the server's first; return its URL."""
    template = "migrated"
    if template not in server.databases:
        url = server.create_database(template)
        Stack(database_url=url, with_valkey=False).close()
    url = server.create_database(name, template=template)
    with psycopg.connect(url) as connection:
        connection.execute(_WRITTEN_NOW + "now()")
    return url


class Stack:
    """A whole installation. `web`, `worker` and `beat` are the last started.

    Args:
        database_url: PostgreSQL; None for a new SQLite file.
        with_pushpin: Streams are held by Pushpin, else by the web process.
        with_valkey: There is a bus and broker; without, no worker can be started.
        env: More environment, for every process.
        is_migrated: The database has our tables already.
    """

    def __init__(
        self,
        *,
        database_url: str | None = None,
        with_pushpin: bool = False,
        with_valkey: bool = True,
        env: dict[str, str] | None = None,
        is_migrated: bool = False,
    ) -> None:
        self._exits = ExitStack()
        self._started: list[Process] = []
        try:
            self._build(database_url, with_pushpin, with_valkey, env or {})
            if not is_migrated:
                self._migrate()
        except BaseException:
            self.close()
            raise

    def _build(
        self,
        database_url: str | None,
        with_pushpin: bool,
        with_valkey: bool,
        env: dict[str, str],
    ) -> None:
        directory = self._exits.enter_context(
            tempfile.TemporaryDirectory(prefix="es-", ignore_cleanup_errors=True)
        )
        self.directory = Path(directory)
        self.web_port = free_port()
        self.env = {
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "ES_DB": "",
            "ES_SQLITE": str(self.directory / "db.sqlite3"),
            "ES_REDIS": "",
            "ES_GRIP": "",
            **env,
        }
        if database_url:
            self.env["ES_DB"] = database_url
        self.valkey: Valkey | None = None
        if with_valkey:
            self.valkey = self._exits.enter_context(Valkey())
            self.env["ES_REDIS"] = self.valkey.url
        self.pushpin: Pushpin | None = None
        self.url = f"http://127.0.0.1:{self.web_port}"
        if with_pushpin:
            self.pushpin = Pushpin(self.web_port)
            self._exits.callback(self.pushpin.close)
            self.env["ES_GRIP"] = self.pushpin.grip_url
            self.url = self.pushpin.url
        self.web: Process | None = None
        self.worker: Process | None = None
        self.beat: Process | None = None

    def _migrate(self) -> None:
        """Migrate; or, as that takes seconds, write down what it made for a stack like this."""
        if self.env["ES_DB"]:
            self.manage("migrate", "-v", "0")
            return
        path = Path(self.env["ES_SQLITE"])
        like = tuple(sorted((k, v) for k, v in self.env.items() if k not in _ADDRESSES))
        if like not in _migrated:
            self.manage("migrate", "-v", "0")
            _migrated[like] = path.read_bytes()
            return
        path.write_bytes(_migrated[like])
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(_WRITTEN_NOW + "strftime('%Y-%m-%d %H:%M:%f', 'now')")

    # --- processes

    def manage(self, *arguments: str) -> str:
        """Run a management command and return what it printed."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT, env={**os.environ, **self.env}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, code: str) -> str:
        """Run Python code with Django set up, in a process of its own."""
        return self.manage("shell", "--no-imports", "-c", code)

    def start_web(
        self, *, port: int | None = None, limit: int = 2, extra: Sequence[str] = ()
    ) -> Process:
        """Start uvicorn and wait until it answers.

        Args:
            port: Another than the stack's.
            limit: Seconds that it waits for open streams when it is to stop.
            extra: More of uvicorn's options.
        """
        port = port or self.web_port
        self.web = process = self._launch(
            "uvicorn", "tests.asgi:application", "--port", str(port),
            "--timeout-graceful-shutdown", str(limit), "--log-level", "warning", *extra,
        )  # fmt: skip
        process.wait_until(lambda: is_listening(port), "uvicorn listens")
        return process

    def kill_and_restart_holders(self) -> None:
        """SIGKILL whoever holds streams, web process and Pushpin, and start them again."""
        assert self.web
        self.web.kill()
        if self.pushpin:
            self.pushpin.process.kill()
            self.pushpin.start()
        self.start_web()

    def start_worker(self, options: Sequence[str] = WORKER) -> Process:
        """Start a Celery worker and wait until it takes tasks."""
        self.worker = process = self._launch(
            "celery", "-A", "tests", "worker", *options
        )
        process.wait_until(lambda: "ready." in process.output(), "the worker is ready")
        return process

    def start_beat(self) -> Process:
        """Start Celery beat."""
        self.beat = process = self._launch(
            "celery", "-A", "tests", "beat", "-l", "INFO", "--pidfile="
        )
        process.wait_until(lambda: "beat: Starting" in process.output(), "beat runs")
        return process

    def _launch(self, module: str, *arguments: str) -> Process:
        process = self._exits.enter_context(
            python("-m", module, *arguments, env=self.env)
        )
        self._started.append(process)
        return process

    # --- the application

    def send(self, channel: str, count: int = 1, **body: Any) -> str:
        """Have the web process send events; return the position afterwards.

        Each event's data is its number, 0 to count - 1, unless `data` is given.
        """
        content = json.dumps({"channel": channel, "count": count, **body}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.web_port}/send/", data=content
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            position: str = json.loads(response.read())["position"]
        return position

    def wait_until_numbered(self, channel: str, eid: int) -> None:
        """Wait until the event with this id exists, so that a client may know it."""

        def is_there() -> bool:
            return int(self.send(channel, 0).rpartition(":")[2]) >= eid

        wait_for(is_there, f"{channel}:{eid} is numbered")

    def log_in(self, user_pk: int) -> str:
        """Return the cookie header of a session of this user."""
        address = f"http://127.0.0.1:{self.web_port}/login/{user_pk}/"
        with urllib.request.urlopen(address, timeout=10) as response:
            cookie: str = response.headers["Set-Cookie"]
        return cookie.partition(";")[0]

    def close(self) -> None:
        """End everything, the last started first; our own processes at once."""
        for process in self._started:
            if process.is_running:
                process.send_signal(signal.SIGKILL)
        self._exits.close()


@contextmanager
def running(
    *, worker: bool = True, beat: bool = False, **arguments: Any
) -> Iterator[Stack]:
    """Give a stack with its processes started."""
    stack = Stack(**arguments)
    try:
        stack.start_web()
        if worker:
            stack.start_worker()
        if beat:
            stack.start_beat()
        yield stack
    finally:
        stack.close()
