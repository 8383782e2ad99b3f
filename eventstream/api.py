"""send_event and friends: what an application calls."""

from __future__ import annotations

import enum
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections, router, transaction
from django.db.models import Min

from eventstream import channelmanager, conf
from eventstream.dispatch import get_dispatcher
from eventstream.exceptions import (
    ChannelPermissionError,
    InvalidChannelError,
    InvalidEventError,
    UnknownDatabaseError,
)
from eventstream.models import Cursor, DeadLetter, Event, EventKind
from eventstream.positions import format_position
from eventstream.rows import partition_of
from eventstream.specs import (
    EventSpec,
    check_channel,
    check_user,
    hide_data,
    make_event,
)
from eventstream.storage import alias_of, find_alias, get_storage
from eventstream.targets import get_targets
from eventstream.unstored import publish_on_commit

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser, AnonymousUser


class EventState(enum.Enum):
    """How far an event has come."""

    UNNUMBERED = "unnumbered"  # committed (or about to be), without an id yet
    UNDELIVERED = "undelivered"  # numbered, and not accepted by some target yet
    CONFIRMED = "confirmed"  # accepted by every configured target
    DEAD = "dead"  # refused for good by some target; its readers get it from the log
    GONE = (
        "gone"  # not stored: its transaction rolled back, or it is past the retention
    )
    UNSTORED = "unstored"  # best-effort: nobody knows


@dataclass(frozen=True)
class SentEvent:
    """A handle on an event that was sent.

    Attributes:
        id: Its primary key in the outbox; None for a best-effort event.
        channel: The channel.
        using: Database alias of the outbox.
    """

    id: int | None
    channel: str
    using: str

    @property
    def event_id(self) -> int | None:
        """The event's id in its channel, None until it has one. One query."""
        if self.id is None:
            return None
        rows = Event.objects.using(self.using).filter(pk=self.id)
        return rows.values_list("eid", flat=True).first()

    def state(self) -> EventState:
        """Return how far the event has come, as of now. Up to three queries."""
        if self.id is None:
            return EventState.UNSTORED
        rows = Event.objects.using(self.using).filter(pk=self.id)
        row = rows.values_list("partition", "position").first()
        if row is None:
            return EventState.GONE
        partition, position = row
        if position is None:
            return EventState.UNNUMBERED
        names = list(get_targets())
        cursors = Cursor.objects.using(self.using).filter(
            partition=partition, target__in=names
        )
        watermark = cursors.aggregate(mark=Min("watermark"))["mark"]
        if watermark is not None and watermark < position:
            return EventState.UNDELIVERED
        letters = DeadLetter.objects.using(self.using).filter(event_id=self.id)
        return EventState.DEAD if letters.exists() else EventState.CONFIRMED


@hide_data
def send_event(
    channel: str,
    event_type: str,
    data: Any,
    skip_user_ids: Collection[object] | None = None,
    async_publish: bool | None = None,
    json_encode: bool = True,
    *,
    idempotency_key: str | None = None,
    using: str | None = None,
) -> SentEvent:
    """Send one event to whoever reads the channel, once the transaction commits.

    The event is written in the caller's transaction, by a single INSERT: if that rolls
    back, nobody ever hears of it. On commit a worker is asked to publish it; if that
    fails, the sweep publishes it. Two events sent one after the other by one thread reach
    every reader in that order.

    Args:
        channel: 1 to 255 characters, no control characters.
        event_type: The `event:` field; "message" is what `onmessage` receives.
        data: Anything that Django's JSON encoder takes; with json_encode=False a string.
        skip_user_ids: Primary keys of users who are not to receive it.
        async_publish: Deprecated, no effect: publishing never holds up the caller.
        json_encode: Whether to encode the data as JSON.
        idempotency_key: A second event of the channel with the same key within the
            retention is not written; the handle returned is that of the first.
        using: Database alias; by default what the database router says for Event.

    Returns:
        A handle whose state can be asked later.

    Raises:
        InvalidEventError: Some argument is wrong. Nothing was written.
        UnknownDatabaseError: The alias is not in EVENTSTREAM_DATABASES.
    """
    if async_publish is not None:
        warnings.warn(
            "async_publish has no effect and will be removed: events are always "
            "published by a worker, after the commit.",
            DeprecationWarning,
            stacklevel=2,
        )
    spec = EventSpec(
        channel, event_type, data, skip_user_ids or (), json_encode, idempotency_key
    )
    return send_events([spec], using=using)[0]


