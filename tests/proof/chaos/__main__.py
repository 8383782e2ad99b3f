"""Run once, and judge."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import time
import urllib.request
from typing import Any

from tests.proof.chaos.installation import PRUNE_AFTER, READ_LOG, Installation
from tests.proof.chaos.judge import (
    Evidence,
    collect_rows,
    judge,
    print_recovery,
    read_records,
)
from tests.support.postgres import postgres
from tests.support.processes import ROOT, Process, python
from tests.support.sse import Crowd, Reader

ROOMS = [f"room-{n}" for n in range(8)]
USERS = 100
MEMBERS = 24
READERS = 60
WRITERS = 3
KICK_EVERY = 4.0
RECOVERY_SECONDS = 120.0
LOGS = ROOT / "var" / "chaos"

CREATE_USERS = f"""
import json
from django.contrib.auth.models import Group, User
group = Group.objects.create(name="members")
users = [User.objects.create(username=f"user-{{n}}") for n in range({USERS})]
for user in users[:{MEMBERS}]:
    user.groups.add(group)
print(json.dumps([user.pk for user in users]))
"""

COUNT = """
from eventstream.storage import get_storage
from eventstream.targets import get_targets
print(get_storage().count_undelivered("default", list(get_targets())))
"""

READ_CURSORS = """
from eventstream.models import Cursor, Job
for row in [*Cursor.objects.order_by("target", "partition").values(), *Job.objects.values()]:
    print(row)
