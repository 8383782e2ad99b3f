"""The installation: what runs on which host, and how a host is taken down."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from deploy.environment import POSTGRESQL_OPTIONS
from deploy.pushpin import PushpinConfig
from tests.support.hosts import Host, Network
from tests.support.postgres import Postgres
from tests.support.processes import ROOT, Process, is_listening, python, wait_for
from tests.support.pushpin import KEY
from tests.support.stack import WORKER
from tests.support.valkey import Valkey

CHANNELS = [f"room-{n}" for n in range(4)]
SILENCE = 8.0
"""Seconds after which clients, and nginx, give a silent stream up."""
NAMES = (
    "pg",
    "valkey",
    "web1",
    "web2",
    "worker1",
    "worker2",
    "push1",
    "push2",
    "lb",
    "clients",
)
VICTIMS = NAMES[:-1]
WEB, STREAMS, DIRECT = 8000, 7999, 8082
SETTINGS = {"EVENTSTREAM_KEEP_ALIVE": 2, "EVENTSTREAM_DRAIN_SECONDS": 1.0}

NGINX = """
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 1000; }}
http {{
  access_log off;
  upstream web {{ server {web1}:8000 max_fails=1 fail_timeout=2s; server {web2}:8000 max_fails=1 fail_timeout=2s; }}
  upstream push {{ server {push1}:7999 max_fails=1 fail_timeout=2s; server {push2}:7999 max_fails=1 fail_timeout=2s; }}
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_buffering off;
  proxy_connect_timeout 1s;
  proxy_read_timeout {silence}s;
  proxy_next_upstream error timeout http_502 http_503;
  server {{ listen 8082; location / {{ proxy_pass http://web; }} }}
  server {{ listen 7999; location / {{ proxy_pass http://push; }} }}
}}
"""

READ = """
import json
from eventstream.models import Event
rows = Event.objects.filter(eid__isnull=False).order_by("eid").values_list("channel", "data")
found = {}
for channel, data in rows:
    found.setdefault(channel, []).append(data)
print("LOG" + json.dumps([found, Event.objects.filter(eid__isnull=True).count()]))
"""


class Hosts:
    """The installation, spread over the network."""

    def __init__(self) -> None:
        self._exits = contextlib.ExitStack()
        self.directory = Path(
            self._exits.enter_context(
                tempfile.TemporaryDirectory(prefix="eh-", ignore_cleanup_errors=True)
            )
        )
        self.network = self._exits.enter_context(Network(*NAMES))
        self.processes: dict[str, list[Process]] = {name: [] for name in NAMES}
        self._starts: dict[str, Callable[[Host], None]] = {
            "pg": self._start_postgres,
            "valkey": self._start_valkey,
            "web1": self._start_web,
            "web2": self._start_web,
            "worker1": self._start_worker_and_beat,
            "worker2": self._start_worker,
            "push1": self._start_pushpin,
            "push2": self._start_pushpin,
            "lb": self._start_nginx,
        }
        self._postgres: Postgres | None = None
        self._valkey: Valkey | None = None
        self.env: dict[str, str] = {"DJANGO_SETTINGS_MODULE": "tests.settings"}
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise

    def _start_all(self) -> None:
        for name in ("pg", "valkey"):
            self.start(name)
        assert self._postgres is not None
        assert self._valkey is not None
        pg, valkey = self.network["pg"], self.network["valkey"]
        proxies = [self.network[name].address for name in ("push1", "push2")]
        self.env |= {
            "ES_DB": f"postgres://postgres@{pg.address}:{self._postgres.port}/postgres",
            "ES_REDIS": f"redis://{valkey.address}:{self._valkey.port}/0",
            "ES_GRIP": " ".join(f"http://{a}:5561/?key={KEY}" for a in proxies),
            "ES_LINK_TIMEOUT": "5",
            "ES_SET": json.dumps(SETTINGS),
            # A query whose answer was lost with a link is given up.
            "ES_DB_OPTIONS": json.dumps(
                {**POSTGRESQL_OPTIONS, "options": "-c statement_timeout=15s"}
            ),
        }
        self.manage("migrate", "-v", "0")
        for name in VICTIMS[2:]:
            self.start(name)

    # --- a host

    def start(self, name: str) -> None:
        """Start the processes of a host, on it."""
        host = self.network[name]
        with host.entered():
            self._starts[name](host)

    def kill(self, name: str) -> None:
        """End all processes of a host as a power cut does."""
        # Pushpin's children are in groups of their own.
        self.network[name].kill_all()
        for process in self.processes[name]:
            process.kill()
        self.processes[name] = []

    def _start_postgres(self, host: Host) -> None:
        if self._postgres is None:
            # A killed server must have what it has confirmed: no asynchronous commits.
            options = ("fsync=off", "full_page_writes=off", "listen_addresses=*")
            self._postgres = server = Postgres(options=options)
            self._exits.callback(server.close)
            server.trust("192.0.2.0/24")
        else:
            self._postgres.start()
        self.processes[host.name] = [self._postgres.process]

    def _start_valkey(self, host: Host) -> None:
        if self._valkey is None:
            self._valkey = self._exits.enter_context(Valkey(bind="0.0.0.0"))
        else:
            self._valkey.start()
        self.processes[host.name] = [self._valkey.process]

    def _run(self, host: Host, *arguments: str) -> Process:
        process = self._exits.enter_context(python(*arguments, env=self.env))
        self.processes[host.name].append(process)
        return process

    def _start_web(self, host: Host) -> None:
        process = self._run(
            host, "-m", "uvicorn", "tests.asgi:application", "--host", "0.0.0.0",
            "--port", str(WEB), "--timeout-graceful-shutdown", "3",
            "--log-level", "warning",
        )  # fmt: skip
        process.wait_until(lambda: is_listening(WEB), "uvicorn listens")

    def _start_worker(self, host: Host) -> None:
        process = self._run(host, "-m", "celery", "-A", "tests", "worker", *WORKER)
        process.wait_until(lambda: "ready." in process.output(), "the worker is ready")

    def _start_worker_and_beat(self, host: Host) -> None:
        self._start_worker(host)
        self._run(
            host, "-m", "celery", "-A", "tests", "beat", "-l", "INFO", "--pidfile="
        )

    def _start_pushpin(self, host: Host) -> None:
        config = PushpinConfig(
            directory=self.directory / host.name,
            backend=f"{self.network['lb'].address}:{DIRECT}",
            key=KEY,
            host="0.0.0.0",
            publish_host="0.0.0.0",
        )
        process = self._exits.enter_context(Process(config.command()))
        self.processes[host.name] = [process]
        process.wait_until(lambda: is_listening(config.port), "Pushpin listens")
        process.wait_until(lambda: is_listening(config.publish_port), "Pushpin listens")

    def _start_nginx(self, host: Host) -> None:
        directory = self.directory / "lb"
        directory.mkdir(exist_ok=True)
        addresses = {name: self.network[name].address for name in NAMES}
        (directory / "nginx.conf").write_text(
            NGINX.format(directory=directory, silence=int(SILENCE), **addresses)
        )
        argv = ["/usr/sbin/nginx", "-c", str(directory / "nginx.conf")]
        process = self._exits.enter_context(Process([*argv, "-g", "daemon off;"]))
        self.processes[host.name] = [process]
        process.wait_until(lambda: is_listening(STREAMS), "nginx listens")

    # --- all of them

    def revive(self) -> list[str]:
        """Start what has ended by itself again, as systemd does; say what that was."""
        revived = []
        for name in VICTIMS:
            ended = [p for p in self.processes[name] if not p.is_running]
            if ended:
                for process in ended:
                    print(f"{name} ended: …{process.output()[-600:]}")
                self.kill(name)
                self.start(name)
                revived.append(name)
        return revived

    def manage(self, *arguments: str) -> str:
        """Run a management command on the clients' host."""
        with self.network["clients"].entered():
            done = subprocess.run(
                [sys.executable, "manage.py", *arguments], cwd=ROOT,
                env={**os.environ, **self.env}, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def log(self) -> dict[str, list[str]]:
        """Return the data of every channel's events, in order; all must be numbered."""

        def read() -> dict[str, list[str]] | None:
            output = self.manage("shell", "--no-imports", "-c", READ)
            found: dict[str, list[str]]
            found, unnumbered = json.loads(output.rpartition("LOG")[2])
            return None if unnumbered else found

        return wait_for(read, "every event is numbered", timeout=60)

    def close(self) -> None:
        self._exits.close()