@hide_data
async def asend_event(
    channel: str,
    event_type: str,
    data: Any,
    skip_user_ids: Collection[object] | None = None,
    *,
    json_encode: bool = True,
    idempotency_key: str | None = None,
    using: str | None = None,
) -> SentEvent:
    """Do what send_event does, from async code, in a transaction of its own.

    Django's transactions are not open to async code. To send in the one that makes the
    change, put both into a function and await sync_to_async(function)().
    """
    return await sync_to_async(send_event)(
        channel,
        event_type,
        data,
        skip_user_ids,
        json_encode=json_encode,
        idempotency_key=idempotency_key,
        using=using,
    )


def send_events(
    specs: Iterable[EventSpec], *, using: str | None = None
) -> list[SentEvent]:
    """Send many events, in this order, with as few statements as possible.

    All are checked before any is written, and written in one transaction.

    Returns:
        A handle for each, in the same order.

    Raises:
        InvalidEventError: Some argument is wrong. Nothing was written.
        UnknownDatabaseError: The alias is not in EVENTSTREAM_DATABASES.
    """
    if not isinstance(specs, Iterable):
        raise InvalidEventError(
            f"send_events takes a list of EventSpec, not {type(specs).__name__}"
        )
    events = [(spec, make_event(spec)) for spec in specs]
    stored: dict[str, list[Event]] = {}
    unstored: dict[str, list[Event]] = {}
    aliases = []
    keys: set[tuple[str, str]] = set()
    for spec, event in events:
        alias = _resolve_alias(spec.channel, using)
        aliases.append(alias)
        is_stored = channelmanager.is_reliable(spec.channel)
        if is_stored:
            _check_home(spec.channel, alias)
        if spec.idempotency_key is not None:
            if not is_stored:
                raise InvalidEventError(
                    f"idempotency_key: channel {spec.channel!r} is best-effort, so "
                    "nothing is stored to compare the key with. Leave it out."
                )
            keys.add((spec.channel, spec.idempotency_key))
        (stored if is_stored else unstored).setdefault(alias, []).append(event)
    try:
        for alias, rows in stored.items():
            _append(alias, rows, has_keys=bool(keys))
        for alias, rows in unstored.items():
            publish_on_commit(alias, rows)
    except SynchronousOnlyOperation as error:
        error.add_note("In async code: `await asend_event(…)`, or asend_events.")
        raise
    return [
        SentEvent(event.pk, event.channel, alias)
        for (_, event), alias in zip(events, aliases, strict=True)
    ]


async def asend_events(
    specs: Iterable[EventSpec], *, using: str | None = None
) -> list[SentEvent]:
    """Do what send_events does, from async code, in a transaction of its own."""
    return await sync_to_async(send_events)(specs, using=using)


def channel_permission_changed(
    user: AbstractBaseUser | AnonymousUser | None,
    channel: str,
    *,
    using: str | None = None,
) -> None:
    """Tell open streams that a user's permission for a channel may have changed.

    Call it in the transaction that changes the permission, after the change. If the user
    may not read the channel now, the user's streams of it are closed with a stream-error,
    by the same outbox as events: not before the commit, and not lost. Where permissions are
    in another database than the outbox, they are closed once that has committed; not, if the
    process dies just then. Of the anonymous user nothing is told: those streams end as they
    are asked about, within a minute.

    Raises:
        InvalidChannelError: The channel name is wrong.
        UnknownDatabaseError: The alias is not in EVENTSTREAM_DATABASES.
        TypeError: The user is something else, such as an id.
    """
    check_user(user)
    check_channel(channel)
    alias = _resolve_alias(channel, using)
    if user is None or user.pk is None:
        return  # anonymous streams have no user to be closed by; links ask again
    try:
        # As streams are asked: of the account as it is now. What the caller has may not know
        # that it is not active any more, or have cached its permissions.
        found = channelmanager.find_user(str(user.pk))
        channelmanager.check_permission(found, [channel])
    except ChannelPermissionError:
        pass
    else:
        return

    def kick() -> None:
        row = Event(
            kind=EventKind.KICK,
            partition=partition_of(channel),
            channel=channel,
            type="kick",
            data=str(user.pk),
        )
        with transaction.atomic(using=alias):
            get_storage().append(alias, [row])
            _wake_on_commit(alias, {row.partition})

    kick()
    for connection in connections.all(initialized_only=True):
        if connection.alias != alias and connection.in_atomic_block:
            # Again: until that has committed, who asks finds the permission still there.
            transaction.on_commit(kick, using=connection.alias, robust=True)


