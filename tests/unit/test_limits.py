"""Whose address it is, and counting that needs no database."""

from __future__ import annotations

import gc
import threading

import pytest
from django.test import RequestFactory
from pytest_django import Settings

from eventstream import limits
from eventstream.exceptions import TooManyStreamsError
from eventstream.limits import StreamCounts, client_address


@pytest.mark.parametrize(
    ("trusted", "remote", "forwarded", "expected"),
    [
        (0, "192.0.2.1", "203.0.113.9", "192.0.2.1"),
        (1, "10.0.0.1", "203.0.113.9", "203.0.113.9"),
        # What the client claims stands before what the proxy adds.
        (1, "10.0.0.1", "198.51.100.7, 203.0.113.9", "203.0.113.9"),
        (2, "10.0.0.1", "198.51.100.7, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        # It did not come by all of them.
        (2, "192.0.2.1", "203.0.113.9", "192.0.2.1"),
        (1, "192.0.2.1", None, "192.0.2.1"),
        (1, "192.0.2.1", " ", "192.0.2.1"),
        (1, "10.0.0.1", "203.0.113.9:4711", "203.0.113.9"),
        (1, "10.0.0.1", "[2001:db8::1]:4711", "2001:db8::"),
        (0, "2001:db8:0:1:aaaa::1", None, "2001:db8:0:1::"),
        (0, "::ffff:192.0.2.1", None, "192.0.2.1"),
        (0, "", None, ""),  # a unix socket
        (1, "10.0.0.1", "unknown", ""),
    ],
)
def test_address_is_what_trusted_proxies_say(
    settings: Settings, trusted: int, remote: str, forwarded: str | None, expected: str
) -> None:
    settings.EVENTSTREAM_TRUSTED_PROXIES = trusted
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    request = RequestFactory().get("/", REMOTE_ADDR=remote, headers=headers)

    assert client_address(request) == expected


def test_slot_is_given_back_once() -> None:
    counts = StreamCounts()
    first, second = counts.take({"u": 2}), counts.take({"u": 2})
    with pytest.raises(TooManyStreamsError) as caught:
        counts.take({"u": 2})
    assert 1 <= caught.value.retry_after <= 30

    first.release()
    first.release()
    third = counts.take({"u": 2})

    with pytest.raises(TooManyStreamsError):
        counts.take({"u": 2})
    second.release()
    third.release()
    counts.publish()
    assert not counts._open
    assert not counts._published


def test_stream_that_never_begins_gives_its_slot_back() -> None:
    counts = StreamCounts()
    counts.take({"u": 1})
    gc.collect()

    counts.take({"u": 1})


def test_refused_stream_counts_for_nobody() -> None:
    counts = StreamCounts()
    held = counts.take({"a": 1})
    for _ in range(3):
        with pytest.raises(TooManyStreamsError):
            counts.take({"u": 2, "a": 1})

    assert counts._open["u"] == 0
    held.release()


def test_threads_that_open_at_once_get_no_more_than_the_limit() -> None:
    counts = StreamCounts()
    barrier = threading.Barrier(20)
    slots: list[limits.Slot] = []

    def work() -> None:
        barrier.wait()
        try:
            slots.append(counts.take({"u": 5}))
        except TooManyStreamsError:
            pass

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(slots) == 5
