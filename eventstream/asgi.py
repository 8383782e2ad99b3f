"""Streams beside Django: an ASGI application around the project's.

    from eventstream.asgi import hold_streams

    application = hold_streams(get_asgi_application())

Django keeps the request, its response, their middleware and three tasks for as long as a
response lasts. With this around it, that is no longer than the view: the view says who
reads what, Django sends the head of the answer and ends the request, and the stream is
written from here. Without it streams work as well, with Django's memory for each.

Imports nothing that needs Django set up: a project's asgi.py does that after its imports.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

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


class _Handover:
    """What a view asks the application around Django to go on with."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.write: Write | None = None
        self.is_taken = False

    async def send(self, message: Message) -> None:
        """Pass on Django's answer; of one that is handed over, the head alone.

        Only if it is still the view's: a middleware may have answered in its place.
        """
        if self.is_taken:
            return  # the end of a body that goes on here
        if message["type"] == "http.response.start" and self.write is not None:
            headers = message["headers"]
            if any(name.lower() == _MARK_BYTES for name, _ in headers):
                self.is_taken = True
                message["headers"] = [
                    pair for pair in headers if pair[0].lower() not in _LEFT_OUT
                ]
        await self._send(message)


def hold_streams(application: Application) -> Application:
    """Return the application, with its streams held beside it."""

    async def hold(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        handover = _Handover(send)
        # Not a copy: the view takes the token out of what the server will log.
        scope[_KEY] = handover
        await application(scope, receive, handover.send)
        # Whoever still has the request, a log record for instance, is not to have the stream.
        write, handover.write = handover.write, None
        if write is not None and handover.is_taken:
            await write(receive, send)

    return hold


def hand_over(request: ASGIRequest, write: Write) -> HttpResponse | None:
    """Answer with a stream that is written beside Django; None if nobody would."""
    handover = request.scope.get(_KEY)
    if not isinstance(handover, _Handover):
        return None
    handover.write = write
    return HttpResponse(headers={_MARK: "1"})
