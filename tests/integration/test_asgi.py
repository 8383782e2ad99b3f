"""Streams held beside Django: what the ASGI application around it passes on, and when."""

from __future__ import annotations

import asyncio
import gc
import types
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.core.handlers.asgi import ASGIRequest
from django.core.signals import request_finished
from django.db import connections
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.test import AsyncClient
from django.urls import path
from pytest_django import Settings
from rest_framework.authentication import BasicAuthentication
from rest_framework.request import Request
from rest_framework.views import APIView

from eventstream import asgi, limits, make_subscribe_token, send_event
from eventstream.asgi import Message, Receive, Send, hold_streams
from eventstream.channelmanager import DefaultChannelManager
from eventstream.hub import get_hub
from eventstream.testing import drain_outbox
from eventstream.views import events

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

    accept: ClassVar[bytes] = b""

    def __init__(
        self,
        path: str = "/events/",
        query: bytes = b"channel=orders",
        headers: Sequence[tuple[bytes, bytes]] = (),
        *,
        body: Sequence[bytes] = (b"",),
        says_again: bool = False,
    ) -> None:
        self.sent: list[Message] = []
        self.error: Exception | None = None
        self.is_cut_off_by_cancel = False
        self.is_listened_to = False
        last = len(body) - 1
        self._said: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": number < last}
            for number, piece in enumerate(body)
        ]
        if says_again:
            self._said.append({"type": "http.request", "body": b"", "more_body": False})
        self._gone = asyncio.Event()
        scope = {
            "type": "http", "method": "POST" if body[0] else "GET", "path": path, "query_string": query,
            "headers": [(b"accept", self.accept), *headers],
            "http_version": "1.1", "client": ("192.0.2.1", 4711),
        }  # fmt: skip
        application = hold_streams(get_asgi_application())
        self.task = asyncio.ensure_future(application(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if self._said:
            return self._said.pop(0)
        self.is_listened_to = True
        try:
            await self._gone.wait()
        except asyncio.CancelledError:
            if self.is_cut_off_by_cancel:
                self._gone.set()
            raise
        finally:
            self.is_listened_to = False
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(message)

    async def has_ended(self) -> bool:
        """Say whether the application returns; it is not made to."""
        done, _ = await asyncio.wait([self.task], timeout=30)
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
        async with asyncio.timeout(30):
            while text not in self.body:  # noqa: ASYNC110  sending signals nothing
                await asyncio.sleep(0.02)


@pytest.fixture(
    autouse=True,
    params=[b"text/event-stream, */*", b"*/*"],
    ids=["asks for a stream", "as others"],
)
async def hub(
    request: pytest.FixtureRequest,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[None]:
    monkeypatch.setattr(Client, "accept", request.param)
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
    assert (
        client.headers[b"cache-control"] == b"no-cache, no-store, no-transform, private"
    )
    # The length of Django's empty body, and what is between view and application.
    assert not {b"content-length", b"eventstream-held"} & client.headers.keys()
    assert all(message["more_body"] for message in client.sent[1:])

    client.go()
    assert await client.has_ended()
    assert (count_held(), count_slots()) == (0, 0)


async def test_server_may_take_a_cancelled_receive_for_the_client_s_end() -> None:
    """As gunicorn's own ASGI worker does: Django cancels it when it has answered."""
    client = Client()
    client.is_cut_off_by_cancel = True
    await client.until(b"stream-open")
    await send("first")
    await client.until(b'data: "first"')
    assert client.is_listened_to

    client.go()
    assert await client.has_ended()
    assert (count_held(), count_slots()) == (0, 0)
    assert not client.is_listened_to


async def test_nobody_listens_after_an_answer_that_is_no_stream() -> None:
    client = Client(query=b"")

    assert await client.has_ended()
    assert not client.is_listened_to


async def test_stream_goes_on_when_the_server_says_the_body_s_end_again() -> None:
    client = Client(says_again=True)
    await client.until(b"stream-open")
    await send("first")
    await client.until(b'data: "first"')

    client.go()
    assert await client.has_ended()


async def test_body_that_comes_in_pieces_arrives_whole(settings: Settings) -> None:
    urlconf: Any = types.ModuleType("urlconf")
    urlconf.urlpatterns = [path("echo/", lambda request: HttpResponse(request.body))]
    settings.ROOT_URLCONF = urlconf

    client = Client("/echo/", body=[b"one, ", b"two, ", b"three"])

    assert await client.has_ended()
    assert client.body == b"one, two, three"


class Belongings:
    """What a project keeps of a request while it is answered."""


async def test_stream_keeps_nothing_of_its_request_s_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[weakref.ref[Belongings]] = []
    variable: ContextVar[Belongings] = ContextVar("variable")
    django = get_asgi_application()

    async def keep(scope: Message, receive: Receive, send: Send) -> None:
        mine = Belongings()
        kept.append(weakref.ref(mine))
        token = variable.set(mine)
        try:
            await django(scope, receive, send)  # type: ignore[arg-type]
        finally:
            variable.reset(token)

    monkeypatch.setattr(f"{__name__}.get_asgi_application", lambda: keep)
    client = Client()
    await client.until(b"stream-open")
    gc.collect()

    assert [ref() for ref in kept] == [None]
    client.go()
    assert await client.has_ended()


async def test_stream_is_not_compressed_by_a_middleware(settings: Settings) -> None:
    """Django compresses each piece by itself, and Chromium shows the first one alone."""
    gzip = "django.middleware.gzip.GZipMiddleware"
    settings.MIDDLEWARE = [gzip, *settings.MIDDLEWARE]
    # Else it is counted, and may be given back in another test.
    settings.EVENTSTREAM_STREAMS_PER_ADDRESS = None

    response: Any = await AsyncClient().get(
        "/events/?channel=orders", headers={"Accept-Encoding": "gzip"}
    )

    assert response.streaming
    assert "Content-Encoding" not in response
    response.close()


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
    # A server's time limit, or its group of tasks, would take it for its own doing.
    assert client.task.cancelling() == 0


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


class Opening:
    """An application that answers when it is told to, and what stands around it."""

    def __init__(self) -> None:
        self.inside = 0
        self.more_body = False
        self.heard: list[Message] = []
        self.receives = 0
        self.may_answer = asyncio.Event()
        self.may_end = asyncio.Event()
        self.answers = 0
        self.application = hold_streams(self._answer)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        self.inside += 1
        self.heard.append(await receive())
        await self.may_answer.wait()
        self.inside -= 1
        if scope["path"] == "/broken/":
            raise RuntimeError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.may_end.wait()

    def ask(
        self, count: int, path: str = "/events/", **headers: str
    ) -> list[asyncio.Task[None]]:
        pairs = [
            (name.replace("_", "-").encode(), value.encode())
            for name, value in headers.items()
        ]
        scope = {"type": "http", "path": path, "headers": pairs}
        return [
            asyncio.ensure_future(
                self.application(dict(scope), self._receive, self._send)
            )
            for _ in range(count)
        ]

    async def _receive(self) -> Message:
        self.receives += 1
        return {"type": "http.request", "body": b"x", "more_body": self.more_body}

    async def _send(self, message: Message) -> None:
        self.answers += 1


@pytest.fixture
def opening() -> Opening:
    return Opening()


async def settle() -> None:
    """Let all that can go on do so; by turns of the loop, whatever the machine's speed."""
    for _ in range(100):
        await asyncio.sleep(0)


STREAM = {"accept": "text/event-stream"}


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/events/", STREAM), ("/events/next/abc/", {"grip_sig": "x"})],
)
async def test_those_who_ask_for_streams_at_once_wait_in_line(
    opening: Opening, path: str, headers: dict[str, str]
) -> None:
    tasks = opening.ask(3 * asgi.AT_ONCE, path, **headers)
    await settle()
    assert opening.inside == asgi.AT_ONCE
    opening.may_answer.set()
    await settle()
    # Though none of them has ended: an answer that begins has left the line.
    assert opening.answers == 3 * asgi.AT_ONCE
    opening.may_end.set()
    await asyncio.gather(*tasks)


async def test_other_requests_do_not_stand_in_line(opening: Opening) -> None:
    tasks = opening.ask(asgi.AT_ONCE, **STREAM)
    tasks += opening.ask(20, "/orders/", accept="text/html")
    tasks += opening.ask(20, "/orders/", grip_sig="x")
    tasks += opening.ask(20, "/events/next/abc/")
    await settle()
    assert opening.inside == asgi.AT_ONCE + 60
    opening.may_answer.set()
    opening.may_end.set()
    await asyncio.gather(*tasks)


async def test_request_whose_body_does_not_come_holds_up_nobody(
    opening: Opening,
) -> None:
    opening.more_body = True
    tasks = opening.ask(2 * asgi.AT_ONCE, **STREAM)
    await settle()
    assert opening.inside == 2 * asgi.AT_ONCE
    opening.more_body = False
    tasks += opening.ask(1, **STREAM)
    await settle()
    assert opening.inside == 2 * asgi.AT_ONCE + 1
    assert [message["body"] for message in opening.heard] == [b"x"] * len(tasks)
    assert opening.receives == len(tasks)  # what was heard in line is heard again
    opening.may_answer.set()
    opening.may_end.set()
    await asyncio.gather(*tasks)


async def test_answer_that_fails_leaves_the_line(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "KEPT", 60)
    opening.may_answer.set()
    opening.may_end.set()
    failed = opening.ask(2 * asgi.AT_ONCE, "/broken/", **STREAM)
    await asyncio.wait_for(asyncio.gather(*failed, return_exceptions=True), 5)
    await asyncio.wait_for(asyncio.gather(*opening.ask(1, **STREAM)), 5)
    assert opening.answers == 1


async def test_who_gives_up_in_the_line_takes_no_place(opening: Opening) -> None:
    tasks = opening.ask(asgi.AT_ONCE, **STREAM)
    waiting = opening.ask(asgi.AT_ONCE, **STREAM)
    await settle()
    for task in waiting:
        task.cancel()
    tasks += opening.ask(1, **STREAM)
    opening.may_answer.set()
    opening.may_end.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)


async def test_answer_that_takes_long_holds_up_nobody(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "KEPT", 1.0)
    tasks = opening.ask(asgi.AT_ONCE + 5, **STREAM)
    await settle()
    assert opening.inside == asgi.AT_ONCE
    async with asyncio.timeout(30):
        while opening.inside < asgi.AT_ONCE + 5:  # noqa: ASYNC110  a number tells nobody
            await asyncio.sleep(0.02)
    # Whoever has lost its place has none to give back.
    opening.may_answer.set()
    opening.may_end.set()
    await asyncio.gather(*tasks)
    opening.may_answer.clear()
    tasks = opening.ask(2 * asgi.AT_ONCE, **STREAM)
    await settle()
    assert opening.inside == asgi.AT_ONCE
    opening.may_answer.set()
    await asyncio.gather(*tasks)


class Named(DefaultChannelManager):
    def get_channels_for_request(self, request: HttpRequest, view_kwargs: Any) -> Any:
        return request.found  # type: ignore[attr-defined]

    def can_read_channel(self, user: AbstractBaseUser | None, channel: str) -> bool:
        return user is not None and channel == f"user-{user.pk}"


class Seen(DefaultChannelManager):
    seen: ClassVar[list[Any]] = []

    async def get_channels_for_request(self, request: Any, view_kwargs: Any) -> Any:
        self.seen.append((request.found, request.user, await request.auser()))
        return {"orders"}


class View(APIView):
    """As projects on django-eventstream have it: it hands on REST framework's request."""

    authentication_classes = [BasicAuthentication]

    def get(self, request: Request) -> HttpResponseBase:
        request.found = {f"user-{request.user.pk}"}  # type: ignore[attr-defined]
        return events(request)


class Late(View):
    """It finds out who asks when somebody wants to know."""

    def perform_authentication(self, request: Request) -> None:
        pass

    def get(self, request: Request) -> HttpResponseBase:
        request.found = {request.GET["channel"]}  # type: ignore[attr-defined]
        return events(request)


@pytest.mark.parametrize("view", [View, Late])
async def test_view_of_rest_framework_hands_on_the_request_that_it_has(
    settings: Settings, view: type[APIView]
) -> None:
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = f"{__name__}.Named"
    urlconf: Any = types.ModuleType("urlconf")
    urlconf.urlpatterns = [path("mine/", view.as_view())]
    settings.ROOT_URLCONF = urlconf
    user = await User.objects.acreate_user("ann", password="secret")
    query = f"channel=user-{user.pk}".encode()
    basic = [(b"authorization", b"Basic YW5uOnNlY3JldA==")]
    client = Client("/mine/", query, basic)

    await client.until(b"stream-open")
    client.go()

    assert f"id: user-{user.pk}:0".encode() in client.body
    assert await client.has_ended()


async def test_token_s_user_is_that_of_rest_framework_s_request(
    settings: Settings,
) -> None:
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = f"{__name__}.Seen"
    urlconf: Any = types.ModuleType("urlconf")
    urlconf.urlpatterns = [path("mine/", View.as_view())]
    settings.ROOT_URLCONF = urlconf
    user = await User.objects.acreate_user("ann")
    token = make_subscribe_token(user, ["orders"])
    Seen.seen.clear()
    client = Client("/mine/", f"token={token}".encode())

    await client.until(b"stream-open")
    client.go()

    assert Seen.seen == [({"user-None"}, user, user)]
    assert await client.has_ended()
