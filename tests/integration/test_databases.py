"""Several outboxes: each in the database of the transaction that sends."""

from __future__ import annotations

import datetime
import io
import json
import re
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.core.management.base import CommandError
from django.db import OperationalError, connections, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models.functions import Now
from django.test import Client
from pytest_django import Settings

from eventstream import (
    channel_permission_changed,
    get_current_event_id,
    jobs,
    metrics,
    send_event,
)
from eventstream.exceptions import InvalidChannelError, InvalidTokenError
from eventstream.models import Event, EventKind
from eventstream.reading import Reader, read_page
from eventstream.relay import relay_all
from eventstream.rows import partition_of
from eventstream.storage import alias_of
from eventstream.tokens import make_subscribe_token, read_subscribe_token
from eventstream_tasks.tasks import prune, republish
from tests.integration.test_console import run
from tests.support.processes import ROOT
from tests.support.targets import RecordingTarget

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


class ReplicaRouter:
    """Accounts are read from `other`, which is behind."""

    def db_for_read(self, model: type, **hints: object) -> str | None:
        return "other" if model is User else None

    def db_for_write(self, model: type, **hints: object) -> str:
        return "default"


@pytest.fixture(autouse=True)
def two_outboxes(settings: Settings) -> None:
    settings.EVENTSTREAM_DATABASES = ["default", "other"]


def test_event_belongs_to_the_transaction_of_its_alias(
    targets: dict[str, RecordingTarget],
) -> None:
    with transaction.atomic(using="other"):
        send_event("orders", "message", "kept", using="other")
        with transaction.atomic():
            send_event("elsewhere", "message", "lost")
            transaction.set_rollback(True)

    assert Event.objects.using("other").count() == 1
    assert not Event.objects.exists()
    assert relay_all("default") == {}
    relay_all("other")
    assert targets["a"].received == [("orders", 1, '"kept"')]


def test_reader_finds_the_database_of_a_channel(
    targets: dict[str, RecordingTarget],
) -> None:
    send_event("orders", "message", 1, using="other")
    send_event("rooms", "message", 2)
    for using in ("default", "other"):
        relay_all(using)

    assert (alias_of("orders"), alias_of("rooms")) == ("other", "default")
    assert get_current_event_id(["orders", "rooms", "new"]) == "new:0,orders:1,rooms:1"
    page = read_page(Reader(("orders", "rooms"), "", {"orders": 0, "rooms": 0}))
    assert page.text.count("event: message") == 2
    assert page.positions == {"orders": 1, "rooms": 1}


def test_channel_is_in_one_outbox_only(targets: dict[str, RecordingTarget]) -> None:
    """Its readers read one log, and each outbox gives ids of its own."""
    send_event("orders", "message", 1, using="other")
    send_event("rooms", "message", 1)
    for using in ("default", "other"):
        relay_all(using)

    for channel, elsewhere in (("orders", "default"), ("rooms", "other")):
        with pytest.raises(
            InvalidChannelError, match=f"Name it .* '{channel}-{elsewhere}'"
        ):
            send_event(channel, "message", 2, using=elsewhere)

    send_event("orders", "message", 2, using="other")
    send_event("rooms", "message", 2)
    assert [Event.objects.using(n).count() for n in ("default", "other")] == [2, 2]


def test_event_that_was_rolled_back_claims_no_outbox_for_its_channel(
    targets: dict[str, RecordingTarget],
) -> None:
    with transaction.atomic(using="other"):
        send_event("rooms", "message", 1, using="other")
        transaction.set_rollback(True, using="other")
    # Another process knows nothing of it.
    partition = partition_of("rooms")
    Event.objects.create(partition=partition, channel="rooms", type="m", data="1")

    with pytest.raises(InvalidChannelError):
        send_event("rooms", "message", 2, using="other")


