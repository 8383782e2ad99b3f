"""SSE clients for tests: a strict parser, a blocking stream and a crowd of readers."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import queue
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Message:
    """One dispatched event.

    Attributes:
        type: Its event type, "message" by default.
        data: The data lines, joined by LF.
        id: The client's last event id after it, as the application reads it: behind a
            proxy an id may name a channel twice, and the last counts.
    """

    type: str
    data: str
    id: str


class Parser:
    """text/event-stream as WHATWG HTML 9.2.6 has it, for streams that end lines by LF."""

    def __init__(self) -> None:
        self._buffer = b""
        self._type = ""
        self._data: list[str] = []
        self.last_id = ""
        self.retry: int | None = None

    def feed(self, chunk: bytes) -> list[Message]:
        """Return the events that this chunk completes."""
        self._buffer += chunk
        *lines, self._buffer = self._buffer.split(b"\n")
        messages = []
        for raw in lines:
            line = raw.removesuffix(b"\r").decode()
            if line:
                self._field(line)
            elif self._type or self._data:
                kind, data = self._type or "message", "\n".join(self._data)
                messages.append(Message(kind, data, tidy(self.last_id)))
                self._type, self._data = "", []
        return messages

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._type = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self.last_id = value
        elif name == "retry" and value.isdecimal():
            self.retry = int(value)


def tidy(position: str) -> str:
    """Return a position without the entries that later ones of their channel replace."""
    entries = {part.rpartition(":")[0]: part for part in position.split(",")}
    return ",".join(entries.values())


class Stream:
    """One connection, read with a deadline."""

    def __init__(
        self,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        last_event_id: str = "",
        timeout: float = 15,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        assert parts.hostname
        self._connection = http.client.HTTPConnection(
            parts.hostname, parts.port, timeout=timeout
        )
        sent = {"Accept": "text/event-stream", **(headers or {})}
        if last_event_id:
            sent["Last-Event-ID"] = last_event_id
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        try:
            self._connection.request("GET", target, headers=sent)
            self._socket = self._connection.sock
            self.response = self._connection.getresponse()
        except BaseException:
            self._connection.close()
            raise
        self.status = self.response.status
        self.headers = self.response.headers
        self._timeout = timeout
        self._pending: list[Message] = []
        self.parser = Parser()
        # A thread, as a response whose read timed out cannot be read any more.
        self._chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        chunk = b"-"
        while chunk:
            try:
                chunk = self.response.read1(65536)
            except (OSError, ValueError, http.client.HTTPException):
                chunk = b""
            self._chunks.put(chunk)

    def next(
        self, *, timeout: float | None = None, keep_alive: bool = False
    ) -> Message:
        """Return the next event.

        Args:
            timeout: Seconds; by default the stream's.
            keep_alive: Whether a keep-alive counts.

        Raises:
            EOFError: The server ended the stream.
            TimeoutError: Nothing came in time.
        """
        deadline = time.monotonic() + (timeout or self._timeout)
        while True:
            while self._pending:
                message = self._pending.pop(0)
                if keep_alive or message.type != "keep-alive":
                    return message
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no event in time")
            try:
                chunk = self._chunks.get(timeout=left)
            except queue.Empty:
                continue
            if not chunk:
                self._chunks.put(b"")
                raise EOFError("the stream has ended")
            self._pending += self.parser.feed(chunk)

    def open(self) -> Stream:
        """Wait for stream-open."""
        message = self.next()
        assert message.type == "stream-open", message
        return self

    def take(self, count: int, *, timeout: float | None = None) -> list[Message]:
        """Return the next events, so many."""
        return [self.next(timeout=timeout) for _ in range(count)]

    def is_silent(self, seconds: float) -> bool:
        """Say whether nothing but keep-alives comes for so long."""
        try:
            self.next(timeout=seconds)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self.response.close()
        self._connection.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Reader:
    """What one client of a crowd has seen."""

    name: str
    ids: list[int] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    ended_at: list[float] = field(default_factory=list)
    resets: int = 0
    reset_from: dict[int, int] = field(default_factory=dict)
    errors: int = 0
    refusals: int = 0
    reconnects: int = 0
    catch_ups: int = 0
    last_id: str = ""
    owner: str = ""
    cookie: str = ""
    is_open: bool = False
    connected_at: float = 0.0
    heard_at: float = 0.0

    @property
    def position(self) -> int:
        """The last event id that it has, or that a reset gave it."""
        last = self.ids[-1] if self.ids else 0
        return self.reset_from.get(len(self.ids), last)

    def state(self) -> str:
        """Say when it connected and last heard anything, in seconds before now."""
        now = time.time()
        return (
            f"{self.name}: at {self.last_id or 'no id'}, connected {now - self.connected_at:.1f} s "
            f"ago, heard something {now - self.heard_at:.1f} s ago, {self.reconnects} reconnects"
        )

    def faults(self, first: int, last: int) -> str:
        """Say what differs from the ids first, …, last, "" if nothing does."""
        if self.ids == list(range(first, last + 1)):
            return ""
        missing = sorted(set(range(first, last + 1)) - set(self.ids))
        twice = len(self.ids) - len(set(self.ids))
        return (
            f"{self.name}: {len(self.ids)} events, {len(missing)} missing "
            f"{missing[:5]}, {twice} twice, ordered={self.ids == sorted(self.ids)}"
        )


class Crowd:
    """Many readers in one event loop, each of one channel; they reconnect as browsers do."""

    def __init__(
        self, base_url: str, channels: Iterable[str], *, path: str = "/events/"
    ) -> None:
        self._parts = urllib.parse.urlsplit(base_url)
        self._path = path
        self.readers = [Reader(name) for name in channels]
        self.headers: dict[str, dict[str, str]] = {}
        self.stops_when_refused = False
        self.began_late = False
        self.patience: float | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, *, per_second: int = 400, within: float = 60) -> None:
        """Open all the streams and wait for each stream-open."""
        for reader in self.readers:
            self._tasks.append(asyncio.create_task(self._run(reader)))
            await asyncio.sleep(1 / per_second)
        await self.until(lambda: all(r.is_open for r in self.readers), within=within)

    async def until_received(self, last: int, *, within: float = 60) -> None:
        """Wait until every reader has the event with this id."""
        await self.until(
            lambda: all(r.ids and r.ids[-1] >= last for r in self.readers),
            within=within,
        )

    async def until(self, condition: Callable[[], bool], *, within: float) -> None:
        deadline = time.monotonic() + within
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {within} s; {self.summary()}")
            await asyncio.sleep(0.02)

    def summary(self) -> str:
        counts = sorted(len(r.ids) for r in self.readers)
        return (
            f"{sum(r.is_open for r in self.readers)} of {len(self.readers)} open, "
            f"events received: least {counts[0]}, most {counts[-1]}, "
            f"errors {sum(r.errors for r in self.readers)}"
        )

    def faults(self, first: int, last: int) -> list[str]:
        """Return what each reader misses or has too much of."""
        return [text for r in self.readers if (text := r.faults(first, last))]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, reader: Reader) -> None:
        while not (self.stops_when_refused and reader.refusals):
            with contextlib.suppress(
                OSError, asyncio.IncompleteReadError, EOFError, TimeoutError
            ):
                await self._connect(reader)
            reader.reconnects += 1
            reader.ended_at.append(time.time())
            await asyncio.sleep(0.2)

    async def _within(self, awaited: Coroutine[Any, Any, T]) -> T:
        """Give up on a server that has been silent for longer than the patience."""
        async with asyncio.timeout(self.patience):
            return await awaited

    async def _connect(self, reader: Reader) -> None:
        host, port = self._parts.hostname, self._parts.port
        stream, writer = await self._within(asyncio.open_connection(host, port))
        reader.connected_at = time.time()
        try:
            query = urllib.parse.urlencode({"channel": reader.name})
            lines = [f"GET {self._path}?{query} HTTP/1.1", f"Host: {host}:{port}"]
            headers = dict(self.headers.get(reader.name, {}))
            if reader.cookie:
                headers["Cookie"] = reader.cookie
            if reader.last_id:
                headers["Last-Event-ID"] = reader.last_id
            lines += [f"{name}: {value}" for name, value in headers.items()]
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            head = await self._within(stream.readuntil(b"\r\n\r\n"))
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                reader.errors += 1
                return
            is_chunked = b"transfer-encoding: chunked" in head.lower()
            length = _content_length(head)
            parser = Parser()
            parser.last_id = reader.last_id
            while True:
                if is_chunked:
                    size = int(await self._within(stream.readuntil(b"\r\n")), 16)
                    chunk = (await self._within(stream.readexactly(size + 2)))[:-2]
                    if not size:
                        return
                elif length == 0:
                    return  # whether the connection stays open or not
                else:
                    chunk = await self._within(stream.read(65536))
                    if not chunk:
                        return
                    length -= len(chunk)
                self._take(reader, parser.feed(chunk))
        finally:
            writer.close()

    def _take(self, reader: Reader, messages: Iterable[Message]) -> None:
        now = time.time()
        for message in messages:
            had = reader.last_id
            reader.last_id = message.id
            reader.heard_at = now
            if message.type == "stream-open":
                reader.is_open = True
                head = json.loads(message.data or "{}").get("head")
                if had and head:  # it has opened behind the head, or at it
                    last = int(head.rpartition(":")[2])
                    reader.catch_ups += last > reader.position
            elif message.type == "stream-reset":
                reader.resets += 1
                position = int(message.id.rpartition(":")[2])
                reader.reset_from[len(reader.ids)] = position
            elif message.type == "stream-error":
                reader.errors += 1
                reader.refusals += 1
                reader.last_id = ""
            elif message.type != "keep-alive":
                reader.ids.append(int(message.id.rpartition(":")[2]))
                reader.data.append(message.data)
                reader.times.append(now)
                with contextlib.suppress(ValueError):
                    sent_at = float(message.data.strip('"'))
                    if abs(now - sent_at) < 3600:
                        reader.latencies.append(now - sent_at)


def _content_length(head: bytes) -> int:
    """Return the length that a response says it has, -1 if it says none."""
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return int(value)
    return -1


def numbers(messages: Iterable[Message]) -> Iterator[int]:
    """Give the event ids of messages of one channel."""
    for message in messages:
        yield int(message.id.rpartition(":")[2])
