"""Streams beside Django: an ASGI application around the project's.

    from eventstream.asgi import hold_streams

    application = hold_streams(get_asgi_application())

Django keeps the request, its response, their middleware and three tasks for as long as a
response lasts. With this around it, that is no longer than the view: the view says who
reads what, Django sends the head of the answer and ends the request, and the stream is
written from here. Without it streams work as well, with Django's memory for each.

It also has those wait in line who ask for a stream when many do, as after a restart, and
Django answers them in half the time: see _Handler.

Imports nothing that needs Django set up: a project's asgi.py does that after its imports.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.db import connections
from django.http import HttpResponse

if TYPE_CHECKING:
    from django.core.handlers.asgi import ASGIRequest
    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[..., Awaitable[None]]
Gone = asyncio.Task[Message]
"""Waits until the client is gone."""
Write = Callable[[Gone, Send], Awaitable[None]]
"""Writes the body of a stream, whose head has been sent, until it ends."""

_KEY = "eventstream"
_MARK = "Eventstream-Held"
_MARK_BYTES = _MARK.lower().encode()
# The length of an empty body, which is what CommonMiddleware has seen.
_LEFT_OUT = (_MARK_BYTES, b"content-length")

AT_ONCE = 32
"""Most requests for streams that Django answers at the same time in a process.

It has a thread for each. A thousand take turns with one Python for every few bytes from the
database, hold their connections meanwhile, and others wait for one in vain.
"""

KEPT = 1.0
"""Seconds for which a request has its place, at most. One that takes longer waits for
something, for permissions perhaps that are asked of somebody else, and not for its turn.
"""


class _Line:
    """Those who ask for a stream, in the order in which they came."""

    def __init__(self) -> None:
        # An asyncio semaphore belongs to the event loop that it first waited in.
        self._places: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]
        self._places = WeakKeyDictionary()

    async def enter(self, handover: _Handover) -> None:
        """Wait for a place, and have it until the answer begins or KEPT is over."""
        loop = asyncio.get_running_loop()
        places = self._places.setdefault(loop, asyncio.Semaphore(AT_ONCE))
        await places.acquire()
        handover.places = places
        loop.call_later(KEPT, handover.leave_line)


class _Handler(ASGIHandler):
    """Django's handler, with middleware and view called in one go, as under WSGI.

    Django's own changes threads before and after each middleware that is not a coroutine, and
    most are not. With four of them that is half of what an answer costs.
    """

    def load_middleware(self, is_async: bool = False) -> None:
        super().load_middleware(is_async=False)

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        return await sync_to_async(self.get_response)(request)


class _Threads:
    """Threads for Django to answer in: one for each request, which is kept for the next.

    asgiref starts one for each request, and waits for its end.
    """

    def __init__(self) -> None:
        self._idle: list[ThreadPoolExecutor] = []

    @contextmanager
    def lend(self) -> Iterator[None]:
        """Have what is called in here, and is sensitive to threads, in a thread of its own."""
        try:
            executor = self._idle.pop()
        except IndexError:
            executor = ThreadPoolExecutor(1)
        context = ThreadSensitiveContext()
        SyncToAsync.context_to_thread_executor[context] = executor
        token = SyncToAsync.thread_sensitive_context.set(context)
        try:
            yield
        finally:
            SyncToAsync.thread_sensitive_context.reset(token)
            # The view of a stream that Django itself holds has ended it.
            if SyncToAsync.context_to_thread_executor.pop(context, None) is executor:
                self._take_back(executor)

    def _take_back(self, executor: ThreadPoolExecutor) -> None:
        # By itself, as it may still be at work for a request that was cancelled. Nothing stays
        # open in a thread that may not be used for a long time, whatever CONN_MAX_AGE says.
        closed = executor.submit(connections.close_all)
        closed.add_done_callback(lambda _: self._keep(executor))

    def _keep(self, executor: ThreadPoolExecutor) -> None:
        if len(self._idle) < AT_ONCE:
            self._idle.append(executor)
        else:
            executor.shutdown(wait=False)


def _asks_for_stream(scope: Message) -> bool:
    """Say whether a request is for a stream, or a proxy's question after one that it holds.

    Before Django has looked at it: a project's other requests are not to stand in line.
    """
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    names = dict(headers)
    if b"text/event-stream" in names.get(b"accept", b""):
        return True
    return b"grip-sig" in names and "/next/" in scope["path"]


class _Handover:
    """What a view asks the application around Django to go on with."""

    __slots__ = ("_send", "is_taken", "places", "write")  # the server's scope keeps it

    def __init__(self, send: Send) -> None:
        self._send = send
        self.places: asyncio.Semaphore | None = None
        self.write: Write | None = None
        self.is_taken = False

    async def send(self, message: Message) -> None:
        """Pass on Django's answer; of one that is handed over, the head alone.

        Only if it is still the view's: a middleware may have answered in its place.
        """
        if self.is_taken:
            return  # the end of a body that goes on here
        self.leave_line()
        if message["type"] == "http.response.start" and self.write is not None:
            headers = message["headers"]
            if any(name.lower() == _MARK_BYTES for name, _ in headers):
                self.is_taken = True
                message["headers"] = [
                    pair for pair in headers if pair[0].lower() not in _LEFT_OUT
                ]
        await self._send(message)

    def leave_line(self) -> None:
        """Let the next one in, once: as the answer begins, or takes long, or never comes."""
        places, self.places = self.places, None
        if places is not None:
            places.release()


class _Listening:
    """What the server has to say about a request: to Django, and then to the stream.

    While Django answers it listens for the client's end, and then cancels that. Not every
    server can be listened to again after it: gunicorn's says from then on that the client
    is gone. So one task waits for that end, and the stream goes on with it.
    """

    __slots__ = ("_context", "_gone", "_is_read", "_receive", "_said")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._said: Message | None = None
        self._is_read = False
        self._gone: Gone | None = None
        # That of Django's listener would be kept, and what middleware has put there.
        self._context = contextvars.copy_context()

    async def hear_first(self) -> Message:
        """Return what comes first, which will be heard again."""
        self._said = await self._receive()
        return self._said

    async def hear(self) -> Message:
        """Return what comes next. The server does not notice if this is cancelled.

        But for the body: nobody listens to what comes after half of it.
        """
        if self._is_read:
            return await asyncio.shield(self._wait())
        said, self._said = self._said, None
        message = await self._receive() if said is None else said
        self._is_read = not message.get("more_body")
        return message

    def _wait(self) -> Gone:
        if self._gone is None:
            loop = asyncio.get_running_loop()
            waiting = _wait_until_gone(self._receive)
            self._gone = loop.create_task(waiting, context=self._context)
        return self._gone

    def give_away(self) -> Gone:
        """Return the task that is done when the client is gone; it is another's from now on."""
        gone, self._gone = self._wait(), None
        return gone

    async def stop(self) -> None:
        """Wait no longer."""
        if self._gone is not None:
            self._gone.cancel()
            await asyncio.wait([self._gone])


