"""manage.py eventstream …, in a pipe: what it prints, changes and exits with."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, connections
from django.db.models.functions import Now
from pytest_django import Settings

from eventstream import EventSpec, jobs, send_event, send_events
from eventstream.console import delivery
from eventstream.console.screen import Screen
from eventstream.management.commands.eventstream import Command
from eventstream.models import Cursor, DeadLetter, Event, EventKind, Job, PausedTarget
from eventstream.relay import relay_all
from eventstream.rows import partition_of
from eventstream.status import Status, get_status
from eventstream.storage import get_storage
from eventstream.targets import get_targets
from tests.integration.test_relay import ago
from tests.support.processes import ROOT
from tests.support.targets import RecordingTarget

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("targets"),
]

Targets = dict[str, RecordingTarget]


def run(*arguments: str, code: int = 0, out: io.StringIO | None = None) -> str:
    """Run a subcommand and return what it printed."""
    out = out or io.StringIO()
    with contextlib.ExitStack() as stack:
        if code:
            ended = stack.enter_context(pytest.raises(SystemExit))
        call_command("eventstream", *arguments, stdout=out)
    assert not code or ended.value.code == code, out.getvalue()
    return out.getvalue()


@contextlib.contextmanager
def in_a_pipe(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a subcommand as a process of its own, with the tests' database."""
    name = str(connection.settings_dict["NAME"])
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    env.pop("PYTHONUNBUFFERED", None)
    if connection.vendor == "sqlite":
        env |= {"ES_SQLITE": name, "ES_DB": ""}
    else:
        env["ES_DB"] = f"{os.environ['ES_DB'].rpartition('/')[0]}/{name}"
    with subprocess.Popen(
        [sys.executable, "manage.py", "eventstream", *arguments],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def later(*calls: Callable[[], object]) -> threading.Timer:
    """Have this done in a moment, by another thread with a connection of its own."""

    def work() -> None:
        for call in calls:
            call()
        connections.close_all()

    timer = threading.Timer(0.3, work)
    timer.start()
    return timer


def send(count: int, channel: str = "orders") -> None:
    send_events([EventSpec(channel, "message", n) for n in range(count)])


# --- status


def test_status_says_what_is_wrong_first_and_what_to_do(targets: Targets) -> None:
    targets["a"].is_down = True
    send(3)
    jobs.republish("default")

    lines = run("status", code=2).splitlines()

    assert lines[0].endswith(": ERROR")
    assert lines[1].startswith("ERROR: a: Failing")
    assert lines[1].endswith("Its answer: a is down")
    assert "eventstream republish --target a" in lines[2]
    (row,) = [line for line in lines if line.startswith("a ")]
    assert row.split()[:3] == ["a", "failing", "3"]


def test_status_exits_with_0_when_all_is_well() -> None:
    send(1)
    jobs.republish("default")

    assert run("status").splitlines()[1] == "Every event has reached every target."


def test_success_during_the_look_is_no_negative_time_ago() -> None:
    send(1)
    jobs.republish("default")
    Cursor.objects.update(confirmed_at=Now() + ago(5))

    (row,) = [line for line in run("status").splitlines() if line.startswith("a ")]

    assert "0 ms ago" in row


def test_status_as_json_is_one_document() -> None:
    send(2)
    jobs.republish("default")

    found = json.loads(run("status", "--json", "--offline"))

    assert (found["level"], found["event_count"]) == ("ok", 2)
    assert [target["confirmed_count"] for target in found["targets"]] == [2, 2]


def test_status_exits_with_1_for_a_warning(targets: Targets) -> None:
    send(1)
    jobs.republish("default")
    run("pause", "a", "--reason", "new certificate")

    assert "WARNING: a: Paused for" in run("status", code=1)


def test_watched_status_outlives_a_database_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[str] = []

    def look(using: str, *, ask: bool) -> Status:
        looks.append(using)
        if len(looks) == 2:
            raise OperationalError("no route to it")
        return get_status(using)

    def wait(seconds: float) -> None:
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("eventstream.console.overview.get_status", look)
    monkeypatch.setattr("eventstream.console.overview.time.sleep", wait)

    lines = run("status", "--watch", "1", code=130).splitlines()

    told = [n for n, line in enumerate(lines) if line.endswith("no route to it")]
    heads = [n for n, line in enumerate(lines) if line.startswith("eventstream at ")]
    assert heads[0] < told[0] < heads[1]
    assert lines[told[0]].startswith("ERROR: database: The database does not answer")


def test_database_that_answers_with_a_refusal_is_not_said_to_be_mute(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OperationalError("database or disk is full")

    monkeypatch.setattr("eventstream.pausing.pause", refuse)

    with pytest.raises(
        CommandError, match=r"or refused what was asked: .* disk is full$"
    ) as error:
        run("pause", "a")

    assert error.value.returncode == 3


# --- send, tail, undelivered


def test_sent_event_is_followed_until_it_is_confirmed(targets: Targets) -> None:
    relays = later(partial(relay_all, "default"))

    printed = run("send", "orders", '{"number": 17}', "--type", "order")
    relays.join()

    assert printed == "orders:1 is confirmed.\n"
    assert targets["a"].received == [("orders", 1, '{"number": 17}')]
    assert Event.objects.get().type == "order"


def test_event_that_nobody_relays_is_told_and_exits_with_1() -> None:
    printed = run("send", "orders", "as it is", "--text", "--wait", "0", code=1)

    assert printed.startswith("The event on orders is stored, and has no id yet.")
    assert Event.objects.get().data == "as it is"


def test_event_that_a_target_refuses_is_told_as_refused(targets: Targets) -> None:
    targets["a"].poison = {"1"}
    relays = later(partial(relay_all, "default"))

    printed = run("send", "orders", "1", code=1)
    relays.join()

    assert printed.splitlines() == [
        "orders:1 is dead.",
        "ERROR: event: a target refused it for good; readers get it from the log.",
        "    `python manage.py eventstream undelivered --dead` says which, and why.",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["orders", "{oops"], "is not JSON"), (["", "1"], "channel must not be empty")],
)
def test_what_cannot_be_sent_is_a_clear_error(
    arguments: list[str], message: str
) -> None:
    with pytest.raises(CommandError, match=message):
        run("send", *arguments)
    assert not Event.objects.exists()


