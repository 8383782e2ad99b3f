"""The wire format: input → text, and what a strict reader makes of it."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstream import sse
from tests.support.sse import Message, Parser


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        ("a", "data: a\n"),
        ("", "data: \n"),
        ("a\nb", "data: a\ndata: b\n"),
        ("a\r\nb\rc", "data: a\ndata: b\ndata: c\n"),
        ("a\n", "data: a\ndata: \n"),
        ("x\n\nid: 9\nevent: forged", "data: x\ndata: \ndata: id: 9\ndata: event: forged\n"),
    ],
)  # fmt: skip
def test_every_kind_of_line_end_starts_a_new_data_line(data: str, lines: str) -> None:
    assert sse.encode_data("message", data) == f"event: message\n{lines}"


def test_event_has_id_type_data_and_blank_line() -> None:
    text = sse.encode_event("ping", "x", "orders:7")

    assert text == "id: orders:7\nevent: ping\ndata: x\n\n"


def test_event_without_id_leaves_the_last_one() -> None:
    assert sse.encode_event("ping", "x") == "event: ping\ndata: x\n\n"


def test_type_and_id_cannot_add_fields() -> None:
    text = sse.encode_event("a\ndata: b", "x", "1\r\nevent: c\0")

    assert text == "id: 1event: c\nevent: adata: b\ndata: x\n\n"


@given(st.text().filter(lambda text: "\0" not in text))
def test_reader_gets_the_data_with_line_feeds(data: str) -> None:
    text = sse.encode_event("message", data, "c:1")
    expected = re.sub("\r\n|\r", "\n", data)

    # A surrogate cannot be sent; sending refuses it.
    encoded = text.encode("utf-8", "replace")
    messages = Parser().feed(encoded)
    if encoded.decode() == text:
        assert messages == [Message(type="message", data=expected, id="c:1")]


@given(
    st.lists(st.tuples(st.integers(1), st.text(max_size=5), st.text(), st.just(""))),
    st.sampled_from(["orders:", "a:1,b:"]),
)
def test_log_is_encoded_as_its_events_are(
    events: list[tuple[int, str, str, str]], before: str
) -> None:
    assert sse.encode_log(events, before, ",c:3") == "".join(
        sse.encode_event(event_type, data, f"{before}{number},c:3")
        for number, event_type, data, _ in events
    )


def test_preamble_pads_sets_retry_and_opens_at_the_position() -> None:
    text = sse.encode_preamble(4, 2000, "orders:3", head="orders:9", keep_alive=20)

    assert text == (
        ":    \nretry: 2000\nid: orders:3\nevent: stream-open\n"
        'data: {"head": "orders:9", "keep_alive": 20}\n\n'
    )


def test_preamble_says_how_many_states_follow_where_there_may_be_any() -> None:
    data = '{"head": "", "keep_alive": 0, "states": 0}'

    assert sse.encode_preamble(0, None, state_count=0) == (
        f"event: stream-open\ndata: {data}\n\n"
    )


def test_preamble_leaves_out_what_is_not_wanted() -> None:
    assert sse.encode_preamble(0, None) == (
        'event: stream-open\ndata: {"head": "", "keep_alive": 0}\n\n'
    )


def test_reset_names_the_channels_in_order() -> None:
    text = sse.encode_reset(["b", "a"], "a:1,b:2")

    assert text == (
        'id: a:1,b:2\nevent: stream-reset\ndata: {"channels": ["a", "b"]}\n\n'
    )


def test_error_has_the_id_that_may_not_resume() -> None:
    text = sse.encode_error("forbidden", "no", {"channels": ["a"]})

    (message,) = Parser().feed(text.encode())
    assert message.type == "stream-error"
    assert message.id == "error"
    assert json.loads(message.data) == {
        "condition": "forbidden",
        "text": "no",
        "channels": ["a"],
    }


def test_keep_alive_is_an_event_without_an_id() -> None:
    assert sse.KEEP_ALIVE == "event: keep-alive\ndata:\n\n"
