"""Next links, and who may pretend to be a GRIP proxy."""

from __future__ import annotations

import re
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import got_request_exception
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.test import Client
from django.urls import include, path, re_path
from django.views.debug import ExceptionReporter
from pytest_django import Settings

from eventstream import EventSpec, hold, send_event, send_events
from eventstream.exceptions import ExpiredLinkError
from eventstream.positions import quote_channel
from eventstream.reading import (
    PAGE_LIFETIME,
    PAGE_QUANTUM,
    LinkKind,
    Reader,
    read_link,
    sign_link,
)
from eventstream.targets import get_targets
from eventstream.testing import drain_outbox
from eventstream.views import events, next_link
from tests.integration.conftest import KEY
from tests.support.holds import HELD_PATH, held_stream, last_ids, next_path
from tests.support.sse import Parser

pytestmark = pytest.mark.django_db(transaction=True)


def page_path(channel: str, position: int, *, age: float = 0) -> str:
    """Return the link that a page ends with."""
    reader = Reader((channel,), "")
    now = time.time() - age
    token = sign_link(reader, {channel: position}, now=now, kind=LinkKind.PAGE)
    return f"/events/next/{token}/"


def is_empty(response: Any) -> bool:
    """Say whether it ends the stream, and gives nothing away."""
    return (
        (response.status_code, response.content) == (200, b"")
        and "Grip-Hold" not in response
        and "Grip-Link" not in response
    )


@pytest.mark.parametrize("is_late", [False, True])
def test_short_lived_link_is_good_for_its_time(
    settings: Settings, is_late: bool
) -> None:
    """It is issued for the hour, and may be so at its very end."""
    settings.EVENTSTREAM_LINK_LIFETIME = 120
    token = sign_link(Reader(("a",), ""), now=7199)

    if is_late:
        with pytest.raises(ExpiredLinkError):
            read_link(token, now=7321)
    else:
        assert read_link(token, now=7319)[0].channels == ("a",)


@pytest.mark.parametrize(
    "room", ["next", "日本", "café", "x?y", "x#y", "a b", "50%", "<x>", "a;b=c", "a,b"]
)
def test_link_of_any_path_leads_back(proxy: dict[str, str], room: str) -> None:
    """What a path holds is the user's: here a room's name."""
    channel = f"events-{quote_channel(f'room-{room}')}"
    path = f"/rooms/{quote(room, safe='')}/"
    headers: dict[str, str] = {}
    for _ in range(3):
        response = Client().get(path, headers={**proxy, **headers})

        assert (response.status_code, response["Grip-Hold"]) == (200, "stream")
        assert channel in response["Grip-Channel"]
        path, headers = next_path(response), last_ids(response)
        assert re.fullmatch(r"/rooms/[!-+\--;=@-~]+/next/\d+/", path)


@pytest.mark.parametrize("more", ["", "&es-meta=eyJ.eyJ.x"], ids=["1.1.0", "5.3.4"])
def test_link_of_django_eventstream_ends_the_stream(
    proxy: dict[str, str], more: str
) -> None:
    """The client comes back with its position and its session, of which a link has neither."""
    links = f"link=next&recover=true{more}"
    headers = {**proxy, "Grip-Last": "events-a; last-id=0"}
    send_event("a", "message", "tea")
    drain_outbox()

    for channel in ("a", "private-1"):
        response = Client().get(f"/events/?channel={channel}&{links}", headers=headers)
        assert is_empty(response), response.content
    # Not where it is somebody's own parameter.
    assert Client().get(f"/events/?channel=a&{links}").status_code == 501


