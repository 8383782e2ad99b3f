"""A TCP proxy between two parts, that can be told to misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import threading
from collections.abc import Coroutine
from typing import Any

from tests.support.processes import free_port

_RESET_AFTER = 2_000
_DELAY = 0.4


class Mode(enum.Enum):
    """What happens to the bytes."""

    PASS = "passed on"
    DELAY = "delayed by 0.4 s a piece"
    RESET = "cut after 2,000 bytes"
    BLACK_HOLE = "taken and never passed on"
    HALF_OPEN = "cut on one side only"
    LOSE_ANSWER = "answers lost"


class FaultProxy:
    """Listens on a port of its own and passes on to another.

    What was held back is dropped, and its connections are reset, when `mode` returns to PASS.
    """

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._mode = Mode.PASS
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(
            asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=512)
        )

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def set_mode(self, mode: Mode) -> None:
        self._call(self._set_mode(mode))

    async def _set_mode(self, mode: Mode) -> None:
        was, self._mode = self._mode, mode
        if mode is Mode.PASS and was not in (Mode.PASS, Mode.DELAY):
            for writer in self._writers:
                writer.transport.abort()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._writers.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            # Cancelled at the end: asyncio would print a traceback for each connection.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                there, upstream = await asyncio.open_connection(
                    "127.0.0.1", self._target
                )
                self._writers.add(upstream)
                await asyncio.gather(
                    self._pump(reader, upstream, is_answer=False),
                    self._pump(there, writer, is_answer=True),
                )
        finally:
            for each in (writer, upstream):
                if each is not None:
                    self._writers.discard(each)
                    each.transport.abort()

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        *,
        is_answer: bool,
    ) -> None:
        count = 0
        while chunk := await source.read(65_536):
            mode = self._mode
            count = count + len(chunk) if mode is Mode.RESET else 0
            if mode is Mode.DELAY:
                await asyncio.sleep(_DELAY)
            elif mode is Mode.RESET and count > _RESET_AFTER:
                raise ConnectionResetError
            elif mode is Mode.HALF_OPEN and not is_answer:
                sink.transport.abort()
                await asyncio.sleep(3600)  # until it is reset by hand
            elif mode is Mode.BLACK_HOLE or (mode is Mode.LOSE_ANSWER and is_answer):
                continue
            sink.write(chunk)
            await sink.drain()
        if self._mode in (Mode.HALF_OPEN, Mode.BLACK_HOLE):
            await asyncio.sleep(3600)
        sink.close()
        raise ConnectionResetError  # ends the other direction, too

    def close(self) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
