"""For the tests of applications that send events."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jwt
from django.conf import settings
from django.db.models import Max
from django.test import Client, override_settings

from eventstream import conf
from eventstream.channelmanager import check_permission
from eventstream.exceptions import ChannelPermissionError
from eventstream.models import Event, EventKind
from eventstream.positions import parse_position
from eventstream.rows import OutboxRow, is_skipped
from eventstream.signals import events_sent_unstored
from eventstream.storage import get_storage
from eventstream.unstored import pending_unstored

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser

_GRIP_MIDDLEWARE = "django_grip.GripMiddleware"
_GRIP_KEY = "for-streams-that-a-test-reads-by-their-url"
_HAS_PREV_ID = "prev-id="  # then the proxy expands % formats in the body
_MOST_PAGES = 1000


@dataclass(frozen=True)
class ReceivedEvent:
    """An event as its readers get it.

    Attributes:
        channel: The channel.
        type: Its event type.
        data: Decoded, where it is JSON; else the text.
        event_id: Its id in the channel; None for a best-effort event.
        skip_users: Ids of the users who do not get it, as the outbox stores them.
    """

    channel: str
    type: str
    data: Any
    event_id: int | None = None
    skip_users: str = ""


class EventStreamTestClient:
    """What has been sent since it was made.

    Events count once the code under test has left its transactions: those that rolled back
    are not there. Works in TestCase, whose own transaction never commits, in
    TransactionTestCase and in pytest. Nothing need run: neither a worker nor a bus.

        client = EventStreamTestClient()
        place_order(item="tea")
        client.assert_sent("orders", ("message", {"item": "tea"}))

    Args:
        using: Database alias of the outbox.
    """

    def __init__(self, *, using: str = "default") -> None:
        self._using = using
        rows = Event.objects.using(using)
        self._after: int = rows.aggregate(last=Max("pk"))["last"] or 0
        # By identity: a transaction's batch is pending first, and then on its way.
        self._past = {id(rows): rows for rows in pending_unstored(using)}
        self._unstored: dict[int, list[OutboxRow]] = {}
        events_sent_unstored.connect(self._on_unstored)

    def _on_unstored(self, rows: list[OutboxRow], **_: object) -> None:
        self._unstored.setdefault(id(rows), rows)

    def events(self, channel: str | None = None) -> list[ReceivedEvent]:
        """Return the events of one channel, or of all, in the order of sending.

        Gives ids to those that have none yet. Best-effort events come last.
        """
        storage = get_storage()
        for partition in storage.unnumbered_partitions(self._using):
            storage.number_all(self._using, partition)
        rows = Event.objects.using(self._using).filter(
            pk__gt=self._after, kind=EventKind.EVENT
        )
        found = [
            _received(row.channel, row.type, row.data, row.eid, row.skip_users)
            for row in rows.order_by("pk")
        ]
        for pending in pending_unstored(self._using):
            self._unstored.setdefault(id(pending), pending)
        for key, batch in self._unstored.items():
            if key not in self._past:
                found += [
                    _received(row.channel, row.type, row.data, None, row.skip_users)
                    for row in batch
                ]
        return [event for event in found if channel in (None, event.channel)]

    def read(
        self,
        url: str,
        *,
        user: AbstractBaseUser | None = None,
        last_event_id: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> list[ReceivedEvent]:
        """Return what a stream of this URL sends until it would wait for more.

        The request takes the road that a proxy's takes: middleware, URLs, view, channel
        manager, the log. An initial state, stream-reset and stream-error are returned, too;
        `channel` is "" where the stream does not say it. Without a position a stream begins
        at the head: give `last_event_id="orders:0"` for all that there is.

        Args:
            url: Path and query, such as "/events/?channel=orders".
            user: Who is logged in; None for nobody.
            last_event_id: The position that the client has.
            headers: More of the request's, such as Authorization.

        Raises:
            AssertionError: The answer is no stream, or one that has failed.
        """
        self.events()  # gives ids
        claims = {"iss": "test", "exp": int(time.time()) + 3600}
        signature = jwt.encode(claims, _GRIP_KEY, algorithm="HS256")
        sent = {**(headers or {}), "Grip-Sig": signature}
        if last_event_id:
            sent["Last-Event-ID"] = last_event_id
        client = Client(headers=sent)
        if user is not None:
            client.force_login(user)  # type: ignore[arg-type]  # any user model's
        middleware = [name for name in settings.MIDDLEWARE if name != _GRIP_MIDDLEWARE]
        proxy = override_settings(
            GRIP_URL=None,
            GRIP_PROXIES=[{"control_uri": "http://127.0.0.1:1", "key": _GRIP_KEY}],
            MIDDLEWARE=[_GRIP_MIDDLEWARE, *middleware],
        )
        with proxy, warnings.catch_warnings():
            # Its utcnow(), from Python 3.12 on: where tests make errors of warnings, the
            # answer would be a 500.
            warnings.filterwarnings("ignore", "", DeprecationWarning, "gripcontrol")
            return list(_take(_pages(client, url, signature), last_event_id))

    def assert_sent(self, channel: str, *expected: tuple[str, Any]) -> None:
        """Assert that these events, and no others, were sent to the channel, in order.

        Args:
            channel: The channel.
            expected: (event type, data) of each; unittest.mock.ANY stands for anything.
        """
        self._compare(channel, self.events(channel), expected, "sent")

    def assert_nothing_sent(self, channel: str | None = None) -> None:
        """Assert that nothing was sent, to this channel or to any."""
        sent = self.events(channel)
        if sent:
            lines = [f"  {event.channel}: {_line(event)}" for event in sent]
            raise AssertionError("\n".join([f"{_count(sent)} sent:", *lines]))

    def assert_received(
        self,
        user: AbstractBaseUser | None,
        channel: str,
        *expected: tuple[str, Any],
    ) -> None:
        """Assert that a user who reads the channel gets these events, and no others.

        As the channel manager and `skip_user_ids` have it; None is the anonymous user.
        """
        try:
            check_permission(user, [channel])
        except ChannelPermissionError as error:
            raise AssertionError(
                f"{user or 'The anonymous user'} may not read {channel!r}: the channel "
                "manager's can_read_channel refuses."
            ) from error
        user_id = "" if user is None else str(user.pk)
        received = [
            event
            for event in self.events(channel)
            if not is_skipped(event.skip_users, user_id)
        ]
        self._compare(channel, received, expected, f"received by {user or 'anonymous'}")

    def assert_may_not_read(self, user: AbstractBaseUser | None, channel: str) -> None:
        """Assert that the channel manager refuses the channel to the user."""
        try:
            check_permission(user, [channel])
        except ChannelPermissionError:
            return
        raise AssertionError(f"{user or 'The anonymous user'} may read {channel!r}.")

    def _compare(
        self,
        channel: str,
        found: Sequence[ReceivedEvent],
        expected: Sequence[tuple[str, Any]],
        what: str,
    ) -> None:
        for each in expected:
            if not (isinstance(each, tuple) and len(each) == 2):
                raise TypeError(
                    f"Each expected event is a pair (event_type, data), not {each!r}"
                )
        pairs = [(event.type, event.data) for event in found]
        # In this order: mock.ANY has to be on the left.
        if list(expected) == pairs:
            return
        lines = [
            f"{channel!r}: {len(expected)} expected, {len(found)} {what}",
        ]
        for place in range(max(len(expected), len(found))):
            wanted = expected[place] if place < len(expected) else None
            event = found[place] if place < len(found) else None
            if wanted is not None and event is not None and wanted == pairs[place]:
                lines.append(f"    {place + 1}  {_line(event)}")
                continue
            if wanted is not None:
                lines.append(f"  - {place + 1}  {wanted[0]} {wanted[1]!r}")
            if event is not None:
                lines.append(f"  + {place + 1}  {_line(event)}")
        others: dict[str, int] = {}
        for other in self.events():
            if other.channel != channel:
                others[other.channel] = others.get(other.channel, 0) + 1
        if others:
            names = ", ".join(f"{n} ({count})" for n, count in sorted(others.items()))
            lines.append(f"  sent to other channels: {names}")
        elif not found:
            lines.append(
                "  Nothing was sent at all. What a transaction sends that rolls back "
                "is not sent."
            )
            if len(conf.get_options().databases) > 1:
                lines.append(
                    f"  Looked at is the outbox {self._using!r} only: "
                    "EventStreamTestClient(using=…) sees another's."
                )
        raise AssertionError("\n".join(lines))


def drain_outbox(using: str = "default") -> list[Event]:
    """Number every event sent so far and return those, in order; nothing is published.

    The rows themselves, for tests of the outbox; EventStreamTestClient is for those of an
    application. What an earlier call returned is not returned again.
    """
    storage = get_storage()
    rows = Event.objects.using(using).filter(position__isnull=True)
    ids = list(rows.filter(kind=EventKind.EVENT).values_list("pk", flat=True))
    for partition in storage.partitions(using):
        storage.number_all(using, partition)
    return list(Event.objects.using(using).filter(pk__in=ids).order_by("pk"))


def _received(
    channel: str, event_type: str, text: str, eid: int | None, skip_users: str
) -> ReceivedEvent:
    try:
        data = json.loads(text)
    except ValueError:
        data = text
    return ReceivedEvent(channel, event_type, data, eid, skip_users)


def _pages(client: Client, url: str, signature: str) -> Iterator[str]:
    """Give the bodies of a stream's answers, up to the one that would hold it."""
    for _ in range(_MOST_PAGES):
        response = client.get(url)
        text = response.content.decode()
        if not response.headers["Content-Type"].startswith("text/event-stream"):
            said = (
                f"to {response['Location']}" if "Location" in response else repr(text)
            )
            raise AssertionError(f"GET {url}: status {response.status_code}, {said}")
        if "Grip-Hold" in response:
            yield (
                text.replace("%%", "%")
                if _HAS_PREV_ID in response["Grip-Channel"]
                else text
            )
            return
        yield text
        link = re.match(r"<(.*)>; rel=next", response.headers.get("Grip-Link", ""))
        if link is None and not text:  # a client would come back, to find the same
            raise AssertionError(
                f"GET {url}: the stream ends without a word, as get_initial_state or the "
                "database has failed. What was wrong is in the log."
            )
        if link is None:  # an error
            return
        # As the proxy asks by itself: without what the client has sent. It is handed on
        # without the prefix at which the project is served.
        url = link.group(1).removeprefix((settings.FORCE_SCRIPT_NAME or "").rstrip("/"))
        client = Client(headers={"Grip-Sig": signature})
    raise AssertionError(f"GET {url}: more than {_MOST_PAGES} pages")


def _take(pages: Iterator[str], position: str) -> Iterator[ReceivedEvent]:
    before = parse_position(position) if position else {}
    for block in "".join(pages).split("\n\n"):
        pairs = [line.partition(": ")[::2] for line in block.split("\n")]
        event_type = "".join(value for name, value in pairs if name == "event")
        text = "\n".join(value for name, value in pairs if name == "data")
        [eid] = [value for name, value in pairs if name == "id"] or [""]
        after = before
        if eid and event_type != "stream-error":
            after = parse_position(eid)
        if event_type and event_type not in ("stream-open", "keep-alive"):
            moved = [name for name in after if after[name] != before.get(name)]
            is_own = event_type.startswith("stream-") or len(moved) != 1
            channel = "" if is_own else moved[0]
            yield _received(channel, event_type, text, after.get(channel), "")
        before = after


def _line(event: ReceivedEvent) -> str:
    return f"{event.type} {event.data!r}"


def _count(events: Sequence[object]) -> str:
    return "1 event was" if len(events) == 1 else f"{len(events)} events were"
