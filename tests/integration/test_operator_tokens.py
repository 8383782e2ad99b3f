"""Operators' streams: any channel, with a permission of the admin that is asked each time."""

from __future__ import annotations

import dataclasses
import time

import pytest
from django.contrib.auth.models import Permission, User
from django.test import RequestFactory

from eventstream import send_event
from eventstream.channelmanager import check_reader, is_operator, operator_id
from eventstream.exceptions import ChannelPermissionError, TokenError
from eventstream.hub.permissions import ask_permission
from eventstream.reading import Reader, read_link, read_page, read_request, sign_link
from eventstream.relay import relay_all
from eventstream.tokens import (
    OPERATOR_PREFIX,
    PREFIX,
    make_operator_token,
    make_subscribe_token,
)
from tests.support.targets import RecordingTarget

pytestmark = pytest.mark.django_db(transaction=True)

PRIVATE = "private-999"  # the channel manager lets user 999 read it, and nobody else


@pytest.fixture
def operator() -> User:
    user = User.objects.create_user("ann", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_event"))
    return user


def open_stream(token: str, path: str = "/events/") -> Reader:
    request = RequestFactory().get(path, HTTP_AUTHORIZATION=f"Bearer {token}")
    return read_request(request, {})


def test_user_whose_key_looks_like_an_operator_s_is_none(operator: User) -> None:
    """A primary key can be any text; this one would be taken for that of the operator."""
    request = RequestFactory().get("/events/?channel=a")
    # Whatever permissions it has: those that are asked later are the other's.
    request.user = User(pk=operator_id(operator), is_staff=True, is_superuser=True)

    with pytest.raises(ChannelPermissionError):
        read_request(request, {})


def test_operator_reads_a_channel_that_the_channel_manager_refuses(
    operator: User, targets: dict[str, RecordingTarget]
) -> None:
    send_event(PRIVATE, "message", 1, skip_user_ids=[operator.pk])
    relay_all("default")

    reader = open_stream(make_operator_token(operator, PRIVATE))
    page = read_page(dataclasses.replace(reader, positions={PRIVATE: 0}))

    assert reader.channels == (PRIVATE,)
    assert "data: 1" in page.text  # also what is not for the operator as a user


def test_token_is_for_its_channel_whatever_the_request_asks_for(operator: User) -> None:
    token = make_operator_token(operator, PRIVATE)

    assert open_stream(token, "/events/?channel=other").channels == (PRIVATE,)


@pytest.mark.parametrize(
    "values", [{"is_staff": False}, {"is_active": False}], ids=["not staff", "inactive"]
)
def test_operator_who_is_none_any_more_reads_nothing(
    operator: User, values: dict[str, bool]
) -> None:
    token = make_operator_token(operator, PRIVATE)
    reader = open_stream(token)
    link = sign_link(reader, now=time.time())
    User.objects.filter(pk=operator.pk).update(**values)

    with pytest.raises((ChannelPermissionError, TokenError)):
        open_stream(token)
    with pytest.raises(ChannelPermissionError):
        check_reader(reader.user_id, [PRIVATE])
    with pytest.raises(ChannelPermissionError):
        read_page(read_link(link, now=time.time())[0])
    assert "stream-error" in ask_permission(reader.user_id, (PRIVATE,))


def test_withdrawn_permission_ends_it_where_no_channel_is_ever_refused(
    operator: User, settings: object
) -> None:
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = (  # type: ignore[attr-defined]
        "eventstream.channelmanager.DefaultChannelManager"
    )
    reader = open_stream(make_operator_token(operator, PRIVATE))
    operator.user_permissions.clear()

    with pytest.raises(ChannelPermissionError):
        read_page(reader)


def test_staff_without_the_permission_get_nothing(db: None) -> None:
    user = User.objects.create_user("bob", is_staff=True)

    with pytest.raises(ChannelPermissionError):
        open_stream(make_operator_token(user, PRIVATE))


def test_subscribe_token_cannot_be_made_an_operators(operator: User) -> None:
    token = make_subscribe_token(operator, [PRIVATE])
    forged = OPERATOR_PREFIX + token.removeprefix(PREFIX)

    with pytest.raises(TokenError):
        open_stream(forged)
    with pytest.raises(ChannelPermissionError):
        open_stream(token)


def test_operators_token_expires(
    operator: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstream.tokens.OPERATOR_LIFETIME", -1)

    with pytest.raises(TokenError, match="expired"):
        open_stream(make_operator_token(operator, PRIVATE))


def test_user_whose_key_looks_like_an_operators_is_refused(operator: User) -> None:
    request = RequestFactory().get("/events/?channel=orders")
    user = User(pk=operator.pk, username="eve")
    user.pk = operator_id(operator)
    request.user = user

    with pytest.raises(ChannelPermissionError):
        read_request(request, {})


def test_link_of_an_operator_stays_one(operator: User) -> None:
    reader = open_stream(make_operator_token(operator, PRIVATE))

    again, _ = read_link(sign_link(reader, now=time.time()), now=time.time())

    assert is_operator(again.user_id)
