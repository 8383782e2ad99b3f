"""The hold by a GRIP proxy: answers that tell it what to do with the connection."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db import InterfaceError, OperationalError
from django.http import HttpResponse
from django.urls import Resolver404, resolve
from django.utils.encoding import escape_uri_path
from django.utils.http import escape_leading_slashes
from django.views.decorators.debug import sensitive_variables
from gripcontrol import Channel

from eventstream import conf, sse
from eventstream.exceptions import ExpiredLinkError
from eventstream.positions import format_position, parse_event_id, quote_channel
from eventstream.reading import LinkKind, Reader, read_link, read_page, sign_link
from eventstream.targets.grip import (
    FILTER_BUILD_ID,
    FILTER_REQUIRE_SUB,
    FILTER_SKIP_USERS,
    channel_name,
    escape_format,
    held_channel,
    held_token,
    user_channel_name,
)

if TYPE_CHECKING:
    from django.http import HttpRequest

logger = logging.getLogger(__name__)

MAX_HOLD_BYTES = 90_000
"""Most bytes of an answer that holds. Pushpin reads up to 100,000 before it takes the
instruction (MAX_ACCEPT_RESPONSE_BODY in its proxysession.cpp), and ends the stream if
there are more; an answer that only links on may be of any size."""

CONTENT_TYPE = "text/event-stream"

LINKS = 8
"""Most next links below a path. Pushpin asks for a hundred streams of a link at once, and ten
times a second at most; what is published to those that wait for their turn waits with them. So
all readers have these few links, and each link has its own time."""

ASK_SOON = 10
"""Seconds after which a link is asked for the first time, or again if the database
could not answer. What was published between reading and holding, Pushpin finds out for the
first stream of a channel alone, and forgets the channel's last id by it: see decisions/0004."""


def is_proxied(request: HttpRequest) -> bool:
    """Say whether the request came through a GRIP proxy of ours."""
    grip = getattr(request, "grip", None)
    return bool(grip is not None and grip.proxied)


_linked: set[str] = set()
"""Routes below which a next link was seen to lead somewhere."""


def _check_route(request: HttpRequest) -> None:
    """See that the proxy can ask for what it is to hold, below the stream's own path.

    A project's own view that calls ours may have one route only. Its streams would get no
    event, as the proxy asks in vain from the first second on, and end after twenty.

    Raises:
        ImproperlyConfigured: It cannot.
    """
    match = request.resolver_match
    if match is None or match.route in _linked:
        return
    path = f"{request.path_info.rstrip('/')}/next/x/"
    try:
        found = resolve(path, getattr(request, "urlconf", None))
    except Resolver404:
        found = None
    if found is None or "token" not in found.kwargs:  # a page for whatever has none
        raise ImproperlyConfigured(
            f"The GRIP proxy would hold streams of {match.route!r}, and asks what is new "
            "below that: add a route with 'next/<str:token>/' at its end that leads to "
            "eventstream.views.next_link, as include('eventstream.urls') has it."
        )
    _linked.add(match.route)


@sensitive_variables("text")
def open_stream(request: HttpRequest, reader: Reader) -> HttpResponse:
    """Answer a client's request: preamble, what it has missed, hold or go on paging.

    Raises:
        ImproperlyConfigured: The proxy could not ask for what is new.
    """
    _check_route(request)
    page = read_page(reader, is_opening=True)
    options = conf.get_options()
    preamble = sse.encode_preamble(
        options.padding,
        options.retry,
        format_position(page.begin),
        head=format_position(page.heads),
        keep_alive=options.keep_alive,
        state_count=page.state_count,
    )
    text = preamble + page.text
    return _respond(
        request, reader, page.positions, text, page.is_last,
        is_opening=True, is_asked_soon=True,
    )  # fmt: skip


