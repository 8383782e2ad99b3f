"""Subscribe tokens: what they open, and how they end."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from traceback import walk_tb
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core import signing
from django.core.signals import got_request_exception
from django.http import HttpRequest
from django.test import Client, RequestFactory
from django.views.debug import ExceptionReporter
from pytest_django import Settings

from eventstream import make_subscribe_token
from eventstream.channelmanager import DefaultChannelManager
from eventstream.exceptions import InvalidChannelError
from eventstream.tokens import PREFIX, take_grant
from tests.support.sse import Message, Parser

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def user() -> User:
    return User.objects.create_user("u", password="old")


def open_stream(
    proxy: dict[str, str], query: str = "", *, token: str = "", cookie: str = ""
) -> Any:
    headers = dict(proxy)
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if cookie:
        headers["Cookie"] = cookie
    return Client().get(f"/events/?{query}", headers=headers)


def message(response: Any) -> Message:
    return Parser().feed(response.content)[0]


def error(response: Any) -> dict[str, Any]:
    found = message(response)
    assert found.type == "stream-error"
    answer: dict[str, Any] = json.loads(found.data)
    is_about_token = answer["condition"].startswith("token-")
    if is_about_token and "token" not in response.request["QUERY_STRING"]:
        assert response.status_code == 401
        assert response["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    else:
        assert response.status_code == 200  # an EventSource reads no other
        assert "WWW-Authenticate" not in response
    return answer


@pytest.mark.parametrize("way", ["header", "query", "header, other case"])
def test_token_opens_its_user_s_channels(
    proxy: dict[str, str], user: User, way: str
) -> None:
    channel = f"private-{user.pk}"
    token = make_subscribe_token(user, [channel])

    if way == "query":
        response = open_stream(proxy, f"token={token}")
    else:
        scheme = "bearer" if "case" in way else "Bearer"
        response = Client().get(
            "/events/", headers={**proxy, "Authorization": f"{scheme} {token}"}
        )

    assert message(response).type == "stream-open"
    assert f"events-{channel}; prev-id=0" in response["Grip-Channel"]
    assert f"user-{user.pk}" in response["Grip-Channel"]


def test_request_may_ask_for_part_of_it_and_for_nothing_else(
    proxy: dict[str, str], user: User
) -> None:
    token = make_subscribe_token(user, ["a", "b"])

    part = open_stream(proxy, "channel=a", token=token)
    other = open_stream(proxy, "channel=a&channel=c", token=token)

    assert "events-b" not in part["Grip-Channel"]
    assert error(other) == {
        "condition": "forbidden",
        "text": "Permission denied to channels: c",
        "channels": ["c"],
    }


@pytest.mark.parametrize("whose", ["another's", "nobody's"])
def test_token_grants_nothing_that_the_channel_manager_refuses(
    proxy: dict[str, str], user: User, whose: str
) -> None:
    holder = user if whose == "another's" else AnonymousUser()
    token = make_subscribe_token(holder, [f"private-{user.pk + 1}"])

    for headers in (proxy, {}):  # whoever would hold it
        assert error(open_stream(headers, token=token))["condition"] == "forbidden"


def test_token_wins_over_the_cookie(proxy: dict[str, str], user: User) -> None:
    other = User.objects.create_user("other")
    client = Client()
    client.force_login(other)
    token = make_subscribe_token(user, [f"private-{user.pk}"])
    headers = {**proxy, "Authorization": f"Bearer {token}"}

    response = client.get("/events/", headers=headers)

    assert message(response).type == "stream-open"


@pytest.mark.parametrize("age", [299, 301])
def test_token_is_good_for_its_lifetime(
    proxy: dict[str, str], user: User, age: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = make_subscribe_token(user, ["a"], lifetime=300)
    now = time.time() + age
    monkeypatch.setattr("eventstream.tokens.time.time", lambda: now)
    headers = {"Authorization": f"Bearer {token}"}
    request = RequestFactory().get("/events/", headers=headers)
    if age < 300:
        grant = take_grant(request)
        assert grant is not None
        assert grant.user == user
        assert grant.channels == {"a"}
        return

    response = open_stream({}, token=token)

    assert error(response) == {
        "condition": "token-expired",
        "text": "The token has expired: fetch a new one",
    }
    # No id: the client goes on from where it was, with a new token.
    assert message(response).id == ""
    assert error(open_stream({}, f"token={token}"))["condition"] == "token-expired"


def test_new_password_ends_a_token(proxy: dict[str, str], user: User) -> None:
    token = make_subscribe_token(user, ["a"])
    user.set_password("new")
    user.save()

    assert error(open_stream(proxy, token=token))["condition"] == "token-expired"


@pytest.mark.parametrize("how", ["inactive", "deleted"])
def test_account_that_is_gone_ends_a_token(
    proxy: dict[str, str], user: User, how: str
) -> None:
    token = make_subscribe_token(user, ["a"])
    if how == "deleted":
        user.delete()
    else:
        User.objects.update(is_active=False)

    response = open_stream(proxy, token=token)

    assert error(response) == {
        "condition": "token-invalid",
        "text": "The token's account is not active",
    }
    assert message(response).id == "error"


@pytest.mark.parametrize(
    "forge",
    [
        lambda token: token[:-1],
        lambda token: token + "x",
        lambda token: token.removeprefix(PREFIX),
        lambda token: PREFIX + "x" + token.removeprefix(PREFIX),
        lambda _: PREFIX,
        lambda _: "-",
        lambda _: "",
        lambda _: PREFIX + "é",
        # Signed by this site, for another purpose.
        lambda _: (
            PREFIX + signing.Signer(salt="eventstream.next").sign_object([9, "1"])
        ),
        lambda _: (
            PREFIX + signing.Signer(salt="eventstream.subscribe").sign_object("no list")
        ),
    ],
    ids=[
        "cut", "longer", "no prefix", "tampered", "prefix only", "junk", "empty",
        "not ascii", "a next link", "other content",
    ],
)  # fmt: skip
def test_token_that_is_none_is_refused(
    proxy: dict[str, str], user: User, forge: Any
) -> None:
    token = forge(make_subscribe_token(user, ["a"]))

    response = Client().get("/events/", {"token": token, "channel": "a"}, headers=proxy)

    assert error(response)["condition"] == "token-invalid"


def test_token_of_another_site_is_refused(
    proxy: dict[str, str], user: User, settings: Settings
) -> None:
    token = make_subscribe_token(user, ["a"])
    settings.SECRET_KEY = "another" * 8
    assert error(open_stream(proxy, token=token))["condition"] == "token-invalid"


@pytest.mark.parametrize("whose", ["a user's", "nobody's"])
def test_token_outlives_the_key_that_signed_it_as_a_fallback(
    proxy: dict[str, str], user: User, settings: Settings, whose: str
) -> None:
    token = make_subscribe_token(user if whose == "a user's" else None, ["a"])
    settings.SECRET_KEY_FALLBACKS = ["older" * 8, settings.SECRET_KEY]
    settings.SECRET_KEY = "another" * 8

    assert message(open_stream(proxy, token=token)).type == "stream-open"
    if whose == "a user's":
        user.set_password("new")
        user.save()
        assert error(open_stream(proxy, token=token))["condition"] == "token-expired"


def test_other_bearer_tokens_are_left_to_the_project(proxy: dict[str, str]) -> None:
    headers = {**proxy, "Authorization": "Bearer eyJhbGciOiJIUzI1NiJ9.e30.x"}

    response = Client().get("/events/?channel=a", headers=headers)

    assert message(response).type == "stream-open"


def test_unsigned_data_is_not_decompressed(
    proxy: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(_: bytes) -> bytes:
        raise AssertionError("decompressed")

    monkeypatch.setattr("django.core.signing.zlib.decompress", explode)

    response = open_stream(proxy, token=f"{PREFIX}.eJwrSS0uAQAEXQHB:c2ln")

    assert error(response)["condition"] == "token-invalid"


@pytest.mark.parametrize(
    ("channels", "lifetime", "expected"),
    [
        ([], 60, InvalidChannelError),
        ("a", 60, InvalidChannelError),
        (["a\n"], 60, InvalidChannelError),
        ([f"c{n}" for n in range(11)], 60, InvalidChannelError),
        (["a"], 0, ValueError),
        (["a"], "5", ValueError),
        (["a"], 86_401, ValueError),
    ],
)
def test_impossible_token_is_not_made(
    user: User, channels: Any, lifetime: Any, expected: type[Exception]
) -> None:
    with pytest.raises(expected):
        make_subscribe_token(user, channels, lifetime=lifetime)


def test_unsaved_user_gets_no_token() -> None:
    with pytest.raises(ValueError, match="saved"):
        make_subscribe_token(User(username="new"), ["a"])


def test_id_of_a_user_gets_no_token() -> None:
    pk: Any = 5
    with pytest.raises(TypeError, match="a user, AnonymousUser or None, not int"):
        make_subscribe_token(pk, ["a"])


class OwnChannelManager(DefaultChannelManager):
    """Each reads the channel of the request's user."""

    def get_channels_for_request(
        self, request: HttpRequest, view_kwargs: Mapping[str, Any]
    ) -> list[str]:
        return [f"user-{request.user.pk}"]


