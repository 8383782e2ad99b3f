"""Bad arguments raise an error of ours at the call, before any database is touched.

These tests have no database: a write would fail them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import SynchronousOnlyOperation

from eventstream import EventSpec, send_event, send_events
from eventstream.exceptions import (
    InvalidChannelError,
    InvalidDataError,
    InvalidEventError,
    InvalidEventTypeError,
    UnknownDatabaseError,
)


class Strange:
    pass


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("", "message", 1), InvalidChannelError, "channel must not be empty"),
        ((None, "message", 1), InvalidChannelError, "must be a string, not NoneType"),
        (("x" * 256, "message", 1), InvalidChannelError, "has 256 characters, the most is 255"),
        (("a\nb", "message", 1), InvalidChannelError, r"has the character '\\n'"),
        (("a\0", "message", 1), InvalidChannelError, r"has the character '\\x00'"),
        (("a\ud800", "message", 1), InvalidChannelError, "has the character"),
        (("a\u2028", "message", 1), InvalidChannelError, "has the character"),
        (("a", "", 1), InvalidEventTypeError, "event_type must not be empty"),
        (("a", "x\ry", 1), InvalidEventTypeError, "event_type"),
        (("a", "stream-reset", 1), InvalidEventTypeError, "is the protocol's own"),
        (("a", "stream-status", 1), InvalidEventTypeError, "begins with 'stream-'"),
        (("a", "message", Strange()), InvalidDataError, "cannot be encoded: .*Strange"),
        (("a", "message", float("nan")), InvalidDataError, "cannot be encoded"),
        (("a", "message", {1j: 2}), InvalidDataError, "cannot be encoded"),
        (("a", "message", "x" * 262_143), InvalidDataError, "has 262,145 bytes, the most is"),
    ],
)  # fmt: skip
def test_bad_argument_is_refused(
    arguments: tuple[Any, Any, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        send_event(*arguments)

    assert isinstance(caught.value, InvalidEventError | ValueError)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"a": 1}, "must be a string with json_encode=False, not dict"),
        ("a\0b", "NUL"),
        ("\ud800", "not valid Unicode"),
        (b"bytes", "not bytes"),
    ],
)
def test_bad_raw_data_is_refused(data: Any, text: str) -> None:
    with pytest.raises(InvalidDataError, match=text):
        send_event("a", "message", data, json_encode=False)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"skip_user_ids": "12"}, "must be a list of ids, not str"),
        ({"skip_user_ids": 12}, "must be a list of ids, not int"),
        (
            {"skip_user_ids": [AnonymousUser()]},
            r"an object \(AnonymousUser\): give .*pk",
        ),
        ({"skip_user_ids": [(1,)]}, "has a tuple where an id .*flat=True"),
        ({"skip_user_ids": [{"pk": 1}]}, "has a dict where an id .*flat=True"),
        ({"idempotency_key": ""}, "idempotency_key must not be empty"),
        ({"idempotency_key": "x" * 256}, "idempotency_key has 256 characters"),
    ],
)
def test_bad_option_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidEventError, match=text):
        send_event("a", "message", 1, **options)


def test_alias_without_an_outbox_is_refused_with_what_to_do() -> None:
    with pytest.raises(UnknownDatabaseError, match="EVENTSTREAM_DATABASES"):
        send_event("a", "message", 1, using="elsewhere")


def test_event_that_is_no_spec_is_refused_with_what_it_should_be() -> None:
    events: Any = [("orders", "message", 1)]

    with pytest.raises(InvalidEventError, match=r"EventSpec\(.*, not tuple"):
        send_events(events)


def test_one_spec_for_many_is_refused_with_what_it_should_be() -> None:
    spec: Any = EventSpec("orders", "message", 1)

    with pytest.raises(InvalidEventError, match="a list of EventSpec, not EventSpec"):
        send_events(spec)


async def test_async_code_is_told_what_to_call() -> None:
    with pytest.raises(SynchronousOnlyOperation) as caught:
        send_event("orders", "message", 1)

    assert "asend_event" in caught.value.__notes__[0]


def test_one_bad_event_of_many_refuses_all() -> None:
    specs = [EventSpec("a", "message", 1), EventSpec("", "message", 2)]

    with pytest.raises(InvalidChannelError):
        send_events(specs)


def test_idempotency_of_what_is_not_stored_is_refused() -> None:
    with pytest.raises(InvalidEventError, match="best-effort"):
        send_event("live-x", "message", 1, idempotency_key="k")


def test_async_publish_is_taken_with_a_warning() -> None:
    call: Callable[..., object] = send_event
    with (
        pytest.warns(DeprecationWarning, match="async_publish has no effect"),
        pytest.raises(InvalidChannelError),
    ):
        call("", "message", 1, async_publish=False)
