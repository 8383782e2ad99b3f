"""A relay that is behind numbers its next batch while a thread publishes this one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.db import OperationalError, connections
from pytest_django import Settings

from eventstream import EventSpec, send_events
from eventstream.deadletters import give_up
from eventstream.exceptions import CannotGiveUpError
from eventstream.models import Cursor, DeadLetter, Event
from eventstream.pausing import pause
from eventstream.relay import Outcome, WakeFlag, relay_partition
from eventstream.rows import Batch, partition_of
from eventstream.storage import DjangoModelStorage
from eventstream_tasks.connections import close_kept, with_kept_connections
from tests.support.targets import RecordingTarget

pytestmark = pytest.mark.django_db(transaction=True)

PARTITION = partition_of("orders")
Targets = dict[str, RecordingTarget]


@pytest.fixture(autouse=True)
def batches(settings: Settings) -> None:
    """Each full batch of six is two calls of three."""
    settings.EVENTSTREAM_BATCH_SIZE = 6
    settings.EVENTSTREAM_BATCH_BYTES = 10_000


def send(count: int) -> None:
    send_events(
        [EventSpec("orders", "message", f"{n}".ljust(3000)) for n in range(count)]
    )


def after_numbering(
    monkeypatch: pytest.MonkeyPatch, call: int, then: Callable[[], object]
) -> None:
    """Do something after so many batches were numbered and read."""
    number_and_read = DjangoModelStorage.number_and_read
    calls = []

    def numbering(*args: Any, **kwargs: Any) -> Batch:
        found = number_and_read(*args, **kwargs)
        calls.append(found)
        if len(calls) == call:
            then()
        return found

    monkeypatch.setattr(DjangoModelStorage, "number_and_read", numbering)


def test_next_batch_is_numbered_while_one_is_published(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_publishing, is_numbered = threading.Event(), threading.Event()
    waited: list[bool] = []

    def numbered() -> None:
        waited.append(is_publishing.wait(30))
        is_numbered.set()

    def publishing() -> None:
        is_publishing.set()
        waited.append(is_numbered.wait(30))

    after_numbering(monkeypatch, 2, numbered)
    targets["a"].before = publishing
    send(20)

    report = relay_partition("default", PARTITION, "a")

    assert (report.outcome, report.event_count) == (Outcome.DONE, 20)
    assert all(waited)
    assert targets["a"].ids("orders") == list(range(1, 21))
    assert targets["a"].batches == [3, 3, 3, 3, 3, 3, 2]
    assert Cursor.objects.get(target="a").watermark == 20


def test_nothing_is_published_after_what_has_failed(targets: Targets) -> None:
    attempts: list[int] = []

    def fail_second() -> None:
        attempts.append(1)
        targets["a"].is_down = len(attempts) == 2

    targets["a"].before = fail_second
    send(20)

    report = relay_partition("default", PARTITION, "a")

    assert (report.outcome, report.error) == (Outcome.FAILED, "a is down")
    assert len(attempts) == 2
    assert Cursor.objects.get(target="a").watermark == 3
    relay_partition("default", PARTITION, "a", force=True)
    assert targets["a"].ids("orders") == list(range(1, 21))


def test_refused_event_is_buried_and_the_rest_follows_in_order(
    targets: Targets,
) -> None:
    targets["a"].poison = {f'"{"4".ljust(3000)}"'}
    send(20)

    report = relay_partition("default", PARTITION, "a")

    assert report.outcome is Outcome.DONE
    assert targets["a"].ids("orders") == [1, 2, 3, 4, *range(6, 21)]
    assert [letter.eid for letter in DeadLetter.objects.all()] == [5]


def test_error_of_another_kind_is_raised_where_it_is_noticed(targets: Targets) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    targets["a"].before = fail
    send(20)

    with pytest.raises(RuntimeError, match="a bug"):
        relay_partition("default", PARTITION, "a")

    assert Cursor.objects.get(target="a").lease_token == ""
    targets["a"].before = lambda: None
    relay_partition("default", PARTITION, "a")
    assert targets["a"].ids("orders") == list(range(1, 21))


def test_relay_that_lost_its_lease_publishes_no_further_batch(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_numbering(
        monkeypatch, 2, lambda: Cursor.objects.update(lease_token="another's")
    )
    send(20)

    report = relay_partition("default", PARTITION, "a")

    assert report.outcome is Outcome.BUSY
    # The batch that was in flight, at most, and confirmed by nobody.
    assert targets["a"].ids("orders") in ([1, 2, 3], [1, 2, 3, 4, 5, 6])
    assert Cursor.objects.get(target="a").watermark == 0


@pytest.mark.parametrize("error", [OperationalError, KeyboardInterrupt])
def test_lease_is_held_until_the_call_under_way_is_over(
    targets: Targets,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    """Who has the lease next has the target for itself, in this thread as well."""
    is_raised = threading.Event()
    tokens: list[str] = []

    def fail() -> None:
        is_raised.set()
        raise error

    def linger() -> None:
        assert is_raised.wait(30)
        stopped.wait(0.3)
        tokens.append(Cursor.objects.get(target="a").lease_token)
        connections.close_all()

    stopped = threading.Event()
    after_numbering(monkeypatch, 2, fail)
    targets["a"].before = linger
    send(20)

    with pytest.raises(error):
        relay_partition("default", PARTITION, "a")

    assert [token != "" for token in tokens] == [True]
    assert targets["a"].ids("orders") == [1, 2, 3]  # and no second call
    assert Cursor.objects.get(target="a").lease_token == ""


def test_relay_whose_connection_is_cut_goes_on_by_a_new_one(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease of the first attempt would keep away the second, and all others, for 15 s."""

    def cut() -> None:
        mine = connections["default"]
        if mine.vendor == "sqlite":
            raise OperationalError("cut")  # there is no server to do it
        other = connections.create_connection("default")
        with other.cursor() as cursor:
            pid = mine.connection.info.backend_pid
            cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
        other.close()

    after_numbering(monkeypatch, 2, cut)
    send(20)

    report = with_kept_connections(partial(relay_partition, "default", PARTITION, "a"))

    assert report.outcome is Outcome.DONE
    assert list(dict.fromkeys(targets["a"].ids("orders"))) == list(range(1, 21))
    assert Cursor.objects.get(target="a").watermark == 20
    close_kept()


