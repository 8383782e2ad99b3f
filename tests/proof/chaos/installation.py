"""The processes of a chaos run, and what can happen to them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import psutil
import psycopg
import redis

from tests.support.fault_proxy import FaultProxy, Mode
from tests.support.grip_endpoint import GripEndpoint, stored_events
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import Postgres
from tests.support.processes import Process, free_port, is_listening, python
from tests.support.pushpin import KEY, Pushpin
from tests.support.stack import WORKER, Stack

PRUNE_AFTER = 20.0
"""Seconds after which the runs prune; clients that are away for longer are reset."""

READ_LOG = """
import json
import time
began = time.monotonic()
from django.db.models import F
from django.db.models.functions import Extract, Now
from eventstream.models import Channel, Event
rows = Event.objects.filter(position__isnull=False).order_by("partition", "position")
names = "id", "partition", "position", "kind", "channel", "eid", "data"
ages = Extract(Now() - F("created"), "epoch")
heads = dict(Channel.objects.values_list("name", "last_eid"))
print(json.dumps({"rows": list(rows.values_list(*names, ages)), "heads": heads}, default=float))
"""

PRUNE = f"""{READ_LOG}
from eventstream.models import Cursor
from eventstream.storage import get_storage
from eventstream.targets import get_targets
storage = get_storage()
failing = Now() - F("failing_since")
for p in storage.partitions("default"):
    storage.prune("default", p, retention={PRUNE_AFTER}, targets=list(get_targets()))
left = dict(rows.order_by("-position").values_list("partition", "position"))
lags = Cursor.objects.values_list("partition", "target", "watermark", Extract(failing, "epoch"))
took = time.monotonic() - began
print(json.dumps({{"first": left, "cursors": list(lags), "took": took}}, default=float))
"""
"""Prints the log as it was before, the first position that is left of each partition, how
far each target was, and how many seconds it took."""

PAGE_SIZE = 5
BATCH_SIZE = 4

ALWAYS = [
    "publish endpoint is mute",
    "worker killed",
    "PostgreSQL frozen",
    "pruned",  # when there is what is old enough
]

KICK = """
from django.contrib.auth import get_user_model
from django.db import transaction
from eventstream import channel_permission_changed
user = get_user_model().objects.get(pk={pk})
with transaction.atomic():
    user.groups.clear()
    channel_permission_changed(user, "members")
