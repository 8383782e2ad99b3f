"""The endpoint's answers, without a server."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import jwt
import pytest
from django.contrib.auth.models import User
from django.db import OperationalError
from django.http import HttpResponseBase
from django.template import Context, Template
from django.test import Client
from pytest_django import Settings

from eventstream import EventSpec, send_event, send_events
from eventstream.reading import LinkKind, Reader, sign_link
from eventstream.testing import drain_outbox
from tests.support.holds import HELD_PATH, held_stream, last_ids, next_path
from tests.support.sse import Message, Parser

pytestmark = pytest.mark.django_db(transaction=True)


def read(response: HttpResponseBase) -> list[Message]:
    content: bytes = getattr(response, "content", b"")
    return Parser().feed(content)


def open_stream(headers: dict[str, str], query: str, **more: str) -> HttpResponseBase:
    response: Any = Client().get(f"/events/?{query}", headers={**headers, **more})
    assert response.status_code == 200
    return response  # type: ignore[no-any-return]


# --- who holds


def test_wsgi_without_a_proxy_is_told_at_once_what_to_do() -> None:
    response = Client().get("/events/?channel=a")

    assert response.status_code == 501
    assert response["Content-Type"] == "text/plain"
    assert "set GRIP_URL and GripMiddleware" in response.content.decode()


@pytest.mark.parametrize("key", ["other" * 8, None], ids=["wrong key", "no signature"])
def test_request_that_only_pretends_to_be_proxied_is_not_held(
    proxy: dict[str, str], key: str | None
) -> None:
    claims = {"iss": "pushpin", "exp": int(time.time()) + 3600}
    headers = {"Grip-Sig": jwt.encode(claims, key, algorithm="HS256")} if key else {}

    assert Client().get("/events/?channel=a", headers=headers).status_code == 501


@pytest.mark.parametrize("way", ["a stream that opens", "a next link"])
def test_answer_to_a_proxy_is_not_compressed(
    proxy: dict[str, str], settings: Settings, way: str
) -> None:
    gzip = "django.middleware.gzip.GZipMiddleware"
    settings.MIDDLEWARE = [gzip, *settings.MIDDLEWARE]
    send_event("a", "message", "tea" * 1000)
    drain_outbox()
    path = "/events/?channel=a"
    if way == "a next link":
        path = HELD_PATH
    headers = {**proxy, "Accept-Encoding": "gzip", **held_stream("a")}

    response = Client().get(path, headers=headers)

    assert response["Grip-Hold"] == "stream"
    assert "Content-Encoding" not in response


def test_next_link_is_no_matter_of_a_login(
    proxy: dict[str, str], settings: Settings
) -> None:
    required = "django.contrib.auth.middleware.LoginRequiredMiddleware"
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, required]

    response = Client().get(HELD_PATH, headers={**proxy, **held_stream("a")})

    assert response["Grip-Hold"] == "stream"
    assert Client().get("/events/health/ready").status_code == 200
    # Who may open a stream is the project's to say.
    assert Client().get("/events/?channel=a", headers=proxy).status_code == 302


def test_hold_names_channels_with_the_ids_before(proxy: dict[str, str]) -> None:
    send_event("a", "message", 1)
    send_event("a", "message", 2)

    response = open_stream(proxy, "channel=a&channel=b%20c", **{"Last-Event-ID": "a:1"})

    assert response["Grip-Hold"] == "stream"
    channels = response["Grip-Channel"]
    assert "events-a; prev-id=2; filter=build-id; filter=skip-users" in channels
    assert "events-b%20c; prev-id=0; filter=build-id" in channels
    assert "keep-alive" in response["Grip-Keep-Alive"]
    assert "id_format" in response["Grip-Set-Meta"]
    # The proxy expands an answer that holds: a percent sign is doubled.
    assert [(m.type, m.id) for m in read(response)] == [
        ("stream-open", "a:1,b%%20c:0"),
        ("message", "a:2,b%%20c:0"),
    ]


def test_next_link_goes_on_from_what_the_proxy_has_handed_over(
    proxy: dict[str, str],
) -> None:
    opened = open_stream(proxy, "channel=a")
    send_events(EventSpec("a", "message", n) for n in range(3))
    drain_outbox()

    headers = {**proxy, **last_ids(opened, {"a": 1})}
    response = Client().get(next_path(opened), headers=headers)

    assert [m.id for m in read(response)] == ["a:2", "a:3"]
    assert response["Grip-Hold"] == "stream"
    assert "prev-id=3" in response["Grip-Channel"]


def page_token(channel: str, eid: int) -> str:
    """Return the token of a link to a further page."""
    reader = Reader((channel,), "")
    return sign_link(reader, {channel: eid}, now=time.time(), kind=LinkKind.PAGE)


@pytest.mark.parametrize(("silence", "soon"), [(60, 10), (5, 5)])
def test_stream_that_may_lack_something_is_asked_for_soon(
    proxy: dict[str, str],
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    silence: int,
    soon: int,
) -> None:
    monkeypatch.setattr("eventstream.hold.secrets.randbelow", lambda _: 0)
    settings.EVENTSTREAM_NEXT_LINK_TIMEOUT = silence
    headers = {**proxy, **held_stream("a")}
    opened = open_stream(proxy, "channel=a")
    token = page_token("a", 0)

    links = [
        opened["Grip-Link"],
        # The last of some pages is an opening, too.
        Client().get(f"/events/next/{token}/", headers=proxy)["Grip-Link"],
        Client().get(HELD_PATH, headers=headers)["Grip-Link"],
    ]
    # The proxy may have let go of what was published together with an answer's last event. In
    # a busy channel that shows: it is not asked about soon all the time.
    for _ in range(3):
        send_event("a", "message", "tea")
        drain_outbox()
        answer = Client().get(HELD_PATH, headers=headers)
        headers = {**proxy, **last_ids(answer)}
        links.append(answer["Grip-Link"])

    timeouts = [int(link.rpartition("timeout=")[2]) for link in links]
    assert timeouts == [soon, soon, silence, soon, silence, soon]


@pytest.mark.parametrize("is_paging", [False, True])
def test_stream_is_held_as_it_is_while_the_database_is_away(
    proxy: dict[str, str], monkeypatch: pytest.MonkeyPatch, is_paging: bool
) -> None:
    """With an error the proxy would ask again, end the stream, and may repeat events."""
    path, last = HELD_PATH, held_stream("a", ids={"a": "7"})
    if is_paging:
        path, last = f"/events/next/{page_token('a', 7)}/", {}

    def fail(*_: object, **__: object) -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr("eventstream.hold.read_page", fail)
    response = Client().get(path, headers={**proxy, **last})

    assert response.status_code == 200
    assert response.content == b""
    assert response["Grip-Hold"] == "stream"
    assert "events-a; prev-id=7; filter=build-id" in response["Grip-Channel"]
    assert int(response["Grip-Link"].rpartition("timeout=")[2]) <= 10


def test_hold_leaves_out_whom_an_event_is_not_for_and_ends_for_its_channels_alone(
    proxy: dict[str, str],
) -> None:
    """A withdrawn permission is told to all of a user's streams; see targets.grip."""
    user = User.objects.create(username="u")
    client = Client()
    client.force_login(user)

    response = client.get("/events/?channel=a&channel=live-b", headers=proxy)

    *channels, held = response["Grip-Channel"].split(", ")
    assert channels == [
        "events-a; prev-id=0; filter=build-id; filter=skip-users",
        "events-live-b; filter=skip-users",
        f"user-{user.pk}; filter=require-sub",
    ]
    assert re.fullmatch(r"held-[0-7]; prev-id=[\w.~-]+", held)
    meta = dict(part.split("=", 1) for part in response["Grip-Set-Meta"].split(", "))
    assert meta["user"] == f'"{user.pk}"'
    assert meta["id_format"] == '"a:%(events-a)s"'
    assert response["Grip-Keep-Alive"].endswith("timeout=20")