class AsyncOwnChannelManager(DefaultChannelManager):
    async def get_channels_for_request(
        self, request: HttpRequest, view_kwargs: Mapping[str, Any]
    ) -> list[str]:
        return [f"user-{(await request.auser()).pk}"]


@pytest.mark.parametrize("name", ["OwnChannelManager", "AsyncOwnChannelManager"])
def test_channel_manager_finds_the_token_s_user_in_the_request(
    proxy: dict[str, str], user: User, settings: Settings, name: str
) -> None:
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = f"{__name__}.{name}"
    token = make_subscribe_token(user, [f"user-{user.pk}"])

    response = open_stream(proxy, token=token)

    assert f"events-user-{user.pk}; prev-id" in response["Grip-Channel"]


# --- not to be seen


@pytest.mark.parametrize(
    ("charset", "name"), [("ascii", "%ff"), ("unicode_escape", "%5Cud800")]
)
def test_token_is_taken_out_whatever_the_rest_is_written_in(
    proxy: dict[str, str], charset: str, name: str
) -> None:
    """A client says how its query is to be read, also where that cannot be written."""
    headers = {**proxy, "Content-Type": f"text/plain; charset={charset}"}

    response = Client().get(f"/events/?channel={name}&token=x", headers=headers)

    assert error(response)["condition"] == "token-invalid"