"""


class Server(Protocol):
    """What can be stopped, and started again on the same port."""

    process: Process

    def start(self) -> Process: ...


class Installation:
    """Two of everything, with a fault proxy on each of five links.

    Web 1, worker 1 and the writers reach Valkey through a fault proxy, web 1 and worker 1
    PostgreSQL, too; web 2 and worker 2 go through PgBouncer. Worker 2's clock is an hour
    ahead, worker 1's lease one second. A third proxy only records what is published.
    """

    def __init__(self, server: Postgres, chance: random.Random) -> None:
        self._exits = contextlib.ExitStack()
        self.server = server
        self.chance = chance
        self.members: list[int] = []
        self.prunings: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.kicked: dict[int, float] = {}
        self.ended: list[str] = []
        self._busy = threading.Lock()
        url = server.create_database("chaos")
        self.recorder = self._exits.enter_context(GripEndpoint())
        self.stack = Stack(database_url=url)
        self._exits.callback(self.stack.close)
        valkey = self.stack.valkey
        assert valkey is not None
        self.valkey = valkey
        self.bouncer = PgBouncer(server.port)
        self._exits.callback(self.bouncer.close)
        self.web_ports = (self.stack.web_port, free_port())
        self.links: dict[str, FaultProxy] = {}
        for name, port in {
            "Valkey": valkey.port,
            "PostgreSQL": server.port,
            "web 1": self.web_ports[0],
        }.items():
            self._link(name, port)
        self.pushpins = [
            Pushpin(self.links["web 1"].port),
            Pushpin(self.web_ports[1]),
        ]
        for pushpin in self.pushpins:
            self._exits.callback(pushpin.close)
        self._link("Pushpin 1's publish port", self.pushpins[0].config.publish_port)
        self._link("Pushpin 1's clients", self.pushpins[0].port)
        publish_port = self.links["Pushpin 1's publish port"].port
        proxies = [
            f"http://127.0.0.1:{publish_port}/?key={KEY}",
            self.pushpins[1].grip_url,
            self.recorder.url,
        ]
        shared = {"ES_GRIP": " ".join(proxies), "ES_LINK_TIMEOUT": "10"}
        far_valkey = f"redis://127.0.0.1:{self.links['Valkey'].port}/0"
        far_database = f"postgres://postgres@127.0.0.1:{self.links['PostgreSQL'].port}/chaos"  # fmt: skip
        self.stack.env |= shared
        self.far = {
            **self.stack.env,
            "ES_REDIS": far_valkey,
            "ES_DB": far_database,
            # As deploy.md recommends where no PgBouncer is between.
            "ES_DB_OPTIONS": json.dumps({"prepare_threshold": 2}),
        }
        # Small pages, so that hundreds of clients page at once after each fault.
        self.stack.env["ES_SET"] = json.dumps({"EVENTSTREAM_PAGE_SIZE": PAGE_SIZE})
        # Small batches, so that full ones are in flight as after any longer fault.
        self.far["ES_SET"] = json.dumps(
            {
                "EVENTSTREAM_PAGE_SIZE": PAGE_SIZE,
                "EVENTSTREAM_LEASE_SECONDS": 1,
                "EVENTSTREAM_BATCH_SIZE": BATCH_SIZE,
            }
        )
        self.pooled = {**self.stack.env, "ES_DB": self.bouncer.url_of(url)}
        self.writing = {**self.stack.env, "ES_REDIS": far_valkey}
        self.processes: dict[str, Process] = {}
        self._url = url

    def _link(self, name: str, port: int) -> None:
        self.links[name] = FaultProxy(port)
        self._exits.callback(self.links[name].close)

    # --- starting

    def start(self) -> None:
        for name in self._commands():
            self.processes[name] = self._start(name)
        for name, process in self.processes.items():
            is_ready = partial(self._is_ready, name)
            process.wait_until(is_ready, f"{name} is ready", timeout=60)

    def _commands(self) -> dict[str, tuple[list[str], dict[str, str]]]:
        def web(port: int) -> list[str]:
            return [
                "-m", "uvicorn", "tests.asgi:application", "--port", str(port),
                "--timeout-graceful-shutdown", "2", "--log-level", "warning",
            ]  # fmt: skip

        worker = ["-m", "celery", "-A", "tests", "worker", *WORKER]
        beat = ["-m", "celery", "-A", "tests", "beat", "-l", "INFO", "--pidfile="]
        return {
            "web 1": (web(self.web_ports[0]), self.far),
            "web 2": (web(self.web_ports[1]), self.pooled),
            "worker 1": ([*worker, "-n", "one@%h"], self.far),
            "worker 2": ([*worker, "-n", "two@%h"], self.pooled),
            "beat 1": (beat, self.stack.env),
            "beat 2": (beat, self.pooled),
        }

    def _start(self, name: str) -> Process:
        arguments, env = self._commands()[name]
        if name == "worker 2":
            faketime = shutil.which("faketime")
            assert faketime, "faketime is missing: apt-get install faketime"
            env = {**env, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
            argv = [faketime, "-f", "+1h", sys.executable, *arguments]
            return self._exits.enter_context(Process(argv, env=env))
        return self._exits.enter_context(python(*arguments, env=env))

    def _is_ready(self, name: str) -> bool:
        words = {"worker": "ready.", "beat": "beat: Starting"}
        word = words.get(name.split()[0])
        if word:
            return word in self.processes[name].output()
        return is_listening(self.web_ports[int(name[-1]) - 1])

    def revive(self) -> None:
        """Start again what has ended by itself, as every installation's supervisor does."""
        with self._busy:
            for name, process in self.processes.items():
                if not process.is_running:
                    self.ended.append(f"{name}: {process.output()[-1500:]}")
                    self.processes[name] = self._start(name)
            for number, pushpin in enumerate(self.pushpins, 1):
                if not pushpin.process.is_running:
                    self.ended.append(f"Pushpin {number}: {pushpin.log()[-1500:]}")
                    pushpin.process.kill()  # parts that the runner has left
                    pushpin.start()

    # --- faults

    def faults(self) -> dict[str, Callable[[], None]]:
        """Return everything that can happen, by name."""
        found: dict[str, Callable[[], None]] = {}
        for kind in ("web", "worker", "beat"):
            found[f"{kind} killed"] = partial(self._kill, kind)
            found[f"{kind} frozen"] = partial(self._freeze, kind)
            found[f"{kind} terminated"] = partial(self._terminate, kind)
        servers: dict[str, Server] = {
            "Valkey": self.valkey,
            "Pushpin": self.chance.choice(self.pushpins),
            "PgBouncer": self.bouncer,
        }
        for name, server in servers.items():
            found[f"{name} killed"] = partial(self._restart, server, signal.SIGKILL)
            found[f"{name} frozen"] = partial(self._pause, server)
            found[f"{name} terminated"] = partial(self._restart, server, signal.SIGTERM)
        found |= {
            "Valkey flushed": lambda: self._valkey("FLUSHALL"),
            "Valkey at maxmemory": self._fill_valkey,
            "PostgreSQL restarted": partial(self._stop_postgres, signal.SIGINT),
            "PostgreSQL crashed": partial(self._stop_postgres, signal.SIGQUIT),
            "PostgreSQL frozen": self._freeze_postgres,
            "connections terminated": self._terminate_connections,
            "long transaction": self._long_transaction,
            "pruned": self.prune,
            "publish endpoint hangs": self._hang_recorder,
            "publish endpoint is mute": self._mute_recorder,
        }
        for mode in Mode:
            if mode is not Mode.PASS:
                found[f"link: {mode.value}"] = partial(self._break_link, mode)
        return found

    def order(self) -> Iterator[str]:
        """Give the names of faults, each as often as any other, in random order."""
        prune_from = time.monotonic() + PRUNE_AFTER + 10
        while True:
            names = sorted(self.faults())
            self.chance.shuffle(names)
            # Without these a run proves little: they come early enough for a short one.
            for place, name in enumerate(ALWAYS):
                names.remove(name)
                names.insert(3 * (place + 1), name)
            while names:
                name = names.pop(0)
                if name == "pruned" and names and time.monotonic() < prune_from:
                    names.insert(1, name)  # nothing is old enough: one more before it
                    continue
                yield name

    def _pick(self, kind: str) -> str:
        return self.chance.choice([n for n in self.processes if n.startswith(kind)])

    def _kill(self, kind: str) -> None:
        name = self._pick(kind)
        with self._busy:
            self.processes[name].kill()
            self.processes[name] = self._start(name)

    def _terminate(self, kind: str) -> None:
        name = self._pick(kind)
        with self._busy:
            self.processes[name].stop()
            self.processes[name] = self._start(name)

    def _freeze(self, kind: str) -> None:
        process = self.processes[self._pick(kind)]
        process.send_signal(signal.SIGSTOP)
        time.sleep(self.chance.uniform(0.5, 3))
        process.send_signal(signal.SIGCONT)

    def _pause(self, server: Server) -> None:
        process = server.process
        process.send_signal(signal.SIGSTOP)
        time.sleep(self.chance.uniform(0.5, 2))
        process.send_signal(signal.SIGCONT)

    def _valkey(self, *command: str) -> None:
        with contextlib.suppress(redis.RedisError):
            self.valkey.client.execute_command(*command)  # type: ignore[no-untyped-call]

    def _restart(self, server: Server, number: signal.Signals) -> None:
        process = server.process
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        time.sleep(self.chance.uniform(0.2, 2))
        server.start()

    def _fill_valkey(self) -> None:
        self._valkey("CONFIG", "SET", "maxmemory", "100kb")
        time.sleep(self.chance.uniform(1, 3))
        self._valkey("CONFIG", "SET", "maxmemory", "0")

    def _stop_postgres(self, number: signal.Signals) -> None:
        """SIGINT is a fast shutdown; after SIGQUIT it has to recover."""
        process = self.server.process
        os.kill(process.pid, number)
        process.wait(15)
        self.server.start()

    def _freeze_postgres(self) -> None:
        """Stop the whole cluster, as a virtual machine that is paused or out of memory does.

        Connections stay, also those that are in the middle of a transaction.
        """
        postmaster = psutil.Process(self.server.process.pid)
        postmaster.suspend()  # first: it starts no more backends
        frozen = postmaster.children(recursive=True)
        for process in frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        time.sleep(self.chance.uniform(1, 5))
        for process in [*frozen, postmaster]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def _terminate_connections(self) -> None:
        with psycopg.connect(self.server.url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = 'chaos' AND pid <> pg_backend_pid()"
            )

    def _long_transaction(self) -> None:
        """Leave a snapshot open for 8 s, as a report or a dump does."""

        def hold() -> None:
            with contextlib.suppress(psycopg.Error), psycopg.connect(self._url) as held:
                held.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                held.execute("SELECT count(*) FROM eventstream_event")
                time.sleep(8)

        threading.Thread(target=hold, daemon=True).start()

    def _hang_recorder(self) -> None:
        self.recorder.hang.set()
        time.sleep(self.chance.uniform(1, 8))
        self.recorder.hang.clear()

    def _mute_recorder(self) -> None:
        """Be mute until something was taken in twice: its target tries again meanwhile."""
        deadline = time.monotonic() + 15
        count = len(self.recorder.items)
        self.recorder.is_mute = True
        while time.monotonic() < deadline:
            events = stored_events(self.recorder.items[count:])
            if len(set(events)) < len(events):
                break
            time.sleep(0.1)
        time.sleep(self.chance.uniform(0.5, 2))
        self.recorder.is_mute = False

    def prune(self) -> None:
        before, after = self.stack.run(PRUNE).splitlines()
        self.prunings.append((json.loads(before), json.loads(after)))

    def kick(self) -> None:
        left = [pk for pk in self.members if pk not in self.kicked]
        if not left:
            return
        pk = left[0]
        while True:  # as one does whose database is away: until it is done
            with contextlib.suppress(AssertionError):
                self.stack.run(KICK.format(pk=pk))
                self.kicked[pk] = time.time()
                return
            time.sleep(0.5)

    def _break_link(self, mode: Mode) -> None:
        name = self.chance.choice(sorted(self.links))
        print(f"    {name}", flush=True)
        self.links[name].set_mode(mode)
        time.sleep(self.chance.uniform(1, 4))
        self.links[name].set_mode(Mode.PASS)

    def close(self) -> None:
        self._exits.close()
