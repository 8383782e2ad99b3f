"""A request → who reads what, from where. Shared by both holders."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from django.apps import apps
from django.core import signing
from django.db import Error, connections
from django.views.decorators.debug import sensitive_variables

from eventstream import conf, instruments, sse
from eventstream.channelmanager import (
    asks_permissions,
    check_operator,
    check_permission,
    check_reader,
    is_operator,
    is_reliable,
    operator_id,
    requested_channels,
)
from eventstream.cursors import ensure_cursors
from eventstream.exceptions import (
    BadRequestError,
    ChannelPermissionError,
    ExpiredLinkError,
    InvalidChannelError,
)
from eventstream.initial import (
    encode_initial_state,
    has_initial_states,
    read_initial_states,
)
from eventstream.pieces import Wanted, read_piece
from eventstream.positions import (
    count_fitting,
    format_position,
    parse_position,
    split_position,
)
from eventstream.specs import check_channel
from eventstream.storage import DjangoModelStorage, alias_of, get_storage
from eventstream.tokens import take_grant

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser
    from django.http import HttpRequest

logger = logging.getLogger(__name__)

LINK_QUANTUM = 3600
"""Seconds to which a held stream's time of issue is rounded, so that equal readers have equal
tokens: the proxy asks once for all of them that it asks for at the same time."""

PAGE_QUANTUM = 60
PAGE_LIFETIME = 600
"""The same, and the lifetime in seconds, for links to a further page: the proxy asks them at
once, and is not to be waited for longer than it takes to restart something."""

_LINK_SALT = "eventstream.next"
_LINK_SEPARATOR = "~"
"""Good in a path and in a header's parameter, where a colon would end the value."""


@dataclass(frozen=True)
class Reader:
    """Who reads which channels, checked.

    Attributes:
        channels: Sorted names.
        reliable: Those that have a log, sorted.
        user_id: Primary key as text; "" for the anonymous user.
        positions: The client's event id by reliable channel; missing: start at the head,
            with the initial state if the channel has one.
        checked_at: Before its permissions were asked, by the monotonic clock.
    """

    channels: tuple[str, ...]
    user_id: str
    positions: Mapping[str, int] = field(default_factory=dict)
    checked_at: float = 0.0

    @cached_property
    def reliable(self) -> tuple[str, ...]:
        return tuple(name for name in self.channels if is_reliable(name))


@dataclass
class Page:
    """What a reader is to receive now.

    Attributes:
        text: stream-reset, initial states and events, encoded; may be "".
        begin: The position before the text; without channels that begin with their
            state, which a client that is cut off before it must come back for.
        positions: Where that leaves the reader, in every reliable channel.
        is_last: Whether the reader has caught up.
        heads: The newest event id of every reliable channel, as this read began.
        state_count: How many initial states the text has; None where no channel ever has one.
    """

    text: str = field(repr=False)  # logs and error pages must not show it
    begin: dict[str, int]
    positions: dict[str, int]
    is_last: bool
    heads: dict[str, int]
    state_count: int | None


def read_request(
    request: HttpRequest,
    view_kwargs: Mapping[str, Any],
    shown: HttpRequest | None = None,
) -> Reader:
    """Return the reader that a client's request describes.

    Args:
        request: Django's.
        view_kwargs: What the route, or a view of the project's own, says besides.
        shown: REST framework's around it, if any. The channel manager sees that one, as
            the view may have left there what it has found.

    Raises:
        BadRequestError: Channels or Last-Event-ID cannot be understood.
        ChannelPermissionError: Some channel may not be read.
        TokenError: The request's subscribe token does not open a stream.
    """
    shown = request if shown is None else shown
    grant = take_grant(request)
    if grant is not None:
        _set_user(request, shown, grant.user)
    if grant is not None and grant.is_operator:
        names = set(grant.channels)  # whatever the channel manager makes of the request
    else:
        names = requested_channels(shown, view_kwargs)
    if grant is not None:
        names = names or set(grant.channels)
        if names - grant.channels:
            raise ChannelPermissionError(sorted(names - grant.channels))
    if not names:
        raise BadRequestError("No channels specified")
    limit = conf.get_options().channel_limit
    if len(names) > limit:
        raise BadRequestError(f"Channel limit of {limit} exceeded")
    for name in names:
        try:
            check_channel(name)
        except InvalidChannelError as error:
            raise BadRequestError(f"Invalid channel: {error}") from error
    last_event_id = request.headers.get("Last-Event-ID") or ""
    if not last_event_id:
        # The last that says anything: clients append theirs to what the URL has.
        given = [text for text in request.GET.getlist("lastEventId") if text]
        last_event_id = given[-1] if given else ""
    positions = parse_position(last_event_id) if last_event_id else {}
    user = getattr(request, "user", None)
    if user is not None and not user.is_authenticated:
        user = None
    checked_at = time.monotonic()
    user_id = "" if user is None else str(user.pk)
    if grant is not None and grant.is_operator and user is not None:
        user_id = operator_id(user)
    elif is_operator(user_id):  # a primary key that looks like what it is not
        raise ChannelPermissionError(sorted(names))
    check = check_operator if is_operator(user_id) else check_permission
    check(user, names)
    reader = Reader(
        channels=tuple(sorted(names)),
        user_id=user_id,
        checked_at=checked_at,
        positions={n: eid for n, eid in positions.items() if n in names},
    )
    reader.reliable  # noqa: B018  asked here: the hub runs where no manager can be waited for
    return reader