@pytest.mark.parametrize("rest", ["", "&channel=a%2Fb"])
def test_what_servers_log_is_without_the_token(user: User, rest: str) -> None:
    """gunicorn writes RAW_URI or QUERY_STRING, of the same environment, when it is done."""
    token = make_subscribe_token(user, ["a/b"])
    uri = f"/events/?token={token}{rest}"
    request = RequestFactory().get(uri, RAW_URI=uri, REQUEST_URI=uri)

    assert take_grant(request) is not None

    expected = f"/events/?{rest.removeprefix('&')}".rstrip("?")
    environment = request.META
    assert environment["RAW_URI"] == environment["REQUEST_URI"] == expected
    assert environment["QUERY_STRING"] == rest.removeprefix("&")
    assert request.get_full_path() == expected


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("OPTIONS", "/events/", 204),
        ("POST", "/events/", 405),
        ("GET", "/events/", 429),
        ("GET", "/api/guarded/", 401),
    ],
)
def test_servers_log_no_token_of_a_request_that_is_refused(
    user: User, settings: Settings, method: str, path: str, status: int
) -> None:
    settings.EVENTSTREAM_OPENS_PER_ADDRESS = 1
    token = make_subscribe_token(user, ["a"])
    headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {token}"}
    client = Client()
    client.get("/events/?channel=a")

    response: Any = client.generic(method, f"{path}?token={token}", headers=headers)

    assert response.status_code == status
    assert token not in str(response.wsgi_request.META)


class FailingManager(DefaultChannelManager):
    def can_read_channel(self, user: Any, channel: str) -> bool:
        raise RuntimeError("the project's own mistake")


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize("way", ["header", "query"])
def test_token_is_in_no_error_page_and_no_log(
    user: User,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    debug: bool,
    way: str,
) -> None:
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = f"{__name__}.FailingManager"
    settings.DEBUG = debug
    token = make_subscribe_token(user, ["a"])
    secret = token.rpartition(":")[2]
    client = Client(raise_request_exception=False)
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []

    def report(request: HttpRequest, **kwargs: object) -> None:
        """Do what a mail to the admins and a reporter of frames' locals do."""
        kind, error, traceback = sys.exc_info()
        reporter = ExceptionReporter(request, kind, error, traceback)
        shown.extend([reporter.get_traceback_html(), reporter.get_traceback_text()])
        shown.extend(
            repr(frame.f_locals)
            for frame, _ in walk_tb(traceback)
            if "/eventstream/" in frame.f_code.co_filename
        )
        shown.append(repr(request))

    got_request_exception.connect(report)
    try:
        if way == "header":
            headers = {"Authorization": f"Bearer {token}"}
            response = client.get("/events/?channel=a", headers=headers)
        else:
            response = client.get(f"/events/?channel=a&token={token}")
    finally:
        got_request_exception.disconnect(report)

    assert response.status_code == 500
    assert "the project&#x27;s own mistake" in shown[0]
    assert caplog.records
    assert secret not in response.content.decode() + caplog.text + "".join(shown)