def test_examples_of_help_are_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call_command("eventstream", "send", "--help")
    examples = capsys.readouterr().out.partition("examples:\n")[2].splitlines()

    # A shell takes away what is behind <.
    lines = [shlex.split(line.partition("<")[0]) for line in examples if line]
    assert len(lines) == 3
    for line in lines:
        assert line[:3] == ["python", "manage.py", "eventstream"]
        parser = Command().create_parser("manage.py", "eventstream")
        assert parser.parse_args(line[3:]).subcommand == "send"


def test_tail_begins_where_it_is_told() -> None:
    send(4)
    relay_all("default")

    printed = run("tail", "orders", "--from", "2", "--count", "2")

    assert printed == "orders:3  message  2\norders:4  message  3\n"


def test_tail_tells_a_position_that_a_client_could_not_resume() -> None:
    send(2)
    relay_all("default")
    sender = later(partial(send, 1), partial(relay_all, "default"))

    printed = run("tail", "orders", "--from", "9", "--count", "1", "--json")
    sender.join()

    assert "9 is not in the log: a client would get a stream-reset" in printed
    last = json.loads(printed.splitlines()[-1])
    assert last == {"id": 3, "type": "message", "data": "0"}


def test_tail_shows_an_event_as_one_line_that_no_terminal_obeys() -> None:
    """Its data are whatever somebody has sent."""
    data = "a\x1b]0;title\x07\x9b2J\r\norders:2  message  forged"
    send_event("orders", "message", data, json_encode=False)
    relay_all("default")

    printed = run("tail", "orders", "--from", "0", "--count", "1")
    as_json = run("tail", "orders", "--from", "0", "--count", "1", "--json")

    shown = r"a\u001b]0;title\u0007\u009b2J\u000d\norders:2  message  forged"
    assert printed == f"orders:1  message  {shown}\n"
    assert as_json.removesuffix("\n").isprintable()
    assert json.loads(as_json)["data"] == data


