"""Streams among the routes of Django REST framework."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils.translation import gettext_lazy
from pytest_django import Settings
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.renderers import JSONRenderer
from rest_framework.response import Response
from rest_framework.schemas.generators import EndpointEnumerator
from rest_framework.test import APIClient
from rest_framework.throttling import SimpleRateThrottle

from eventstream import send_event
from eventstream.channelmanager import DefaultChannelManager
from eventstream.drf import EventsViewSet, SSEEventRenderer, configure_events_view_set
from eventstream.testing import drain_outbox
from tests import drf_urls
from tests.integration.test_views import read
from tests.support.holds import last_ids, next_path
from tests.support.processes import ROOT
from tests.support.sse import Parser

pytestmark = pytest.mark.django_db(transaction=True)

SSE = "text/event-stream"


def get(path: str, headers: dict[str, str], accept: str = SSE, **more: str) -> Any:
    return APIClient().get(path, headers={**headers, "Accept": accept, **more})


@pytest.mark.parametrize(
    ("path", "channels"),
    [
        ("/api/function/", ["one", "two"]),
        ("/api/instance/", ["one", "two"]),
        ("/api/any/?channels=a,b", ["a", "b"]),
        ("/api/any/?channel=a&channel=b", ["a", "b"]),
        ("/api/any/solo/", ["solo"]),
        ("/api/rooms/7/", ["room-7"]),
        ("/api/v2/orders/", ["orders-v2"]),
        ("/api/bare?channels=a,b", ["a", "b"]),
        ("/api/bare/solo", ["solo"]),
    ],
)
@pytest.mark.parametrize("accept", [SSE, "*/*"])
def test_stream_is_held_and_goes_on_by_its_link(
    proxy: dict[str, str], path: str, channels: list[str], accept: str
) -> None:
    send_event(channels[0], "message", 1)
    drain_outbox()

    response = get(path, proxy, accept)

    assert response.status_code == 200
    assert response["Content-Type"] == SSE
    assert response["Grip-Hold"] == "stream"
    for channel in channels:
        assert f"events-{channel}; prev-id=" in response["Grip-Channel"]
    send_event(channels[0], "message", 2)
    drain_outbox()
    # The proxy's own request: without any credentials of the reader's.
    headers = {**proxy, **last_ids(response, {channels[0]: 1})}
    held = Client().get(next_path(response), headers=headers)
    assert [m.data for m in read(held)] == ["2"]
    assert held["Grip-Hold"] == "stream"


@pytest.mark.parametrize(
    ("detail", "text"),
    [
        ("No such order.", "No such order."),
        (["No such order.", "Nor room."], "No such order. Nor room."),
        ({"order": ["No such one."]}, '{"order": ["No such one."]}'),
    ],
)
def test_refusal_of_a_value_says_what_is_wrong(detail: Any, text: str) -> None:
    error = ValidationError(detail)
    response = Response(error.detail, status=error.status_code)

    body = SSEEventRenderer().render(response.data, None, {"response": response})

    (message,) = Parser().feed(body)
    assert json.loads(message.data)["text"] == text


def test_fixed_channels_are_fixed(proxy: dict[str, str]) -> None:
    for path in (
        "/api/function/?channels=a",
        "/api/instance/?channel=a",
        "/api/function/a/",
        "/api/rooms/7/room-8/",  # where `list` chooses
    ):
        response = get(path, proxy)

        assert response.status_code == 400
        [message] = read(response)
        assert message.type == "stream-error"
        assert json.loads(message.data)["text"].startswith("The channels of this ")


def test_no_channel_is_a_bad_request(proxy: dict[str, str]) -> None:
    [message] = read(get("/api/any/", proxy))

    assert json.loads(message.data)["text"] == "Invalid request: No channels specified"


def test_rest_frameworks_authentication_and_permissions_decide(
    proxy: dict[str, str],
) -> None:
    user = User.objects.create_user("ann", password="secret")
    client = APIClient()
    client.force_login(user)  # by session, which this view set does not take

    refused = client.get("/api/guarded/", headers={**proxy, "Accept": SSE})
    client.credentials(HTTP_AUTHORIZATION="Basic YW5uOnNlY3JldA==")
    response = client.get("/api/guarded/", headers={**proxy, "Accept": SSE})

    assert (refused.status_code, refused["Content-Type"]) == (
        401,
        f"{SSE}; charset=utf-8",
    )
    [message] = read(refused)
    assert (message.type, message.id) == ("stream-error", "error")
    assert json.loads(message.data)["condition"] == "not-authenticated"
    assert response.status_code == 200
    # The channel manager is asked about the user whom REST framework has found.
    assert f"events-private-{user.pk}" in response["Grip-Channel"]


def test_channel_manager_is_asked_too(proxy: dict[str, str]) -> None:
    response = get("/api/any/private-1/", proxy)

    assert response.status_code == 200
    assert json.loads(read(response)[0].data)["condition"] == "forbidden"


def test_throttled_request_is_told_when_to_come_again(
    proxy: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        SimpleRateThrottle, "THROTTLE_RATES", {"user": "1/min", "anon": "1/min"}
    )
    first = get("/api/throttled/", proxy)

    second = get("/api/throttled/", proxy)

    assert (first.status_code, second.status_code) == (200, 429)
    assert int(second["Retry-After"]) > 0
    assert json.loads(read(second)[0].data)["condition"] == "too-many-requests"
    # The proxy's questions for a stream that is open are not counted.
    held = Client().get(next_path(first), headers={**proxy, **last_ids(first)})
    assert held["Grip-Hold"] == "stream"


def test_browser_gets_a_page_and_scripts_get_the_stream(proxy: dict[str, str]) -> None:
    html = get("/api/function/", proxy, "text/html,application/xhtml+xml,*/*;q=0.8")
    forced = get("/api/function/?format=text/event-stream", proxy, "*/*")
    page = html.content.decode()

    assert html["Content-Type"].startswith("text/html")
    assert 'id="eventstream-live"' in page
    assert '["message", "info"]' in page
    assert "//cdn" not in page
    assert forced["Grip-Hold"] == "stream"


@pytest.mark.parametrize(
    "renderers",
    [
        ["rest_framework.renderers.JSONRenderer"],
        ["eventstream.drf.SSEEventRenderer", "rest_framework.renderers.JSONRenderer"],
        [],
    ],
)
def test_projects_default_renderers_make_no_difference(
    proxy: dict[str, str], settings: Settings, renderers: list[str]
) -> None:
    settings.REST_FRAMEWORK = {"DEFAULT_RENDERER_CLASSES": renderers}

    assert get("/api/function/", proxy)["Grip-Hold"] == "stream"
    assert (
        "eventstream-live" in get("/api/function/", proxy, "text/html").content.decode()
    )


def test_renderers_may_be_among_the_projects_defaults() -> None:
    """As django-eventstream's guide has it: REST framework imports them half made."""
    names = ("SSEEventRenderer", "BrowsableAPIEventStreamRenderer")
    defaults = [f"eventstream.drf.{name}" for name in names]
    more = {"REST_FRAMEWORK": {"DEFAULT_RENDERER_CLASSES": defaults}}
    code = (
        "import django; django.setup(); from rest_framework import views; "
        "print(*[each.__name__ for each in views.APIView.renderer_classes])"
    )
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        env={**env, "ES_SET": json.dumps(more)}, check=False,
    )  # fmt: skip

    assert done.stdout.split() == list(names), done.stderr


