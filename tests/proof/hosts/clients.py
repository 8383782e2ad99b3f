"""Readers and a writer, on a host of their own."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
import urllib.request
from collections.abc import Callable

from tests.proof.hosts.installation import CHANNELS, DIRECT, SILENCE, STREAMS, Hosts
from tests.support.sse import Crowd

CLIENTS_EACH = 5


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
