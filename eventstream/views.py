"""The one endpoint. No SQL and no wire format: reading decides, a holder answers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from asgiref.sync import SyncToAsync, sync_to_async
from django.contrib.auth.decorators import login_not_required
from django.core.handlers.asgi import ASGIRequest
from django.db import InterfaceError, OperationalError, connections
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseNotAllowed,
    StreamingHttpResponse,
)
from django.views.decorators.debug import sensitive_variables

from eventstream import hold, sse
from eventstream.asgi import hand_over
from eventstream.cors import allow_origin
from eventstream.exceptions import (
    BadRequestError,
    ChannelPermissionError,
    ExpiredLinkError,
    ExpiredTokenError,
    InitialStateError,
    ResumeNotAllowedError,
    TokenError,
    TooManyStreamsError,
)
from eventstream.hub import get_hub
from eventstream.hub.writing import write_stream
from eventstream.limits import Slot, count_open, count_open_of_user, take_slot
from eventstream.reading import Reader, read_request
from eventstream.tokens import hide_token
from eventstream.transactions import outside_transactions

logger = logging.getLogger(__name__)

UNSUPPORTED = (
    "This server cannot hold event streams: it runs under WSGI and the request did not "
    "come through a GRIP proxy. Serve the project by ASGI (uvicorn, hypercorn, daphne), "
    "or put Pushpin or Fastly Fanout in front and set GRIP_URL and GripMiddleware."
)


@outside_transactions
def events(request: HttpRequest, **view_kwargs: Any) -> HttpResponseBase:
    """Open a stream of the channels that the channel manager finds in the request.

    The request may be REST framework's: a view of the project's own hands on what it has.
    """
    given, request = request, _unwrap(request)
    hide_token(request)
    if request.method == "OPTIONS":
        return _finish(request, HttpResponse(status=204))
    if request.method != "GET":
        return _finish(request, HttpResponseNotAllowed(["GET", "OPTIONS"]))
    return _finish(request, _answer(lambda: _open(request, view_kwargs, given)))


# Signed, and asked by the proxy, which is nobody's session.
@login_not_required
@outside_transactions
@sensitive_variables("token")
def next_link(request: HttpRequest, token: str, **_: Any) -> HttpResponseBase:
    """Answer a GRIP proxy that asks what is new for a stream that it holds."""
    if request.method != "GET":
        return HttpResponseNotAllowed(["GET"])
    if not hold.is_proxied(request) or _is_client(request):
        text = sse.encode_error("bad-request", "Next links are for the GRIP proxy")
        return HttpResponse(text, status=400, content_type=hold.CONTENT_TYPE)
    return _finish(request, _answer(lambda: _continue(request, token)))


# None of these is in a request that a proxy makes by itself. That alone proves nothing, as a
# client may leave them out; see hold.continue_stream for what does, and PAGE_LIFETIME.
_CLIENT_HEADERS = (
    "Accept-Language",
    "Authorization",
    "Cookie",
    "Last-Event-ID",
    "Origin",
    "Referer",
    "Sec-Fetch-Mode",
)


def _is_client(request: HttpRequest) -> bool:
    return any(request.headers.get(name) for name in _CLIENT_HEADERS)


def _unwrap(request: HttpRequest) -> HttpRequest:
    """Return Django's own request of one of REST framework's, with the user it has found."""
    own = getattr(request, "_request", None)
    if not isinstance(own, HttpRequest):
        return request
    own.user = request.user
    return own


def _open(
    request: HttpRequest, view_kwargs: dict[str, Any], given: HttpRequest
) -> HttpResponseBase:
    if request.GET.get("link") == "next" and hold.is_proxied(request):
        # A next link of django-eventstream, for a stream that the proxy has held since that
        # was here. It has neither the client's position nor its session: as an expired one.
        return _end_stream()
    count_open(request)
    reader = read_request(request, view_kwargs, given)
    count_open_of_user(reader.user_id)
    if hold.is_proxied(request):
        return hold.open_stream(request, reader)
    if isinstance(request, ASGIRequest):
        slot = take_slot(request, reader.user_id)
        response = hand_over(request, partial(write_stream, reader, slot))
        if response is not None:
            response["Content-Type"] = hold.CONTENT_TYPE
            return response
        return StreamingHttpResponse(
            _stream(reader, slot), content_type=hold.CONTENT_TYPE
        )
    return HttpResponse(UNSUPPORTED + "\n", status=501, content_type="text/plain")


@sensitive_variables("token")
def _continue(request: HttpRequest, token: str) -> HttpResponseBase:
    try:
        return hold.continue_stream(request, token)
    except ExpiredLinkError:
        return _end_stream()


def _end_stream() -> HttpResponse:
    """Answer without a hold, which ends a stream that a proxy holds.

    The client comes back with its Last-Event-ID and gets a new link.
    """
    return HttpResponse(content_type=hold.CONTENT_TYPE)


def _answer(respond: Callable[[], HttpResponseBase]) -> HttpResponseBase:
    """Turn errors into what the client can be told.

    A stream-error is sent with status 200: to any other an EventSource gives no reason,
    and tries again for ever.
    """
    try:
        return respond()
    except TooManyStreamsError as error:
        # No stream-error: reconnecting is right, only not now. A plain EventSource gives
        # up on any status but 200, see docs/security.md for what each client does.
        response = HttpResponse(f"{error}\n", status=429, content_type="text/plain")
        response["Retry-After"] = str(error.retry_after)
        return response
    except ResumeNotAllowedError as error:
        return HttpResponse(f"{error}\n", status=400, content_type="text/plain")
    except BadRequestError as error:
        text = sse.encode_error("bad-request", f"Invalid request: {error}")
    except ChannelPermissionError as error:
        text = sse.encode_error("forbidden", str(error), {"channels": error.channels})
    except TokenError as error:
        return _refuse_token(error)
    except InitialStateError:
        # Without a hold the stream ends, and the client tries again.
        text = ""
    except (OperationalError, InterfaceError) as error:
        # The same: at a status of 500 a plain EventSource would give up for ever.
        logger.warning("No stream: the database cannot be read (%s)", error)
        text = ""
    return HttpResponse(text, content_type=hold.CONTENT_TYPE)


def _refuse_token(error: TokenError) -> HttpResponse:
    """Say so in the way that whoever can send a token like this can read.

    Source: RFC 6750, section 3. A client that sets headers reads the status, too; one that
    has nothing but a query is an EventSource, which tells of no answer but 200.
    """
    if isinstance(error, ExpiredTokenError):
        # Without an id: the client keeps its position, for the stream with a new token.
        text = sse.encode_error("token-expired", str(error), is_final=False)
    else:
        text = sse.encode_error("token-invalid", str(error))
    response = HttpResponse(text, content_type=hold.CONTENT_TYPE)
    if error.is_in_header:
        response.status_code = 401
        response["WWW-Authenticate"] = 'Bearer error="invalid_token"'
    return response


async def _stream(reader: Reader, slot: Slot) -> AsyncIterator[bytes]:
    try:
        await release_request()
        stream = get_hub().stream(reader)
        try:
            async for chunk in stream:
                yield chunk
        finally:
            await stream.aclose()  # type: ignore[attr-defined]
    finally:
        slot.release()


async def release_request() -> None:
    """Give back the connections and the thread of a request whose response will last."""
    await sync_to_async(_close_connections)()
    _release_thread()


def _close_connections() -> None:
    """Give back what middleware and permission checks opened; the stream needs none.

    Django would keep it until the response ends: one connection for every open stream.
    """
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()


def _release_thread() -> None:
    """End the thread that asgiref keeps for this request; a later call gets a new one.

    It would live, idle, for as long as the stream does.
    """
    context = SyncToAsync.thread_sensitive_context.get(None)
    executor = context and SyncToAsync.context_to_thread_executor.pop(context, None)
    if isinstance(executor, ThreadPoolExecutor):
        executor.shutdown(wait=False)


def forbid_compression(request: HttpRequest) -> None:
    """Have no middleware compress the answer: each goes by what the client says it takes.

    Django's GZipMiddleware makes a file of its own of each chunk, and browsers read the first.
    """
    request.META.pop("HTTP_ACCEPT_ENCODING", None)


def _finish(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    forbid_compression(request)
    # Nobody may keep it: neither the stream nor a refusal, which may be one user's alone. Nor
    # compress it, as development servers of JavaScript do: events wait for each other there.
    response["Cache-Control"] = "no-cache, no-store, no-transform, private"
    response["X-Accel-Buffering"] = "no"
    response["X-Content-Type-Options"] = "nosniff"
    allow_origin(request, response)
    return response
