"""GRIP proxies: Pushpin, Fastly Fanout. The only module that speaks to them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from json.encoder import encode_basestring as _quote
from typing import Any
from urllib.parse import urlsplit

import requests
from gripcontrol import GripPubControl, HttpStreamFormat
from pubcontrol import Item as GripItem
from requests.adapters import HTTPAdapter

from eventstream import conf, sse
from eventstream.exceptions import PublishRejectedError, PublishUnavailableError
from eventstream.models import EventKind
from eventstream.positions import quote_channel
from eventstream.rows import OutboxRow, split_users
from eventstream.targets.base import NO_RUN, Item, Target, is_joined
from eventstream.words import describe_cause

FILTER_BUILD_ID = "build-id"
FILTER_SKIP_USERS = "skip-users"
FILTER_REQUIRE_SUB = "require-sub"

MAX_KICKED = 100
"""Most users who are kicked anew with one event; if it were more, all streams are asked."""

# Only these say that the content is at fault. 401, 403, 404 or 429 would be the answer to
# every item alike: a wrong key must never turn an outbox into dead letters.
_CONTENT_STATUSES = frozenset({400, 413, 422})
_STATUS = re.compile(r"received failed status code (\d{3})")


def channel_name(channel: str) -> str:
    """Return the proxy's name for a channel, without GRIP_PREFIX."""
    return f"events-{quote_channel(channel)}"


def user_channel_name(user_id: str) -> str:
    """Return the proxy channel over which a user's streams are closed, without prefix."""
    return f"user-{quote_channel(user_id)}"


_PERIODS = 8
"""Of the names that `held_channel` gives in turn."""


