"""The load client: one process that holds many streams and checks each of them.

`python -m tests.bench.load HOST PORT PATH --clients N …`. Writes one line of JSON when all
streams are open and one when every stream has the last event, nothing has come for long
enough, or the time is over. Needs nothing but the standard library; sockets and epoll, no
event loop, so that the client is not what is measured: it says how busy it was.

An event's data is JSON with `n`, its number in the channel from 1, and `t`, when it was
sent, in nanoseconds. Each stream must receive n, n+1, n+2, …
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import resource
import select
import socket
import sys
import time
from typing import NamedTuple

# With the line end before it: "^" is looked for at every byte, which takes thrice as long.
_NUMBER = re.compile(rb'\ndata: \{"n": (\d+), "t": (\d+)')
_ID = b"\nid: "
_ERROR = b"event: stream-error"
_RESET = b"event: stream-reset"
_OPEN = b"event: stream-open"
_READ = 65_536
_MEMO = 512


class Parsed(NamedTuple):
    """What a run of whole events holds."""

    numbers: list[int]
    is_consecutive: bool
    sent_at: list[bytes]
    last_id: bytes
    opens: int
    resets: int
    errors: int


_memo: dict[bytes, Parsed] = {}


def parse(text: bytes) -> Parsed:
    """Return what is in a run of whole events; readers of one channel get equal ones."""
    known = _memo.get(text)
    if known is not None:
        return known
    lines = b"\n" + text
    pairs = _NUMBER.findall(lines)
    numbers = [int(number) for number, _ in pairs]
    first = numbers[0] if numbers else 0
    *_, last_id = lines.rpartition(_ID)
    parsed = Parsed(
        numbers,
        numbers == list(range(first, first + len(numbers))),
        [sent_at for _, sent_at in pairs],
        last_id.partition(b"\n")[0] if len(last_id) < len(lines) else b"",
        text.count(_OPEN),
        text.count(_RESET),
        text.count(_ERROR),
    )
    if len(_memo) >= _MEMO:
        _memo.clear()
    if len(text) < 16_384:
        _memo[text] = parsed
    return parsed


class Client:
    """One stream, opened again with its Last-Event-ID whenever it ends."""

    def __init__(self, path: str, last_id: str) -> None:
        self.path = path
        self.last_id = last_id.encode()
        self.last = 0
        self.socket: socket.socket | None = None
        self.retry_at = 0.0
        self.is_open = False
        self.reset()

    def reset(self) -> None:
        """Forget what belonged to the connection that has ended."""
        self.head = b""
        self.has_head = False
        self.is_chunked = False
        self.raw = b""
        self.text = b""


class Load:
    """All the streams, and what they have seen."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.address = (options.host, options.port)
        paths = options.path
        last_ids = options.last_event_id or [""]
        self.clients = [
            Client(paths[i % len(paths)], last_ids[i % len(last_ids)])
            for i in range(options.clients)
        ]
        for client in self.clients:
            client.last = options.after
        self.poll = select.epoll()
        self.by_fd: dict[int, Client] = {}
        self.open_count = 0
        self.done_count = 0
        self.deliveries = self.bytes = self.reads = 0
        self.missing = self.twice = self.disorder = 0
        self.resets = self.errors = self.refused = self.reconnects = 0
        self.first_at = self.last_at = 0.0
        self.first_cpu = self.last_cpu = 0.0
        self.latencies: list[tuple[int, int]] = []
        self.arrivals: list[tuple[int, int]] = []
        self.done_at: list[float] = []

    # --- connections

    def connect(self, client: Client) -> None:
        client.reset()
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.options.receive_buffer:
            size = self.options.receive_buffer
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        try:
            sock.connect(self.address)
        except OSError:
            sock.close()
            self.refused += 1
            client.retry_at = time.monotonic() + 0.2
            return
        sock.setblocking(False)
        lines = [
            f"GET {client.path} HTTP/1.1",
            f"Host: {self.address[0]}:{self.address[1]}",
            "Accept: text/event-stream",
        ]
        if client.last_id:
            lines.append(f"Last-Event-ID: {client.last_id.decode()}")
        sock.send(("\r\n".join(lines) + "\r\n\r\n").encode())
        client.socket = sock
        self.by_fd[sock.fileno()] = client
        self.poll.register(sock.fileno(), select.EPOLLIN)

    def disconnect(self, client: Client) -> None:
        sock = client.socket
        if sock is not None:
            del self.by_fd[sock.fileno()]
            self.poll.unregister(sock.fileno())
            sock.close()
            client.socket = None
        client.retry_at = time.monotonic() + self.options.retry

    # --- reading

    def read(self, client: Client) -> None:
        assert client.socket is not None
        try:
            data = client.socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.reconnects += 1
            self.disconnect(client)
            return
        self.reads += 1
        self.bytes += len(data)
        if not client.has_head:
            head, separator, data = (client.head + data).partition(b"\r\n\r\n")
            if not separator:
                client.head = head
                return
            client.has_head = True
            client.is_chunked = b"chunked" in head.lower()
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                self.refused += 1
                self.disconnect(client)
                return
            if b"\r\ncontent-length: 0" in head.lower():
                # An empty stream: whoever answers has no more time. To be asked for again.
                self.reconnects += 1
                self.disconnect(client)
                return
        text, is_over = (
            self.unchunk(client, data) if client.is_chunked else (data, False)
        )
        if text:
            self.take(client, text)
        if is_over and client.socket is not None:
            self.reconnects += 1
            self.disconnect(client)

    def unchunk(self, client: Client, data: bytes) -> tuple[bytes, bool]:
        """Return the bytes of all whole chunks, and whether the last one has come."""
        if client.raw:
            data = client.raw + data
        start, parts, is_over = 0, [], False
        while True:
            end = data.find(b"\r\n", start)
            if end < 0:
                break
            size = int(data[start:end], 16)
            if not size:
                is_over = True
                break
            if len(data) < end + size + 4:
                break
            parts.append(data[end + 2 : end + 2 + size])
            start = end + size + 4
        client.raw = data[start:]
        return (parts[0] if len(parts) == 1 else b"".join(parts)), is_over

    def take(self, client: Client, text: bytes) -> None:
        if client.text:
            text = client.text + text
            client.text = b""
        if not text.endswith(b"\n\n"):
            cut = text.rfind(b"\n\n") + 2
            client.text = text[cut:] if cut > 1 else text
            if cut <= 1:
                return
            text = text[:cut]
        parsed = parse(text)
        if parsed.last_id:
            client.last_id = parsed.last_id
        if parsed.opens and not client.is_open:
            client.is_open = True
            self.open_count += 1
        self.resets += parsed.resets
        self.errors += parsed.errors
        if parsed.numbers:
            self.count(client, parsed)

    def count(self, client: Client, parsed: Parsed) -> None:
        numbers = parsed.numbers
        now = time.monotonic()
        if not self.deliveries:
            self.first_at, self.first_cpu = now, time.process_time()
        self.last_at = now
        self.deliveries += len(numbers)
        if self.options.latencies:
            arrived = time.time_ns()
            self.latencies += [
                (n, arrived - int(t))
                for n, t in zip(numbers, parsed.sent_at, strict=True)
            ]
            self.arrivals += [(n, arrived) for n in numbers]
        if numbers[0] == client.last + 1 and parsed.is_consecutive:
            client.last = numbers[-1]
        else:
            for number in numbers:
                if number > client.last:
                    self.missing += number - client.last - 1
                    client.last = number
                elif number == client.last:
                    self.twice += 1
                else:
                    self.disorder += 1
        expect = self.options.expect
        if client.last >= expect and client.last - len(numbers) < expect:
            self.done_count += 1
            self.done_at.append(now)
            self.last_cpu = time.process_time()

    # --- the run

    def run(self) -> dict[str, object]:
        options = self.options
        started = time.monotonic()
        pending = list(reversed(self.clients))
        announced = False
        deadline = started + options.timeout
        silent_until = 0.0
        while time.monotonic() < deadline:
            now = time.monotonic()
            allowed = int((now - started) * options.per_second) + 1
            while pending and len(self.clients) - len(pending) < allowed:
                self.connect(pending.pop())
            for client in self.clients if not pending and options.retry < 60 else []:
                if client.socket is None and client.retry_at <= now:
                    self.connect(client)
            if now >= silent_until:
                for fd, _ in self.poll.poll(0.02):
                    client = self.by_fd[fd]
                    self.read(client)
            else:
                time.sleep(0.02)
            if not announced and self.open_count >= options.clients:
                announced = True
                opened_in = time.monotonic() - started
                _say({"open": self.open_count, "seconds": opened_in})
                if options.mute:
                    silent_until = time.monotonic() + options.mute
            if self.done_count >= options.clients:
                break
            if self.last_at and now - self.last_at > options.silence:
                break  # what has not come by now does not come
        return self.report(started)

    def report(self, started: float) -> dict[str, object]:
        span = self.last_at - self.first_at
        cpu = self.last_cpu - self.first_cpu
        nanoseconds = sorted(latency for _, latency in self.latencies)
        waits = sorted(self.done_at)

        def at(share: float) -> float | None:
            if not nanoseconds:
                return None
            index = min(len(nanoseconds) - 1, int(share * len(nanoseconds)))
            return nanoseconds[index] / 1e6

        return {
            "clients": len(self.clients),
            "opened": self.open_count,
            "done": self.done_count,
            "deliveries": self.deliveries,
            "bytes": self.bytes,
            "reads": self.reads,
            "seconds": span,
            "per_second": self.deliveries / span if span else None,
            # Looked at as each is done: a crowd that never is has not been timed.
            "busy": cpu / span
            if span and self.done_count >= len(self.clients)
            else None,
            "missing": self.missing
            + sum(max(0, self.options.expect - c.last) for c in self.clients),
            "twice": self.twice,
            "disorder": self.disorder,
            "resets": self.resets,
            "errors": self.errors,
            "refused": self.refused,
            "reconnects": self.reconnects,
            "first_at": self.first_at,
            "last_at": self.last_at,
            "started_at": started,
            "done_at": [waits[0], waits[-1]] if waits else None,
            "p50_ms": at(0.50),
            "p99_ms": at(0.99),
            "max_ms": at(1.0),
            "latencies": self.latencies if self.options.raw else None,
            "arrived": self.arrivals if self.options.raw else None,
        }


def _say(content: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path", nargs="+")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--expect", type=int, default=1)
    parser.add_argument("--after", type=int, default=0)
    parser.add_argument("--last-event-id", action="append")
    parser.add_argument("--per-second", type=float, default=400)
    parser.add_argument("--timeout", type=float, default=60)
    parser.add_argument("--silence", type=float, default=math.inf)
    parser.add_argument("--retry", type=float, default=0.2)
    parser.add_argument("--mute", type=float, default=0)
    parser.add_argument("--receive-buffer", type=int, default=0)
    parser.add_argument("--latencies", action="store_true")
    parser.add_argument("--raw", action="store_true")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _say(Load(options).run())


if __name__ == "__main__":
    main()