@sensitive_variables("token", "last")
def continue_stream(request: HttpRequest, token: str) -> HttpResponse:
    """Answer a next link: what is new, which is usually nothing, and hold again.

    A held stream's reader and position come from the proxy (Grip-Last), which knows what it
    has handed over; a paging one's are in the link.

    Up to Pushpin 1.40 an answer goes through the filters of the answer before, from 1.41 on
    through its own. So the two must have the same, or there must be nothing to filter: after
    a bare page comes an answer that has the filters, and no body.

    Args:
        request: The proxy's.
        token: The link's last part: a number for streams that are held, or a page's token.

    Raises:
        ExpiredLinkError: It is too old, or not of this site; or the proxy did not say how far
            a held stream is. Then it does not ask for a stream that it holds: it passes on
            the request of a client, for it takes all Grip- headers from those.
    """
    number = _LINK_NUMBERS.get(token)
    last: Mapping[str, str] = {}
    if number is not None:
        last = request.grip.last  # type: ignore[attr-defined]
        token = held_token(last)
    reader, kind = read_link(token, now=time.time())
    if kind.is_hold != (number is not None):
        raise ExpiredLinkError("The token is of another kind of link")
    if kind is LinkKind.BARE_PAGE and reader.positions:
        return _respond(request, reader, reader.positions, "", False)
    if kind.is_hold:
        positions = grip_positions(last, reader)
        if len(positions) < len(reader.reliable):
            raise ExpiredLinkError("The proxy does not hold such a stream")
        reader = dataclasses.replace(reader, positions=positions)
    try:
        page = read_page(reader)
    except (OperationalError, InterfaceError) as error:
        # As if it had not asked. After an error it would ask again, but a few times only, and
        # by a fault of its own Pushpin may then ask once too often: see decisions/0013.
        logger.warning(
            "A stream is held as it is: the database cannot be read (%s)", error
        )
        return _respond(
            request, reader, reader.positions, "", True,
            number=number, is_asked_soon=True,
        )  # fmt: skip
    # What is published meanwhile the proxy lets go if it does not follow the answer: together
    # with an event that the answer has, another one may be gone. Once is enough: a channel in
    # which there is news again so soon shows the gap by its next event. If each answer of a
    # busy channel were asked about soon, all its streams would be, all the time.
    has_news = page.positions != reader.positions and kind is LinkKind.HOLD
    return _respond(
        request, reader, page.positions, page.text, page.is_last,
        number=number, is_asked_soon=not kind.is_hold, has_news=has_news,
    )  # fmt: skip


_LINK_NUMBERS = {str(number): number for number in range(LINKS)}


def grip_positions(last: Mapping[str, str], reader: Reader) -> dict[str, int]:
    """Return the event ids of a Grip-Last header; ids that are not ours are left out."""
    prefix = conf.grip_prefix()
    positions = {}
    for name in reader.reliable:
        eid = parse_event_id(last.get(prefix + channel_name(name), ""))
        if eid is not None:
            positions[name] = eid
    return positions


_paths: dict[str, set[str]] = {}
"""By route, the paths of streams that were seen, up to LINKS."""


