"""manage.py eventstream … on a real installation: on a terminal, in a pipe, at night."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.postgres import postgres
from tests.support.processes import ROOT, python, wait_for
from tests.support.sse import Stream
from tests.support.stack import Stack, running

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def installation() -> Iterator[Stack]:
    """Everything: web, worker and beat; Pushpin and the bus."""
    with running(with_pushpin=True, beat=True) as stack:
        wait_for(
            lambda: "No sweep" not in command(stack, "status", "--offline")[1],
            "the first sweep has run",
            timeout=60,
        )
        yield stack


def command(stack: Stack, *arguments: str) -> tuple[int, str]:
    """Run a subcommand in a pipe; return its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "manage.py", "eventstream", *arguments],
        cwd=ROOT, env={**os.environ, **stack.env}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def parse(printed: str) -> Any:
    """Return the JSON with which it begins: on a machine that is busy, warnings follow."""
    return json.JSONDecoder().raw_decode(printed)[0]


def on_terminal(stack: Stack, *arguments: str) -> str:
    """Run a subcommand on a pseudo-terminal and return what that shows."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "manage.py", "eventstream", *arguments],
        cwd=ROOT, env={**os.environ, **stack.env, "TERM": "xterm", "COLUMNS": "120"},
        stdin=child, stdout=child, stderr=child, close_fds=True,
    )  # fmt: skip
    os.close(child)
    shown = b""
    while True:
        try:
            chunk = os.read(parent, 65536)
        except OSError:  # Linux' way to say that the other side has closed
            break
        if not chunk:
            break
        shown += chunk
    process.wait()
    os.close(parent)
    return shown.decode()


def test_well_installation_is_seen_to_be_well(installation: Stack) -> None:
    url = f"{installation.url}/events/"

    code, printed = command(installation, "doctor", "--url", url, "--send")

    assert code == 0, printed
    for part in (
        "database",
        "clock",
        "bus",
        "Grip-Sig",
        "broker",
        "sweep",
        "round trip",
    ):
        assert f"OK: {part}" in printed, printed
    assert "comes through a GRIP proxy, whose signature is good" in printed
    assert f"OK: stream: the event came by one of {url} after " in printed
    assert "1 worker for 'eventstream'" in printed


def test_stream_to_which_the_proxy_passes_on_nothing_is_told() -> None:
    """All else is well. A path is cut in front and added by the server, as often."""
    with running(with_pushpin=True, worker=False) as stack:
        assert stack.web is not None
        stack.web.stop()
        stack.start_web(extra=["--root-path", "/shop"])
        stack.start_worker()
        url = f"{stack.url}/events/"

        code, printed = command(stack, "doctor", "--url", url, "--send")

    assert code == 2, printed
    assert "OK: round trip: an event was confirmed" in printed
    assert f"ERROR: stream: the event did not come within 5 s by a stream of {url}" in (
        printed
    )
    assert printed.count("ERROR") == 1


def test_stream_of_other_channels_is_no_fault(installation: Stack) -> None:
    url = f"http://127.0.0.1:{installation.web_port}/fixed/"

    _, printed = command(installation, "doctor", "--url", url, "--send")

    assert f"OK: stream: none was read at {url}: it has no position" in printed


def test_stream_that_is_none_is_told(installation: Stack) -> None:
    url = f"http://127.0.0.1:{installation.web_port}/blank/"

    _, printed = command(installation, "doctor", "--url", url, "--send")

    assert f"ERROR: stream: none could be opened at {url}: " in printed


def test_url_that_passes_the_proxy_by_is_told(installation: Stack) -> None:
    url = f"http://127.0.0.1:{installation.web_port}/events/"

    code, printed = command(installation, "doctor", "--url", url)

    assert code == 1, printed
    assert "did not come through the GRIP proxy" in printed


def test_terminal_has_colours_and_a_pipe_has_none(installation: Stack) -> None:
    installation.send("colours", 1)

    shown = on_terminal(installation, "status", "--offline")
    _, printed = command(installation, "status", "--offline")

    assert "\x1b[" in shown
    assert "\x1b[" not in printed
    assert not any(line != line.rstrip() for line in printed.splitlines())
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    for word in ("target", "waiting", "republish", "dead letters"):
        assert word in plain
        assert word in printed


def test_readers_are_counted(installation: Stack) -> None:
    direct = f"http://127.0.0.1:{installation.web_port}/events/?channel=counted"
    with Stream(direct).open(), Stream(direct).open():

        def count() -> bool:
            _, printed = command(installation, "status", "--offline", "--json")
            return bool(parse(printed)["reader_count"] == 2)

        wait_for(count, "two readers are counted", timeout=60)


def test_tail_shows_events_as_they_come(installation: Stack) -> None:
    with python(
        "manage.py", "eventstream", "tail", "tailed", "--from", "0", "--count", "3",
        env=installation.env,
    ) as tail:  # fmt: skip
        installation.send("tailed", 3)

        assert tail.wait(30) == 0
        assert tail.output() == "".join(
            f"tailed:{n}  message  {n - 1}\n" for n in (1, 2, 3)
        )


def test_night() -> None:
    """The proxy stops; status and undelivered say so; it is paused, mended, resumed."""
    with running(with_pushpin=True, beat=True) as stack:
        live_through_the_night(stack)


def live_through_the_night(installation: Stack) -> None:
    pushpin = installation.pushpin
    assert pushpin is not None
    with Stream(f"{installation.url}/events/?channel=night").open() as stream:
        installation.send("night", 1)
        assert stream.next().id == "night:1"
    wait_for(
        lambda: command(installation, "undelivered")[0] == 0, "the first has arrived"
    )
    pushpin.process.stop()
    installation.send("night", 2)

    def is_seen() -> bool:
        return "failing" in command(installation, "status", "--offline")[1]

    wait_for(is_seen, "the proxy is seen to fail", timeout=60)
    code, printed = command(installation, "status")
    assert code == 2
    assert "ERROR: grip:" in printed
    assert re.search(r"2 events wait for it", printed), printed
    code, printed = command(installation, "undelivered", "--json")
    assert {(row["channel"], row["id"]) for row in parse(printed)} == {
        ("night", "2"),
        ("night", "3"),
    }
    assert "Traceback" not in printed
    assert command(installation, "pause", "grip:", "--reason", "mending")[0] == 0
    code, printed = command(installation, "status")
    assert code == 1, printed
    assert "Paused for" in printed
    assert "(mending)" in printed

    pushpin.start()
    assert command(installation, "resume", "grip:")[0] == 0

    def is_well() -> bool:
        return "Nothing is undelivered" in command(installation, "undelivered")[1]

    wait_for(is_well, "everything has arrived", timeout=60)
    url = f"{installation.url}/events/?channel=night"
    with open_again(url, "night:1") as stream:
        stream.open()
        assert [message.id for message in stream.take(2)] == ["night:2", "night:3"]


def test_relay_delivers_without_celery_and_ends_when_told() -> None:
    with running(with_pushpin=True, worker=False) as stack:
        # A worker's installation, whose worker and beat are gone.
        stack.send("alone", 2)
        assert "it has no id yet" in command(stack, "undelivered")[1]
        relay = python("manage.py", "eventstream", "relay", env=stack.env)
        with relay:
            wait_for(
                lambda: command(stack, "undelivered")[0] == 0,
                "the relay has published",
                timeout=60,
            )
            relay.send_signal(signal.SIGTERM)
            assert relay.wait(15) == 0
        code, printed = command(stack, "status")

    assert code == 2, printed
    assert (
        "ERROR: worker: No worker takes tasks from the queue 'eventstream'" in printed
    )
    assert "Start one: `celery -A tests worker -Q celery,eventstream`" in printed


def test_dead_broker_and_bus_are_told_within_seconds() -> None:
    with running(worker=False) as stack:
        assert stack.valkey is not None
        stack.valkey.process.stop()

        code, printed = command(stack, "doctor")

    assert code == 2, printed
    assert "ERROR: broker: The broker redis://" in printed
    assert "ERROR: bus: does not answer" in printed


def open_again(url: str, last_event_id: str) -> Stream:
    """Open a stream at a proxy that has just been started.

    Pushpin listens before its parts have found each other; what comes then it may close
    after 60 s unanswered: an attempt is given up before, as the browser's client does.
    """

    def attempt() -> Stream | None:
        with contextlib.suppress(http.client.HTTPException, OSError):
            stream = Stream(url, last_event_id=last_event_id, timeout=5)
            if stream.status == 200:
                return stream
            stream.close()
        return None

    return wait_for(attempt, "the stream opens", timeout=60)


@pytest.mark.parametrize("with_pushpin", [False, True], ids=["direct", "pushpin"])
def test_restored_backup_resets_every_old_reader(with_pushpin: bool) -> None:
    with running(with_pushpin=with_pushpin, beat=True) as stack:
        url = f"{stack.url}/events/?channel=orders"
        database = stack.env["ES_SQLITE"]
        stack.send("orders", 3)
        stack.wait_until_numbered("orders", 3)
        stack.run(
            "from django.db import connection as c\n"
            f"c.cursor().execute(\"VACUUM INTO '{database}.backup'\")"
        )
        with Stream(url, last_event_id="orders:0").open() as stream:
            stack.send("orders", 4)
            last = stream.take(7)[-1]
            assert last.id == "orders:7"
        for process in (stack.web, stack.worker, stack.beat):
            assert process is not None
            process.stop()
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(database + suffix):
                os.unlink(database + suffix)
        shutil.move(f"{database}.backup", database)

        code, printed = command(stack, "reset-readers", "--no-input")
        assert code == 0, printed
        stack.start_web()
        stack.start_worker()
        stack.start_beat()
        if stack.pushpin is not None:
            stack.pushpin.process.stop()
            stack.pushpin.start()

        # Without it, 4 … 9 would be given again, and 8 and 9 look like what follows 7.
        stack.send("orders", 6)
        with open_again(url, last.id) as stream:
            stream.open()
            reset = stream.next()
            assert reset.type == "stream-reset"
            assert json.loads(reset.data) == {"channels": ["orders"]}
            place = int(reset.id.rpartition(":")[2])
            assert place > 10**15
            stack.send("orders", 5)
            # What was sent just before may still have come after the reset.
            first = stream.next()
            following = [first, *stream.take(4)]
        ids = [int(message.id.rpartition(":")[2]) for message in following]
        assert ids == list(range(place + 1, place + 6))


def test_proxy_that_is_down_fills_no_log_with_tracebacks() -> None:
    # PostgreSQL, as SQLite on a busy machine may have tracebacks of its own.
    with (
        postgres() as server,
        running(
            with_pushpin=True, beat=True, database_url=server.create_database("storm")
        ) as stack,
    ):
        assert stack.pushpin is not None
        assert stack.worker is not None
        assert stack.web is not None
        worker, web = stack.worker, stack.web
        stack.pushpin.process.stop()
        started = time.monotonic()
        for number in range(60):
            stack.send(f"storm-{number}", 1, data="not-for-logs")

        def failures() -> int:
            return worker.output().count("Publishing partition")

        wait_for(lambda: failures() > 0, "the failure is told", timeout=60)
        time.sleep(10)  # how many lines there are by then is what matters
        count, seconds = failures(), time.monotonic() - started
        output = worker.output() + web.output()

    assert "Traceback" not in output, output[output.index("Traceback") :][:3000]
    assert "not-for-logs" not in output
    # Sixteen partitions that begin together; then one tries at a time, seldom.
    assert count < 40 + seconds


def test_bench_counts_every_event_at_every_client(installation: Stack) -> None:
    code, printed = command(
        installation, "bench-proxy", "--url", f"{installation.url}/events/",
        "--clients", "60", "--events", "100", "--rate", "50", "--json",
    )  # fmt: skip

    assert code == 0, printed
    found = parse(printed)
    assert (found["open_count"], found["deliveries"]) == (60, 6000)
    assert (found["missing"], found["duplicates"], found["disorders"]) == (0, 0, 0)
    assert 0 < found["median_ms"] <= found["p99_ms"] <= found["max_ms"] < 60_000


def test_progress_is_a_bar_on_a_terminal_and_nothing_in_a_pipe(
    installation: Stack,
) -> None:
    arguments = (
        "bench-proxy", "--url", f"{installation.url}/events/",
        "--clients", "3", "--events", "5", "--rate", "0",
    )  # fmt: skip

    shown = on_terminal(installation, *arguments)
    code, printed = command(installation, *arguments)

    assert "━" in shown
    assert "3/3" in shown
    assert "15/15" in shown
    assert shown.rstrip().splitlines()[-1].startswith(" clients' share")
    assert code == 0
    assert printed.splitlines()[0].startswith(
        "5 events to 3 clients on eventstream-bench"
    )
    assert "━" not in printed
    assert "\x1b" not in printed


def test_bench_says_what_a_proxy_does_not_pass_on(installation: Stack) -> None:
    target = "grip:" + installation.env["ES_GRIP"].partition("?")[0].rstrip("/")
    command(installation, "pause", target)
    try:
        code, printed = command(
            installation, "bench-proxy", "--url", f"{installation.url}/events/",
            "--clients", "3", "--events", "2", "--rate", "0", "--patience", "0.5",
        )  # fmt: skip
    finally:
        command(installation, "resume", target)

    assert code == 2
    assert "ERROR: events: 6 deliveries did not come within 0.5 s" in printed


def test_bench_says_why_no_stream_is_opened(installation: Stack) -> None:
    url = f"{installation.url}/events/"
    refused = (
        "--channel",
        "private-1",
    )  # an anonymous reader may not
    for arguments, why in [
        ((url, *refused), "No stream could be opened"),
        ((f"{installation.url}/nothing/",), "404"),
        (("example.com/events",), "give the address of the streams"),
        ((url, "--user", "nobody"), "There is no user 'nobody'"),
    ]:
        code, printed = command(
            installation, "bench-proxy", "--clients", "1", "--events", "1",
            "--url", *arguments,
        )  # fmt: skip
        assert (code, why in printed) == (1, True), printed
