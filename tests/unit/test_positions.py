"""Last-Event-ID."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstream.exceptions import InvalidPositionError, ResumeNotAllowedError
from eventstream.positions import (
    format_position,
    parse_position,
    quote_channel,
    split_position,
)

names = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=40
)


@given(st.dictionaries(names, st.integers(0, 2**63 - 1), min_size=1, max_size=5))
def test_position_survives_the_trip_to_the_client(positions: dict[str, int]) -> None:
    text = format_position(positions)

    assert parse_position(text) == positions
    assert text.isascii()


@given(names)
def test_quoted_name_has_nothing_that_separates_or_expands(name: str) -> None:
    quoted = quote_channel(name)

    assert not set(quoted) & set(",: ()\r\n")


def test_equal_positions_have_equal_texts() -> None:
    assert format_position({"b": 1, "a": 2}) == format_position({"a": 2, "b": 1})
    assert format_position({"b": 1, "a": 2}) == "a:2,b:1"


def test_spaces_around_a_part_are_taken() -> None:
    assert parse_position("a:1, b%2Cc:2") == {"a": 1, "b,c": 2}


def test_of_two_entries_of_a_channel_the_last_counts() -> None:
    assert parse_position("a:4,b:2,a:5") == {"a": 5, "b": 2}
    assert parse_position("a%20b:5,a b:3") == {"a b": 3}


@pytest.mark.parametrize(
    "text",
    [
        "a",
        ":1",
        "a:",
        "a:x",
        "a:-1",
        "a:1.0",
        "a:\u0661",
        "a:1,",
        "a:9223372036854775808",
    ],
)
def test_text_that_is_no_position_is_refused_with_the_part(text: str) -> None:
    with pytest.raises(InvalidPositionError, match="is not <channel>:<number>"):
        parse_position(text)


def test_largest_id_is_taken() -> None:
    assert parse_position("a:9223372036854775807") == {"a": 2**63 - 1}


def test_stream_that_ended_in_an_error_cannot_be_resumed() -> None:
    with pytest.raises(ResumeNotAllowedError):
        parse_position("error")


@pytest.mark.parametrize("length", [65_536, 65_537])
def test_longest_position_is_longer_than_any_header(length: int) -> None:
    text = "c" * (length - 2) + ":1"

    if length == 65_536:
        assert parse_position(text)
        return
    with pytest.raises(InvalidPositionError, match="65,537 characters"):
        parse_position(text)


def test_split_position_stands_around_the_number() -> None:
    positions = {"b c": 2, "a": 1, "z": 3}

    for name, eid in positions.items():
        before, after = split_position(positions, name)
        assert f"{before}{eid}{after}" == format_position(positions)
    assert split_position({}, "a") == ("a:", "")
