"""The tests' own crowd comes back as browsers do."""

from __future__ import annotations

import asyncio
import contextlib

from tests.support.sse import Crowd


async def test_answer_that_says_it_is_empty_is_over() -> None:
    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await reader.read()  # the connection stays open
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    crowd = Crowd(f"http://127.0.0.1:{port}", ["orders"])
    async with server:
        starting = asyncio.create_task(crowd.start())
        await crowd.until(lambda: crowd.readers[0].reconnects >= 2, within=10)
        starting.cancel()
        await crowd.stop()
