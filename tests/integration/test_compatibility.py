"""What django-eventstream's README shows, of 5.3.4 and of 1.1.0, with only the import changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import AbstractBaseUser, User
from django.db import connection, transaction
from django.http import HttpRequest
from django.test import Client
from django.urls import include, path
from pytest_django import Settings

import eventstream
from eventstream import channel_permission_changed, get_current_event_id, send_event
from eventstream.channelmanager import DefaultChannelManager
from eventstream.models import Event, EventKind
from eventstream.testing import drain_outbox
from tests.integration.test_views import read
from tests.support.processes import ROOT
from tests.support.sse import Message, Parser

pytestmark = pytest.mark.django_db(transaction=True)


class Authorizer:
    """As of 1.1: channels with an underscore are for those who are logged in."""

    def can_read_channel(self, user: AbstractBaseUser | None, channel: str) -> bool:
        return not (channel.startswith("_") and user is None)


class ChannelManager(DefaultChannelManager):
    """As of 5: the same rule; `fast-…` is not stored; the header may name the channel."""

    def get_channels_for_request(self, request: HttpRequest, view_kwargs: Any) -> Any:
        if "X-Channel" in request.headers:
            return {request.headers["X-Channel"]}
        return super().get_channels_for_request(request, view_kwargs)

    def can_read_channel(self, user: AbstractBaseUser | None, channel: str) -> bool:
        return not (channel.startswith("_") and user is None)

    def is_channel_reliable(self, channel: str) -> bool:
        return not channel.startswith("fast-")


@pytest.fixture
def routes(settings: Settings) -> None:
    """The README's routes."""
    urlconf: Any = types.ModuleType("urlconf")
    # The peer's urls are no namespace: included several times, they need no names.
    urls = eventstream.urls  # type: ignore[attr-defined]
    urlconf.urlpatterns = [
        path("fixed/events/", include(urls), {"channels": ["fixed"]}),
        path(
            "objects/<obj_id>/events/",
            include(urls),
            {"format-channels": ["object-{obj_id}"]},
        ),
        path("events/<channel>/", include(urls)),
        path("events/", include(urls)),
    ]
    settings.ROOT_URLCONF = urlconf


def channels(response: Any) -> list[str]:
    """Return the channels by which a proxy is told to hold."""
    names = [part.split(";")[0].strip() for part in response["Grip-Channel"].split(",")]
    return [n.removeprefix("events-") for n in names if n.startswith("events-")]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("/fixed/events/", ["fixed"]),
        ("/fixed/events/?channel=other", ["fixed"]),
        ("/objects/17/events/", ["object-17"]),
        ("/events/mine/", ["mine"]),
        ("/events/?channel=a&channel=b", ["a", "b"]),
    ],
)
def test_routes_select_the_channels(
    routes: None, proxy: dict[str, str], address: str, expected: list[str]
) -> None:
    response = Client().get(address, headers=proxy)

    assert channels(response) == expected
    assert read(response)[0].type == "stream-open"


def test_event_is_sent_as_the_readme_has_it(
    routes: None, proxy: dict[str, str]
) -> None:
    send_event("test", "message", {"text": "hello world"})
    drain_outbox()

    headers = {**proxy, "Last-Event-ID": "test:0"}
    response = Client().get("/events/?channel=test", headers=headers)

    assert (
        'event: message\ndata: {"text": "hello world"}\n\n' in response.content.decode()
    )


def test_all_arguments_of_send_event_are_taken_in_their_order() -> None:
    with pytest.warns(DeprecationWarning, match="async_publish"):
        send_event("test", "message", "as it is", ["7"], True, False)

    event = Event.objects.get()
    assert (event.data, event.skip_users) == ("as it is", ",7,")


@pytest.mark.parametrize("release", ["5.3.4", "1.1.0"])
def test_authorization_by_either_releases_class(
    routes: None, proxy: dict[str, str], settings: Settings, release: str
) -> None:
    if release == "1.1.0":
        settings.EVENTSTREAM_AUTHORIZER_CLASS = f"{__name__}.Authorizer"
        del settings.EVENTSTREAM_CHANNELMANAGER_CLASS
    else:
        settings.EVENTSTREAM_CHANNELMANAGER_CLASS = f"{__name__}.ChannelManager"
    user = User.objects.create(username="ann")
    client = Client()

    [refused] = read(client.get("/events/?channel=_mine", headers=proxy))
    client.force_login(user)
    allowed = client.get("/events/?channel=_mine", headers=proxy)

    assert json.loads(refused.data) == {
        "condition": "forbidden",
        "text": "Permission denied to channels: _mine",
        "channels": ["_mine"],
    }
    assert channels(allowed) == ["_mine"]