def held_channel(now: float, *, periods_ago: int = 0) -> str:
    """Return the proxy channel of all streams that it is told to hold now, without prefix.

    Another one after twice the time in which the proxy is to ask, so that the name says how
    long it has not; see GripTarget.remind. What it has for the channel's last id is the
    stream's token: the proxy sends it back when it asks.

    Args:
        now: Seconds since the epoch.
        periods_ago: That of so many periods before.
    """
    period = int(now // (2 * conf.get_options().next_link_timeout)) - periods_ago
    return f"held-{period % _PERIODS}"


def held_token(last: Mapping[str, str]) -> str:
    """Return the token in a Grip-Last header, or ""."""
    prefix = f"{conf.grip_prefix()}held-"
    found = (value for name, value in last.items() if name.startswith(prefix))
    return next(found, "")


def escape_format(content: str) -> str:
    """Escape what the build-id filter would expand: it sees the whole body."""
    return content.replace("%", "%%")


def stored_content(row: OutboxRow) -> str:
    """Return the content of a stored event: it says its id itself.

    %I is the position in all channels of that stream, which the proxy knows: with Pushpin up
    to 1.40 after this event, or the last that is joined with it, from 1.41 on before. So this
    channel's id follows, as of two entries the last counts.
    """
    body = escape_format(sse.encode_data(row.type, row.data))
    return f"{_id_field(row.channel)}{row.eid}\n{body}\n"


def event_item(row: OutboxRow) -> dict[str, Any]:
    """Return the publish item of an event alone."""
    # As pubcontrol's Item.export() has it, which takes longer than all the rest.
    item: dict[str, Any] = {"channel": conf.grip_prefix() + channel_name(row.channel)}
    skipped = {*split_users(row.skip_users), *split_users(row.kicked)}
    if skipped:
        # Quoted as in the hold: a primary key can be any text, and the meta is a header there.
        names = sorted(quote_channel(user_id) for user_id in skipped)
        item["meta"] = {"skip_users": ",".join(names)}
    if row.eid is None:
        body = sse.encode_data(row.type, row.data)
        item["http-stream"] = {"content": f"{body}\n"}
        return item
    item["http-stream"] = {
        "content": stored_content(row),
        "content-filters": [FILTER_BUILD_ID],
    }
    previous = str(row.eid - 1)
    if row.kicked.count(",") > MAX_KICKED + 1:
        # Follows nothing that the proxy knows: it asks the next link of every stream.
        previous += "-kick"
    item["id"], item["prev-id"] = str(row.eid), previous
    return item


def kick_items(channel: str, user_id: str, name: str) -> list[dict[str, Any]]:
    """Return the two items that end a user's streams of a channel.

    Args:
        channel: The event channel.
        user_id: Primary key as text.
        name: What its ids end with, another for each kick of the channel: the proxy drops an
            item whose id it has seen within id_cache_ttl.
    """
    text = sse.encode_error(
        "forbidden",
        f"Permission denied to channels: {channel}",
        {"channels": [channel]},
    )
    meta = {"require_sub": conf.grip_prefix() + channel_name(channel)}
    # With the channel, as rows of several outboxes may have the same number.
    name = f"{quote_channel(channel)}-{name}"
    error = GripItem(HttpStreamFormat(text), id=f"kick-{name}", meta=meta)
    close = GripItem(HttpStreamFormat(close=True), id=f"close-{name}", meta=meta)
    items: list[dict[str, Any]] = [error.export(), close.export()]
    for item in items:
        item["channel"] = conf.grip_prefix() + user_channel_name(user_id)
    return items


def grip_name(control_uri: str) -> str:
    """Return the target name of a proxy: logs and the admin show it."""
    return f"grip:{conf.without_credentials(control_uri)}"


class _BoundedAdapter(HTTPAdapter):
    """pubcontrol sets no timeout and follows; the transport adapter is where to see to it."""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> Any:  # type: ignore[override]
        options = conf.get_options()
        kwargs["timeout"] = (options.connect_timeout, options.publish_timeout)
        response = super().send(request, **kwargs)
        # Not followed: a POST that was moved comes as a GET, of which 200 says nothing.
        response.headers.pop("Location", None)
        return response


class GripTarget(Target):
    """A GRIP proxy's publish endpoint: one POST of many items.

    Source: pushpin.org, "Publishing"; 413 or 400 is the answer to a body that is too
    large or malformed.
    """

    kind = "GRIP proxy"

    def __init__(self, proxy: Mapping[str, Any]) -> None:
        self._proxy = dict(proxy)
        self.name = grip_name(str(proxy["control_uri"]))
        self._client: Any = None

    def encode(self, row: OutboxRow) -> list[Item]:
        """Return the items of a row, in order.

        A stream that was being opened while its user was kicked may have come to the proxy
        after the kick. So the first event of the channel after it ends that stream again.
        """
        # Nearly always; a kick has no id.
        if row.eid is not None and not row.skip_users and not row.kicked:
            content = _quote(stored_content(row))[1:-1].encode()
            head = _joined_head(conf.grip_prefix(), row.channel)
            return [Item(row.channel, content, False, head, row.eid)]
        if row.kind == EventKind.KICK:
            kicks = kick_items(row.channel, row.data, str(row.id))
            return [Item(row.channel, _dump(item), True) for item in kicks]
        kicked = split_users(row.kicked)
        items = [
            Item(row.channel, _dump(item), True)
            for user_id in (kicked if len(kicked) <= MAX_KICKED else [])
            for item in kick_items(row.channel, user_id, f"{row.id}-{user_id}")
        ]
        return [*items, Item(row.channel, _dump(event_item(row)))]

    def publish(self, items: Sequence[Item]) -> None:
        body = b'{"items":[' + b",".join(_join(items)) + b"]}"
        headers = {"Content-Type": "application/json"}
        try:
            self._get_client().http_call("/publish/", body, headers)
        except ValueError as error:  # how pubcontrol wraps every failure
            match = _STATUS.search(str(error))
            status = int(match.group(1)) if match else 0
            # What has answered may be no proxy; PostgreSQL takes no NUL in a text.
            text = str(error) if status else describe_cause(error)
            text = text.replace("\0", "")[:500]
            if status in _CONTENT_STATUSES:
                raise PublishRejectedError(text, status=status) from error
            if not status:
                self.close()
            raise PublishUnavailableError(text) from error

    def remind(self) -> None:
        """Have the proxy ask for the streams that it has not asked for in a while.

        Pushpin up to 1.40 never asks again for one whose client could not be written to at
        once, until an event shows a gap: see decisions/0045. An item without an id follows
        nothing, so every stream of the channel is asked for, and none is given it.
        """
        now = time.time()
        # Not the last period, whose streams may not be due, and not the next: clocks differ.
        names = [held_channel(now, periods_ago=n) for n in range(2, _PERIODS - 1)]
        prefix = conf.grip_prefix()
        content = {"http-stream": {"content": ""}}
        self.publish(
            [Item(name, _dump({"channel": prefix + name, **content})) for name in names]
        )

    def set_origin(self, url: str) -> None:
        """Have the proxy ask this site, http:// or https://, for what it serves.

        Fanout's service call; Pushpin has its routes in a file and answers 404.

        Raises:
            PublishUnavailableError: The proxy did not take it.
        """
        parts = urlsplit(url)
        is_secure = parts.scheme == "https"
        prefix = "ssl_" if is_secure else ""
        values = {
            f"{prefix}host": parts.hostname,
            f"{prefix}port": str(parts.port or (443 if is_secure else 80)),
            "rewrite_host": "true",
            "over_http": "true",
        }
        try:
            self._get_client().http_call("/http/default/", values)
        except ValueError as error:
            raise PublishUnavailableError(str(error)[:500]) from error

    def _get_client(self) -> Any:
        if self._client is None:
            client = GripPubControl(self._proxy).clients[0]
            adapter = _BoundedAdapter(max_retries=0)  # retrying is the relay's business
            client.requests_session.mount("http://", adapter)
            client.requests_session.mount("https://", adapter)
            self._client = client
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.requests_session.close()
            self._client = None


@lru_cache(maxsize=10_000)
def _id_field(channel: str) -> str:
    return f"id: %I,{escape_format(quote_channel(channel))}:"


@lru_cache(maxsize=10_000)
def _joined_head(prefix: str, channel: str) -> bytes:
    item = {
        "channel": prefix + channel_name(channel),
        "http-stream": {"content-filters": [FILTER_BUILD_ID], "content": ""},
    }
    return _dump(item).removesuffix(b'"}}')


def _join(items: Sequence[Item]) -> Iterator[bytes]:
    """Yield what is published: consecutive events of a channel as one item, from id to id.

    A proxy goes through an item for each of its streams, in as much time for a run of events
    as for one. The order within a channel is kept, that of a kick among its events too.
    """
    channels: dict[str, list[Item]] = {}
    for item in items:
        channels.setdefault(item.channel, []).append(item)
    for each in channels.values():
        yield from _join_channel(each)


def _join_channel(items: Sequence[Item]) -> Iterator[bytes]:
    run = NO_RUN
    bodies: list[bytes] = []
    head = b""
    for item in items:
        goes_on = is_joined(run, item)
        if bodies and not goes_on:
            yield _joined(head, bodies, run[0])
            bodies = []
        if not item.eid:
            yield item.body
        else:
            head = item.head
            bodies.append(item.body)
        run = (item.eid, (run[1] if goes_on else 0) + len(item.body))
    if bodies:
        yield _joined(head, bodies, run[0])


def _joined(head: bytes, bodies: Sequence[bytes], last: int) -> bytes:
    tail = f'"}},"id":"{last}","prev-id":"{last - len(bodies)}"}}'
    return head + b"".join(bodies) + tail.encode()


# One for all: json.dumps makes an encoder on each call.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _dump(item: Mapping[str, Any]) -> bytes:
    return _encode(item).encode()
