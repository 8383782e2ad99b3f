"""From send_event to the client, through a worker, behind both holders."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import pytest

from tests.settings import MIDDLEWARE
from tests.support.grip_endpoint import GripEndpoint
from tests.support.pushpin import KEY
from tests.support.sse import Crowd, Message, Stream, numbers
from tests.support.stack import Stack, running


@pytest.fixture(scope="module")
def by_links() -> Iterator[Stack]:
    """A Pushpin to which nobody publishes, as there is no worker."""
    settings = {"EVENTSTREAM_PAGE_SIZE": 2, "EVENTSTREAM_NEXT_LINK_TIMEOUT": 1}
    env = {"ES_SET": json.dumps(settings)}
    with running(with_pushpin=True, worker=False, env=env) as stack:
        yield stack


def messages(channel: str, first: int, last: int, data: int = 0) -> list[Message]:
    """Return the events first…last of a channel, whose data count from `data`."""
    return [
        Message(type="message", data=str(data + n - first), id=f"{channel}:{n}")
        for n in range(first, last + 1)
    ]


def test_events_arrive_once_in_order_with_consecutive_ids(stack: Stack) -> None:
    with Stream(f"{stack.url}/events/?channel=order") as stream:
        opening = stream.next()
        stack.send("order", 3)
        stack.send("order", 2)

        assert (opening.type, opening.id) == ("stream-open", "order:0")
        assert json.loads(opening.data) == {"head": "order:0", "keep_alive": 20}
        assert stream.parser.retry == 2000
        expected = messages("order", 1, 3) + messages("order", 4, 5)
        assert stream.take(5) == expected
        assert stream.is_silent(0.5)


def test_rolled_back_event_never_arrives_and_leaves_no_hole(stack: Stack) -> None:
    with Stream(f"{stack.url}/events/?channel=rollback").open() as stream:
        stack.send("rollback", 1, data="first")
        stack.send("rollback", 3, data="never", rollback=True)
        stack.send("rollback", 1, data="second")

        assert stream.take(2) == [
            Message(type="message", data='"first"', id="rollback:1"),
            Message(type="message", data='"second"', id="rollback:2"),
        ]


@pytest.mark.parametrize(
    "data",
    ["100 % %I %(ev)s", "line\nbreak\r\nand\rmore", "é ✓ 𝄞", "", "x" * 100_000],
    ids=["percent", "lines", "unicode", "empty", "large"],
)
@pytest.mark.parametrize("is_live", [True, False], ids=["live", "catch-up"])
def test_data_arrives_unchanged(stack: Stack, data: str, is_live: bool) -> None:
    channel = f"data %s é/{hash((data, is_live)) % 10**6}"
    url = f"{stack.url}/events/?channel={quote(channel, safe='')}"
    if is_live:
        with Stream(url).open() as stream:
            stack.send(channel, data=data)
            message = stream.next()
    else:
        stack.send(channel, data=data)
        stack.wait_until_numbered(channel, 1)
        with Stream(url, last_event_id=quote(channel, safe="") + ":0").open() as stream:
            message = stream.next()

    assert json.loads(message.data) == data
    assert message.id == quote(channel, safe="-_.~") + ":1"


@pytest.mark.parametrize("way", ["header", "query"])
def test_client_that_comes_back_gets_what_it_missed(stack: Stack, way: str) -> None:
    channel = f"back-{way}"
    stack.send(channel, 5)
    stack.wait_until_numbered(channel, 5)
    url = f"{stack.url}/events/?channel={channel}"
    if way == "header":
        stream = Stream(url, last_event_id=f"{channel}:2")
    else:
        stream = Stream(f"{url}&lastEventId={channel}:2")

    with stream:
        opening = stream.next()
        assert opening.id == f"{channel}:2"
        assert json.loads(opening.data)["head"] == f"{channel}:5"
        assert stream.take(3) == messages(channel, 3, 5, data=2)
        stack.send(channel, 1)
        assert stream.next() == messages(channel, 6, 6)[0]


def test_header_wins_over_query(stack: Stack) -> None:
    stack.send("wins", 5)
    stack.wait_until_numbered("wins", 5)
    url = f"{stack.url}/events/?channel=wins&lastEventId=wins:1"

    with Stream(url, last_event_id="wins:4").open() as stream:
        assert stream.next() == messages("wins", 5, 5, data=4)[0]


def test_long_absence_is_made_good_page_by_page(stack: Stack) -> None:
    stack.send("pages", 2500)
    stack.wait_until_numbered("pages", 2500)
    url = f"{stack.url}/events/?channel=pages"

    with Stream(url, last_event_id="pages:0").open() as stream:
        assert stream.take(2500) == messages("pages", 1, 2500)
        stack.send("pages", 2)
        assert stream.take(2) == messages("pages", 2501, 2502)


def test_several_channels_share_a_stream_and_one_position(stack: Stack) -> None:
    stack.send("multi-a", 2)
    stack.wait_until_numbered("multi-a", 2)
    url = f"{stack.url}/events/?channel=multi-b&channel=multi-a"

    with Stream(url, last_event_id="multi-a:1").open() as stream:
        assert stream.next().id == "multi-a:2,multi-b:0"
        stack.send("multi-b", 1)
        assert stream.next().id == "multi-a:2,multi-b:1"
        stack.send("multi-a", 1)
        last = stream.next()
        assert last.id == "multi-a:3,multi-b:1"

    stack.send("multi-b", 1)
    with Stream(url, last_event_id=last.id).open() as stream:
        assert stream.next().id == "multi-a:3,multi-b:2"
        assert stream.is_silent(0.5)


def test_position_that_is_not_in_the_log_is_reset(stack: Stack) -> None:
    stack.send("reset", 3)
    stack.wait_until_numbered("reset", 3)
    url = f"{stack.url}/events/?channel=reset"

    with Stream(url, last_event_id="reset:99").open() as stream:
        message = stream.next()
        assert message.type == "stream-reset"
        assert json.loads(message.data) == {"channels": ["reset"]}
        assert message.id == "reset:3"
        stack.send("reset", 1)
        assert stream.next() == messages("reset", 4, 4)[0]


def test_pruned_position_is_reset_and_the_stream_goes_on(stack: Stack) -> None:
    stack.send("pruned", 4)
    stack.wait_until_numbered("pruned", 4)
    with Stream(f"{stack.url}/events/?channel=pruned").open() as stream:
        stack.send("pruned", 1)  # when it is here, the others are confirmed
        stream.next()
    stack.run(
        "from eventstream.models import Event;"
        "Event.objects.filter(channel='pruned', eid__lte=3).delete()"
    )

    with Stream(
        f"{stack.url}/events/?channel=pruned", last_event_id="pruned:3"
    ).open() as stream:
        assert list(numbers(stream.take(2))) == [4, 5]
    with Stream(
        f"{stack.url}/events/?channel=pruned", last_event_id="pruned:2"
    ).open() as stream:
        assert stream.next() == Message(
            type="stream-reset", data='{"channels": ["pruned"]}', id="pruned:5"
        )


def test_best_effort_events_arrive_live_and_are_not_stored(stack: Stack) -> None:
    with Stream(f"{stack.url}/events/?channel=live-x").open() as stream:
        stack.send("live-x", 2)

        received = stream.take(2)
        assert [m.data for m in received] == ["0", "1"]
        assert [m.id for m in received] == ["", ""]
    assert stack.run(
        "from eventstream.models import Event;"
        "print(Event.objects.filter(channel='live-x').count())"
    ).split() == ["0"]


# --- users


@pytest.fixture(scope="module")
def cookies(stack: Stack) -> dict[int, dict[str, str]]:
    """Headers of the sessions of users 1 to 7; all are in the group `members`."""
    stack.run(
        "from django.contrib.auth.models import User, Group\n"
        "group = Group.objects.create(name='members')\n"
        "for pk in range(1, 8): User.objects.create(pk=pk, username=pk).groups.add(group)"
    )
    return {pk: {"Cookie": stack.log_in(pk)} for pk in range(1, 8)}


def test_skipped_user_receives_neither_live_nor_on_catch_up(
    stack: Stack, cookies: dict[int, dict[str, str]]
) -> None:
    url = f"{stack.url}/events/?channel=skip"
    with (
        Stream(url, headers=cookies[1]).open() as mine,
        Stream(url, headers=cookies[2]).open() as other,
        Stream(url).open() as anonymous,
    ):
        stack.run(
            "from eventstream import send_event\n"
            "send_event('skip', 'message', 'a', skip_user_ids=[1])\n"
            "send_event('skip', 'message', 'b')"
        )

        assert list(numbers([mine.next()])) == [2]
        assert list(numbers(other.take(2))) == [1, 2]
        assert list(numbers(anonymous.take(2))) == [1, 2]
    with Stream(url, headers=cookies[1], last_event_id="skip:0").open() as mine:
        assert list(numbers([mine.next()])) == [2]


def test_every_event_moves_the_position_which_is_taken_back_as_it_came(
    stack: Stack, cookies: dict[int, dict[str, str]]
) -> None:
    url = f"{stack.url}/events/?channel=moves-a&channel=moves-b%25"
    with (
        Stream(url, headers=cookies[1]).open() as mine,
        Stream(url).open() as witness,
    ):
        stack.send("moves-a", 2)
        assert [m.id for m in mine.take(2)] == [
            "moves-a:1,moves-b%25:0",
            "moves-a:2,moves-b%25:0",
        ]
        stack.run(
            "from eventstream import send_event\n"
            "send_event('moves-a', 'message', 'not for 1', skip_user_ids=[1])"
        )
        assert witness.take(3)[2].id == "moves-a:3,moves-b%25:0"
        stack.send("moves-b%")
        assert mine.next().id == "moves-a:3,moves-b%25:1"
        as_it_came = mine.parser.last_id

    stack.send("moves-b%")
    with Stream(url, headers=cookies[1], last_event_id=as_it_came).open() as mine:
        assert mine.next().id == "moves-a:3,moves-b%25:2"
        assert mine.is_silent(0.5)


def test_private_channel_is_refused_to_others(
    stack: Stack, cookies: dict[int, dict[str, str]]
) -> None:
    url = f"{stack.url}/events/?channel=private-1"
    with Stream(url, headers=cookies[2]) as stream:
        message = stream.next()
        assert stream.status == 200
        assert message.type == "stream-error"
        assert json.loads(message.data) == {
            "condition": "forbidden",
            "text": "Permission denied to channels: private-1",
            "channels": ["private-1"],
        }
    with Stream(url, headers=cookies[1]).open() as stream:
        stack.send("private-1")
        assert stream.next() == messages("private-1", 1, 1)[0]


def test_withdrawn_permission_ends_that_user_s_stream_only(
    stack: Stack, cookies: dict[int, dict[str, str]]
) -> None:
    url = f"{stack.url}/events/?channel=members"
    with (
        Stream(url, headers=cookies[1]).open() as mine,
        Stream(url, headers=cookies[2]).open() as other,
    ):
        stack.run(
            "from django.contrib.auth.models import User\n"
            "from django.db import transaction\n"
            "from eventstream import channel_permission_changed, send_event\n"
            "user = User.objects.get(pk=1)\n"
            "with transaction.atomic():\n"
            "    user.groups.clear()\n"
            "    channel_permission_changed(user, 'members')\n"
            "    send_event('members', 'message', 'after')"
        )

        message = mine.next()
        assert message.type == "stream-error"
        assert json.loads(message.data)["condition"] == "forbidden"
        with pytest.raises(EOFError):
            mine.next()
        assert other.next().data == '"after"'
    with Stream(url, headers=cookies[1]) as stream:
        assert stream.next().type == "stream-error"


KICK_UNHEARD = """
from django.contrib.auth.models import User
from eventstream import send_event
from eventstream.models import Cursor, Event, EventKind
from eventstream.relay import relay_all
from eventstream.rows import partition_of
from eventstream.storage import get_storage
user = User.objects.get(pk={pk})
groups = list(user.groups.all())
user.groups.clear()
number = partition_of("members")
Event.objects.create(partition=number, kind=EventKind.KICK, channel="members", type="kick", data="{pk}")
get_storage().number_all("default", number)
head = get_storage().last_position("default", number)
Cursor.objects.filter(partition=number).update(watermark=head)
if {is_back}:
    user.groups.set(groups)
