"""Streams held beside Django: what the ASGI application around it passes on, and when."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable

import pytest
from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.core.handlers.asgi import ASGIRequest
from django.core.signals import request_finished
from django.db import connections
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from pytest_django import Settings

from eventstream import limits, send_event
from eventstream.asgi import Message, hold_streams
from eventstream.hub import get_hub
from eventstream.testing import drain_outbox

pytestmark = pytest.mark.django_db(transaction=True)

Respond = Callable[[HttpRequest], HttpResponseBase]


def refuse(get_response: Respond) -> Respond:
    """Be a middleware that answers in the view's place, after it."""

    def respond(request: HttpRequest) -> HttpResponseBase:
        get_response(request)
        return HttpResponse("closed for today", status=503)

    return respond


class Client:
    """A request to the application, as a server makes it."""

    def __init__(
        self, path: str = "/events/", query: bytes = b"channel=orders"
    ) -> None:
        self.sent: list[Message] = []
        self.error: Exception | None = None
        self._is_asked = False
        self._gone = asyncio.Event()
        scope = {
            "type": "http", "method": "GET", "path": path, "query_string": query,
            "headers": [], "http_version": "1.1", "client": ("192.0.2.1", 4711),
        }  # fmt: skip
        application = hold_streams(get_asgi_application())
        self.task = asyncio.ensure_future(application(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if not self._is_asked:
            self._is_asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(message)

    async def has_ended(self) -> bool:
        """Say whether the application returns; it is not made to."""
        done, _ = await asyncio.wait([self.task], timeout=5)
        return bool(done) and self.task.exception() is None

    def go(self) -> None:
        self._gone.set()

    @property
    def headers(self) -> dict[bytes, bytes]:
        return {name.lower(): value for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(10):
            while text not in self.body:  # noqa: ASYNC110  sending signals nothing
                await asyncio.sleep(0.02)


@pytest.fixture(autouse=True)
async def hub(settings: Settings) -> AsyncIterator[None]:
    settings.EVENTSTREAM_DISPATCHER = "tests.support.targets.IdleDispatcher"
    settings.EVENTSTREAM_STREAMS_PER_ADDRESS = 5
    settings.MIDDLEWARE = [
        "django.middleware.common.CommonMiddleware",
        *settings.MIDDLEWARE,
    ]
    yield
    await get_hub().close()
    await sync_to_async(connections.close_all)()


def count_held() -> int:
    state = get_hub().channels.get("orders")
    return len(state.subscribers) if state is not None else 0


def count_slots() -> int:
    return sum(limits.counts._open.values())


async def send(data: object) -> None:
    def work() -> None:
        send_event("orders", "message", data)
        drain_outbox()

    await sync_to_async(work)()


async def test_stream_outlives_its_request() -> None:
    finished: list[object] = []

    def note(**_: object) -> None:
        finished.append(None)

    request_finished.connect(note)
    client = Client()
    await client.until(b"stream-open")
    await send("first")
    await client.until(b'data: "first"')
    request_finished.disconnect(note)
    gc.collect()

    assert finished == [None]
    assert not [o for o in gc.get_objects() if isinstance(o, ASGIRequest)]
    assert client.headers[b"content-type"] == b"text/event-stream"
    assert client.headers[b"cache-control"] == b"no-cache, no-store, private"
    # The length of Django's empty body, and what is between view and application.
    assert not {b"content-length", b"eventstream-held"} & client.headers.keys()
    assert all(message["more_body"] for message in client.sent[1:])

    client.go()
    assert await client.has_ended()
    assert (count_held(), count_slots()) == (0, 0)


async def test_middleware_has_the_last_word(settings: Settings) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.refuse"]

    client = Client()
    assert await client.has_ended()
    del client.task
    gc.collect()

    assert (client.sent[0]["status"], client.body) == (503, b"closed for today")
    assert client.headers[b"content-length"] == b"16"
    assert (count_held(), count_slots()) == (0, 0)


async def test_what_opens_no_stream_passes_unchanged() -> None:
    client = Client(query=b"")
    assert await client.has_ended()

    assert b"No channels specified" in client.body
    assert int(client.headers[b"content-length"]) == len(client.body)
    assert not client.sent[-1].get("more_body")


async def test_stream_that_ends_ends_the_response() -> None:
    client = Client()
    await client.until(b"stream-open")

    get_hub().hear_end()
    assert await client.has_ended()

    assert not client.sent[-1].get("more_body")
    assert (count_held(), count_slots()) == (0, 0)


async def test_server_that_cancels_is_not_told_otherwise() -> None:
    client = Client()
    await client.until(b"stream-open")

    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.task

    assert (count_held(), count_slots()) == (0, 0)


async def test_write_to_a_client_that_is_gone_is_no_error() -> None:
    client = Client()
    await client.until(b"stream-open")

    client.error = OSError("gone")
    await send("late")
    assert await client.has_ended()

    assert (count_held(), count_slots()) == (0, 0)


async def test_lifespan_is_not_touched() -> None:
    seen: list[Message] = []

    async def application(scope: Message, receive: object, send: object) -> None:
        seen.append(scope)

    await hold_streams(application)({"type": "lifespan"}, None, None)

    assert seen == [{"type": "lifespan"}]