@pytest.mark.parametrize("using", ["default", "other"])
@pytest.mark.parametrize("is_rolled_back", [True, False])
def test_kick_follows_the_commit_of_the_database_that_has_the_permission(
    settings: Settings, using: str, is_rolled_back: bool
) -> None:
    """Streams were asked about before it, and read on for a minute."""
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = "tests.channels.ChannelManager"
    user = User.objects.create(username="u")
    kicks = Event.objects.using(using).filter(kind=EventKind.KICK, data=str(user.pk))
    user.groups.add(Group.objects.create(name="members"))

    with transaction.atomic():
        user.groups.clear()
        channel_permission_changed(user, "members", using=using)
        before = kicks.count()
        transaction.set_rollback(is_rolled_back)

    assert before == 1
    committed = {"default": 1, "other": 2}[using]
    rolled_back = {"default": 0, "other": 1}[using]
    assert kicks.count() == (rolled_back if is_rolled_back else committed)


@pytest.mark.usefixtures("without_other")
def test_outbox_that_is_away_keeps_nothing_from_being_sent() -> None:
    send_event("new", "message", 1, using="default")

    assert Event.objects.count() == 1


def test_router_of_the_guide_says_where_a_channel_lives(settings: Settings) -> None:
    """Its database `shop` is `other` here."""
    guide = (ROOT / "docs/howto/sending.md").read_text()
    [code] = re.findall(r"```python\n(class EventRouter.*?)```", guide, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code.replace('"shop"', '"other"'), "sending.md", "exec"), names)
    settings.DATABASE_ROUTERS = [names["EventRouter"]()]

    sent = [send_event(channel, "message", 1) for channel in ("orders-1", "log")]

    assert [event.using for event in sent] == ["other", "default"]
    assert (alias_of("orders-new"), alias_of("log")) == ("other", "default")


@pytest.mark.django_db(databases=["default"])
def test_test_that_may_use_one_database_may_send_there() -> None:
    """Django's tests forbid what they do not name, by an error of their own."""
    send_event("new", "message", 1)

    assert Event.objects.count() == 1


