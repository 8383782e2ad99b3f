"""`python -m tests.proof.hosts SECONDS [SEED]`: several machines, one of them down at a time.

Two web hosts, two workers (beat on the first), two Pushpins, PostgreSQL, Valkey, nginx in
front of all, and a host of clients: each in a network namespace, with traffic among them
only. Half of the clients are held by the Pushpins, half by the web processes, and nginx
spreads both. Writers send through it, too. Again and again one host loses its link, or its
link and all its processes, and gets them back some seconds later. In the end every client
must have each event that the database has, in order and once.
"""

from __future__ import annotations

import os
import random
import sys
import time

from tests.proof.hosts.clients import Clients
from tests.proof.hosts.installation import VICTIMS, Hosts


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
            # Every client is behind the balancer: its power cut, in the first round, is the
            # one that none of them sits out.
            is_round_first = count < len(VICTIMS)
            is_kill = (victim == "lb" and is_round_first) or chance.random() < 0.6
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
            f"{[sum(r.catch_ups for r in c.readers) for c in clients.crowds]} catch-ups"
        )
        assert clients.sent > 100
        for crowd, held in zip(clients.crowds, ("Pushpin", "web"), strict=True):
            spared = [r.name for r in crowd.readers if not r.reconnects]
            assert not spared, f"no fault has hit {spared}, held by {held}"
            assert any(r.catch_ups for r in crowd.readers), (
                f"no reader held by {held} has come back to events that it had missed"
            )
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
