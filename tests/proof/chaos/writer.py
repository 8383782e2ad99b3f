"""One of the processes that send: commits, rolls back, repeats, and writes down what it did.

`python -m tests.proof.chaos.writer NAME FILE SECONDS SEED CHANNEL…`
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

import django


def main() -> None:
    """Send until the time is over."""
    django.setup()
    from django.db import DatabaseError, connection, transaction

    from eventstream import send_event

    in_database = 0.0
    committed_at: float | None = None

    def time_statement(execute: Any, *arguments: Any) -> Any:
        nonlocal in_database
        began = time.monotonic()
        try:
            return execute(*arguments)
        finally:
            in_database += time.monotonic() - began

    def note_commit() -> None:
        nonlocal committed_at
        committed_at = time.monotonic()

    name, path, seconds, seed, *channels = sys.argv[1:]
    chance = random.Random(seed + name)
    end = time.monotonic() + float(seconds)
    number = 0

    def attempt(
        sent: list[list[str]], *, is_rolled_back: bool, is_keyed: bool
    ) -> dict[str, Any]:
        nonlocal in_database, committed_at
        began = time.time()
        held_up, in_database, committed_at = 0.0, 0.0, None
        try:
            with transaction.atomic(), connection.execute_wrapper(time_statement):
                transaction.on_commit(note_commit)  # before those of send_event
                begun = time.monotonic()
                for channel, text in sent:
                    key = text if is_keyed else None
                    send_event(channel, "message", text, idempotency_key=key)
                held_up = time.monotonic() - begun - in_database
                is_slow = chance.random() < 0.05
                pause = chance.random() * (0.8 if is_slow else 0.03)
                time.sleep(pause)
                transaction.set_rollback(is_rolled_back)
            outcome = "rolled back" if is_rolled_back else "committed"
        except DatabaseError:
            connection.close()
            outcome = "unknown"
        if committed_at is not None:
            held_up += time.monotonic() - committed_at
        return {
            "outcome": outcome,
            "sent": sent,
            "began": began,
            "ended": time.time(),
            "held_up": held_up,  # by all but the database
            "keyed": is_keyed,
        }

    with open(path, "a", buffering=1) as log:
        while time.monotonic() < end:
            sent = []
            for _ in range(chance.randint(1, 4)):
                number += 1
                sent.append([chance.choice(channels), f"{name}-{number}"])
            is_keyed = chance.random() < 0.2
            is_rolled_back = not is_keyed and chance.random() < 0.2
            record = attempt(sent, is_rolled_back=is_rolled_back, is_keyed=is_keyed)
            log.write(json.dumps(record) + "\n")
            if is_keyed:  # as one does who has not heard whether it was committed
                record = attempt(sent, is_rolled_back=False, is_keyed=True)
                log.write(json.dumps(record) + "\n")
            if record["outcome"] == "unknown":
                time.sleep(0.2)
            time.sleep(chance.random() * 0.05)


if __name__ == "__main__":
    main()
