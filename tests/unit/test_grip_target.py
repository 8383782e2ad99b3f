"""What goes to a GRIP proxy, and what its answers mean. Against a local endpoint."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import jwt
import pytest
from gripcontrol import HttpStreamFormat
from pubcontrol import Item
from pytest_django import Settings

from eventstream.exceptions import PublishRejectedError, PublishUnavailableError
from eventstream.models import EventKind
from eventstream.rows import OutboxRow, join_users
from eventstream.targets.base import MAX_JOINED_BYTES, CallSize
from eventstream.targets.grip import MAX_KICKED, GripTarget, _join, event_item
from tests.support.grip_endpoint import GripEndpoint
from tests.support.processes import free_port


def make_row(eid: int | None = 7, **values: object) -> OutboxRow:
    row = OutboxRow(1, 1, EventKind.EVENT, "a b", eid, "message", "50 %", "")
    return row._replace(**values)  # type: ignore[arg-type]


@pytest.fixture
def endpoint() -> Iterator[GripEndpoint]:
    with GripEndpoint() as endpoint:
        yield endpoint


def publish(endpoint: GripEndpoint, *rows: OutboxRow, **proxy: str) -> None:
    target = GripTarget({"control_uri": endpoint.url, **proxy})
    try:
        target.publish([item for row in rows for item in target.encode(row)])
    finally:
        target.close()


def test_stored_event_is_linked_to_the_one_before(endpoint: GripEndpoint) -> None:
    publish(endpoint, make_row())

    assert endpoint.paths == ["/publish/"]
    assert endpoint.items == [
        {
            "channel": "events-a%20b",
            "id": "7",
            "prev-id": "6",
            "http-stream": {
                "content": "id: %I,a%%20b:7\nevent: message\ndata: 50 %%\n\n",
                "content-filters": ["build-id"],
            },
        }
    ]


def test_event_after_a_kick_ends_the_kicked_user_s_streams_again(
    endpoint: GripEndpoint,
) -> None:
    publish(endpoint, make_row()._replace(kicked=",4,", skip_users=",3,"))

    error, close, event = endpoint.items
    assert error["channel"] == close["channel"] == "user-4"
    assert error["meta"] == close["meta"] == {"require_sub": "events-a%20b"}
    assert "stream-error" in error["http-stream"]["content"]
    assert close["http-stream"] == {"action": "close"}
    assert event["meta"]["skip_users"] == "3,4"
    assert (event["id"], event["prev-id"]) == ("7", "6")


def test_kicked_user_with_a_comma_is_one_user(endpoint: GripEndpoint) -> None:
    publish(endpoint, make_row()._replace(kicked=join_users(["ann,bob"])))

    error, close, event = endpoint.items
    assert error["channel"] == close["channel"] == "user-ann%2Cbob"
    assert event["meta"]["skip_users"] == "ann%2Cbob"


def test_event_after_very_many_kicks_has_every_stream_ask(
    endpoint: GripEndpoint,
) -> None:
    users = join_users(range(MAX_KICKED + 1))

    publish(endpoint, make_row()._replace(kicked=users))

    (item,) = endpoint.items
    assert (item["id"], item["prev-id"]) == ("7", "6-kick")


def test_first_event_is_linked_to_zero(endpoint: GripEndpoint) -> None:
    publish(endpoint, make_row(1))

    assert endpoint.items[0]["prev-id"] == "0"


def test_best_effort_event_has_no_id_and_is_not_escaped(endpoint: GripEndpoint) -> None:
    publish(endpoint, make_row(None))

    (item,) = endpoint.items
    assert "id" not in item
    assert item["http-stream"] == {"content": "event: message\ndata: 50 %\n\n"}


def test_skipped_users_are_named_for_the_proxy_s_filter(endpoint: GripEndpoint) -> None:
    publish(endpoint, make_row(skip_users=",1,2,"))

    assert endpoint.items[0]["meta"] == {"skip_users": "1,2"}


def test_prefix_is_put_before_the_channel(
    endpoint: GripEndpoint, settings: Settings
) -> None:
    settings.GRIP_PREFIX = "site-"

    publish(endpoint, make_row())

    assert endpoint.items[0]["channel"] == "site-events-a%20b"


def test_proxy_is_reminded_of_streams_that_it_has_not_asked_for_in_a_while(
    endpoint: GripEndpoint, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those held two to six periods ago, by an item that follows nothing."""
    settings.GRIP_PREFIX = "site-"
    settings.EVENTSTREAM_NEXT_LINK_TIMEOUT = 30
    monkeypatch.setattr("eventstream.targets.grip.time.time", lambda: 600 + 59)

    target = GripTarget({"control_uri": endpoint.url})
    target.remind()
    target.close()

    channels = {item["channel"] for item in endpoint.items}
    # 600 s are ten periods, so it is the third of eight.
    assert channels == {f"site-held-{number}" for number in (0, 7, 6, 5, 4)}
    for item in endpoint.items:
        assert not {"id", "prev-id"} & set(item)


