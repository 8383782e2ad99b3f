"""What is told of broker and workers, whatever the project's Celery settings are."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, current_app
from django.db.models.functions import Now
from pytest_django import Settings

from eventstream import jobs, send_event
from eventstream.dispatch import DispatchStatus
from eventstream.models import Job
from eventstream.status import get_status
from eventstream_tasks import broker, waking
from eventstream_tasks.dispatch import flush
from tests.integration.test_console import run
from tests.support.valkey import Valkey

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def use(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return what makes a URL the broker's."""

    def set_broker(url: str) -> None:
        settings.EVENTSTREAM_DISPATCHER = "eventstream_tasks.dispatch.CeleryDispatcher"
        monkeypatch.setattr(current_app.conf, "broker_url", url)
        monkeypatch.setattr(current_app.conf, "broker_write_url", url)
        # Celery keeps a pool of the first broker that something was published to.
        monkeypatch.setattr(current_app.amqp, "_producer_pool", None)

    return set_broker


def change(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    changes = current_app.conf.changes
    assert changes is not None
    monkeypatch.setitem(changes, name, value)


def ask() -> DispatchStatus:
    return get_status(ask=True).wake_ups


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("reddis://127.0.0.1/0", "KeyError: 'No such transport: reddis"),
        ("redis://127.0.0.1:six/0", "OperationalError: CELERY_BROKER_URL has no"),
        ("sentinel://127.0.0.1:1", "ValueError: 'master_name'"),
    ],
)
def test_broker_that_cannot_be_is_told(
    use: Callable[[str], None], url: str, error: str
) -> None:
    use(url)

    (first, *_) = get_status(ask=True).findings

    assert first.subject == "broker"
    assert f"takes no tasks: {error}" in first.text
    assert "mend CELERY_BROKER_URL" in first.hint


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hidden/part@127.0.0.1:1/0",
        "amqp://user:hidden#part@127.0.0.1:1//",
        "sentinel://:a@127.0.0.1:1;sentinel://:hidden/part@127.0.0.1:2",
    ],
)
def test_password_of_a_broker_is_not_shown(
    use: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    url: str,
) -> None:
    monkeypatch.setattr(broker, "circuit", broker.Circuit())
    monkeypatch.setattr(waking, "_wakers", {})  # a thread that has no connection yet
    use(url)

    (first, *_) = get_status(ask=True).findings
    send_event("orders", "message", 1)
    assert flush(10)

    assert "in a password, write / as %2F" in first.text
    assert "in a password, write / as %2F" in caplog.text
    assert "hidden" not in first.text + caplog.text


@pytest.mark.parametrize(
    "url",
    [
        ["redis://127.0.0.1:1"],
        "mongodb://user:password@127.0.0.1:1,127.0.0.1:2/db",
        "redis://127.0.0.1:1/0;redis://127.0.0.1:2/0",
    ],
)
def test_address_of_a_broker_may_be_a_list(url: Any) -> None:
    with Celery(broker=url, set_as_current=False) as app:
        assert "127.0.0.1:1" in broker._broker_url(app)


def test_broker_that_refuses_is_not_said_to_be_mute(use: Callable[[str], None]) -> None:
    with Valkey() as valkey:
        use(valkey.url)
        valkey.client.config_set("maxmemory", "1")
        first = get_status(ask=True).findings[0]

    assert "takes no tasks: OutOfMemoryError: command not allowed" in first.text
    assert first.hint.startswith("Start or mend it")


def test_workers_that_answer_nobody_are_not_missed(
    use: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use("memory://")
    assert ask().worker_count == 0

    change(monkeypatch, "worker_enable_remote_control", False)

    assert ask().worker_count is None


def test_tasks_that_wait_are_counted_whatever_their_priority(
    use: Callable[[str], None],
) -> None:
    with Valkey() as valkey:
        use(valkey.url)
        assert ask().waiting_count == 0
        # As kombu names the lists of a queue.
        for name in ("eventstream", "eventstream\x06\x169"):
            valkey.client.lpush(name, "{}")

        assert ask().waiting_count == 2


def test_beat_is_to_read_its_tables_and_a_worker_all_queues(
    use: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use("memory://")
    change(monkeypatch, "task_default_queue", "all")

    found = ask()

    assert found.start_beat == f"celery -A {current_app.main} beat -S django"
    assert found.start_worker == (
        f"celery -A {current_app.main} worker -Q all,eventstream"
    )


def test_eager_tasks_miss_neither_broker_nor_worker(
    use: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use("redis://127.0.0.1:1/0")
    change(monkeypatch, "task_always_eager", True)

    assert get_status(ask=True).findings == []


def test_sweep_that_waits_for_the_broker_is_not_well(
    use: Callable[[str], None],
) -> None:
    jobs.republish("default")
    at = Now() - datetime.timedelta(minutes=10)
    Job.objects.update(started_at=at, finished_at=at)
    use("redis://127.0.0.1:1/0")

    printed = run("doctor", code=2)

    assert "takes no tasks" in printed
    assert "no sweep has run for 10 min." in printed
    assert "OK: sweep" not in printed