def _set_user(
    request: HttpRequest, shown: HttpRequest, user: AbstractBaseUser | None
) -> None:
    """Make the token's user that of the request, as a channel manager looks for it."""
    found: Any = user
    if user is None and apps.is_installed("django.contrib.auth"):
        from django.contrib.auth.models import AnonymousUser  # noqa: PLC0415  needs the app

        found = AnonymousUser()

    async def auser() -> Any:
        return found

    for each in (request, shown):
        each.user = found
        each.auser = auser


class LinkKind(Enum):
    """The answer that a next link came with: the values are what tokens have for it."""

    HOLD = 0
    HOLD_WITH_NEWS = 1
    """A hold whose answer had something, and that is asked about soon for that."""
    PAGE = 2
    """A page that is not the last."""
    BARE_PAGE = 3
    """The same, without filters."""

    @property
    def is_hold(self) -> bool:
        return self in {LinkKind.HOLD, LinkKind.HOLD_WITH_NEWS}


def sign_link(
    reader: Reader,
    positions: Mapping[str, int] | None = None,
    *,
    now: float,
    kind: LinkKind = LinkKind.HOLD,
) -> str:
    """Return what stands for a reader in a next link. Equal arguments within an hour: equal.

    Everything that the answer depends on is in it, with what else is in Grip-Last. It goes into
    the path, or for a held stream into Grip-Last: Pushpin shares requests in flight by these
    two, and by nothing else.

    Args:
        reader: Whose link it is.
        positions: Where to go on from, while paging. A held stream's is in Grip-Last.
        now: Seconds since the epoch.
        kind: What comes with it.
    """
    issued = int(now) // (LINK_QUANTUM if kind.is_hold else PAGE_QUANTUM)
    content: list[Any] = [issued, kind.value, reader.user_id, list(reader.channels)]
    if positions is not None:
        content.append(format_position(positions))
    return signing.Signer(salt=_LINK_SALT, sep=_LINK_SEPARATOR).sign_object(
        content, compress=True
    )


@sensitive_variables("token")
def read_link(token: str, *, now: float) -> tuple[Reader, LinkKind]:
    """Return the reader of a token, and what it came with. read_page asks permission.

    Raises:
        ExpiredLinkError: Too old, or not signed by this site. Reconnecting helps.
    """
    try:
        content = signing.Signer(salt=_LINK_SALT, sep=_LINK_SEPARATOR).unsign_object(
            token
        )
        issued, number, user_id, channels, *rest = content
        kind = LinkKind(number)
    except (signing.BadSignature, ValueError, TypeError) as error:
        raise ExpiredLinkError("The link is not one of this site") from error
    if kind.is_hold:
        # From the end of its hour: one of a shorter lifetime would be too old when it is new.
        expires = (issued + 1) * LINK_QUANTUM + conf.get_options().link_lifetime
    else:
        expires = issued * PAGE_QUANTUM + PAGE_LIFETIME
    if expires < now:
        raise ExpiredLinkError("The link has expired")
    positions = parse_position(rest[0]) if rest and rest[0] else {}
    return Reader(tuple(channels), user_id, positions), kind


