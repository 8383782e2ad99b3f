"""The physical floors that are processes: a bare ASGI app, a bare broadcast.

`uvicorn tests.bench.floor:application` answers every request with an open stream and a
keep-alive every 20 s: what holding streams costs before anybody has written a framework.

`python -m tests.bench.floor PORT CLIENTS EVENTS` is an asyncio server that writes the same
bytes as the sides do to each of its clients, event by event, once all have come.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast

from eventstream import sse
from tests.bench.send import PAD

Message = MutableMapping[str, Any]
OPENING = sse.encode_preamble(2048, 2000, "floor:0").encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def event(number: int, channel: str = "floor") -> bytes:
    """Return an event as a client of either side receives it."""
    data = f'{{"n": {number}, "t": {time.time_ns()}, "pad": "{PAD}"}}'
    return sse.encode_event("message", data, f"{channel}:{number}").encode()


async def application(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Hold a stream, the way an ASGI application without a framework does."""
    if scope["type"] != "http":
        return
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": OPENING, "more_body": True})
    gone = asyncio.create_task(_until_gone(receive))
    alive = {"type": "http.response.body", "body": b"", "more_body": True}
    while not gone.done():
        await asyncio.wait([gone], timeout=20)
        await send({**alive, "body": sse.KEEP_ALIVE.encode()})


async def _until_gone(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Stream(asyncio.Protocol):
    def __init__(self, streams: list[asyncio.Transport]) -> None:
        self._streams = streams
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(HEAD + OPENING)
        self._streams.append(self._transport)


async def broadcast(port: int, client_count: int, event_count: int) -> None:
    """Write every event to every client, one write each."""
    streams: list[asyncio.Transport] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Stream(streams), "127.0.0.1", port)
    while len(streams) < client_count:  # noqa: ASYNC110  a floor has no events
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.5)
    for number in range(1, event_count + 1):
        body = event(number)
        for transport in streams:
            transport.write(body)
        await asyncio.sleep(0)
        while max(t.get_write_buffer_size() for t in streams) > 65_536:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await asyncio.sleep(3600)
    server.close()


def main() -> None:
    import uvloop

    port, client_count, event_count = (int(text) for text in sys.argv[1:])
    uvloop.run(broadcast(port, client_count, event_count))


if __name__ == "__main__":
    main()
