"""Who may read, on real servers, with a channel manager whose methods are all async."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import quote, urlencode

import jwt
import pytest

from tests.support.holds import last_ids, next_path
from tests.support.processes import free_port, is_listening, python, wait_for
from tests.support.pushpin import KEY
from tests.support.sse import Crowd, Message, Stream, numbers
from tests.support.stack import Stack, running

USERS = 20
SETTINGS = {
    "EVENTSTREAM_CHANNELMANAGER_CLASS": "tests.channels.AsyncChannelManager",
    "EVENTSTREAM_STREAMS_PER_USER": 3,
    "EVENTSTREAM_PAGE_SIZE": 50,
    "EVENTSTREAM_ALLOW_ORIGINS": ["https://a.example"],
}


@pytest.fixture(scope="module", params=["direct", "pushpin"])
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """Users 1 to 20, all in the group `members`."""
    env = {"ES_SET": json.dumps(SETTINGS)}
    with running(with_pushpin=request.param == "pushpin", env=env) as stack:
        stack.run(
            "from django.contrib.auth.models import User, Group\n"
            "group = Group.objects.create(name='members')\n"
            f"for pk in range(1, {USERS + 1}):\n"
            "    User.objects.create(pk=pk, username=pk).groups.add(group)"
        )
        yield stack


def make_token(stack: Stack, user: int, *channels: str, lifetime: float = 300) -> str:
    return stack.run(
        "from django.contrib.auth.models import User\n"
        "from eventstream import make_subscribe_token\n"
        f"user = User.objects.get(pk={user})\n"
        f"print(make_subscribe_token(user, {list(channels)}, lifetime={lifetime}))"
    ).strip()


def test_async_channel_manager_is_asked(stack: Stack) -> None:
    mine = {"Cookie": stack.log_in(1)}
    other = {"Cookie": stack.log_in(2)}
    url = f"{stack.url}/events/?channel=private-1"

    with Stream(url, headers=other) as stream:
        assert json.loads(stream.next().data)["condition"] == "forbidden"
    with Stream(url, headers=mine).open() as stream:
        stack.send("private-1")
        assert list(numbers([stream.next()])) == [1]
    with Stream(f"{stack.url}/events/?channel=live-x").open() as stream:
        stack.send("live-x")
        assert stream.next().id == ""  # is_channel_reliable was waited for, too


@pytest.mark.parametrize("way", ["header", "query"])
def test_token_opens_a_stream_that_can_be_resumed(stack: Stack, way: str) -> None:
    channel = "private-3"
    token = make_token(stack, 3, channel)
    headers = {"Authorization": f"Bearer {token}"} if way == "header" else {}
    query = f"?token={token}" if way == "query" else ""
    with Stream(f"{stack.url}/events/{query}", headers=headers).open() as stream:
        stack.send(channel, 1)
        last = stream.next()
    stack.send(channel, 2)

    with Stream(
        f"{stack.url}/events/{query}", headers=headers, last_event_id=last.id
    ).open() as stream:
        found = list(numbers(stream.take(2)))

    first = int(last.id.rpartition(":")[2])
    assert found == [first + 1, first + 2]


def test_expired_token_leaves_the_client_its_position(stack: Stack) -> None:
    token = make_token(stack, 3, "orders", lifetime=0.001)
    headers = {
        "Authorization": f"Bearer {token}",
        "Origin": "https://a.example",
        "Last-Event-ID": "orders:0",
    }

    with Stream(f"{stack.url}/events/", headers=headers) as stream:
        message = stream.next()

        assert message.type == "stream-error"
        assert json.loads(message.data)["condition"] == "token-expired"
        assert message.id == ""
        assert stream.status == 401
        assert stream.headers["Access-Control-Allow-Origin"] == "https://a.example"
        with pytest.raises(EOFError):
            stream.next()


def test_withdrawn_permission_ends_an_idle_stream_within_a_second(stack: Stack) -> None:
    """Whatever else asks again here comes by once a minute."""
    ended: dict[int, float] = {}

    def wait(user: int, stream: Stream) -> None:
        if stream.next(timeout=30).type == "stream-error":
            ended[user] = time.time()

    users = (4, 5, 6)
    with ExitStack() as streams:
        threads = []
        for user in users:
            url = f"{stack.url}/events/?channel=members"
            stream = Stream(url, headers={"Cookie": stack.log_in(user)}).open()
            streams.enter_context(stream)
            threads.append(threading.Thread(target=wait, args=(user, stream)))
            threads[-1].start()
        time.sleep(1.5)  # idle: what a proxy asks right after the hold is over
        printed = stack.run(
            "import time\n"
            "from django.contrib.auth.models import User\n"
            "from django.db import transaction\n"
            "from eventstream import channel_permission_changed\n"
            f"for user in User.objects.filter(pk__in={users}):\n"
            "    with transaction.atomic():\n"
            "        user.groups.clear()\n"
            "        channel_permission_changed(user, 'members')\n"
            "        at = time.time()\n"
            "    print(user.pk, at)\n"
            "    time.sleep(0.2)"
        )
        for thread in threads:
            thread.join(30)

    withdrawn = {
        int(pk): float(at) for pk, at in (line.split() for line in printed.splitlines())
    }
    delays = {user: ended[user] - withdrawn[user] for user in users}
    assert min(delays.values()) < 1, delays
    assert max(delays.values()) < 10, delays  # this machine may be busy


def test_concurrent_streams_are_limited_where_they_are_known(stack: Stack) -> None:
    headers = {"Cookie": stack.log_in(7), "Origin": "https://a.example"}
    url = f"{stack.url}/events/?channel=orders"
    with ExitStack() as opened:
        streams = [
            opened.enter_context(Stream(url, headers=headers).open()) for _ in range(3)
        ]
        with Stream(url, headers=headers) as one_more:
            if stack.pushpin is not None:
                one_more.open()  # the proxy alone knows how many there are
                return
            assert one_more.status == 429
            assert 1 <= int(one_more.headers["Retry-After"]) <= 30
            allowed = one_more.headers["Access-Control-Allow-Origin"]
            assert allowed == "https://a.example"
        streams[0].close()

        def has_opened() -> bool:
            with Stream(url, headers=headers) as stream:
                return stream.status == 200

        wait_for(has_opened, "the closed stream is not counted any more")


def test_token_is_not_in_the_server_s_access_log(stack: Stack) -> None:
    token = make_token(stack, 8, "private-8")
    port = free_port()
    with python(
        "-m", "uvicorn", "tests.asgi:application", "--port", str(port),
        env=stack.env | {"ES_GRIP": ""},
    ) as web:  # fmt: skip
        web.wait_until(lambda: is_listening(port), "uvicorn listens")
        url = f"http://127.0.0.1:{port}/events/?channel=private-8&token={token}"
        with Stream(url).open():
            pass
        web.wait_until(lambda: "GET /events/" in web.output(), "it is logged")

        assert "channel=private-8" in web.output()
        assert token.rpartition(":")[2] not in web.output()


@pytest.mark.parametrize(
    "channel",
    [
        "%I",
        "%(events-orders)s",
        'a;prev-id="0", events-b',
        "*",
        "orders?[a]",
        "é/../{x}",
    ],
)
def test_names_are_nothing_but_names(stack: Stack, channel: str) -> None:
    """To the proxy, whose formats and headers they are in, and to the bus."""
    event_type = f"%I %(user)s: {channel}"
    query = urlencode({"channel": channel})
    with Stream(f"{stack.url}/events/?{query}").open() as stream:
        stack.run(
            "from eventstream import send_event\n"
            "send_event('orders', 'message', 'of another channel')\n"
            f"send_event({channel!r}, {event_type!r}, 1)"
        )

        message = stream.next()

    assert message == Message(event_type, "1", f"{quote(channel, safe='')}:1")


# --- what a proxy adds


async def test_private_channels_that_are_paged_at_once_never_mix(stack: Stack) -> None:
    """Pushpin shares link requests in flight. Each user reads twice, from two positions."""
    users = range(1, USERS + 1)
    count = 300
    stack.run(
        "from eventstream import EventSpec, send_events\n"
        "send_events(EventSpec(f'mine-{pk}', 'message', [pk, n])"
        f" for n in range({count}) for pk in range(1, {USERS + 1}))"
    )
    for pk in users:
        stack.wait_until_numbered(f"mine-{pk}", count)
    crowd = Crowd(stack.url, [f"mine-{pk}" for pk in users for _ in range(2)])
    for number, reader in enumerate(crowd.readers):
        pk = int(reader.name.partition("-")[2])
        reader.cookie = stack.log_in(pk)
        reader.last_id = f"{reader.name}:{100 * (number % 2)}"

    await crowd.start(per_second=100)
    try:
        await crowd.until_received(count)
    finally:
        await crowd.stop()

    for number, reader in enumerate(crowd.readers):
        first = 100 * (number % 2)
        assert reader.faults(first + 1, count) == ""
        pk = int(reader.name.partition("-")[2])
        expected = [json.dumps([pk, n]) for n in range(first, count)]
        assert reader.data == expected
        assert reader.errors == reader.resets == reader.reconnects == 0


def test_invented_addresses_do_not_get_round_a_limit_behind_pushpin() -> None:
    """Pushpin appends the address that it sees."""
    settings = {"EVENTSTREAM_OPENS_PER_ADDRESS": 3, "EVENTSTREAM_TRUSTED_PROXIES": 1}
    env = {"ES_SET": json.dumps(settings)}
    with running(with_pushpin=True, worker=False, env=env) as stack:
        statuses = []
        for number in range(8):  # a minute may end in between
            headers = {"X-Forwarded-For": f"198.51.100.{number}"}
            with Stream(f"{stack.url}/events/?channel=a", headers=headers) as stream:
                statuses.append(stream.status)
                if stream.status == 429:  # the proxy passes on for how long
                    assert 1 <= int(stream.headers["Retry-After"]) <= 70

    assert statuses[:3] == [200] * 3
    assert 429 in statuses


def get(
    port: int, path: str, headers: dict[str, str]
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Return status, headers and what comes within two seconds, however long it is held."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.putrequest("GET", path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        content = b""
        try:
            while chunk := response.read1():
                content += chunk
        except TimeoutError:
            content += b"(held)"
        return response.status, response.headers, content
    finally:
        connection.close()


def test_link_of_one_user_is_of_no_use_to_another(stack: Stack) -> None:
    if stack.pushpin is None:
        status, _, content = get(stack.web_port, "/events/next/x/", {})
        assert (status, b"for the GRIP proxy" in content) == (400, True)
        return
    stack.send("private-9", 120, data="secret")
    stack.wait_until_numbered("private-9", 120)
    # As Pushpin would, to see the links: they never leave it.
    signature = jwt.encode({"iss": "pushpin", "exp": 2**40}, KEY, algorithm="HS256")
    origin = {"Grip-Sig": signature, "Cookie": stack.log_in(9)}
    links = []
    for last_id in ("private-9:0", "private-9:120"):
        headers = {**origin, "Last-Event-ID": last_id}
        _, found, _ = get(stack.web_port, "/events/?channel=private-9", headers)
        links.append(next_path(found))
    forged = {**last_ids(found, {"private-9": 0}), "Grip-Sig": signature}
    # An answer that is to be filtered follows one that says so, and is empty.
    status, found, content = get(stack.web_port, links[0], {"Grip-Sig": signature})
    assert (status, content) == (200, b"")
    page, held = next_path(found), links[1]
    browser = {
        "Cookie": stack.log_in(10),
        "Sec-Fetch-Mode": "cors",
        "Accept-Language": "de",
    }
    # The proxy takes no such header, and Django before 5.2.13 took it for the other.
    alike = {"Grip_Last": forged["Grip-Last"]}

    # The positive control: asked as the proxy asks, both bring what is the first user's.
    for path, headers in ((page, {"Grip-Sig": signature}), (held, forged)):
        _, _, content = get(stack.web_port, path, headers)
        assert b"secret" in content

    for path, headers in (
        (page, browser),
        (page, {**browser, **forged}),
        (held, browser),
        (held, {}),
        (held, forged),
        (held, alike),
    ):
        for port in (stack.pushpin.port, stack.web_port):
            if port == stack.web_port and "Grip-Sig" in headers:
                continue  # that is the control above
            _, _, content = get(port, path, headers)
            assert b"secret" not in content
            assert b"(held)" not in content
