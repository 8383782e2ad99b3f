"""Names and data that anybody may choose, and the formats that they are put into."""

from __future__ import annotations

import json
import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eventstream import sse
from eventstream.exceptions import InvalidEventError
from eventstream.models import EventKind
from eventstream.positions import format_position, parse_position, quote_channel
from eventstream.rows import (
    ChannelLog,
    LogEvent,
    OutboxRow,
    is_skipped,
    join_users,
    split_users,
)
from eventstream.specs import EventSpec, check_channel, is_reserved_type, make_event
from eventstream.targets.base import Item
from eventstream.targets.bus import event_topic, kick_topic
from eventstream.targets.grip import channel_name, event_item, user_channel_name
from tests.support.sse import Message, Parser

NASTY = st.sampled_from(
    [
        *"%I()s;,:\"'\\= \t\r\n\0*?[]{}é\u0085\u2028\u2029\u202e",
        *(
            "%I",
            "%%",
            "%(events-a)s",
            "\r\n\r\n",
            "id: 9\n",
            "data:",
            "\nevent: x",
            ", b",
        ),
    ]
)
TEXT = st.lists(st.one_of(NASTY, st.characters()), max_size=30).map("".join)
SAFE = frozenset(string.ascii_letters + string.digits + "_.-~%")


def is_name(text: str) -> bool:
    try:
        check_channel(text)
    except InvalidEventError:
        return False
    return True


NAMES = TEXT.filter(is_name)


def expand(content: str, position: str) -> str:
    """Do what Pushpin's build-id filter does to an event: %I is the id, %% a percent sign."""

    def replace(match: re.Match[str]) -> str:
        assert match[0] in ("%I", "%%"), f"{match[0]!r} would be expanded"
        return position if match[0] == "%I" else "%"

    return re.sub(r"%(\(.*?\)s|.|$)", replace, content, flags=re.DOTALL)


@given(TEXT)
def test_name_that_is_accepted_is_one_line(text: str) -> None:
    if is_name(text):
        assert len(text.splitlines()) == 1
        assert not set(text) & set("\r\n\0")


@given(st.sets(NAMES, min_size=1, max_size=5))
def test_position_takes_any_names_and_gives_them_back(names: set[str]) -> None:
    positions = dict(zip(sorted(names), range(1, 6), strict=False))

    text = format_position(positions)

    assert set(text) <= SAFE | set(",:")
    assert parse_position(text) == positions


@given(NAMES, st.text(max_size=20).filter(lambda text: text.isprintable()))
def test_proxy_s_names_break_out_of_no_header(channel: str, user_id: str) -> None:
    for name in (channel_name(channel), user_channel_name(user_id)):
        assert set(name) <= SAFE
    assert set(quote_channel(user_id)) <= SAFE


@given(st.sets(TEXT.filter(bool), max_size=4), TEXT.filter(bool))
def test_event_skips_its_users_and_nobody_else(users: set[str], other: str) -> None:
    """A primary key can be any text, such as that of a directory: "cn=ann,dc=example"."""
    text = join_users(users)

    assert set(split_users(text)) == users
    assert all(is_skipped(text, user) for user in users)
    assert is_skipped(text, other) == (other in users)


@given(NAMES, NAMES)
def test_bus_keeps_channels_and_kicks_apart(one: str, other: str) -> None:
    topic = event_topic(one)

    assert topic != kick_topic()
    assert topic.removeprefix(event_topic("")) == one
    assert (topic == event_topic(other)) == (one == other)


@given(NAMES, TEXT, TEXT)
def test_any_event_reaches_a_reader_as_one_event(
    channel: str, event_type: str, data: str
) -> None:
    try:
        event = make_event(EventSpec(channel, event_type, data, json_encode=False))
    except InvalidEventError:
        return
    position = format_position({channel: 7})

    text = sse.encode_event(event.type, event.data, position)

    assert "\r" not in text
    [message] = Parser().feed(text.encode())
    lines = event.data.replace("\r\n", "\n").replace("\r", "\n")
    assert message == Message(event.type, lines, position)
    assert not is_reserved_type(message.type)


@given(NAMES, TEXT, TEXT, NAMES, st.sampled_from([6, 7]))
def test_proxy_expands_nothing_that_was_sent(
    channel: str, event_type: str, data: str, other: str, known: int
) -> None:
    try:
        event = make_event(EventSpec(channel, event_type, data, json_encode=False))
    except InvalidEventError:
        return
    row = OutboxRow(1, 1, EventKind.EVENT, channel, 7, event.type, event.data, "")

    item = event_item(row)

    # What the proxy makes of id_format, before the event or after it, as its release has it.
    position = format_position({other: 3, channel: known})
    content = expand(item["http-stream"]["content"], position)
    id_line, _, rest = content.partition("\n")
    assert rest == sse.encode_event(event.type, event.data)
    text = id_line.removeprefix("id: ")
    assert set(text) <= SAFE | set(",:")
    assert parse_position(text) == {other: 3, channel: 7}


@given(st.lists(st.text(min_size=1, max_size=10), min_size=1, max_size=4))
def test_error_that_names_channels_is_one_event(channels: list[str]) -> None:
    text = sse.encode_error("forbidden", ", ".join(channels), {"channels": channels})

    [message] = Parser().feed(text.encode())
    assert (message.type, message.id) == ("stream-error", "error")
    assert json.loads(message.data)["channels"] == channels


@given(st.lists(NAMES, min_size=1, max_size=4))
@example(["50%Id", "100%"])
def test_error_is_the_same_through_the_filter_of_an_answer_before(
    channels: list[str],
) -> None:
    """A stream that is held may be refused what it has; Pushpin up to 1.40 expands that."""
    text = sse.encode_error("forbidden", ", ".join(channels), {"channels": channels})

    assert expand(text, "a:1") == text


@pytest.mark.parametrize(
    "value",
    [
        OutboxRow(1, 1, EventKind.EVENT, "a", 1, "message", "s3cret", ""),
        LogEvent(1, "message", "s3cret", ""),
        ChannelLog([(1, "message", "s3cret", "", 1, False)], 1, is_reset=False),
        Item("a", b"s3cret"),
        EventSpec("a", "message", "s3cret"),
    ],
)
def test_what_carries_data_does_not_show_it(value: object) -> None:
    assert "s3cret" not in f"{value!r} {value}"
