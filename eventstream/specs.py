"""An event as it is given to send_events, checked and encoded. No I/O."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from django.core.serializers.json import DjangoJSONEncoder
from django.views.decorators.debug import sensitive_variables

from eventstream import conf
from eventstream.exceptions import (
    InvalidChannelError,
    InvalidDataError,
    InvalidEventError,
    InvalidEventTypeError,
)
from eventstream.models import Event
from eventstream.rows import join_users, partition_of

# The whole prefix: stream-open, stream-reset and stream-error are sent, stream-status is
# made by the browser client, and others may come.
_RESERVED_PREFIX = "stream-"

_Call = TypeVar("_Call", bound=Callable[..., object])


def hide_data(function: _Call) -> _Call:
    """Keep `data` out of error reports.

    Django's decorator, with a type: to a project without django-stubs it has none, and
    would take away those of send_event.
    """
    hidden: Any = sensitive_variables("data")(function)
    typed: _Call = hidden
    return typed


@dataclass(frozen=True)
class EventSpec:
    """One event for send_events; the arguments of send_event."""

    channel: str
    event_type: str
    data: Any = field(repr=False)  # logs and error pages must not show it
    skip_user_ids: Collection[object] = field(default=())
    json_encode: bool = True
    idempotency_key: str | None = None


def check_channel(channel: object) -> str:
    """Return the channel name if it can be one.

    Raises:
        InvalidChannelError: Says what is wrong with it.
    """
    return _check_name(channel, "channel", conf.MAX_CHANNEL_LENGTH, InvalidChannelError)


def check_user(user: object) -> None:
    """Check that it is a user, or None, and not a user's id.

    Raises:
        TypeError: It is not.
    """
    if user is not None and not hasattr(user, "is_authenticated"):
        raise TypeError(
            f"user must be a user, AnonymousUser or None, not {type(user).__name__}"
        )


def _check_name(
    value: object, what: str, limit: int, error: type[InvalidEventError]
) -> str:
    if not isinstance(value, str):
        raise error(f"{what} must be a string, not {type(value).__name__}")
    if not value:
        raise error(f"{what} must not be empty")
    if len(value) > limit:
        raise error(f"{what} has {len(value)} characters, the most is {limit}")
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise error(f"{what} {value[:80]!r} has the character {character!r}")
    return value


def is_reserved_type(event_type: str) -> bool:
    """Say whether clients would take it for the protocol's own."""
    return event_type.startswith(_RESERVED_PREFIX) or event_type == "keep-alive"


def make_event(spec: EventSpec) -> Event:
    """Return the event, checked and encoded, not saved.

    Raises:
        InvalidEventError: Says what is wrong with it.
    """
    if not isinstance(spec, EventSpec):
        raise InvalidEventError(
            f"send_events takes EventSpec(channel, event_type, data) for each event, "
            f"not {type(spec).__name__}"
        )
    channel = check_channel(spec.channel)
    event_type = _check_name(
        spec.event_type,
        "event_type",
        conf.MAX_EVENT_TYPE_LENGTH,
        InvalidEventTypeError,
    )
    if is_reserved_type(event_type):
        raise InvalidEventTypeError(
            f"event_type {event_type!r} is the protocol's own, as is every other that "
            "begins with 'stream-', and 'keep-alive'; choose another name"
        )
    key = spec.idempotency_key
    if key is not None:
        _check_name(key, "idempotency_key", 255, InvalidEventError)
    return Event(
        partition=partition_of(channel),
        channel=channel,
        type=event_type,
        data=_encode(spec),
        skip_users=_skip_users(spec.skip_user_ids),
        idempotency_key=key,
    )


@hide_data
def _encode(spec: EventSpec) -> str:
    data = spec.data
    if spec.json_encode:
        try:
            data = json.dumps(data, cls=DjangoJSONEncoder, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidDataError(
                f"data for channel {spec.channel!r} cannot be encoded: {error}"
            ) from error
    elif not isinstance(data, str):
        raise InvalidDataError(
            f"data must be a string with json_encode=False, not {type(data).__name__}"
        )
    try:
        size = len(data.encode())
    except UnicodeEncodeError as error:
        raise InvalidDataError(f"data is not valid Unicode: {error}") from error
    if "\0" in data:
        raise InvalidDataError("data has a NUL character; encode it as JSON")
    limit = conf.get_options().max_event_bytes
    if size > limit:
        raise InvalidDataError(
            f"data has {size:,} bytes, the most is EVENTSTREAM_MAX_EVENT_BYTES = "
            f"{limit:,}. Send a reference to it instead."
        )
    return data


def _skip_users(user_ids: Collection[object]) -> str:
    if isinstance(user_ids, str) or not isinstance(user_ids, Iterable):
        raise InvalidEventError(
            f"skip_user_ids must be a list of ids, not {type(user_ids).__name__}"
        )
    user_ids = list(user_ids)
    for user in user_ids:
        if hasattr(user, "pk"):  # as text it would be a name, and skip nobody
            raise InvalidEventError(
                f"skip_user_ids has an object ({type(user).__name__}): "
                "give its primary key, user.pk"
            )
        if isinstance(user, Collection) and not isinstance(user, str | bytes):
            raise InvalidEventError(
                f"skip_user_ids has a {type(user).__name__} where an id belongs: of a "
                'query take values_list("pk", flat=True)'
            )
    text = join_users(user_ids)
    if text:
        _check_name(text, "skip_user_ids", 100_000, InvalidEventError)
    return text