async def achannel_permission_changed(
    user: AbstractBaseUser | AnonymousUser | None,
    channel: str,
    *,
    using: str | None = None,
) -> None:
    """Do what channel_permission_changed does, from async code.

    It is not in the transaction that changes the permission: a crash between the two keeps
    open streams open until they are asked about again. See asend_event for what to do.
    """
    await sync_to_async(channel_permission_changed)(user, channel, using=using)


def get_current_event_id(channels: Collection[str], *, using: str | None = None) -> str:
    """Return the current position in the channels, for `lastEventId`.

    Read it before the state that the page shows, or in one snapshot with it: read
    afterwards, an event in between is neither in the state nor in the stream.

    Raises:
        InvalidChannelError: A channel name is wrong, or there is none.
    """
    if isinstance(channels, str) or not channels:
        raise InvalidChannelError("channels must be a non-empty list of channel names")
    by_alias: dict[str, list[str]] = {}
    for channel in channels:
        check_channel(channel)
        if channelmanager.is_reliable(channel):
            by_alias.setdefault(using or alias_of(channel), []).append(channel)
    positions: dict[str, int] = {}
    for alias, names in by_alias.items():
        positions |= get_storage().current_ids(alias, names)
    return format_position(positions)


async def aget_current_event_id(
    channels: Collection[str], *, using: str | None = None
) -> str:
    """Do what get_current_event_id does, from async code."""
    return await sync_to_async(get_current_event_id)(channels, using=using)


def _resolve_alias(channel: str, using: str | None) -> str:
    alias = using or router.db_for_write(Event, channel=channel)
    databases = conf.get_options().databases
    if alias not in databases:
        raise UnknownDatabaseError(
            f"{alias!r} is not in EVENTSTREAM_DATABASES {list(databases)!r}: its outbox "
            "would never be emptied. Add it there, or pass using=."
        )
    return alias


_MOST_HOMES = 10_000
_homes: dict[str, str] = {}
"""The outbox to which each channel was last found to belong."""


def _check_home(channel: str, alias: str) -> None:
    """See that the channel is not in another outbox, from which its readers read.

    Asks the databases once for each channel and process; those that cannot be asked may not
    keep events from being sent.

    Raises:
        InvalidChannelError: It is.
    """
    if len(conf.get_options().databases) == 1 or _homes.get(channel) == alias:
        return
    try:
        home, is_known = find_alias(channel)
    except Exception:
        return  # a database that is away, or one that a test may not use
    if is_known and home != alias:
        raise InvalidChannelError(
            f"channel {channel!r} is in the outbox {home!r}, where its readers are; "
            f"{alias!r} would give its ids a second time. Name it another way there, "
            f"such as {f'{channel}-{alias}'!r}."
        )
    if is_known:  # what this transaction is the first to write may be rolled back
        if len(_homes) >= _MOST_HOMES:
            _homes.clear()
        _homes[channel] = alias


def _append(alias: str, events: Sequence[Event], *, has_keys: bool) -> None:
    storage = get_storage()
    if not has_keys and len(events) == 1:
        storage.append(alias, events)
    else:
        with transaction.atomic(using=alias):
            _append_all(alias, events, has_keys=has_keys)
    _wake_on_commit(alias, {event.partition for event in events})


def _append_all(alias: str, events: Sequence[Event], *, has_keys: bool) -> None:
    storage = get_storage()
    if not has_keys:
        storage.append(alias, events)
        return
    for event in events:  # one by one: the order of primary keys is the order of ids
        if event.idempotency_key is None:
            storage.append(alias, [event])
        else:
            event.pk = storage.append_once(alias, event).pk


def _wake_on_commit(alias: str, partitions: Collection[int]) -> None:
    def wake() -> None:  # no partial: Django logs an error by the function's name
        get_dispatcher().wake(alias, partitions)

    transaction.on_commit(wake, using=alias, robust=True)