send_event("members", "message", "after")
relay_all("default")
"""
"""The kick counts as published: the stream came to its holder only after that."""


def test_stream_that_was_opened_while_its_user_was_kicked_gets_nothing(
    stack: Stack, cookies: dict[int, dict[str, str]]
) -> None:
    url = f"{stack.url}/events/?channel=members"
    with (
        Stream(url, headers=cookies[5]).open() as mine,
        Stream(url, headers=cookies[6]).open() as other,
    ):
        stack.run(KICK_UNHEARD.format(pk=5, is_back=False))

        assert mine.next().type == "stream-error"
        with pytest.raises(EOFError):
            mine.next()
        assert other.next().data == '"after"'


def test_stream_of_one_who_is_back_goes_on(
    stack: Stack, cookies: dict[int, dict[str, str]]
) -> None:
    with Stream(f"{stack.url}/events/?channel=members", headers=cookies[7]) as stream:
        stream.open()
        stack.run(KICK_UNHEARD.format(pk=7, is_back=True))

        assert stream.next().data == '"after"'


def test_unchanged_permission_ends_nothing(
    stack: Stack, cookies: dict[int, dict[str, str]]
) -> None:
    url = f"{stack.url}/events/?channel=members"
    with Stream(url, headers=cookies[3]).open() as stream:
        stack.run(
            "from django.contrib.auth.models import User\n"
            "from eventstream import channel_permission_changed\n"
            "channel_permission_changed(User.objects.get(pk=3), 'members')"
        )
        stack.send("members")

        assert stream.next().data == "0"


# --- requests


@pytest.mark.parametrize(
    ("path", "channel"),
    [
        ("/fixed/", "fixed"),
        ("/rooms/blue/", "room-blue"),
        ("/channels/path/", "path"),
    ],
)
def test_channels_come_from_the_url(stack: Stack, path: str, channel: str) -> None:
    with Stream(stack.url + path).open() as stream:
        stack.send(channel)

        assert stream.next().id == f"{channel}:1"


@pytest.mark.parametrize(
    ("query", "headers", "text"),
    [
        ("", {}, "Invalid request: No channels specified"),
        (
            "?" + "&".join(f"channel=c{n}" for n in range(11)),
            {},
            "Invalid request: Channel limit of 10 exceeded",
        ),
        (
            "?channel=" + "x" * 256,
            {},
            "Invalid request: Invalid channel: channel has 256 characters, the most is 255",
        ),
    ],
)
def test_request_that_makes_no_sense_gets_a_stream_error(
    stack: Stack, query: str, headers: dict[str, str], text: str
) -> None:
    with Stream(f"{stack.url}/events/{query}", headers=headers) as stream:
        message = stream.next()

    assert message.type == "stream-error"
    assert json.loads(message.data) == {"condition": "bad-request", "text": text}


def test_other_methods_are_refused(stack: Stack) -> None:
    request = urllib.request.Request(
        f"{stack.url}/events/?channel=x", data=b"", method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=5)

    assert caught.value.code == 405
    assert caught.value.headers["Allow"] == "GET, OPTIONS"
    caught.value.close()


def test_nothing_between_may_keep_or_buffer_the_stream(stack: Stack) -> None:
    with Stream(f"{stack.url}/events/?channel=x").open() as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        assert (
            stream.headers["Cache-Control"]
            == "no-cache, no-store, no-transform, private"
        )
        assert stream.headers["X-Accel-Buffering"] == "no"


# --- many


async def test_hundred_clients_receive_a_thousand_events_each(stack: Stack) -> None:
    crowd = Crowd(stack.url, ["crowd"] * 100)
    await crowd.start()
    try:
        loop = asyncio.get_running_loop()
        for _ in range(10):
            await loop.run_in_executor(None, stack.send, "crowd", 100)
        await crowd.until_received(1000)

        assert crowd.faults(1, 1000) == []
        assert sum(reader.reconnects for reader in crowd.readers) == 0
    finally:
        await crowd.stop()


async def test_fifty_clients_catch_up_on_private_channels_at_once(stack: Stack) -> None:
    names = [f"own-{n}" for n in range(50)]
    stack.run(
        "from eventstream import EventSpec, send_events\n"
        "send_events(EventSpec(f'own-{n}', 'message', i)"
        " for i in range(500) for n in range(50))"
    )
    for name in names:
        stack.wait_until_numbered(name, 500)
    crowd = Crowd(stack.url, names)
    for reader in crowd.readers:
        reader.last_id = f"{reader.name}:0"

    await crowd.start()
    try:
        await crowd.until_received(500)
        assert crowd.faults(1, 500) == []
        assert sum(reader.errors + reader.resets for reader in crowd.readers) == 0
    finally:
        await crowd.stop()


# --- what a proxy adds


@pytest.fixture(scope="module")
def impatient() -> Iterator[Stack]:
    """Pushpin that asks after two seconds of silence whether there is anything new."""
    with running(with_pushpin=True, env={"ES_LINK_TIMEOUT": "2"}) as stack:
        yield stack


@contextmanager
def recorded() -> Iterator[tuple[Stack, GripEndpoint]]:
    """A stack whose worker publishes to its Pushpin through an endpoint that records."""
    stack = Stack(with_pushpin=True)
    assert stack.pushpin is not None
    with GripEndpoint() as endpoint:
        endpoint.forward = f"http://127.0.0.1:{stack.pushpin.config.publish_port}"
        stack.env["ES_GRIP"] = f"{endpoint.url}/?key={KEY}"
        try:
            stack.start_web()
            stack.start_worker()
            yield stack, endpoint
        finally:
            stack.close()


def test_events_published_as_one_are_single_to_their_readers() -> None:
    with recorded() as (stack, endpoint):
        url = f"{stack.url}/events/?channel=one%25&channel=two"
        with Stream(url).open() as stream:
            stack.send("two", 1, data="two")
            stack.send("one%", 40, data="%I %(x)s")
            received = stream.take(41)
        ids = [dict(split(part) for part in m.id.split(",")) for m in received]
        at = next(i for i, position in enumerate(ids) if position["one%25"] == 17)
        with Stream(url, last_event_id=received[at].id).open() as stream:
            rest = stream.take(40 - at)
        spans = [int(item["id"]) - int(item["prev-id"]) for item in endpoint.items]
    assert max(spans) > 20
    of_one = [i for m, i in zip(received, ids, strict=True) if m.data != '"two"']
    assert [position["one%25"] for position in of_one] == list(range(1, 41))
    assert {m.data for m in received} == {'"two"', '"%I %(x)s"'}
    assert [(m.type, m.data) for m in rest] == [
        (m.type, m.data) for m in received[at + 1 :]
    ]


@pytest.mark.parametrize("back", [3, 10], ids=["within a run", "a whole run"])
def test_run_that_is_cut_otherwise_when_published_again_doubles_nothing(
    back: int,
) -> None:
    with recorded() as (stack, endpoint):
        worker = stack.worker
        assert worker is not None
        with Stream(f"{stack.url}/events/?channel=orders").open() as stream:
            stack.send("orders", 10)
            received = stream.take(10)
            worker.stop()  # before it had confirmed, as far as the database knows
            stack.run(
                "from eventstream.models import Cursor\n"
                f"mark = 10 - {back}\n"
                "ahead = Cursor.objects.filter(target__startswith='grip:')\n"
                "ahead.filter(watermark__gt=mark).update(watermark=mark)"
            )
            stack.send("orders", 5)
            stack.start_worker()
            received += stream.take(5, timeout=20)

            assert stream.is_silent(3)
        published = [(item["prev-id"], item["id"]) for item in endpoint.items]
    assert published[-1] == (str(10 - back), "15")
    assert [dict(map(split, m.id.split(",")))["orders"] for m in received] == [
        *range(1, 16)
    ]


def split(entry: str) -> tuple[str, int]:
    """Return the channel, quoted, and the id of an entry of a position."""
    channel, _, eid = entry.rpartition(":")
    return channel, int(eid)


def test_long_catch_up_changes_no_percent_sign(stack: Stack) -> None:
    data, channel = "100 %% of %(x)I", "per cent"
    stack.send(channel, 6000, data=data)
    stack.wait_until_numbered(channel, 6000)
    url = f"{stack.url}/events/?channel=per%20cent"

    with Stream(url, last_event_id="per%20cent:0").open() as stream:
        received = stream.take(6000)

    assert [m.id for m in received] == [f"per%20cent:{n}" for n in range(1, 6001)]
    assert {json.loads(m.data) for m in received} == {data}


def test_long_gap_of_a_held_stream_changes_no_percent_sign(impatient: Stack) -> None:
    data, channel = "100 %% of %(x)I", "held %"
    assert impatient.worker
    with Stream(f"{impatient.url}/events/?channel=held%20%25").open() as stream:
        impatient.send(channel, 1)
        first = stream.next()
        impatient.worker.stop()
        impatient.send(channel, 6000, data=data)
        received = stream.take(6000, timeout=20)
        impatient.start_worker()
        impatient.send(channel, 1)
        last = stream.next()

    ids = [m.id for m in (first, *received, last)]
    assert ids == [f"held%20%25:{n}" for n in range(1, 6003)]
    assert {json.loads(m.data) for m in received} == {data}


def test_next_link_brings_what_the_proxy_was_never_given(impatient: Stack) -> None:
    with Stream(f"{impatient.url}/events/?channel=link").open() as stream:
        impatient.send("link", 1)
        stream.next()
        # Confirmed without having been published: as if the proxy had lost it.
        impatient.run(
            "from eventstream.models import *\n"
            "from eventstream import send_event\n"
            "from eventstream.rows import partition_of\n"
            "from eventstream.storage import get_storage\n"
            "from django.db import transaction\n"
            "p = partition_of('link')\n"
            "with transaction.atomic():\n"
            "    send_event('link', 'message', 'lost')\n"
            "    get_storage().number_all('default', p)\n"
            "    Cursor.objects.filter(partition=p).update(\n"
            "        watermark=Partition.objects.get(number=p).last_position)\n"
        )

        message = stream.next(timeout=10)
        assert (message.data, message.id) == ('"lost"', "link:2")
        impatient.send("link", 1)
        assert stream.next().id == "link:3"


def test_gap_is_made_good_before_the_event_after_it(impatient: Stack) -> None:
    with Stream(f"{impatient.url}/events/?channel=gap").open() as stream:
        impatient.run(
            "from eventstream.models import *\n"
            "from eventstream import send_event\n"
            "from eventstream.rows import partition_of\n"
            "from eventstream.storage import get_storage\n"
            "from django.db import transaction\n"
            "p = partition_of('gap')\n"
            "with transaction.atomic():\n"
            "    send_event('gap', 'message', 'lost')\n"
            "    get_storage().number_all('default', p)\n"
            "    Cursor.objects.filter(partition=p).update(\n"
            "        watermark=Partition.objects.get(number=p).last_position)\n"
        )
        impatient.send("gap", 1)

        assert list(numbers(stream.take(2, timeout=10))) == [1, 2]
        assert stream.is_silent(1)


def test_next_links_of_quiet_streams_say_nothing(impatient: Stack) -> None:
    with Stream(f"{impatient.url}/events/?channel=quiet").open() as stream:
        assert stream.is_silent(5)
        impatient.send("quiet", 1)
        assert stream.next().id == "quiet:1"


def test_next_link_is_for_the_proxy_only(impatient: Stack) -> None:
    address = f"http://127.0.0.1:{impatient.web_port}/events/next/whatever/"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(address, timeout=5)

    assert caught.value.code == 400
    caught.value.close()


@pytest.mark.parametrize(
    "room", ["next", "日本", "x?y", "x#y", "a b", "50%", "a;b=c", "a,b"]
)
def test_proxy_finds_its_way_back_to_any_path(by_links: Stack, room: str) -> None:
    """Pages and what comes later are there by links alone: nothing is published."""
    channel = f"room-{room}"
    by_links.send(channel, 5)
    url = f"{by_links.url}/rooms/{quote(room, safe='')}/"
    with Stream(url, last_event_id=f"{quote(channel)}:0").open() as stream:
        assert [message.data for message in stream.take(5)] == list("01234")
        by_links.send(channel, data="later")
        assert json.loads(stream.next().data) == "later"


def test_proxy_asks_as_it_was_asked_where_http_is_redirected_to_https() -> None:
    """By TLS, which ends in front of it."""
    settings = {
        "MIDDLEWARE": ["django.middleware.security.SecurityMiddleware", *MIDDLEWARE],
        "SECURE_SSL_REDIRECT": True,
        "SECURE_PROXY_SSL_HEADER": ["HTTP_X_FORWARDED_PROTO", "https"],
        "SECURE_REDIRECT_EXEMPT": ["^send/"],  # which the test asks without a proxy
        "EVENTSTREAM_PAGE_SIZE": 2,
    }
    env = {"ES_SET": json.dumps(settings)}
    with running(with_pushpin=True, worker=False, env=env) as stack:
        stack.send("secure", 5)
        url = f"{stack.url}/events/?channel=secure"
        headers = {"X-Forwarded-Proto": "https"}
        with Stream(url, last_event_id="secure:0", headers=headers).open() as stream:
            assert stream.take(5) == messages("secure", 1, 5)