@sensitive_variables("parts", "states", "first", "body")
def read_page(reader: Reader, *, is_opening: bool = False) -> Page:
    """Return what follows the reader's positions, and where that leaves it.

    A channel without a position starts at its head. One whose position is not in the log
    is named in one stream-reset and goes on from its head. Either begins with its initial
    state, if it has one; best-effort channels only where `is_opening`. Events that are not
    for this user are left out, but passed: the position moves on.

    Blocks on the database; the number of queries does not depend on the number of idle
    channels.

    Permission is asked last: a kick that is not heeded so has its place after all that was
    read, and meets the stream, or the event that follows the kick does.

    Raises:
        ChannelPermissionError: Some channel may not be read, or not any more.
        InitialStateError: The channel manager failed to give one.
    """
    storage = get_storage()
    reliable = reader.reliable
    aliases: dict[str, list[str]] = {}
    for name in reliable:
        aliases.setdefault(alias_of(name), []).append(name)
    heads: dict[str, int] = {}
    for using, names in aliases.items():
        number_stale(storage, using)
        heads |= storage.current_ids(using, names)
    begun = {name: reader.positions.get(name, heads[name]) for name in reliable}
    lost: dict[str, int] = {}
    while True:
        found = _read_pieces(reader, aliases, heads, begun | lost)
        lost |= found.lost
        if not (found.lost and found.parts):
            break
        # Anew, as each event's id names all channels: with a position that is not in the
        # log a client that is cut off would come back for another reset, or, once the log
        # has reached it, for none and miss what is between.
    parts, positions, is_last = found.parts, found.positions, found.is_last
    fresh = [
        name
        for name in reader.channels
        if name not in reader.positions and (is_opening or name in heads)
    ]
    # After the positions: what commits in between is in the state and comes as an event.
    states = read_initial_states(reader.user_id, [*fresh, *lost])
    if asks_permissions() or is_operator(reader.user_id):
        check_reader(reader.user_id, reader.channels)
    begin = {
        name: reader.positions.get(name, heads[name])
        for name in reliable
        if name in reader.positions or name not in states
    }
    # Before the events, with an id that is behind them all: should the connection end in
    # between, the client comes back for them.
    now = {name: eid for name, eid in begin.items() if name not in lost}
    first = []
    if lost:
        instruments.active.reset("proxy")
        now |= {name: positions[name] for name in lost if name not in states}
        first.append(sse.encode_reset(list(lost), format_position(now)))
    for name, body in states.items():
        if name in heads:
            now[name] = positions[name]
        # Where there is no log the position does not move: with its id again, a client
        # would take the state for an event that it has had.
        event_id = format_position(now) if name in heads else ""
        first.append(encode_initial_state(body, event_id))
    if parts:
        instruments.active.catch_up("proxy")
    text = "".join([*first, *parts])
    state_count = len(states) if has_initial_states() else None
    return Page(text, begin, positions, is_last, heads, state_count)


class _Found(NamedTuple):
    """What follows some positions, as far as a page has room for it.

    Attributes:
        parts: The events of one channel after the other, encoded.
        positions: Behind them.
        lost: Of the channels whose position is not in the log, where they go on from.
        is_last: Whether that is all there is.
    """

    parts: list[str]
    positions: dict[str, int]
    lost: dict[str, int]
    is_last: bool

    def __repr__(self) -> str:
        """Return what logs and error pages may show: not the events."""
        return f"<_Found up to {self.positions}>"


def _read_pieces(
    reader: Reader,
    aliases: Mapping[str, Collection[str]],
    heads: Mapping[str, int],
    begun: Mapping[str, int],
) -> _Found:
    options = conf.get_options()
    storage = get_storage()
    found = _Found([], dict(begun), {}, True)
    positions = found.positions
    event_count, size, is_last = 0, 0, True
    most = count_fitting(options.page_bytes, positions)
    for using, names in aliases.items():
        for name in names:
            if positions[name] == heads[name]:
                continue
            left = min(options.page_size, most) - event_count
            if left <= 0 or size >= options.page_bytes:
                is_last = False
                break
            before, after = split_position(positions, name)
            wanted = Wanted(
                using, name, positions[name], heads[name], left,
                options.page_bytes - size, before, after,
            )  # fmt: skip
            piece = read_piece(storage, wanted, reader.user_id)
            if piece.is_reset:
                found.lost[name] = positions[name] = piece.last_eid
                continue
            if not piece.event_count:
                continue
            size += piece.size
            event_count += piece.event_count
            positions[name] = piece.eid
            is_last = is_last and piece.eid >= piece.last_eid
            found.parts.append(piece.text)
    return found._replace(is_last=is_last)


_stale_lock = threading.Lock()
_stale_checked: dict[str, float] = {}
_STALE_INTERVAL = 0.5


def number_stale(storage: DjangoModelStorage, using: str) -> None:
    """Number what has been committed for over a second and nobody has numbered.

    So streams catch up from the database while Celery and Redis are both down. Looks at
    most twice a second in each process, however many readers come.
    """
    if connections[using].in_atomic_block:
        return  # inside a caller's snapshot: the ids would become visible too late
    now = time.monotonic()
    with _stale_lock:
        if now - _stale_checked.get(using, 0.0) < _STALE_INTERVAL:
            return
        _stale_checked[using] = now
    seconds = conf.get_options().unnumbered_after
    for partition in storage.unnumbered_partitions(using, older_than=seconds):
        try:
            # Before anything has a number: a target's cursor begins at the head, and these
            # events are to reach the proxies' open streams as well.
            ensure_cursors(storage, using, partition)
            storage.number_all(using, partition)
        except Error as error:
            if not connections[using].is_usable():
                raise
            # Of this partition: the others are not to wait for it, nor who only reads.
            text = "Partition %s of %s cannot be numbered: %s"
            logger.warning(text, partition, using, error)
