"""`python -m tests.proof.hosts SECONDS [SEED]`: several machines, one of them down at a time.

Two web hosts, two workers (beat on the first), two Pushpins, PostgreSQL, Valkey, nginx in
front of all, and a host of clients: each in a network namespace, with traffic among them
only. Half of the clients are held by the Pushpins, half by the web processes, and nginx
spreads both. Writers send through it, too. Again and again one host loses its link, or its
link and all its processes, and gets them back some seconds later. In the end every client
must have each event that the database has, in order and once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from deploy.pushpin import PushpinConfig, command
from tests.support.hosts import Host, Network
from tests.support.postgres import Postgres
from tests.support.processes import ROOT, Process, is_listening, python, wait_for
from tests.support.pushpin import KEY
from tests.support.sse import Crowd
from tests.support.stack import WORKER
from tests.support.valkey import Valkey

CHANNELS = [f"room-{n}" for n in range(4)]
CLIENTS_EACH = 5
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
            "PGOPTIONS": "-c statement_timeout=15s",
            "PGTCPUSERTIMEOUT": "10000",
            "PGCONNECT_TIMEOUT": "3",
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
            [data] = [
                p
                for p in Path(tempfile.gettempdir()).glob("es-pg-*/data")
                if (p / "postmaster.pid").exists()
                and str(server.process.pid) in (p / "postmaster.pid").read_text()
            ]
            with (data / "pg_hba.conf").open("a") as rules:
                rules.write("host all all 192.0.2.0/24 trust\n")
            os.kill(server.process.pid, 1)  # SIGHUP: read it
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
        process = self._exits.enter_context(Process(command(config.write())))
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


class Clients:
    """Readers and a writer, in a thread of their own on their own host."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._lb = hosts.network["lb"].address
        channels = [name for name in CHANNELS for _ in range(CLIENTS_EACH)]
        self.crowds = [
            Crowd(f"http://{self._lb}:{port}", channels) for port in (STREAMS, DIRECT)
        ]
        self.sent = self.refused = 0
        self._are_open = threading.Event()
        self._stop = threading.Event()
        self._goal: asyncio.Future[dict[str, int]]
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._on_host, args=(target,), daemon=True)
            for target in (lambda: asyncio.run(self._read()), self._write)
        ]

    def _on_host(self, target: Callable[[], None]) -> None:
        try:
            with self._hosts.network["clients"].entered():
                target()
        except BaseException as error:
            self._error = error
            self._are_open.set()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()
        assert self._are_open.wait(60), "the streams do not open"
        assert self._error is None, self._error

    async def _read(self) -> None:
        for crowd in self.crowds:
            crowd.patience = SILENCE
            await crowd.start(per_second=100)
        self._loop = asyncio.get_running_loop()
        self._goal = self._loop.create_future()
        self._are_open.set()
        goal = await self._goal
        for crowd in self.crowds:
            await crowd.until(
                lambda crowd=crowd: all(  # type: ignore[misc]
                    len(r.ids) >= goal.get(r.name, 0) for r in crowd.readers
                ),
                within=90,
            )
        await asyncio.sleep(1)  # and nothing twice after it
        for crowd in self.crowds:
            await crowd.stop()

    def _write(self) -> None:
        self._are_open.wait()
        numbers = itertools.count()
        while not self._stop.is_set():
            body = {"channel": CHANNELS[next(numbers) % len(CHANNELS)], "count": 3}
            request = urllib.request.Request(
                f"http://{self._lb}:{DIRECT}/send/", data=json.dumps(body).encode()
            )
            try:
                with urllib.request.urlopen(request, timeout=5):
                    self.sent += 3
            except OSError:
                self.refused += 1  # perhaps written all the same: the database knows
            time.sleep(0.05)

    def finish(self) -> dict[str, list[str]]:
        """Stop writing, wait for the readers, and return what the database has."""
        self._stop.set()
        self._threads[1].join(30)
        log = self._hosts.log()
        goal = {name: len(events) for name, events in log.items()}
        self._loop.call_soon_threadsafe(self._goal.set_result, goal)
        self._threads[0].join(200)
        assert self._error is None, self._error
        return log

    def faults(self, log: dict[str, list[str]]) -> list[str]:
        """Return what any reader misses, has twice, out of order, or otherwise."""
        found = []
        for crowd, held in zip(self.crowds, ("Pushpin", "web"), strict=True):
            for reader in crowd.readers:
                if text := reader.faults(1, len(log[reader.name])):
                    found.append(f"held by {held}: {text}")
                elif reader.data != log[reader.name]:
                    found.append(f"held by {held}: {reader.name}: other data")
                if reader.resets or reader.refusals:
                    found.append(f"held by {held}: {reader.name}: reset or refused")
        return found


def run(seconds: float, seed: int) -> list[str]:
    """Run, with at least one fault for each host; return the faults of delivery."""
    chance = random.Random(seed)
    print(f"seed {seed}")
    hosts = Hosts()
    clients = Clients(hosts)
    try:
        clients.start()
        deadline = time.monotonic() + seconds
        count = 0
        while count < len(VICTIMS) or time.monotonic() < deadline:
            if count % len(VICTIMS) == 0:
                order = chance.sample(VICTIMS, len(VICTIMS))
            victim = order[count % len(VICTIMS)]
            is_kill = chance.random() < 0.6
            pause = chance.uniform(1.5, 3.5)
            print(
                f"{victim}: {'down' if is_kill else 'link cut'} for {pause:.1f} s",
                flush=True,
            )
            hosts.network[victim].cut()
            if is_kill:
                hosts.kill(victim)
            time.sleep(pause)
            hosts.network[victim].mend()
            if is_kill:
                hosts.start(victim)
            time.sleep(1.5)
            if revived := hosts.revive():
                print(f"started again: {', '.join(revived)}")
            count += 1
        log = clients.finish()
        faults = clients.faults(log)
        readers = [reader for crowd in clients.crowds for reader in crowd.readers]
        print(
            f"{count} faults, {sum(map(len, log.values()))} events, {clients.refused} "
            f"sends refused, {len(readers)} readers, "
            f"{sum(r.reconnects for r in readers)} reconnects, "
            f"{sum(r.catch_ups for r in readers)} catch-ups"
        )
        assert clients.sent > 100
        assert sum(r.reconnects for r in readers) > 0, "no fault has hit a reader"
        return faults
    finally:
        hosts.close()


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int.from_bytes(os.urandom(2))
    faults = run(seconds, seed)
    for text in faults:
        print(text)
    print("every client is consecutive" if not faults else f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