def _choose_link(request: HttpRequest, base: str) -> int:
    """Return by which of the links below this path a stream is to be held.

    Where a route has many paths, such as one for each room, each has one link: any more would
    be as many of those that Pushpin asks for ten times a second at most.
    """
    match = request.resolver_match
    paths = _paths.setdefault(match.route if match else "", set())
    if len(paths) < LINKS:
        paths.add(base)
    return secrets.randbelow(LINKS // len(paths))


def _stream_path(path: str, *, is_opening: bool) -> str:
    """Return a stream's own path as it is written in a header, with a slash at its end.

    Args:
        path: The request's, decoded; a channel in it may be called "next", or anything.
        is_opening: It is the stream's own, and not that of a link below it.
    """
    own = path if is_opening else path.rpartition("/next/")[0]
    # Pushpin takes a comma for the end of the header's first value, brackets or not, and
    # what follows two slashes at the beginning for the name of a host.
    escaped = escape_leading_slashes(escape_uri_path(own.rstrip("/")))
    return escaped.replace(",", "%2C") + "/"


@sensitive_variables("text", "escaped")
def _respond(
    request: HttpRequest,
    reader: Reader,
    positions: Mapping[str, int],
    text: str,
    is_last: bool,
    *,
    is_opening: bool = False,
    number: int | None = None,
    is_asked_soon: bool = False,
    has_news: bool = False,
) -> HttpResponse:
    """Return an answer that holds the stream, or links on to the rest of what it begins.

    Args:
        request: The client's or the proxy's.
        reader: Whose stream it is.
        positions: Where the text leaves it.
        text: What is written to the client.
        is_last: Whether that is all there is.
        is_opening: The request is the client's.
        number: The link by which the stream is held; None for any.
        is_asked_soon: Something may have been published that the proxy does not tell it.
        has_news: The same, because the text has events; the next answer is told.
    """
    now = time.time()
    options = conf.get_options()
    base = _stream_path(request.path, is_opening=is_opening)
    # A large one is not copied to learn that it is.
    is_whole = is_last and len(text) <= MAX_HOLD_BYTES
    escaped = escape_format(text) if positions and is_whole else text
    if not is_whole or len(escaped.encode()) > MAX_HOLD_BYTES:
        # No hold: the proxy sends this on and asks the link at once. A first answer may be
        # large only if it has no filters.
        is_bare = is_opening or not positions
        kind = LinkKind.BARE_PAGE if is_bare else LinkKind.PAGE
        token = sign_link(reader, positions, now=now, kind=kind)
        link = f"{base}next/{token}/"
        if is_bare:
            response = _measured(text)
            response["Grip-Link"] = f"<{link}>; rel=next"
            return response
        # Without a hold nothing is subscribed to: this channel is there for its filter, and
        # nothing refers to the format, which the filter wants.
        instruct: Any = request.grip.start_instruct()  # type: ignore[attr-defined]
        channel = Channel(channel_name(next(iter(positions))))
        channel.filters.append(FILTER_BUILD_ID)
        instruct.add_channel(channel)
        instruct.meta["id_format"] = "page"
        instruct.set_next_link(link)
        return _measured(escape_format(text))
    instruct = request.grip.start_instruct()  # type: ignore[attr-defined]
    instruct.set_hold_stream()
    prefix = conf.grip_prefix()
    formats = []
    for name in reader.channels:
        eid = positions.get(name)
        # As text: gripcontrol leaves out a prev-id that is not truthy, such as 0.
        channel = Channel(channel_name(name), None if eid is None else str(eid))
        if eid is not None:
            channel.filters.append(FILTER_BUILD_ID)
            known_as = prefix + channel_name(name)
            formats.append(f"{escape_format(quote_channel(name))}:%({known_as})s")
        channel.filters.append(FILTER_SKIP_USERS)
        instruct.add_channel(channel)
    if reader.user_id:
        channel = Channel(user_channel_name(reader.user_id))
        channel.filters.append(FILTER_REQUIRE_SUB)
        instruct.add_channel(channel)
        # Of nobody else: a name for the anonymous could be a user's, whom events skip.
        instruct.meta["user"] = quote_channel(reader.user_id)
    kind = LinkKind.HOLD_WITH_NEWS if has_news else LinkKind.HOLD
    token = sign_link(reader, now=now, kind=kind)
    instruct.add_channel(Channel(held_channel(now), token))
    if formats:
        instruct.meta["id_format"] = ",".join(formats)
        # The proxy expands the answer's body as it does each event's.
        text = escaped
    instruct.set_keep_alive(sse.KEEP_ALIVE, options.keep_alive)
    silence = options.next_link_timeout
    if is_asked_soon or has_news:
        silence = min(ASK_SOON, silence)
    if number is None:
        number = _choose_link(request, base)
    # Each link's own, as a crowd may have come all at once.
    silence -= silence * number // (4 * LINKS)
    instruct.set_next_link(f"{base}next/{number}/", silence)
    return _measured(text)


@sensitive_variables("text")
def _measured(text: str) -> HttpResponse:
    """Return an answer that says how long it is, as one without CommonMiddleware does not.

    Where a hop in between speaks HTTP/1.0, as nginx does unless it is told, a body ends with
    the connection otherwise. What is left of it by a process that was killed would look whole,
    and the proxy would go on behind what is missing.
    """
    response = HttpResponse(text, content_type=CONTENT_TYPE)
    response["Content-Length"] = str(len(response.content))
    return response
