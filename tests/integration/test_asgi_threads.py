"""What Django answers requests for streams by: one thread at a time, which is kept."""

from __future__ import annotations

import asyncio
import threading
import types
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application
from django.core.signals import request_finished, request_started
from django.db import connection, connections
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.urls import path
from django.utils.decorators import async_only_middleware, sync_only_middleware
from pytest_django import Settings

from eventstream.asgi import AT_ONCE, Application, Message, hold_streams

pytestmark = pytest.mark.django_db(transaction=True)

threads: list[threading.Thread] = []
loops: list[asyncio.AbstractEventLoop] = []


def note_thread(**_: object) -> None:
    threads.append(threading.current_thread())


@sync_only_middleware
def around(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Be a middleware such as most are."""

    def respond(request: HttpRequest) -> HttpResponseBase:
        note_thread()
        response = get_response(request)
        note_thread()
        return response

    return respond


@async_only_middleware
def coroutine(
    get_response: Callable[[HttpRequest], Awaitable[HttpResponseBase]],
) -> Callable[[HttpRequest], Awaitable[HttpResponseBase]]:
    """Be one that is nothing but a coroutine."""

    async def respond(request: HttpRequest) -> HttpResponseBase:
        loops.append(asyncio.get_running_loop())
        return await get_response(request)

    return respond


def view(request: HttpRequest) -> HttpResponse:
    note_thread()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse("seen")


async def coroutine_view(request: HttpRequest) -> HttpResponseBase:
    loops.append(asyncio.get_running_loop())
    return await sync_to_async(view)(request)


may_answer = threading.Event()


def slow(request: HttpRequest) -> HttpResponse:
    note_thread()
    may_answer.wait(30)
    return HttpResponse("late")


@pytest.fixture(autouse=True)
def urls(settings: Settings) -> None:
    threads.clear()
    loops.clear()
    may_answer.clear()
    urlconf: Any = types.ModuleType("urlconf")
    urlconf.urlpatterns = [
        path("view/", view),
        path("coroutine/", coroutine_view),
        path("slow/", slow),
    ]
    settings.ROOT_URLCONF = urlconf
    settings.MIDDLEWARE = [f"{__name__}.around"]


async def ask(application: Application, path: str) -> list[Message]:
    """Return the answer to a request for a stream."""
    sent: list[Message] = []

    async def receive() -> Message:
        if not sent and not said:
            said.append(None)
            return {"type": "http.request", "body": b""}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    said: list[None] = []
    scope = {
        "type": "http", "method": "GET", "path": path, "query_string": b"",
        "headers": [(b"accept", b"text/event-stream")], "http_version": "1.1",
    }  # fmt: skip
    await application(scope, receive, send)
    return sent


@pytest.mark.parametrize("with_files", [False, True])
async def test_middleware_and_view_are_called_in_one_go(with_files: bool) -> None:
    """Rather than each in its turn: a request changes threads three times, whatever is in it."""
    inner = get_asgi_application()
    application = hold_streams(ASGIStaticFilesHandler(inner) if with_files else inner)
    turns: list[None] = []
    submit = asyncio.get_running_loop().run_in_executor

    def count(*arguments: Any) -> Any:
        turns.append(None)
        return submit(*arguments)

    asyncio.get_running_loop().run_in_executor = count  # type: ignore[method-assign,assignment]
    signals = [request_started, request_finished]
    for signal in signals:
        signal.connect(note_thread)
    answer = await ask(application, "/view/")
    for signal in signals:
        signal.disconnect(note_thread)

    assert answer[1]["body"] == b"seen"
    assert len(threads) == 5
    assert len(set(threads)) == 1
    assert len(turns) == 3


async def test_thread_is_kept_for_the_next_request() -> None:
    application = hold_streams(get_asgi_application())
    for _ in range(5):
        await ask(application, "/view/")
        await asyncio.sleep(0.1)  # until it has closed what it may have open

    assert len(set(threads)) == 1


async def test_no_more_are_kept_than_are_let_in_at_once() -> None:
    application = hold_streams(get_asgi_application())
    before = threading.active_count()
    tasks = [asyncio.ensure_future(ask(application, "/slow/")) for _ in range(AT_ONCE)]
    # Those have lost their places, and the others have come in.
    tasks += [asyncio.ensure_future(ask(application, "/slow/")) for _ in range(3)]
    async with asyncio.timeout(30):
        while len(set(threads)) < AT_ONCE + 3:  # noqa: ASYNC110  a list tells nobody
            await asyncio.sleep(0.02)
    may_answer.set()
    await asyncio.gather(*tasks)
    async with asyncio.timeout(30):
        while threading.active_count() > before + AT_ONCE:  # noqa: ASYNC110  tells nobody
            await asyncio.sleep(0.02)


# Django leaves the file with the body open when it is cancelled.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_who_is_still_at_work_holds_up_nobody() -> None:
    """A server that cancels a request does not end the view: its thread is nobody's."""
    application = hold_streams(get_asgi_application())
    late = asyncio.ensure_future(ask(application, "/slow/"))
    async with asyncio.timeout(30):
        while len(threads) < 2:  # noqa: ASYNC110  a list tells nobody
            await asyncio.sleep(0.02)
    late.cancel()
    await asyncio.wait([late])

    answer = await asyncio.wait_for(ask(application, "/view/"), 10)
    assert answer[1]["body"] == b"seen"
    assert len(set(threads)) == 2
    may_answer.set()


async def test_nothing_is_kept_open_in_a_thread_that_waits(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not be used again for hours: CONN_MAX_AGE is for those that are."""
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", None)
    opened: list[Any] = []

    def note(request: HttpRequest) -> HttpResponse:
        response = view(request)
        opened.append(connections["default"])
        assert opened[0].connection is not None
        return response

    settings.ROOT_URLCONF.urlpatterns.append(path("note/", note))
    await ask(hold_streams(get_asgi_application()), "/note/")

    async with asyncio.timeout(10):
        while opened[0].connection is not None:  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0.02)


async def test_coroutines_run_in_the_server_s_loop(settings: Settings) -> None:
    """A project's own, with what belongs to that loop: a pool of connections, a client."""
    settings.MIDDLEWARE = [f"{__name__}.coroutine", f"{__name__}.around"]
    answer = await ask(hold_streams(get_asgi_application()), "/coroutine/")

    assert answer[1]["body"] == b"seen"
    assert loops == [asyncio.get_running_loop()] * 2