def test_anonymous_reader_has_no_user_s_name_that_an_event_could_skip(
    proxy: dict[str, str],
) -> None:
    """A primary key can be any text: whatever stood for nobody would be somebody's."""
    response = open_stream(proxy, "channel=a&channel=live-b")

    assert response["Grip-Set-Meta"] == 'id_format="a:%(events-a)s"'
    assert "user-" not in response["Grip-Channel"]


def test_user_s_name_adds_nothing_to_what_the_proxy_is_told(
    proxy: dict[str, str], settings: Settings
) -> None:
    """And is quoted as in the events that some are not to have, with which it is compared."""
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = (
        "eventstream.channelmanager.DefaultChannelManager"
    )
    last = held_stream("a", user_id='é", x="1;,%')

    response = Client().get(HELD_PATH, headers={**proxy, **last})

    name = "%C3%A9%22%2C%20x%3D%221%3B%2C%25"
    assert f'user="{name}"' in response["Grip-Set-Meta"]
    assert response["Grip-Set-Meta"].count("=") == 2
    assert f"user-{name};" in response["Grip-Channel"]


def test_all_readers_have_few_links_and_equal_ones_are_asked_for_alike(
    proxy: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy asks for a hundred streams of a link at once, and ten times a second."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)  # an hour may end in between
    opened = [open_stream(proxy, f"channel={name}") for name in "ab" * 400]

    links = {response["Grip-Link"] for response in opened}
    assert {link.partition("; ")[0] for link in links} == {
        f"</events/next/{number}/>" for number in range(8)
    }
    # At other times, each of them.
    timeouts = {int(link.rpartition("timeout=")[2]) for link in links}
    assert timeouts == {8, 9, 10}
    assert len({last_ids(response)["Grip-Last"] for response in opened}) == 2


def test_stream_keeps_its_link(proxy: dict[str, str]) -> None:
    """With another it would join those who are due already."""
    opened = open_stream(proxy, "channel=a")

    for _ in range(5):
        headers = {**proxy, **last_ids(opened)}
        response = Client().get(next_path(opened), headers=headers)
        assert next_path(response) == next_path(opened)


def test_channel_of_a_hold_says_when_it_was_last_asked_for(
    proxy: dict[str, str], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.EVENTSTREAM_NEXT_LINK_TIMEOUT = 30
    names = []
    for now in (600, 659, 660, 600 + 7 * 60, 600 + 8 * 60):
        monkeypatch.setattr("eventstream.hold.time.time", lambda now=now: now)
        response = open_stream(proxy, "channel=a")
        names.append(response["Grip-Channel"].rpartition(", ")[2].partition(";")[0])

    assert names == ["held-2", "held-2", "held-3", "held-1", "held-2"]


@pytest.mark.parametrize("release", ["1.36", "1.41"])
@pytest.mark.parametrize("begin", ["client", "held"])
def test_page_that_is_not_the_last_links_on_and_does_not_hold(
    proxy: dict[str, str], settings: Settings, release: str, begin: str
) -> None:
    settings.EVENTSTREAM_PAGE_SIZE = 2
    send_events(EventSpec("a b", "message", "100 %") for n in range(5))
    response: Any
    received, holds, was_filtered = "", [], begin == "held"
    if begin == "held":
        response = Client().get(HELD_PATH, headers=proxy | held_stream("a b"))
    else:
        response = open_stream(proxy, "channel=a b", **{"Last-Event-ID": "a%20b:0"})
    while True:
        # Through its own filters or, of what a link was asked for, those of the answer before.
        has_filters = "filter=build-id" in response.get("Grip-Channel", "")
        is_first = not received and begin == "client"
        text = response.content.decode()
        if has_filters if release == "1.41" or is_first else was_filtered:
            assert not re.search("(?<!%)%(%%)*(?!%)", text), "would be expanded"
            text = text.replace("%%", "%")
        received += text
        holds.append("Grip-Hold" in response)
        if holds[-1]:
            break
        was_filtered = has_filters
        response = Client().get(next_path(response), headers=proxy)

    events = [m for m in Parser().feed(received.encode()) if m.type == "message"]
    assert [(m.id, m.data) for m in events] == [
        (f"a%20b:{n}", '"100 %"') for n in range(1, 6)
    ]
    assert len(holds) == (3 if begin == "held" else 4)
    assert "events-a%20b; prev-id=5" in response["Grip-Channel"]


def test_every_answer_to_a_proxy_says_how_long_it_is(
    proxy: dict[str, str], settings: Settings
) -> None:
    """Or what is left of one that was cut off could look whole, and be gone on behind."""
    assert "django.middleware.common.CommonMiddleware" not in settings.MIDDLEWARE
    settings.EVENTSTREAM_PAGE_SIZE = 2
    send_events(EventSpec("a", "message", "100 % größer") for _ in range(5))
    response: Any = open_stream(proxy, "channel=a", **{"Last-Event-ID": "a:0"})
    answers = [response]
    while "Grip-Hold" not in response:
        response = Client().get(next_path(response), headers=proxy)
        answers.append(response)

    lengths = [len(answer.content) for answer in answers]
    assert [int(answer["Content-Length"]) for answer in answers] == lengths
    assert [length > 0 for length in lengths] == [True, False, True, True]


def test_answer_too_large_to_hold_links_on(proxy: dict[str, str]) -> None:
    send_event("a", "message", "x" * 95_000)

    response = open_stream(proxy, "channel=a", **{"Last-Event-ID": "a:0"})
    turn = Client().get(next_path(response), headers=proxy)
    following = Client().get(next_path(turn), headers=proxy)

    assert not {"Grip-Hold", "Grip-Channel"} & set(response.headers)
    assert read(response)[-1].id == "a:1"
    # From here on answers have filters, which the proxy applies a link early or late.
    assert ("Grip-Hold" in turn, turn.content) == (False, b"")
    assert "filter=build-id" in turn["Grip-Channel"]
    assert (following["Grip-Hold"], following.content) == ("stream", b"")


@pytest.mark.parametrize("what", ["tampered", "expired", "other key"])
def test_link_that_is_not_good_ends_the_stream_quietly(
    proxy: dict[str, str], settings: Settings, what: str
) -> None:
    last = held_stream("a", age=90_000 if what == "expired" else 0)
    if what == "tampered":
        last = {"Grip-Last": f"{last['Grip-Last']}x"}
    elif what == "other key":
        settings.SECRET_KEY = "other"

    response = Client().get(HELD_PATH, headers={**proxy, **last})

    assert (response.status_code, response.content) == (200, b"")
    assert "Grip-Hold" not in response
    assert "Grip-Link" not in response


def test_link_asks_for_permission_again(proxy: dict[str, str]) -> None:
    user = User.objects.create(username="u")
    headers = {**proxy, **held_stream(f"private-{user.pk}", user_id=str(user.pk))}
    allowed = Client().get(HELD_PATH, headers=headers)
    user.is_active = False
    user.save()

    refused = Client().get(HELD_PATH, headers=headers)

    assert allowed["Grip-Hold"] == "stream"
    assert "Grip-Hold" not in refused
    (message,) = read(refused)
    assert message.type == "stream-error"
    assert json.loads(message.data)["condition"] == "forbidden"


def test_client_cannot_resume_after_a_stream_error() -> None:
    response = Client().get("/events/?channel=a", headers={"Last-Event-ID": "error"})

    assert response.status_code == 400
    assert "Can't resume session after stream-error" in response.content.decode()


@pytest.mark.parametrize("value", ["a", "a:x", "a:1,", ":5"])
def test_position_that_is_none_is_a_stream_error(value: str) -> None:
    response = Client().get("/events/?channel=a", headers={"Last-Event-ID": value})

    (message,) = read(response)
    assert message.type == "stream-error"
    error = json.loads(message.data)
    assert error["condition"] == "bad-request"
    assert "is not <channel>:<number>" in error["text"]


# --- templates


def test_template_tag_gives_the_position() -> None:
    send_event("a b", "message", 1)
    template = Template(
        "{% load eventstream %}{% eventstream_position 'a b' 'c' as p %}{{ p|urlencode }}"
    )

    assert template.render(Context()) == "a%2520b%3A1%2Cc%3A0"