def test_kick_tells_then_closes_the_user_s_streams_of_the_channel(
    endpoint: GripEndpoint,
) -> None:
    kick = make_row(None, id=9, kind=EventKind.KICK, channel="room", data="5")

    publish(endpoint, kick)

    tell, close = endpoint.items
    assert tell["channel"] == close["channel"] == "user-5"
    assert tell["meta"] == close["meta"] == {"require_sub": "events-room"}
    assert (tell["id"], close["id"]) == ("kick-room-9", "close-room-9")
    assert "event: stream-error" in tell["http-stream"]["content"]
    assert close["http-stream"] == {"action": "close"}


def test_kicks_of_two_outboxes_have_different_ids(endpoint: GripEndpoint) -> None:
    """Their rows may have the same number, and the proxy drops an id that it has had."""
    kick = make_row(None, id=9, kind=EventKind.KICK, channel="here", data="5")

    publish(endpoint, kick, kick._replace(channel="elsewhere"))

    assert len({(item["channel"], item["id"]) for item in endpoint.items}) == 4


def test_batch_is_one_request_in_order(endpoint: GripEndpoint) -> None:
    publish(endpoint, *[make_row(n) for n in range(1, 101)])

    assert len(endpoint.bodies) == 1
    assert [eid for _, eid, _ in endpoint.events] == list(range(1, 101))


def test_neighbours_of_a_channel_are_one_item_from_id_to_id(
    endpoint: GripEndpoint,
) -> None:
    rows = [make_row(n, data=f'"{n} %\n\\ é') for n in (4, 5, 6)]

    publish(endpoint, *rows)

    alone = [event_item(row) for row in rows]
    assert endpoint.items == [
        {
            "channel": "events-a%20b",
            "id": "6",
            "prev-id": "3",
            "http-stream": {
                "content": "".join(item["http-stream"]["content"] for item in alone),
                "content-filters": ["build-id"],
            },
        }
    ]