def test_target_that_was_paused_meanwhile_gets_no_further_batch(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_numbering(monkeypatch, 2, lambda: pause("a"))
    send(20)

    report = relay_partition("default", PARTITION, "a")

    assert report.outcome is Outcome.PAUSED
    assert targets["a"].ids("orders") == [1, 2, 3, 4, 5, 6]
    assert Cursor.objects.get(target="a").watermark == 6


def test_event_on_its_way_cannot_be_given_up(targets: Targets) -> None:
    """It would be a dead letter of a target that has accepted it."""
    refusals: list[str] = []

    def give_up_some() -> None:
        if len(targets["a"].batches) == 1:
            keys = list(Event.objects.order_by("pk").values_list("pk", flat=True))
            for key in (
                keys[3],
                keys[8],
            ):  # of this batch's second call, and of the next
                with pytest.raises(CannotGiveUpError) as caught:
                    give_up("default", "a", key, "")
                refusals.append(str(caught.value))
            connections.close_all()

    targets["a"].before = give_up_some
    send(20)

    relay_partition("default", PARTITION, "a")

    assert len(refusals) == 2
    assert "may be on its way to a right now" in refusals[0]
    assert targets["a"].ids("orders") == list(range(1, 21))
    assert not DeadLetter.objects.exists()


def test_thread_ends_with_its_batch(targets: Targets) -> None:
    names: list[str] = []
    targets["a"].before = lambda: names.append(threading.current_thread().name)
    send(20)

    relay_partition("default", PARTITION, "a")

    # The last batch is not full: nothing is to be numbered meanwhile.
    own = threading.current_thread().name
    assert names == ["eventstream-publish"] * 6 + [own]
    assert own not in names[:6]
    alive = [thread.name for thread in threading.enumerate()]
    assert "eventstream-publish" not in alive


class Over(WakeFlag):
    """Its turn is over from the beginning."""

    def is_over(self) -> bool:
        return True

    def hand_on(self) -> bool:
        return True


def test_turn_that_is_over_ends_with_what_is_in_flight(targets: Targets) -> None:
    send(20)

    report = relay_partition("default", PARTITION, "a", flag=Over())

    assert (report.outcome, report.event_count) == (Outcome.MORE, 6)
    assert targets["a"].ids("orders") == list(range(1, 7))
    cursor = Cursor.objects.get(target="a")
    assert (cursor.watermark, cursor.lease_token) == (6, "")
