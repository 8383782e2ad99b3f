"""Many clients of one stream, each checked event by event: what `bench-proxy` opens.

Plain asyncio and HTTP/1.1 by hand: a library would be what is measured. A stream that ends is
opened again with its Last-Event-ID, as browsers do.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

OPEN_AT_A_TIME = 10
OPEN_EVERY = 0.025
"""400 a second: more at once, and proxies refuse some."""
RETRY_SECONDS = 0.5
CONNECT_SECONDS = 10.0


@dataclass
class Tally:
    """What all clients have seen together.

    Attributes:
        open_count: Streams that are open now.
        position: Where the last one that was opened began.
        received_count: Events of this run, each counted once for each client.
        duplicate_count, disorder_count: Those that came again, or before an earlier one.
        reset_count: stream-resets, each of which stands for events that a client lacks.
        refused_count: Attempts to open a stream that failed.
        reopen_count: Streams that ended and were opened again.
        error: The last reason why a stream could not be opened, or ended.
        last_at: When the last event came, by the monotonic clock.
        seconds: From sending to receiving, of each event at each client.
    """

    open_count: int = 0
    position: str = ""
    received_count: int = 0
    duplicate_count: int = 0
    disorder_count: int = 0
    reset_count: int = 0
    refused_count: int = 0
    reopen_count: int = 0
    error: str = ""
    last_at: float = 0.0
    seconds: array.array[float] = field(default_factory=lambda: array.array("d"))


class Crowd:
    """Clients in a thread of their own.

    Args:
        url: The stream's address, as a browser has it, with its channel.
        count: How many clients.
        run: Which events are counted: those whose data has it as "run".
        headers: For every request.
    """

    def __init__(
        self, url: str, count: int, run: str, headers: Mapping[str, str]
    ) -> None:
        self.tally = Tally()
        self.cpu_seconds = 0.0
        self._parts = urlsplit(url)
        self._count = count
        self._run = run
        self._headers = headers
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self._seen = [0] * count
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Begin to open streams."""
        self._thread.start()

    def stop(self) -> None:
        """Close them all."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(CONNECT_SECONDS)

    # --- in the thread

    def _work(self) -> None:
        asyncio.run(self._hold())
        self.cpu_seconds = time.thread_time()

    async def _hold(self) -> None:
        self._loop = asyncio.get_running_loop()
        tasks = []
        for number in range(self._count):
            if number and number % OPEN_AT_A_TIME == 0:
                await asyncio.sleep(OPEN_EVERY)
            if self._ended.is_set():
                break
            tasks.append(asyncio.create_task(self._read_on(number)))
        await self._ended.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read_on(self, number: int) -> None:
        last_id = ""
        while True:
            reader = _Reader(self, number, last_id)
            try:
                await reader.read(self._parts, self._headers)
                self.tally.error = "the stream ended"
            except (OSError, EOFError, ValueError) as error:
                self.tally.error = str(error) or type(error).__name__
            finally:
                if reader.is_open:
                    self.tally.open_count -= 1
            last_id = reader.last_id
            self.tally.reopen_count += reader.is_open
            self.tally.refused_count += not reader.is_open
            await asyncio.sleep(RETRY_SECONDS)

    def take(self, number: int, data: str) -> None:
        """Count one event that one client has received."""
        received = time.time_ns()
        try:
            content = json.loads(data)
            if content["run"] != self._run:
                return  # of an earlier run
            place, sent = int(content["n"]), int(content["t"])
        except (ValueError, KeyError, TypeError):
            return  # somebody else's
        tally, before = self.tally, self._seen[number]
        if place <= before:
            tally.duplicate_count += 1
            return
        tally.disorder_count += place != before + 1
        self._seen[number] = place
        tally.received_count += 1
        tally.last_at = time.monotonic()
        tally.seconds.append((received - sent) / 1e9)


class _Reader:
    """One connection of one client."""

    def __init__(self, crowd: Crowd, number: int, last_id: str) -> None:
        self.is_open = False
        self.last_id = last_id
        self._crowd = crowd
        self._number = number
        self._rest = ""

    async def read(self, parts: SplitResult, headers: Mapping[str, str]) -> None:
        """Read until the stream ends. Raises OSError, EOFError or ValueError."""
        host, port = parts.hostname, parts.port
        context = ssl.create_default_context() if parts.scheme == "https" else None
        port = port or (443 if context else 80)
        connecting = asyncio.open_connection(host, port, ssl=context)
        reader, writer = await asyncio.wait_for(connecting, CONNECT_SECONDS)
        try:
            target = f"{parts.path}?{parts.query}" if parts.query else parts.path
            lines = [
                f"GET {target} HTTP/1.1",
                f"Host: {parts.netloc.rpartition('@')[2]}",
            ]
            lines += ["Accept: text/event-stream"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            if self.last_id:
                lines.append(f"Last-Event-ID: {self.last_id}")
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            head = await reader.readuntil(b"\r\n\r\n")
            status = head.split(b"\r\n", 1)[0].decode("latin-1")
            if " 200" not in status:
                body = (await reader.read(300)).decode(errors="replace")
                raise ValueError(f"{status}: {body.strip()[:200]}")
            is_chunked = b"chunked" in head.lower()
            while chunk := await _read_some(reader, is_chunked=is_chunked):
                self._feed(chunk.decode())
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _feed(self, text: str) -> None:
        *blocks, self._rest = (self._rest + text).split("\n\n")
        for block in blocks:
            kind, data = "message", []
            for line in block.split("\n"):
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if name == "id":
                    self.last_id = value
                elif name == "event":
                    kind = value
                elif name == "data":
                    data.append(value)
            self._take(kind, "\n".join(data))

    def _take(self, kind: str, data: str) -> None:
        tally = self._crowd.tally
        if kind == "stream-error":
            raise ValueError(data)
        if kind == "stream-open" and not self.is_open:
            self.is_open = True
            tally.open_count += 1
            tally.position = self.last_id
        elif kind == "stream-reset":
            tally.reset_count += 1
        elif kind == "message":
            self._crowd.take(self._number, data)


async def _read_some(reader: asyncio.StreamReader, *, is_chunked: bool) -> bytes:
    if not is_chunked:
        return await reader.read(65_536)
    size = int((await reader.readline()).split(b";")[0] or b"0", 16)
    chunk = await reader.readexactly(size + 2)
    return chunk[:size]