def test_events_of_a_channel_are_joined_across_those_of_others(
    endpoint: GripEndpoint,
) -> None:
    other = [make_row(n, channel="b") for n in (1, 2)]
    kick = make_row(None, id=9, kind=EventKind.KICK, channel="b", data="5")

    publish(endpoint, make_row(4), other[0], kick, make_row(5), other[1], make_row(6))

    ids = [(item["channel"], item["id"]) for item in endpoint.items]
    assert ids == [
        ("events-a%20b", "6"), ("events-b", "1"), ("user-5", "kick-b-9"),
        ("user-5", "close-b-9"), ("events-b", "2"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "between",
    [
        {"eid": None},
        {"skip_users": ",1,"},
        {"kicked": ",1,"},
        {"kind": EventKind.KICK, "eid": None, "data": "4"},
    ],
    ids=["best effort", "skipped", "kicked", "a kick"],
)
def test_only_what_all_streams_get_is_joined(
    endpoint: GripEndpoint, between: dict[str, object]
) -> None:
    row = make_row(6)._replace(**between)  # type: ignore[arg-type]
    next_eid = 7 if row.eid == 6 else 6

    publish(
        endpoint, make_row(4), make_row(5), row, make_row(next_eid),
        make_row(next_eid + 1),
    )  # fmt: skip

    alone = [
        json.loads(item.body)
        for item in GripTarget({"control_uri": endpoint.url}).encode(row)
        if not item.eid
    ] or [event_item(row)]
    first, *others, last = endpoint.items
    assert (first["prev-id"], first["id"]) == ("3", "5")
    assert others == alone
    assert (last["prev-id"], last["id"]) == (str(next_eid - 1), str(next_eid + 1))


def test_what_follows_a_hole_is_an_item_of_its_own(endpoint: GripEndpoint) -> None:
    publish(endpoint, make_row(4), make_row(5), make_row(7))

    ids = [(item["prev-id"], item["id"]) for item in endpoint.items]
    assert ids == [("3", "5"), ("6", "7")]


def test_item_has_no_more_than_it_may(endpoint: GripEndpoint) -> None:
    publish(endpoint, *[make_row(n, data="x" * 9_000) for n in range(1, 8)])
    publish(endpoint, make_row(8, data="y" * 90_000), make_row(9))

    ids = [(item["prev-id"], item["id"]) for item in endpoint.items]
    assert ids == [("0", "3"), ("3", "6"), ("6", "7"), ("7", "8"), ("8", "9")]
    contents = [len(item["http-stream"]["content"]) for item in endpoint.items[:3]]
    assert max(contents) <= MAX_JOINED_BYTES


def test_call_is_no_larger_than_was_counted_and_hardly_smaller() -> None:
    target = GripTarget({"control_uri": "http://127.0.0.1:1"})
    rows = [
        make_row(n, channel=f"orders-{other}", data="x" * (37 * n % 9_000))
        for n in range(1, 100)
        for other in "abc"
    ]
    rows[40] = rows[40]._replace(skip_users=",1,")
    rows[80] = rows[80]._replace(kind=EventKind.KICK, eid=None, data="4")
    rows[83] = rows[83]._replace(kicked=",4,")
    size = CallSize()

    items = []
    for row in rows:
        encoded = target.encode(row)
        assert size.add(encoded, 10**9)
        items += encoded

    joined = list(_join(items))
    length = len(b",".join(joined))
    assert len(joined) < len(rows)
    assert size.total - 64 * len(joined) <= length <= size.total


def test_key_signs_the_request(endpoint: GripEndpoint) -> None:
    key = "k" * 32

    publish(endpoint, make_row(), control_iss="me", key=key)

    scheme, _, token = endpoint.headers[0]["Authorization"].partition(" ")
    assert scheme == "Bearer"
    assert jwt.decode(token, key, algorithms=["HS256"])["iss"] == "me"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_answer_about_the_content_is_for_good(
    endpoint: GripEndpoint, status: int
) -> None:
    endpoint.status = status

    with pytest.raises(PublishRejectedError) as caught:
        publish(endpoint, make_row())

    assert caught.value.status == status


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_any_other_answer_is_for_now(endpoint: GripEndpoint, status: int) -> None:
    endpoint.status = status

    with pytest.raises(PublishUnavailableError, match=str(status)):
        publish(endpoint, make_row())


def test_hanging_proxy_is_given_up_in_time(
    endpoint: GripEndpoint, settings: Settings
) -> None:
    settings.EVENTSTREAM_PUBLISH_TIMEOUT = 0.3
    endpoint.hang.set()
    began = time.monotonic()

    with pytest.raises(PublishUnavailableError):
        publish(endpoint, make_row())

    assert time.monotonic() - began < 3


def test_refused_connection_is_for_now() -> None:
    target = GripTarget({"control_uri": f"http://127.0.0.1:{free_port()}"})

    with pytest.raises(PublishUnavailableError):
        target.publish(target.encode(make_row()))
    target.close()


@pytest.mark.parametrize(
    "answer",
    [b"\xff\0\0\1\x7f", b"HTTP/1.1 502 Bad\r\nContent-Length: 5\r\n\r\n\0\0bad"],
)
def test_answer_of_no_proxy_is_said_in_a_text_that_postgresql_takes(
    answer: bytes,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reply() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as request:
                request.readline()
                size = int(http.client.parse_headers(request)["Content-Length"])
                request.read(size)
                connection.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        target = GripTarget({"control_uri": url})
        with pytest.raises(PublishUnavailableError) as caught:
            target.publish(target.encode(make_row()))
        thread.join()

    assert "\0" not in str(caught.value)
    assert str(caught.value)


class Moved(BaseHTTPRequestHandler):
    """A site that leads elsewhere, to a page for people."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(301, Location="/welcome")

    def do_GET(self) -> None:
        self._answer(200)

    def _answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_site_that_leads_elsewhere_has_accepted_nothing() -> None:
    with HTTPServer(("127.0.0.1", 0), Moved) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        target = GripTarget({"control_uri": url})
        try:
            with pytest.raises(PublishUnavailableError, match="301"):
                target.publish(target.encode(make_row()))
        finally:
            target.close()
            server.shutdown()
            thread.join()


def test_name_keeps_no_secrets() -> None:
    target = GripTarget({"control_uri": "https://me:secret@fanout.io/realm/x?key=y"})

    assert target.name == "grip:https://fanout.io/realm/x"


def test_item_is_what_the_proxy_s_own_library_would_export() -> None:
    row = OutboxRow(1, 1, 0, "a b", 7, "message", "50 %\nö", ",4,9,")
    stream = HttpStreamFormat(
        "id: %I,a%%20b:7\nevent: message\ndata: 50 %%\ndata: ö\n\n",
        content_filters=["build-id"],
    )
    item = Item(stream, id="7", prev_id="6", meta={"skip_users": "4,9"})

    assert event_item(row) == {**item.export(), "channel": "events-a%20b"}