@pytest.mark.parametrize("command", ["undelivered", "status --offline"])
def test_error_of_a_target_is_shown_and_not_obeyed(
    targets: Targets, command: str
) -> None:
    """What has answered there may be anything."""
    send(1)
    relay_all("default")
    Cursor.objects.filter(target="a").update(
        watermark=0, attempts=1, failing_since=Now(), last_error="503: \x1b[2J gone"
    )

    printed = run(*command.split(), code=1 if command == "undelivered" else 2)

    assert r"503: \u001b[2J gone" in printed


def test_undelivered_names_event_target_and_reason_and_no_data(
    targets: Targets,
) -> None:
    targets["a"].is_down = True
    send_event("orders", "message", "secret")
    relay_all("default")
    send_event("orders", "message", "secret")

    printed = run("undelivered", code=1)

    header, first, second, other = printed.splitlines()
    assert header.split() == [
        "event", "channel", "id", "target", "since", "age", "attempts", "why",
    ]  # fmt: skip
    assert first.endswith("a is down")
    assert first.split()[1:4] == ["orders", "1", "a"]
    assert second.endswith("a is down")
    assert other.endswith("it has no id yet: no relay has come by")
    assert "secret" not in printed


def test_event_that_waits_for_another_partitions_attempt_says_why(
    targets: Targets,
) -> None:
    """Of the only target: it has no id yet, as nobody else has given it one."""
    del targets["b"]
    targets["a"].is_down = True
    for number in range(5):
        send(1, f"room-{number}")
    relay_all("default")
    assert Event.objects.filter(position=None).exists()

    rows = json.loads(run("undelivered", "--json", code=1))

    assert {row["why"] for row in rows} == {"a is down"}


def test_times_are_the_projects(targets: Targets, settings: Settings) -> None:
    send(1)
    at = datetime.datetime(2026, 1, 5, 20, 30, tzinfo=datetime.UTC)
    Event.objects.update(created=at)
    run("pause", "a")
    PausedTarget.objects.update(since=at)
    settings.TIME_ZONE = "Asia/Kathmandu"

    head = run("status", code=2).splitlines()[0]
    rows = run("undelivered", code=1)
    (row, _) = json.loads(run("undelivered", "--json", code=1))

    assert head.endswith(" +0545: ERROR")
    assert "a       2026-01-06 02:15:00" in rows
    assert "a is paused since 2026-01-06 02:15:00" in rows
    assert datetime.datetime.fromisoformat(row["since"]) == at


