"""Streams with an initial state, and streams of REST framework, as each holder has them."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.sse import Message, Stream, numbers
from tests.support.stack import Stack, running

ADD_GROUP = """
from django.contrib.auth.models import Group
from django.db import transaction
from eventstream import send_event
with transaction.atomic():
    Group.objects.create(name="{name}")
    send_event("{channel}", "message", "{name}")
"""
ADD_USER = """
from django.contrib.auth.models import User
print(User.objects.create_user("ann", password="secret").pk)
"""


@pytest.fixture(scope="module", params=["direct", "pushpin"])
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    manager = "tests.channels.StatefulChannelManager"
    env = {"ES_SET": json.dumps({"EVENTSTREAM_CHANNELMANAGER_CLASS": manager})}
    with running(with_pushpin=request.param == "pushpin", env=env) as stack:
        yield stack


def told(messages: list[Message]) -> list[tuple[str, object, str]]:
    return [(each.type, json.loads(each.data), each.id) for each in messages]


# --- initial states


def test_stream_begins_with_the_state_and_goes_on_with_what_changes_it(
    stack: Stack,
) -> None:
    url = f"{stack.url}/events/?channel=groups"
    stack.run(ADD_GROUP.format(name="100 %I", channel="groups"))
    stack.wait_until_numbered("groups", 1)
    with Stream(url).open() as stream:
        assert told(stream.take(1)) == [("initial-state", ["100 %I"], "groups:1")]
        stack.run(ADD_GROUP.format(name="b", channel="groups"))
        assert told(stream.take(1)) == [("message", "b", "groups:2")]

    # One that comes back has the state, and gets what it has missed.
    stack.run(ADD_GROUP.format(name="c", channel="groups"))
    with Stream(url, last_event_id="groups:2").open() as stream:
        assert told(stream.take(1)) == [("message", "c", "groups:3")]
    # One whose position is gone gets the state anew.
    with Stream(url, last_event_id="groups:99").open() as stream:
        reset, state = stream.take(2)
        assert reset.type == "stream-reset"
        assert told([state]) == [("initial-state", ["100 %I", "b", "c"], "groups:3")]


def test_event_that_passes_while_a_crowd_opens_behind_a_proxy_is_there_soon() -> None:
    """It finds out that the first of them is behind, and of the others it does not."""
    manager = "tests.channels.SlowChannelManager"
    env = {"ES_SET": json.dumps({"EVENTSTREAM_CHANNELMANAGER_CLASS": manager})}
    with running(with_pushpin=True, env=env) as stack:
        url = f"{stack.url}/events/?channel=orders"
        with Stream(url).open() as early, ThreadPoolExecutor(3) as pool:
            assert early.next().type == "initial-state"
            time.sleep(1.5)  # all of a channel are asked for a second after the first
            opening = [pool.submit(Stream, url) for _ in range(3)]
            time.sleep(1)
            stack.send("orders", data="new")
            assert early.next().type == "message"
            streams = [each.result() for each in opening]
            for stream in streams:
                with stream.open():
                    assert stream.next().type == "initial-state"
                    assert stream.next(timeout=15).id == "orders:1"


# --- REST framework


@pytest.mark.parametrize("path", ["function/", "instance/", "any/one/", "rooms/7/"])
def test_rest_framework_s_stream_is_live_and_resumes(stack: Stack, path: str) -> None:
    channel = "room-7" if path == "rooms/7/" else "one"
    position = stack.send(channel, 0)
    before = int(position.rpartition(":")[2])
    url = f"{stack.url}/api/{path}"
    with Stream(url).open() as stream:
        stack.send(channel, 3)
        first = stream.take(3)
    stack.send(channel, 3)
    with Stream(url, last_event_id=first[-1].id).open() as stream:
        rest = stream.take(3)

    ids = [
        int(part.rpartition(":")[2])
        for message in [*first, *rest]
        for part in message.id.split(",")
        if part.startswith(f"{channel}:")
    ]
    assert ids == list(range(before + 1, before + 7))


def test_rest_framework_s_long_absence_is_made_good(stack: Stack) -> None:
    stack.send("room-8", 1000)
    stack.wait_until_numbered("room-8", 1000)
    url = f"{stack.url}/api/rooms/8/"
    with Stream(url, last_event_id="room-8:0").open() as stream:
        assert list(numbers(stream.take(1000))) == list(range(1, 1001))
        stack.send("room-8")
        assert list(numbers(stream.take(1))) == [1001]


def test_rest_framework_s_authentication_says_who_reads(stack: Stack) -> None:
    pk = stack.run(ADD_USER).strip()
    login = base64.b64encode(b"ann:secret").decode()
    url = f"{stack.url}/api/guarded/"
    with Stream(url) as refused:
        assert refused.status == 401
    with Stream(url, headers={"Authorization": f"Basic {login}"}).open() as stream:
        stack.send(f"private-{pk}", 2)
        assert list(numbers(stream.take(2))) == [1, 2]