"""


class Chaos:
    """One run."""

    def __init__(self, here: Installation, chance: random.Random, seed: str) -> None:
        self.here = here
        self.chance = chance
        self.seed = seed
        self.kick_chance = random.Random(f"kicks {seed}")
        self.faults: list[tuple[str, float, float]] = []
        self.cookies: dict[int, str] = {}

    def _log_in(self, users: list[int]) -> None:
        for pk in users:
            address = f"http://127.0.0.1:{self.here.web_ports[0]}/login/{pk}/"
            with urllib.request.urlopen(address, timeout=10) as response:
                cookie = response.headers["Set-Cookie"]
            self.cookies[pk] = cookie.partition(";")[0]

    def crowds(self, users: list[int]) -> dict[str, Crowd]:
        """Return the clients: public rooms, private channels and members, on all holders."""
        self._log_in(users)
        port = self.here.links["Pushpin 1's clients"].port
        first = f"http://127.0.0.1:{port}"
        second = self.here.pushpins[1].url
        direct = [f"http://127.0.0.1:{port}" for port in self.here.web_ports]
        rooms = [ROOMS[n % len(ROOMS)] for n in range(READERS)]
        found = {
            "rooms, Pushpin 1": Crowd(first, rooms),
            "rooms, Pushpin 2": Crowd(second, rooms),
            "rooms, direct": Crowd(direct[1], rooms),
        }
        for name, url in {"Pushpin 2": second, "direct": direct[0]}.items():
            found[f"private, {name}"] = self._private(url, users)
            members = Crowd(url, ["members"] * MEMBERS)
            members.stops_when_refused = True
            self._own(members, users[:MEMBERS])
            found[f"members, {name}"] = members
        return found

    def _own(self, crowd: Crowd, users: list[int]) -> None:
        for reader, pk in zip(crowd.readers, users, strict=True):
            reader.owner, reader.cookie = str(pk), self.cookies[pk]

    def _private(self, url: str, users: list[int]) -> Crowd:
        crowd = Crowd(url, [f"private-{pk}" for pk in users])
        self._own(crowd, users)
        return crowd

    async def read_all_again(
        self, users: list[int], log: dict[str, Any]
    ) -> dict[str, Crowd]:
        """Have everybody page through the whole log at once, in small pages."""
        first: dict[str, int] = {}
        for _, _, _, _, channel, eid, *_ in log["rows"]:
            if eid is not None:
                first[channel] = min(eid, first.get(channel, eid))
        here = self.here
        urls = {
            "Pushpin 1": here.pushpins[0].url,
            "Pushpin 2": here.pushpins[1].url,
            "direct": f"http://127.0.0.1:{here.web_ports[1]}",
        }
        crowds = {}
        for name, url in urls.items():
            crowd = crowds[f"all again, {name}"] = self._private(url, users)
            crowd.began_late = True
            for reader in crowd.readers:
                floor = first.get(reader.name, 1 + log["heads"].get(reader.name, 0)) - 1
                reader.last_id = f"{reader.name}:{floor}"
                reader.reset_from[0] = floor
        # Pushpin answers to some of a crowd that comes at once after a minute only.
        starts = [c.start(per_second=100, within=90) for c in crowds.values()]
        await asyncio.gather(*starts)
        return crowds

    async def run(self, seconds: float) -> tuple[Evidence, list[str]]:
        """Return what was seen, and what is wrong."""
        here, loop = self.here, asyncio.get_running_loop()
        users: list[int] = json.loads(here.stack.run(CREATE_USERS))
        here.members = users[:MEMBERS]
        crowds = self.crowds(users)
        for crowd in crowds.values():
            await crowd.start(per_second=100)
        files = [here.stack.directory / f"writer-{n}" for n in range(WRITERS)]
        channels = [*ROOMS * 4, *["members"] * 4, *[f"private-{pk}" for pk in users]]
        writers = [
            python(
                "-m", "tests.proof.chaos.writer", f"w{n}", str(path), str(seconds),
                self.seed, *channels, env=here.writing,
            )
            for n, path in enumerate(files)
        ]  # fmt: skip
        kicks = asyncio.create_task(self._kick_now_and_then())
        await loop.run_in_executor(None, self._break_things, seconds)
        kicks.cancel()
        await asyncio.gather(kicks, return_exceptions=True)
        for writer in writers:
            await loop.run_in_executor(None, writer.wait, 60)
            writer.stop()
        ended = time.monotonic()
        wrong = await self._recover(crowds)
        print(
            f"all is quiet {time.monotonic() - ended:.1f} s after the end", flush=True
        )
        log = json.loads(await loop.run_in_executor(None, here.stack.run, READ_LOG))
        crowds |= await self.read_all_again(users, log)
        wrong += await self._recover(crowds)
        for crowd in crowds.values():
            await crowd.stop()
        seen = Evidence(
            crowds=crowds, records=read_records(files),
            rows=collect_rows([before for before, _ in here.prunings] + [log]),
            heads=log["heads"],
            recorded=here.recorder.items, kicked=here.kicked, faults=self.faults,
            prunings=here.prunings, prune_after=PRUNE_AFTER,
        )  # fmt: skip
        seen.counts["processes that ended by themselves"] = len(here.ended)
        return seen, wrong + judge(seen)

    def _break_things(self, seconds: float) -> None:
        began = time.monotonic()
        for name in self.here.order():
            time.sleep(self.chance.uniform(0.3, 1.0))
            if time.monotonic() - began > seconds:
                return
            print(
                f"  {time.monotonic() - began:5.1f} s  {time.strftime('%H:%M:%S')}  {name}",
                flush=True,
            )
            at = time.time()
            self.here.faults()[name]()
            self.faults.append((name, at, time.time()))
            self.here.revive()

    async def _kick_now_and_then(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.kick_chance.uniform(0, 2 * KICK_EVERY))
            await loop.run_in_executor(None, self.here.kick)

    async def _recover(self, crowds: dict[str, Crowd]) -> list[str]:
        """Wait until nothing is undelivered and every client has its channel's last id."""
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        waiting, behind = "?", ["?"]
        while time.monotonic() - began < RECOVERY_SECONDS:
            await loop.run_in_executor(None, self.here.revive)
            waiting = (
                await loop.run_in_executor(None, self.here.stack.run, COUNT)
            ).strip()
            log = json.loads(
                await loop.run_in_executor(None, self.here.stack.run, READ_LOG)
            )
            behind = [
                f"{where}, {reader.state()}"
                for where, crowd in crowds.items()
                for reader in crowd.readers
                if not self._is_done(crowd, reader, log["heads"])
            ]
            if waiting == "0" and not behind:
                return []
            await asyncio.sleep(0.5)
        print(await loop.run_in_executor(None, self.here.stack.run, READ_CURSORS))
        wrong = [f"{waiting} events are still undelivered"] if waiting != "0" else []
        return wrong + [f"still behind: {name}" for name in behind[:5]]

    def _is_done(self, crowd: Crowd, reader: Reader, heads: dict[str, int]) -> bool:
        if crowd.stops_when_refused and int(reader.owner) in self.here.kicked:
            return reader.refusals > 0
        return reader.position >= heads.get(reader.name, 0)

    def save_logs(self) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        processes: dict[str, Process] = dict(self.here.processes)
        for name, process in processes.items():
            (LOGS / f"{name}.log").write_text(process.output())
        for number, text in enumerate(self.here.ended):
            (LOGS / f"ended-{number}.log").write_text(text)
        for number, pushpin in enumerate(self.here.pushpins, 1):
            with contextlib.suppress(OSError):
                (LOGS / f"pushpin {number}.log").write_text(pushpin.log())


def main() -> int:
    """Return how much was wrong."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    seed = sys.argv[2] if len(sys.argv) > 2 else os.urandom(4).hex()
    print(f"make chaos SECONDS={seconds:g} SEED={seed}", flush=True)
    chance = random.Random(seed)
    # Durable against its own crash, though not against the machine's.
    with postgres(options=("fsync=off",)) as server:
        here = Installation(server, chance)
        try:
            here.start()
            chaos = Chaos(here, chance, seed)
            seen, wrong = asyncio.run(chaos.run(seconds))
            if wrong:
                chaos.save_logs()
        finally:
            here.close()
    for text in here.ended:
        name, _, output = text.partition(": ")
        print(f"ended by itself: {name}: {output.strip().rpartition(chr(10))[2][:200]}")
    print_recovery(seen)
    for name, count in sorted(seen.counts.items()):
        print(f"{count:8} {name}")
    if seconds >= 60:
        happened = (
            "catch-ups", "commit-order inversions", "duplicates at the recording proxy",
            "events pruned", "events rolled back", "kicks",
        )  # fmt: skip
        wrong += [f"no {name}: this proves little" for name in happened if not seen.counts[name]]  # fmt: skip
    for text in wrong[:20]:
        print(f"WRONG  {text}")
    print(f"FAILED: {len(wrong)}" if wrong else "PASSED")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(bool(main()))