def test_undelivered_is_limited_for_each_target(targets: Targets) -> None:
    targets["a"].is_down = targets["b"].is_down = True
    send(10)
    relay_all("default")

    found = json.loads(run("undelivered", "--limit", "3", "--json", code=1))

    assert [(row["target"], row["id"]) for row in found] == [
        ("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("b", "2"), ("b", "3"),
    ]  # fmt: skip


@pytest.mark.parametrize(("limit", "has_more"), [("9", True), ("10", False)])
def test_more_is_promised_where_there_is_more(
    targets: Targets, limit: str, has_more: bool
) -> None:
    targets["a"].is_down = targets["b"].is_down = True
    send(10)
    relay_all("default")

    printed = run("undelivered", "--limit", limit, code=1)

    assert ("more with --limit" in printed) is has_more


def test_paused_target_is_the_reason_that_is_given() -> None:
    send(1)
    run("pause", "a", "--reason", "new certificate")
    relay_all("default")

    assert run("undelivered", code=1).rstrip().endswith("new certificate")


def test_kicks_and_dead_letters_are_listed(targets: Targets) -> None:
    targets["a"].poison = {"1"}
    targets["b"].is_down = True
    Event.objects.create(
        partition=partition_of("orders"), kind=EventKind.KICK, channel="orders",
        type="kick", data="5",
    )  # fmt: skip
    send(2)
    relay_all("default")

    assert "orders (kick)" in run("undelivered", code=1)
    assert "bad content" in run("undelivered", "--dead", code=1)
    DeadLetter.objects.all().delete()
    assert run("undelivered", "--dead") == "No dead letters.\n"


# --- republish, relay, prune


def test_republish_does_not_wait_until_it_is_due(targets: Targets) -> None:
    targets["a"].is_down = True
    send(2)
    relay_all("default")
    targets["a"].is_down = False
    Cursor.objects.update(next_attempt=Now() + ago(600))

    printed = run("republish", "--target", "a")

    assert targets["a"].ids("orders") == [1, 2]
    assert printed.splitlines()[1].split()[:2] == ["a", "2"]
    assert run("republish") == "Nothing was waiting.\n"


def test_republish_says_why_it_failed(targets: Targets) -> None:
    targets["a"].is_down = True
    send(1)

    assert "a is down" in run("republish", code=2)
    assert targets["b"].ids("orders") == [1]


def test_republish_does_not_wait_for_a_target_in_each_partition(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs takes seven seconds each time."""
    monkeypatch.setattr(delivery, "FAILING_SECONDS", 0)
    targets["a"].is_down = True
    for number in range(8):
        send(1, f"room-{number}")

    rows = run("republish", code=2).splitlines()

    assert Cursor.objects.filter(attempts__gt=0).count() == 1
    assert rows[1].endswith("a is down; the last were not tried, as it took too long")
    assert rows[2].split()[:2] == ["b", "8"]


def test_republish_says_that_a_target_is_paused_and_that_events_wait(
    targets: Targets,
) -> None:
    run("pause", "a", "--reason", "new certificate")
    send(1)

    lines = run("republish", code=2).splitlines()

    assert lines[1].split()[:2] == ["b", "1"]
    assert lines[2] == (
        "ERROR: a: paused (new certificate), so nothing was published; events wait for it."
    )
    assert "eventstream resume a" in lines[3]
    assert targets["a"].received == []
    assert run("republish", "--target", "a", code=2).splitlines() == lines[2:]
    assert run("republish", "--target", "b") == "Nothing was waiting.\n"


def test_republish_to_a_paused_target_that_lacks_nothing_is_a_warning() -> None:
    run("pause", "a")

    printed = run("republish", "--target", "a")

    assert printed.startswith("WARNING: a: paused, so nothing was published; nothing")
    assert run("republish") == "Nothing was waiting.\n"


def test_relay_once_is_one_sweep(targets: Targets) -> None:
    send(2)

    printed = run("relay", "--once")

    assert printed == "default: 4 events, 2 partitions behind, 0 failed\n"
    assert targets["b"].ids("orders") == [1, 2]
    assert Job.objects.get(name="republish").finished_at is not None


def test_relay_goes_on_and_prunes_until_it_is_stopped(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            send(1)
            waits.append(timeout or 0)
            return len(waits) == 3

    monkeypatch.setattr("eventstream.console.delivery.threading.Event", Stop)

    delivery.run_relay(Screen(io.StringIO()), interval=0.5, once=False)

    assert [0 < seconds <= 0.5 for seconds in waits] == [True] * 3
    assert targets["a"].ids("orders") == [1, 2]
    assert Job.objects.get(name="prune").finished_at is not None


def test_relay_leaves_signals_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]

    run("relay", "--once")
    assert [signal.getsignal(number) for number in numbers] == before

    end = partial(os.kill, os.getpid(), signal.SIGTERM)
    monkeypatch.setattr("eventstream.jobs.prune", lambda _: end())
    run("relay")
    assert [signal.getsignal(number) for number in numbers] == before


def test_prune_can_be_tried_dry() -> None:
    send(5)
    relay_all("default")
    Event.objects.filter(eid__lte=3).update(created=Now() - ago(90_000))

    assert run("prune", "--dry-run") == "default: 3 events would be deleted.\n"
    assert Event.objects.count() == 5
    assert run("prune") == "default: 3 events deleted.\n"
    assert Event.objects.count() == 2


# --- pause, resume


def test_target_is_paused_by_a_part_of_its_name(targets: Targets) -> None:
    targets["grip:http://one:5561"] = RecordingTarget("grip:http://one:5561")
    targets["grip:http://two:5561"] = RecordingTarget("grip:http://two:5561")

    printed = run("pause", "two", "--reason", "new certificate")

    assert PausedTarget.objects.get().name == "grip:http://two:5561"
    assert "eventstream resume grip:http://two:5561" in printed
    assert "was paused already" in run("pause", "two")
    assert "is resumed" in run("resume", "two")
    assert "was not paused" in run("resume", "two")
    with pytest.raises(CommandError, match="means several targets"):
        run("pause", "5561")
    with pytest.raises(CommandError, match="is not a target; the settings have: a, b"):
        run("pause", "three")


# --- the rest


def test_readers_are_only_reset_by_who_means_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send(2)
    relay_all("default")
    monkeypatch.setattr("builtins.input", lambda _: "n")

    with pytest.raises(CommandError, match="Nothing was changed"):
        run("reset-readers")
    assert get_storage().current_ids("default", ["orders"]) == {"orders": 2}

    assert "1 channel;" in run("reset-readers", "--no-input")
    assert get_storage().current_ids("default", ["orders"])["orders"] > 10**15


def test_readers_are_not_reset_where_nobody_can_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())

    with pytest.raises(CommandError, match=r"Nothing was changed: .* --no-input"):
        run("reset-readers")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("status --watch -1", "--watch: must be 0.1 to 86,400"),
        ("status --watch nan", "--watch: must be 0.1 to 86,400"),
        ("send orders 1 --wait nan", "--wait: must be 0 to 86,400"),
        ("tail orders --from -1", "--from: must be 0 to 9,223,372,036,854,775,807"),
        (f"tail orders --from 1{'0' * 23}", "--from: must be 0 to"),
        ("tail orders --count 0", "--count: must be 1 to"),
        ("undelivered --limit 0", "--limit: must be 1 to 100,000"),
        ("undelivered --limit -5", "--limit: must be 1 to 100,000"),
        ("undelivered --limit all", "--limit: must be a whole number"),
        ("relay --interval 0", "--interval: must be 0.01 to 3,600"),
        ("relay --interval -1", "--interval: must be 0.01 to 3,600"),
        ("relay --interval often", "--interval: must be a number"),
        ("bench-proxy --seconds 0", "--seconds: must be 0.01 to 3,600"),
        ("bench-proxy --rate -1", "--rate: must be 0 to 1,000,000"),
    ],
)
def test_number_out_of_its_limits_is_an_error(command: str, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        run(*command.split())


@pytest.mark.parametrize("command", ["status --json --offline", "tail orders --from 0"])
def test_command_ends_without_a_traceback_when_nobody_reads_on(command: str) -> None:
    send(3)
    relay_all("default")

    with in_a_pipe(*command.split()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()

    assert (process.returncode, errors) == (141, "")


def test_tail_shows_a_pipe_each_event_at_once() -> None:
    send(1)
    relay_all("default")

    with in_a_pipe("tail", "orders", "--from", "0") as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 30)[0]
        assert process.stdout.readline() == "orders:1  message  0\n"
        process.kill()


def test_bench_measures_each_size_of_batch(targets: Targets) -> None:
    printed = run("bench-proxy", "a", "--seconds", "0.01")

    assert [line.split()[1] for line in printed.splitlines()[1:]] == [
        "1", "10", "100", "1,000",
    ]  # fmt: skip
    assert not any(channel == "orders" for channel, _, _ in targets["a"].received)


def test_unknown_database_is_told(settings: Settings) -> None:
    with pytest.raises(CommandError, match="'other' has no outbox"):
        run("undelivered", "--using", "other")


def test_doctor_finds_nothing_where_all_is_well() -> None:
    send(1)
    jobs.republish("default")

    printed = run("doctor")

    assert printed.splitlines()[-1] == "All is well."
    assert "OK: a: takes what is published" in printed


def test_doctor_says_how_to_mend_settings_and_targets(
    targets: Targets, settings: Settings
) -> None:
    settings.EVENTSTREAM_BATCH_BYTES = 20_000
    targets["a"].is_down = True

    printed = run("doctor", code=2)

    assert "WARNING: settings: EVENTSTREAM_BATCH_BYTES is less than twice" in printed
    assert "ERROR: a: Failing; nothing waits for it. Its answer: a is down" in printed
    assert printed.splitlines()[-1] == "Something is broken; see the errors."


def test_doctor_takes_best_effort_for_a_pass(settings: Settings) -> None:
    settings.EVENTSTREAM_STORAGE_CLASS = None
    jobs.republish("default")

    printed = run("doctor", "--send")

    assert "OK: round trip: an event was sent, best effort" in printed
    assert printed.splitlines()[-1] == "All is well."


class Everything(set[str]):
    def __contains__(self, data: object) -> bool:
        return data != ""  # that of the probe


def test_doctor_says_that_a_target_refuses_its_event(targets: Targets) -> None:
    targets["a"].poison = Everything()
    relays = later(partial(relay_all, "default"))

    printed = run("doctor", "--send", code=2)
    relays.join()

    assert "ERROR: round trip: a target refused an event for good." in printed


def test_doctor_finds_keys_that_do_not_match(settings: Settings) -> None:
    key = "tests-only-0123456789-0123456789-0123456789"
    settings.GRIP_PROXIES = [
        {"control_uri": "http://127.0.0.1:1/", "key": key, "verify_key": "x" * 40}
    ]

    printed = run("doctor", code=2)

    assert "ERROR: Grip-Sig of http://127.0.0.1:1/: what is signed" in printed
    # With a password for whatever is in front of it, which is not shown.
    settings.GRIP_PROXIES = [{"control_uri": "http://u:p@127.0.0.1:1/", "key": key}]
    assert "OK: Grip-Sig of http://127.0.0.1:1/" in run("doctor", code=1)


def test_doctor_cannot_sign_for_a_proxy_with_a_key_pair(settings: Settings) -> None:
    pem = b"-----BEGIN PUBLIC KEY-----"
    settings.GRIP_PROXIES = [
        {"control_uri": "http://127.0.0.1:1", "key": "k" * 32, "verify_key": pem}
    ]
    settings.SILENCED_SYSTEM_CHECKS = ["eventstream.E023"]

    printed = run("doctor", code=1)

    assert "OK: Grip-Sig of http://127.0.0.1:1: is checked with a public key" in printed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EVENTSTREAM_DATABASES", []),
        ("EVENTSTREAM_DATABASES", ["nope"]),
        ("EVENTSTREAM_REDIS", "redis://localhost:abc/0"),
        ("EVENTSTREAM_DISPATCHER", "eventstream.conf.SETTINGS"),
        ("GRIP_PROXIES", [{"control_url": "http://127.0.0.1:5561"}]),
    ],
)
def test_setting_that_cannot_be_is_told_by_commands(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    for module in ("eventstream.console.events", "eventstream.console.doctor"):
        monkeypatch.setattr(f"{module}.get_targets", get_targets)
    monkeypatch.setattr("eventstream.status.survey.get_targets", get_targets)
    setattr(settings, name, value)

    for command in (["status"], ["undelivered"], ["republish", "--target", "a"]):
        with pytest.raises(CommandError, match=f"^{name} .*manage.py check") as ended:
            run(*command)
        assert ended.value.returncode == 3
    lines = run("doctor", code=2).splitlines()
    assert lines[0].startswith(f"ERROR: settings: {name} ")
    assert [line for line in lines if line.startswith("ERROR")] == lines[:1]
    assert lines[-1] == "Something is broken; see the errors."