def test_page_can_be_left_out(proxy: dict[str, str]) -> None:
    response = get("/api/plain/", proxy, "text/html")

    assert response.status_code == 406


def test_preflight_needs_no_credentials(settings: Settings) -> None:
    settings.EVENTSTREAM_ALLOW_ORIGINS = ["https://shop.example"]
    headers = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": "GET",
    }

    preflight = APIClient().options("/api/guarded/", headers=headers)
    refused = get("/api/guarded/", headers)

    assert preflight.status_code == 204
    assert preflight["Access-Control-Allow-Origin"] == "https://shop.example"
    assert refused.status_code == 401
    assert refused["Access-Control-Allow-Origin"] == "https://shop.example"


def test_other_methods_are_refused(proxy: dict[str, str]) -> None:
    for method in ("post", "put", "delete", "patch"):
        response = getattr(APIClient(), method)("/api/function/")

        assert response.status_code == 405


def test_without_a_holder_the_answer_says_so() -> None:
    response = get("/api/function/", {})

    assert response.status_code == 501
    assert "runs under WSGI" in response.content.decode()


class Asking(DefaultChannelManager):
    def get_channels_for_request(self, request: Any, view_kwargs: Any) -> set[str]:
        return {f"room-{request.query_params['room']}-{request.version}"}


def test_channel_manager_sees_rest_frameworks_request(
    proxy: dict[str, str], settings: Settings
) -> None:
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = f"{__name__}.Asking"

    response = get("/api/any/?room=7", proxy)

    assert "events-room-7-None;" in response["Grip-Channel"]


class OrderSerializer(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    price = serializers.DecimalField(max_digits=8, decimal_places=2)
    placed_at = serializers.DateTimeField()
    state = serializers.ChoiceField(choices=[("new", gettext_lazy("New"))])


def test_event_is_what_the_api_would_answer(proxy: dict[str, str]) -> None:
    order = {
        "id": UUID(int=1),
        "price": Decimal("9.50"),
        "placed_at": datetime(2026, 1, 1, tzinfo=UTC),
        "state": "new",
    }
    opened = get("/api/any/orders/", proxy)

    send_event("orders", "message", OrderSerializer(order).data)
    send_event("orders", "message", OrderSerializer([order], many=True).data)
    drain_outbox()

    headers = {**proxy, **last_ids(opened)}
    one, many = read(Client().get(next_path(opened), headers=headers))
    answer = JSONRenderer().render(OrderSerializer(order).data)
    assert json.loads(one.data) == json.loads(answer)
    assert json.loads(many.data) == [json.loads(answer)]


def test_schema_shows_the_streams_and_not_the_proxys_links() -> None:
    found = EndpointEnumerator(drf_urls.urlpatterns).get_api_endpoints()

    paths = [path for path, _, _ in found]
    assert "/function/" in paths
    assert "/any/{channel}/" in paths
    assert not [path for path in paths if "next" in path]


def test_no_action_has_a_schema_that_none_can_be_derived_from() -> None:
    # As drf-spectacular's extend_schema does of each, where it decorates the class.
    actions: list[Any] = EventsViewSet.get_extra_actions()
    schemas = [
        action.kwargs["schema"] for action in actions if "schema" in action.kwargs
    ]

    assert all(isinstance(schema, type) for schema in schemas), schemas


def test_renderer_sends_other_data_as_one_event() -> None:
    content = SSEEventRenderer().render({"a": 1})

    assert content == b'event: message\ndata: {"a": 1}\n\n'


def test_configured_view_sets_do_not_share_channels() -> None:
    one, two = configure_events_view_set(["a"]), configure_events_view_set(["b"])

    assert (list(one.channels), list(two.channels)) == (["a"], ["b"])
    assert issubclass(one, EventsViewSet)
    assert list(EventsViewSet.channels) == []