@pytest.fixture
def without_other(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Database `other`, which is asked first, is away."""
    settings.EVENTSTREAM_DATABASES = ["other", "default"]
    _take_away("other", monkeypatch)


def _take_away(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = CursorWrapper._execute  # type: ignore[attr-defined]

    def fail(self: Any, *args: Any) -> Any:
        if self.db.alias == alias:
            raise OperationalError(f"{alias} is away")
        return execute(self, *args)

    monkeypatch.setattr(CursorWrapper, "_execute", fail)


@pytest.mark.usefixtures("without_other")
def test_outbox_whose_database_is_away_keeps_no_other_waiting(
    targets: dict[str, RecordingTarget], settings: Settings
) -> None:
    settings.EVENTSTREAM_DISPATCHER = "tests.support.targets.IdleDispatcher"
    send_event("orders", "message", 1, using="default")

    swept = republish.apply()
    Event.objects.update(created=Now() - datetime.timedelta(days=2))
    pruned = prune.apply()

    assert targets["a"].ids("orders") == [1]
    assert not Event.objects.exists()
    assert [str(result.result) for result in (swept, pruned)] == ["other is away"] * 2


@pytest.mark.usefixtures("without_other")
def test_relay_without_celery_goes_on_where_it_can(
    targets: dict[str, RecordingTarget], settings: Settings
) -> None:
    settings.EVENTSTREAM_DISPATCHER = "tests.support.targets.IdleDispatcher"
    send_event("orders", "message", 1, using="default")

    output = run("relay", "--once", code=2)

    assert targets["a"].ids("orders") == [1]
    assert "default: 2 events" in output  # one for each target


@pytest.mark.usefixtures("without_other")
def test_outbox_that_is_away_hides_no_other(
    targets: dict[str, RecordingTarget],
) -> None:
    targets["a"].is_down = True
    send_event("orders", "message", 1, using="default")
    republish.apply()
    away = "The database 'other' does not answer.* other is away$"

    def look(*command: str) -> str:
        with pytest.raises(CommandError, match=away) as ended:
            run(*command, out=(out := io.StringIO()))
        assert ended.value.returncode == 3
        return out.getvalue()

    status = look("status")
    assert status.startswith("eventstream of 'default' at ")
    assert "ERROR: a: Failing" in status
    (state,) = json.loads(look("status", "--json"))
    assert state["using"] == "default"
    (row,) = json.loads(look("undelivered", "--json"))
    assert (row["database"], row["target"]) == ("default", "a")
    assert look("prune", "--dry-run") == "default: 0 events would be deleted.\n"
    targets["a"].is_down = False
    assert look("republish").splitlines()[1].split()[:3] == ["default", "a", "1"]
    shown = metrics.collect().decode()
    assert 'eventstream_up{database="default"} 1.0' in shown
    assert 'eventstream_up{database="other"} 0.0' in shown


def test_admin_tells_of_the_outboxes_that_it_does_not_show(
    targets: dict[str, RecordingTarget],
    admin_client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for using in ("default", "other"):
        jobs.republish(using)
    url = "/admin/eventstream/"
    well = admin_client.get(url).content.decode()
    assert "Every event of &#x27;default&#x27; has reached every target." in well
    assert "outbox &#x27;other&#x27;" not in well

    targets["a"].is_down = True
    send_event("orders", "message", 1, using="other")
    relay_all("other")
    failing = admin_client.get(url).content.decode()
    assert "outbox &#x27;other&#x27;</strong>: a: Failing" in failing
    assert "not delivering" in failing

    _take_away("other", monkeypatch)
    away = admin_client.get(url).content.decode()
    assert "outbox &#x27;other&#x27;</strong>: Its database does not answer" in away


def test_account_is_asked_for_where_it_is_written(settings: Settings) -> None:
    for using in ("default", "other"):
        User.objects.using(using).create(pk=7, username="ann")
    settings.DATABASE_ROUTERS = [f"{__name__}.ReplicaRouter"]
    user = User.objects.using("default").get()
    token = make_subscribe_token(user, ["room"])

    with transaction.atomic():
        user.is_active = False
        user.save(using="default")
        channel_permission_changed(user, "room")

    assert Event.objects.get().kind == EventKind.KICK
    with pytest.raises(InvalidTokenError):
        read_subscribe_token(token, now=0)


def test_stream_is_in_no_transaction_of_any_database(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    client: Client,
    proxy: dict[str, str],
) -> None:
    """There it could neither number what nobody has, nor share what it reads."""
    settings.EVENTSTREAM_DATABASES = ["other"]
    monkeypatch.setitem(connections["other"].settings_dict, "ATOMIC_REQUESTS", True)
    send_event("orders", "message", 1, using="other")

    headers = {**proxy, "Last-Event-ID": "orders:0"}
    response = client.get("/events/?channel=orders", headers=headers)

    assert b"event: message" in response.content


def test_commands_see_every_outbox_unless_one_is_named(
    targets: dict[str, RecordingTarget],
) -> None:
    targets["a"].is_down = True
    send_event("rooms", "message", 1)
    send_event("orders", "message", 2, using="other")
    for using in ("default", "other"):
        relay_all(using)

    both = run("undelivered", code=1).splitlines()
    (one,) = json.loads(run("undelivered", "--using", "other", "--json", code=1))

    assert [line.split()[0] for line in both] == ["database", "default", "other"]
    assert (one["database"], one["channel"]) == ("other", "orders")

    targets["a"].is_down = False
    hint = next(
        line for line in run("status", code=2).splitlines() if "republish" in line
    )
    command = hint.partition("manage.py eventstream ")[2].partition("`")[0]
    rows = run(*command.split()).splitlines()[1:]

    assert [row.split()[:3] for row in rows] == [
        ["default", "a", "1"],
        ["other", "a", "1"],
    ]
    assert (targets["a"].ids("rooms"), targets["a"].ids("orders")) == ([1], [1])
    assert run("undelivered") == "Nothing is undelivered.\n"


def test_pause_is_told_of_the_outbox_where_events_wait(
    targets: dict[str, RecordingTarget],
) -> None:
    run("pause", "a")
    send_event("orders", "message", 2, using="other")

    printed = run("republish", "--target", "a", code=2)

    assert "nothing waits for it in 'default'." in printed
    assert "events wait for it in 'other'." in printed
