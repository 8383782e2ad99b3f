"""Several outboxes: each in the database of the transaction that sends."""

from __future__ import annotations

import pytest
from django.db import transaction
from pytest_django import Settings

from eventstream import get_current_event_id, send_event
from eventstream.models import Event
from eventstream.reading import Reader, read_page
from eventstream.relay import relay_all
from eventstream.storage import alias_of
from tests.support.targets import RecordingTarget

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


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
