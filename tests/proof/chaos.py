"""`make chaos SECONDS=60 SEED=…`: the real installation, under faults, judged at the end.

PostgreSQL, Valkey, Pushpin, two web processes, two workers and a beat. Clients of both holders
read while writers commit and roll back, and while processes are killed, frozen and
restarted. Then everything runs again, and each client must have every committed event of its channel: once,
in order, with the data that was committed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.support.postgres import Postgres, postgres
from tests.support.processes import ROOT, Process, free_port, python
from tests.support.sse import Crowd
from tests.support.stack import Stack

CHANNELS = [f"room-{n}" for n in range(8)]
CLIENTS = 80
WRITERS = 3
RECOVERY_SECONDS = 90.0
LOGS = ROOT / "var" / "chaos"

WRITER = """
import json, random, sys, time
import django
django.setup()
from django.db import DatabaseError, connection, transaction
from eventstream import send_event
name, path, seconds, seed = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]
chance = random.Random(seed + name)
end = time.monotonic() + seconds
log = open(path, "a", buffering=1)
number, slowest = 0, 0.0
while time.monotonic() < end:
    sent = []
    try:
        with transaction.atomic():
            for _ in range(chance.randint(1, 4)):
                number += 1
                channel = f"room-{chance.randrange(8)}"
                text = f"{name}-{number}"
                began = time.monotonic()
                send_event(channel, "message", text)
                sent.append([channel, text])
            time.sleep(chance.random() * 0.03)
            is_rolled_back = chance.random() < 0.2
            transaction.set_rollback(is_rolled_back)
            began = time.monotonic()
        slowest = max(slowest, time.monotonic() - began)
        outcome = "rolled back" if is_rolled_back else "committed"
    except DatabaseError:
        connection.close()
        outcome = "unknown"
        time.sleep(0.2)
    log.write(json.dumps([outcome, sent]) + "\\n")
    time.sleep(chance.random() * 0.05)
log.write(json.dumps(["slowest", slowest]) + "\\n")
"""


class Chaos:
    """One run.

    Args:
        stack: The installation, not started.
        server: Its database server.
        seed: Of every choice that is made here.
    """

    def __init__(self, stack: Stack, server: Postgres, seed: str) -> None:
        self.stack = stack
        self.server = server
        self.chance = random.Random(seed)
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.second_port = free_port()
        self.webs: dict[int, Process] = {}
        self.workers: list[Process] = []

    def save_logs(self, directory: Path) -> None:
        """Write down what each process said that was running at the end."""
        directory.mkdir(parents=True, exist_ok=True)
        for number, process in enumerate([*self.workers, *self.webs.values()]):
            (directory / f"{number}.log").write_text(process.output())
        if self.stack.beat is not None:
            (directory / "beat.log").write_text(self.stack.beat.output())

    def start(self) -> None:
        for port in (self.stack.web_port, self.second_port):
            self.webs[port] = self.stack.start_web(port=port)
        self.workers = [self.stack.start_worker() for _ in range(2)]
        self.stack.start_beat()

    # --- faults

    def faults(self) -> dict[str, Callable[[], None]]:
        return {
            "worker killed": self.kill_worker,
            "worker frozen": self.freeze_worker,
            "web killed": self.kill_web,
            "Valkey killed": self.kill_valkey,
            "Valkey flushed": self.flush,
            "Pushpin restarted": self.restart_pushpin,
            "PostgreSQL restarted": self.restart_postgres,
        }

    def kill_worker(self) -> None:
        index = self.chance.randrange(2)
        self.workers[index].kill()
        self.workers[index] = self.stack.start_worker()

    def freeze_worker(self) -> None:
        worker = self.chance.choice(self.workers)
        worker.send_signal(signal.SIGSTOP)
        time.sleep(self.chance.uniform(0.5, 4))
        worker.send_signal(signal.SIGCONT)

    def kill_web(self) -> None:
        port = self.chance.choice(list(self.webs))
        self.webs[port].kill()
        self.webs[port] = self.stack.start_web(port=port)

    def kill_valkey(self) -> None:
        assert self.stack.valkey is not None
        self.stack.valkey.process.kill()
        time.sleep(self.chance.uniform(0.2, 3))
        self.stack.valkey.start()

    def flush(self) -> None:
        assert self.stack.valkey is not None
        self.stack.valkey.client.flushall()

    def restart_pushpin(self) -> None:
        assert self.stack.pushpin is not None
        self.stack.pushpin.process.stop()
        time.sleep(self.chance.uniform(0.2, 2))
        self.stack.pushpin.start()

    def restart_postgres(self) -> None:
        self.server.process.stop()
        self.server.start()

    # --- the run

    async def run(self, seconds: float) -> list[str]:
        """Return what is wrong, nothing if all is well."""
        loop = asyncio.get_running_loop()
        direct = f"http://127.0.0.1:{self.second_port}"
        half = CLIENTS // 2
        names = [CHANNELS[n % len(CHANNELS)] for n in range(half)]
        crowds = {
            "Pushpin": Crowd(self.stack.url, names),
            "direct": Crowd(direct, names),
        }
        for crowd in crowds.values():
            await crowd.start(per_second=50)
        files = [self.stack.directory / f"writer-{n}" for n in range(WRITERS)]
        writers = [
            python("-c", WRITER, f"w{n}", str(path), str(seconds), self.seed, env=self.stack.env)
            for n, path in enumerate(files)
        ]  # fmt: skip
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(self.chance.uniform(0.5, 2))
            name, fault = self.chance.choice(sorted(self.faults().items()))
            self.counts[name] += 1
            print(f"  {seconds - (end - time.monotonic()):5.1f} s  {name}", flush=True)
            await loop.run_in_executor(None, fault)
        for writer in writers:
            await loop.run_in_executor(None, writer.wait, 60)
            writer.stop()
        wrong = await self._judge(crowds, files)
        for crowd in crowds.values():
            await crowd.stop()
        return wrong

    async def _judge(self, crowds: dict[str, Crowd], files: list[Path]) -> list[str]:
        loop = asyncio.get_running_loop()
        committed, rolled_back, slowest = read_logs(files)
        self.counts["events committed"] = len(committed)
        self.counts["events rolled back"] = len(rolled_back)
        began = time.monotonic()
        log: dict[str, list[str]] = {}
        state: dict[str, int] = {}
        while time.monotonic() - began < RECOVERY_SECONDS:
            state = await loop.run_in_executor(None, self._state)
            log = json.loads(await loop.run_in_executor(None, self.stack.run, READ_LOG))
            behind = [
                reader.name
                for crowd in crowds.values()
                for reader in crowd.readers
                if len(reader.ids) < len(log.get(reader.name, []))
            ]
            if not behind and not state["waiting"]:
                break
            await asyncio.sleep(0.5)
        print(f"recovered in {time.monotonic() - began:.1f} s", flush=True)
        wrong = []
        if state["waiting"]:
            wrong.append(f"{state['waiting']} events are still undelivered")
            print(await loop.run_in_executor(None, self.stack.run, READ_CURSORS))
        stored = {text for texts in log.values() for text in texts}
        if missing := committed - stored:
            wrong.append(f"{len(missing)} committed events are not in the log")
        if ghosts := rolled_back & stored:
            wrong.append(f"{len(ghosts)} events of rolled-back transactions are there")
        wrong += out_of_order(log)
        for name, crowd in crowds.items():
            for reader in crowd.readers:
                texts = log.get(reader.name, [])
                if fault := reader.faults(1, len(texts)):
                    wrong.append(f"{name}: {fault}")
                elif [data.strip('"') for data in reader.data] != texts:
                    wrong.append(f"{name}: {reader.name} has other data than the log")
                if reader.resets:
                    wrong.append(
                        f"{name}: {reader.name} was reset {reader.resets} times"
                    )
                self.counts[f"reconnects, {name}"] += reader.reconnects
        if slowest > 1.5:
            wrong.append(f"a commit took {slowest:.1f} s")
        return wrong

    def _state(self) -> dict[str, int]:
        state: dict[str, int] = json.loads(self.stack.run(READ_STATE))
        return state


READ_LOG = """
import json
from eventstream.models import Event
log = {}
rows = Event.objects.filter(eid__isnull=False).order_by("channel", "eid")
for channel, data in rows.values_list("channel", "data"):
    log.setdefault(channel, []).append(json.loads(data))
