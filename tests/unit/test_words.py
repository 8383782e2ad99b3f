"""Counts, durations and causes in words."""

from __future__ import annotations

import pytest
import requests

from eventstream.words import describe_cause, describe_count, describe_seconds
from tests.support.processes import free_port


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 events"), (1, "1 event"), (2, "2 events"), (12_000, "12,000 events")]
)  # fmt: skip
def test_counts_agree_with_their_nouns(count: int, text: str) -> None:
    assert describe_count(count, "event") == text


def test_noun_may_have_a_plural_of_its_own() -> None:
    assert describe_count(2, "process", "processes") == "2 processes"
    assert describe_count(1, "process", "processes") == "1 process"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.012, "12 ms"),
        (40, "40 s"),
        (99.4, "99 s"),
        (100, "2 min"),
        (5960, "99 min"),
        (5999, "1 h 39 min"),
        (6000, "1 h 40 min"),
        (12_000, "3 h 20 min"),
        (172_800, "2 d 0 h"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert describe_seconds(seconds) == text


def test_cause_is_what_the_system_said() -> None:
    with pytest.raises(requests.ConnectionError) as caught:
        requests.get(f"http://127.0.0.1:{free_port()}/", timeout=1)

    assert describe_cause(caught.value) == "Connection refused"
    assert describe_cause(KeyError()) == "KeyError"
