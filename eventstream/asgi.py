"""Streams beside Django: an ASGI application around the project's.

    from eventstream.asgi import hold_streams

    application = hold_streams(get_asgi_application())

Django keeps the request, its response, their middleware and three tasks for as long as a
response lasts. With this around it, that is no longer than the view: the view says who
reads what, Django sends the head of the answer and ends the request, and the stream is
written from here. Without it streams work as well, with Django's memory for each.

It also has those wait in line who ask for a stream when many do, as after a restart.

Imports nothing that needs Django set up: a project's asgi.py does that after its imports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from django.http import HttpResponse

if TYPE_CHECKING:
    from django.core.handlers.asgi import ASGIRequest

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[..., Awaitable[None]]
Write = Callable[[Receive, Send], Awaitable[None]]
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


def _hear_again(first: Message, receive: Receive) -> Receive:
    """Return what receives a message that has been received, and then what follows."""
    waiting = [first]

    async def hear() -> Message:
        return waiting.pop() if waiting else await receive()

    return hear


def hold_streams(application: Application) -> Application:
    """Return the application, with its streams held beside it."""
    line = _Line()

    async def answer(scope: Message, receive: Receive, send: Send) -> Write | None:
        handover = _Handover(send)
        # Not a copy: the view takes the token out of what the server will log.
        scope[_KEY] = handover
        if _asks_for_stream(scope):
            request = await receive()
            receive = _hear_again(request, receive)
            # Of one whose body is still to come, nobody knows when it can be answered.
            if not request.get("more_body"):
                await line.enter(handover)
        try:
            await application(scope, receive, handover.send)
        finally:
            handover.leave_line()
        # Whoever still has the request, a log record for instance, is not to have the stream.
        write, handover.write = handover.write, None
        return write if handover.is_taken else None

    async def hold(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        # Nothing of the request is in this frame, which is kept as long as the stream.
        write = await answer(scope, receive, send)
        if write is not None:
            await write(receive, send)

    return hold


def hand_over(request: ASGIRequest, write: Write) -> HttpResponse | None:
    """Answer with a stream that is written beside Django; None if nobody would."""
    handover = request.scope.get(_KEY)
    if not isinstance(handover, _Handover):
        return None
    handover.write = write
    return HttpResponse(headers={_MARK: "1"})