print(json.dumps(log))
"""

READ_CURSORS = """
from eventstream.models import Cursor, Job
for row in [*Cursor.objects.order_by("target", "partition").values(), *Job.objects.values()]:
    print(row)
"""

READ_STATE = """
import json
from eventstream.storage import get_storage
from eventstream.targets import get_targets
waiting = get_storage().count_undelivered("default", list(get_targets()))
print(json.dumps({"waiting": waiting}))
"""


def read_logs(files: list[Path]) -> tuple[set[str], set[str], float]:
    """Return what writers committed and rolled back, and the slowest commit's seconds."""
    found: dict[str, set[str]] = {"committed": set(), "rolled back": set(), "unknown": set()}  # fmt: skip
    slowest = 0.0
    for path in files:
        for line in path.read_text().splitlines():
            outcome, content = json.loads(line)
            if outcome == "slowest":
                slowest = max(slowest, content)
            else:
                found[outcome] |= {text for _, text in content}
    return found["committed"], found["rolled back"], slowest


def out_of_order(log: dict[str, list[str]]) -> list[str]:
    """Return the writers whose own order is not kept."""
    wrong = []
    for channel, texts in log.items():
        for writer in {text.partition("-")[0] for text in texts}:
            mine = [
                int(t.partition("-")[2]) for t in texts if t.startswith(f"{writer}-")
            ]
            if mine != sorted(mine):
                wrong.append(f"{channel}: the order of {writer} is not kept")
    return wrong


def main() -> int:
    """Run once; return how much was wrong."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    seed = sys.argv[2] if len(sys.argv) > 2 else os.urandom(4).hex()
    print(f"make chaos SECONDS={seconds:g} SEED={seed}", flush=True)
    with postgres() as server:
        url = server.create_database("chaos")
        env = {"ES_LINK_TIMEOUT": "10"}
        stack = Stack(database_url=url, with_pushpin=True, env=env)
        try:
            chaos = Chaos(stack, server, seed)
            chaos.start()
            wrong = asyncio.run(chaos.run(seconds))
            if wrong:
                chaos.save_logs(LOGS)
        finally:
            stack.close()
    for name, count in sorted(chaos.counts.items()):
        print(f"{count:8} {name}")
    for text in wrong[:20]:
        print(f"WRONG  {text}")
    print("FAILED" if wrong else "PASSED")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(bool(main()))
