from __future__ import annotations

import pytest
from django.db import transaction
from django.test import Client

from eventstream import EventState, get_current_event_id, send_event
from eventstream.models import Event

pytestmark = pytest.mark.django_db(transaction=True)


def test_send_numbers_inline() -> None:
    sent = send_event("orders", "message", {"a": 1})
    assert sent.event_id == 1
    assert sent.state() is EventState.CONFIRMED
    assert get_current_event_id(["orders"]) == "orders:1"


def test_rollback() -> None:
    with transaction.atomic():
        send_event("orders", "message", 1)
        transaction.set_rollback(True)
    assert Event.objects.count() == 0
    send_event("orders", "message", 2)
    assert get_current_event_id(["orders"]) == "orders:1"


def test_wsgi_501() -> None:
    r = Client().get("/events/?channel=a")
    assert r.status_code == 501