def test_route_of_many_paths_has_as_many_links_in_all(
    proxy: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy asks for ten links a second at most, and those of different paths differ."""
    monkeypatch.setattr("eventstream.hold._paths", {})
    counts = []
    for room in range(40):
        opened = [Client().get(f"/rooms/{room}/", headers=proxy) for _ in range(9)]
        numbers = {int(next_path(each).split("/")[-2]) for each in opened}
        counts.append(max(numbers) + 1)

    assert counts[0] <= 8
    assert max(counts[1:4]) <= 4
    assert counts[4:] == [1] * 36


def my_view(request: HttpRequest, pk: int) -> HttpResponseBase:
    return events(request, channels=[f"order-{pk}"])


def anything(request: HttpRequest, path: str) -> HttpResponse:
    return HttpResponse("a page")


MINE = path("mine/<int:pk>", my_view)
NEXT = path("mine/<int:pk>/next/<str:token>/", next_link)
REST = path("<path:path>", anything)


@pytest.fixture
def route(settings: Settings) -> Callable[..., None]:
    def route(*patterns: Any) -> None:
        urlconf: Any = types.ModuleType("urlconf")
        urlconf.urlpatterns = patterns
        settings.ROOT_URLCONF = urlconf

    hold._linked.clear()
    return route


@pytest.mark.parametrize(
    ("pattern", "own"),
    [
        (path("news", include("eventstream.urls"), {"channels": ["a"]}), "/news"),
        (re_path(r"^of/(?P<pk>\d+)", include("eventstream.urls"), {"format-channels": ["{pk}"]}), "/of/7"),
    ],
)  # fmt: skip
def test_link_of_a_path_without_a_slash_leads_back(
    proxy: dict[str, str], route: Callable[..., None], pattern: Any, own: str
) -> None:
    """As projects on django-eventstream have it."""
    route(pattern)

    response = Client().get(own, headers=proxy)
    link = next_path(response)
    held = Client().get(link, headers={**proxy, **last_ids(response)})

    assert link.startswith(f"{own}/next/")
    assert (held.status_code, held["Grip-Hold"]) == (200, "stream")


def test_link_below_two_slashes_is_not_that_of_another_host(
    proxy: dict[str, str], route: Callable[..., None]
) -> None:
    """As the chat of django-eventstream has it: path("/events/", …)."""
    route(path("/events/", include("eventstream.urls")))

    response = Client().get(
        "/", PATH_INFO="//events/", QUERY_STRING="channel=a", headers=proxy
    )

    assert (response.status_code, response["Grip-Hold"]) == (200, "stream")
    assert next_path(response).startswith("/%2Fevents/next/")


@pytest.mark.parametrize("rest", [(), (REST,)])
def test_view_of_ones_own_without_a_route_for_links_is_an_error(
    proxy: dict[str, str], route: Callable[..., None], rest: tuple[Any, ...]
) -> None:
    route(MINE, *rest)

    with pytest.raises(
        ImproperlyConfigured, match=r"leads to eventstream\.views\.next"
    ):
        Client().get("/mine/7", headers=proxy)
    # Nobody asks where the web process holds the stream, or would.
    assert Client().get("/mine/7").status_code == 501


def test_view_of_ones_own_goes_on_by_its_links(
    proxy: dict[str, str], route: Callable[..., None]
) -> None:
    route(MINE, NEXT, REST)
    opened = Client().get("/mine/7", headers=proxy)
    send_event("order-7", "message", "tea")
    drain_outbox()

    headers = {**proxy, **last_ids(opened)}
    response = Client().get(next_path(opened), headers=headers)

    assert response["Grip-Hold"] == "stream"
    assert [m.data for m in Parser().feed(response.content)] == ['"tea"']


# --- Grip-Sig


def sign(key: str, **claims: Any) -> str:
    claims = {"iss": "pushpin", "exp": int(time.time()) + 60} | claims
    return jwt.encode(claims, key, algorithm="HS256")


@pytest.mark.parametrize(
    "signature",
    [
        lambda: sign("another" * 8),
        lambda: sign(KEY, exp=int(time.time()) - 10),
        lambda: jwt.encode({"iss": "pushpin"}, KEY, algorithm="HS256"),
        lambda: jwt.encode({"exp": 2**40}, "", algorithm="none"),
        lambda: sign(KEY).rpartition(".")[0] + ".",
        lambda: sign(KEY)[:-3],
        lambda: "junk",
        lambda: "",
    ],
    ids=[
        "another key", "expired", "without end", "alg none", "unsigned",
        "cut", "junk", "empty",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/events/?channel=a", "link", "page"])
def test_request_that_only_pretends_to_come_from_the_proxy_gets_no_instructions(
    proxy: dict[str, str], signature: Any, path: str
) -> None:
    send_event("a", "message", "secret")
    if path == "link":
        path = HELD_PATH
    elif path == "page":
        path = page_path("a", 0)
    forged = {
        "Grip-Sig": signature(),
        "Grip-Feature": "status, session, link:next",
        **held_stream("a"),
    }

    response: Any = Client().get(path, headers=forged)

    assert response.status_code == (400 if "/next/" in path else 501)
    assert b"secret" not in response.content
    assert not [name for name in response.headers if name.startswith("Grip-")]


def test_signature_by_verify_key_or_any_proxy_s_key_counts(
    proxy: dict[str, str], settings: Settings
) -> None:
    other = "o" * 32
    settings.GRIP_PROXIES = [
        {"control_uri": "http://127.0.0.1:1", "key": KEY},
        {"control_uri": "http://127.0.0.1:2", "verify_key": other, "key": "p" * 32},
    ]

    for key, status in ((KEY, 200), (other, 200), ("p" * 32, 501)):
        headers = {"Grip-Sig": sign(key)}
        response = Client().get("/events/?channel=a", headers=headers)
        assert response.status_code == status


@pytest.mark.parametrize("is_fallback", [True, False])
def test_link_outlives_the_key_that_signed_it_as_a_fallback(
    proxy: dict[str, str], settings: Settings, is_fallback: bool
) -> None:
    last = held_stream("a")
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY] if is_fallback else []
    settings.SECRET_KEY = "another" * 8

    response = Client().get(HELD_PATH, headers={**proxy, **last})

    assert is_empty(response) is not is_fallback


def test_key_is_changed_by_naming_the_proxy_twice(
    proxy: dict[str, str], settings: Settings
) -> None:
    one = {"control_uri": "http://127.0.0.1:1"}
    settings.GRIP_PROXIES = [{**one, "key": "n" * 32}, {**one, "key": KEY}]

    for key in (KEY, "n" * 32):
        headers = {"Grip-Sig": sign(key)}
        response = Client().get("/events/?channel=a", headers=headers)
        assert response.status_code == 200
    assert [name for name in get_targets() if "grip" in name] == [
        "grip:http://127.0.0.1:1"
    ]


def test_without_a_key_anyone_can_pretend_and_gets_only_what_is_his(
    proxy: dict[str, str], settings: Settings
) -> None:
    """As the check eventstream.W005 warns. The channel manager is asked all the same."""
    settings.GRIP_PROXIES = [{"control_uri": "http://127.0.0.1:1"}]
    forged = {"Grip-Sig": "junk"}

    mine = Client().get("/events/?channel=a", headers=forged)
    private = Client().get("/events/?channel=private-1", headers=forged)

    assert mine["Grip-Hold"] == "stream"
    assert "Grip-Hold" not in private
    assert b"stream-error" in private.content


# --- links


def test_link_goes_on_only_for_a_proxy_that_holds_the_stream(
    proxy: dict[str, str],
) -> None:
    """It takes the Grip- headers from what clients send, so none of them has Grip-Last."""
    send_event("a", "message", "secret")

    held = Client().get(HELD_PATH, headers={**proxy, **held_stream("a")})
    passed_on = Client().get(HELD_PATH, headers=proxy)

    assert held["Grip-Hold"] == "stream"
    assert is_empty(passed_on)


@pytest.mark.parametrize(
    "way", ["a held stream's in the path", "a page's in the header"]
)
def test_token_of_another_kind_of_link_is_not_good(
    proxy: dict[str, str], way: str
) -> None:
    send_event("a", "message", "secret")
    reader = Reader(("a",), "")
    page = sign_link(reader, {"a": 0}, now=time.time(), kind=LinkKind.PAGE)
    held = held_stream("a")
    path = HELD_PATH
    if way == "a page's in the header":
        held = {"Grip-Last": f"events-a; last-id=0, held-0; last-id={page}"}
    else:
        path = f"/events/next/{held['Grip-Last'].rpartition('=')[2]}/"

    assert is_empty(Client().get(path, headers={**proxy, **held}))


@pytest.mark.parametrize("text", ["9" * 5000, "9" * 20, "-1", "٣", ""])
def test_position_that_no_proxy_could_have_is_none(
    proxy: dict[str, str], text: str
) -> None:
    """Where no proxy has a key, anybody may send one."""
    last = held_stream("a", ids={"a": text})

    response = Client().get(HELD_PATH, headers={**proxy, **last})

    assert is_empty(response)


def test_link_of_several_channels_needs_the_position_of_each(
    proxy: dict[str, str],
) -> None:
    """A channel without one would silently go on from its end."""
    last = held_stream("a", "b", ids={"a": "0"})
    response = Client().get(HELD_PATH, headers={**proxy, **last})

    assert is_empty(response)


def test_hold_of_best_effort_channels_is_recognised_too(proxy: dict[str, str]) -> None:
    opened: Any = Client().get("/events/?channel=live-x", headers=proxy)
    path = next_path(opened)

    held = Client().get(path, headers={**proxy, **last_ids(opened)})
    passed_on = Client().get(path, headers=proxy)

    assert held["Grip-Hold"] == "stream"
    assert is_empty(passed_on)


@pytest.mark.parametrize(
    "header", ["Cookie", "Authorization", "Origin", "Sec-Fetch-Mode", "Last-Event-ID"]
)
def test_client_that_has_got_hold_of_a_page_s_link_is_refused(
    proxy: dict[str, str], header: str
) -> None:
    send_event("a", "message", "secret")
    path = page_path("a", 0)

    by_client: Any = Client().get(path, headers={**proxy, header: "x"})
    by_proxy: Any = Client().get(path, headers=proxy)

    assert by_client.status_code == 400
    assert b"secret" not in by_client.content
    assert b"secret" in by_proxy.content


@pytest.mark.parametrize("is_old", [False, True])
def test_page_s_link_expires_soon_and_cleanly(
    proxy: dict[str, str], is_old: bool
) -> None:
    send_event("a", "message", "secret")
    age = PAGE_LIFETIME - PAGE_QUANTUM - 1 + (PAGE_QUANTUM + 2 if is_old else 0)

    response: Any = Client().get(page_path("a", 0, age=age), headers=proxy)

    assert is_empty(response) == is_old


@pytest.mark.parametrize(
    "change",
    [
        lambda user, channels, page: ("2", channels, page),
        lambda user, channels, page: (user, ("a", "private-1"), page),
        lambda user, channels, page: (user, channels, {"a": 1}),
    ],
    ids=["user", "channels", "position"],
)
def test_everything_that_the_answer_depends_on_is_in_the_signed_path(
    proxy: dict[str, str], change: Any
) -> None:
    now = time.time()
    user, channels, page = "1", ("a",), {"a": 0}
    sign = partial(sign_link, now=now, kind=LinkKind.PAGE)
    token = sign(Reader(channels, user), page)
    other_user, other_channels, other_page = change(user, channels, page)
    other = sign(Reader(other_channels, other_user), other_page)
    assert token != other
    mixed = other.rpartition("~")[0] + "~" + token.rpartition("~")[2]

    assert is_empty(Client().get(f"/events/next/{mixed}/", headers=proxy))


def test_query_of_a_link_changes_nothing(proxy: dict[str, str]) -> None:
    send_events(EventSpec("a", "message", n) for n in range(3))
    path = page_path("a", 1)

    plain: Any = Client().get(path, headers=proxy)
    queried: Any = Client().get(
        f"{path}?channel=private-1&lastEventId=a:0&token=x", headers=proxy
    )

    assert plain.content == queried.content
    assert [m.id for m in Parser().feed(plain.content)] == ["a:2", "a:3"]


# --- not to be seen


@pytest.mark.parametrize("what", ["open", "link", "page"])
def test_report_of_a_failure_shows_no_event(
    proxy: dict[str, str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """As the mail to the admins has it. With DEBUG Django shows every local variable."""
    send_event("a", "message", "s3cret")
    drain_outbox()
    reports = []

    def report(request: HttpRequest, **kwargs: object) -> None:
        reporter = ExceptionReporter(request, *sys.exc_info())
        reports.extend([reporter.get_traceback_html(), reporter.get_traceback_text()])

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no link today")

    path = {"link": HELD_PATH, "page": page_path("a", 0)}.get(what)
    headers = {**proxy, **held_stream("a")}
    if path is None:
        path, headers["Last-Event-ID"] = "/events/?channel=a", "a:0"
    monkeypatch.setattr("eventstream.hold.sign_link", fail)
    got_request_exception.connect(report)
    try:
        response = Client(raise_request_exception=False).get(path, headers=headers)
    finally:
        got_request_exception.disconnect(report)

    assert response.status_code == 500
    assert len(reports) == 2
    assert "no link today" in reports[1]
    assert "s3cret" not in "".join(reports) + response.content.decode()