def test_withdrawn_permission_is_told_of(settings: Settings) -> None:
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = "tests.channels.ChannelManager"
    settings.EVENTSTREAM_DISPATCHER = "tests.support.targets.IdleDispatcher"
    user = User.objects.create(username="ann")

    channel_permission_changed(user, "private-0")

    assert Event.objects.get().kind == EventKind.KICK


def test_channel_manager_chooses_channels_and_what_is_stored(
    routes: None, proxy: dict[str, str], settings: Settings
) -> None:
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = f"{__name__}.ChannelManager"

    response = Client().get("/events/", headers={**proxy, "X-Channel": "fast-lane"})
    send_event("fast-lane", "message", 1)

    assert channels(response) == ["fast-lane"]
    assert not Event.objects.exists()


def test_settings_are_taken_as_they_are(
    routes: None, proxy: dict[str, str], settings: Settings
) -> None:
    settings.EVENTSTREAM_ALLOW_ORIGINS = ["http://example.com", "https://example.com"]
    settings.EVENTSTREAM_ALLOW_CREDENTIALS = True
    settings.EVENTSTREAM_ALLOW_HEADERS = "Authorization"
    headers = {**proxy, "Origin": "https://example.com"}

    response = Client().get("/events/?channel=a", headers=headers)
    preflight = Client().options("/events/", headers=headers)

    assert response["Access-Control-Allow-Origin"] == "https://example.com"
    assert response["Access-Control-Allow-Credentials"] == "true"
    assert preflight["Access-Control-Allow-Headers"] == "Authorization"


def test_page_and_stream_meet(routes: None, proxy: dict[str, str]) -> None:
    with transaction.atomic():
        send_event("time", "message", 1)
    drain_outbox()
    last_id = get_current_event_id(["time"])
    send_event("time", "message", 2)
    drain_outbox()

    response = Client().get(
        "/events/", {"channel": "time", "lastEventId": last_id}, headers=proxy
    )

    assert last_id == "time:1"
    assert [m.data for m in read(response) if m.type == "message"] == ["2"]


# --- the wire, beside the real one

_PEER = """
import json, sys
import django
django.setup()
from django.core.management import call_command
from django.test import Client
from django_eventstream import send_event
headers, asked = json.loads(sys.argv[1])
call_command("migrate", "django_eventstream", verbosity=0)
for n in range(1, 6):
    send_event("ab", "message", {"n": n})
for query, more in asked:
    text = Client().get("/events/?" + query, headers={**headers, **more}).content.decode()
    print(json.dumps(text))
"""

ASKED: list[tuple[str, dict[str, str]]] = [
    ("channel=ab", {"Last-Event-ID": "ab:2"}),
    ("channel=ab&lastEventId=ab:4", {}),
    ("channel=ab&lastEventId=ab:1&lastEventId=ab:3&lastEventId=", {}),
    ("channel=ab", {"Last-Event-ID": "ab:99"}),
    ("channel=ab", {"Last-Event-ID": "nonsense"}),
    ("", {}),
    ("channel=ab", {}),
]


@pytest.fixture
def peers_answers(proxy: dict[str, str]) -> Iterator[list[list[Message]]]:
    name = str(connection.settings_dict["NAME"])
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.peer_settings", "ES_GRIP": ""}
    if connection.vendor == "sqlite":
        env |= {"ES_SQLITE": name, "ES_DB": ""}
    else:
        env["ES_DB"] = f"{os.environ['ES_DB'].rpartition('/')[0]}/{name}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PEER, json.dumps([proxy, ASKED])],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    texts = [json.loads(line) for line in done.stdout.splitlines()]
    yield [Parser().feed(text.encode()) for text in texts]
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE django_eventstream_event")
        cursor.execute("DROP TABLE django_eventstream_eventcounter")
        cursor.execute("DELETE FROM django_migrations WHERE app = 'django_eventstream'")


def test_answers_are_those_of_the_real_one(
    routes: None, proxy: dict[str, str], peers_answers: list[list[Message]]
) -> None:
    for n in range(1, 6):
        send_event("ab", "message", {"n": n})
    drain_outbox()

    def seen(messages: list[Message]) -> list[tuple[str, str, str]]:
        found = []
        for message in messages:
            if message.type == "stream-open":
                found.append(("stream-open", "", ""))  # ours has a position
            elif message.type == "stream-error":
                condition = json.loads(message.data)["condition"]
                found.append((message.type, message.id, condition))
            else:
                found.append((message.type, message.id, message.data))
        return found

    for (query, more), theirs in zip(ASKED, peers_answers, strict=True):
        response = Client().get(f"/events/?{query}", headers={**proxy, **more})

        assert seen(read(response)) == seen(theirs), (query, more)