async def _wait_until_gone(receive: Receive) -> Message:
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


def hold_streams(application: Application) -> Application:
    """Return the application, with its streams held beside it.

    Around Django's own, static files or not, a second handler answers the requests for
    streams: each middleware is made twice. Around anything else, that answers them, too.
    """
    line, threads = _Line(), _Threads()
    # As Django marks its handler of static files.
    is_around = getattr(application, "handles_files", False)
    inner = application.application if is_around else application  # type: ignore[attr-defined]
    is_djangos = type(inner) is ASGIHandler
    stream_application: Application = _Handler() if is_djangos else application

    async def answer(
        scope: Message, receive: Receive, send: Send
    ) -> tuple[Write, Gone] | tuple[None, None]:
        handover = _Handover(send)
        listening = _Listening(receive)
        # Not a copy: the view takes the token out of what the server will log.
        scope[_KEY] = handover
        is_waited_for = _asks_for_stream(scope)
        try:
            if is_waited_for:
                request = await listening.hear_first()
                # Of one whose body is still to come, nobody knows when it can be answered.
                is_waited_for = not request.get("more_body")
            if is_waited_for:
                await line.enter(handover)
                with threads.lend():
                    await stream_application(scope, listening.hear, handover.send)
            else:
                await application(scope, listening.hear, handover.send)
            # Whoever still has the request, a log record for instance, is not to have the
            # stream.
            write, handover.write = handover.write, None
            if write is None or not handover.is_taken:
                return None, None
            return write, listening.give_away()
        finally:
            handover.leave_line()
            await listening.stop()

    async def hold(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        # Nothing of the request is in this frame, which is kept as long as the stream.
        write, gone = await answer(scope, receive, send)
        if write is not None and gone is not None:
            await write(gone, send)

    return hold


def hand_over(request: ASGIRequest, write: Write) -> HttpResponse | None:
    """Answer with a stream that is written beside Django; None if nobody would."""
    handover = request.scope.get(_KEY)
    if not isinstance(handover, _Handover):
        return None
    handover.write = write
    return HttpResponse(headers={_MARK: "1"})
