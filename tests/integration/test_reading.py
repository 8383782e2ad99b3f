"""What a reader does when nobody else is at work."""

from __future__ import annotations

import pytest
from pytest_django import Settings

from eventstream import send_event
from eventstream.models import Cursor, Event
from eventstream.reading import number_stale
from eventstream.relay import relay_all
from eventstream.storage import get_storage
from tests.support.targets import RecordingTarget

pytestmark = pytest.mark.django_db(transaction=True)


def test_events_that_a_reader_numbered_first_still_reach_the_targets(
    targets: dict[str, RecordingTarget], settings: Settings
) -> None:
    settings.EVENTSTREAM_UNNUMBERED_AFTER = 0
    send_event("orders", "message", 1)
    assert not Cursor.objects.exists()

    number_stale(get_storage(), "default")
    relay_all("default")

    assert Event.objects.filter(eid=1).exists()
    assert [target.ids("orders") for target in targets.values()] == [[1], [1]]
