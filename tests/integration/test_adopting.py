"""Come from django-eventstream: the real one writes its tables, ours takes them over."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.db.models.functions import Now
from django.utils import timezone
from pytest_django import Settings

from eventstream import adopting, get_current_event_id, jobs, send_event
from eventstream.adopting import Adoption, adopt
from eventstream.exceptions import AdoptionError
from eventstream.models import Channel, Cursor, Event, Partition
from eventstream.reading import Reader, read_page
from eventstream.relay import relay_all
from eventstream.rows import partition_of
from eventstream.storage import get_storage
from eventstream.testing import drain_outbox
from tests.support.processes import ROOT
from tests.support.sse import Message, Parser
from tests.support.targets import RecordingTarget

pytestmark = pytest.mark.django_db(transaction=True)


_PEER = """
import json, sys
import django
django.setup()
from django.core.management import call_command
from django.db import connections
from django_eventstream import send_event
for line in sys.stdin:
    channel, first, count = json.loads(line)
    if channel is None:
        call_command("migrate", "django_eventstream", verbosity=0)
    else:
        for n in range(first, first + count):
            send_event(channel, "message", {"n": n})
    connections.close_all()
    print("done", flush=True)
"""


class Peer:
    """django-eventstream, in a process of its own, on this test's database."""

    def __init__(self) -> None:
        name = str(connection.settings_dict["NAME"])
        env = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.peer_settings"}
        if connection.vendor == "sqlite":
            env |= {"ES_SQLITE": name, "ES_DB": ""}
        else:
            env["ES_DB"] = f"{os.environ['ES_DB'].rpartition('/')[0]}/{name}"
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _PEER],
            cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def migrate(self) -> None:
        self._call(None, 0, 0)

    def send(self, channel: str, count: int, start: int = 1) -> None:
        """Send {"n": start}, … by its send_event."""
        self._call(channel, start, count)

    def _call(self, *request: object) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        assert stdout.readline() == "done\n"

    def close(self) -> None:
        self._process.communicate(timeout=30)


@pytest.fixture(scope="module")
def process(django_db_setup: None) -> Iterator[Peer]:
    found = Peer()
    yield found
    found.close()


@pytest.fixture
def peer(settings: Settings, process: Peer) -> Iterator[Peer]:
    settings.EVENTSTREAM_DISPATCHER = "tests.support.targets.IdleDispatcher"
    process.migrate()
    yield process
    with connections["default"].cursor() as cursor:
        cursor.execute("DROP TABLE django_eventstream_event")
        cursor.execute("DROP TABLE django_eventstream_eventcounter")
        cursor.execute("DELETE FROM django_migrations WHERE app = 'django_eventstream'")


def run() -> Adoption:
    found = Adoption()
    for found in adopt("default"):  # noqa: B007
        pass
    return found


def resume(channel: str, position: int) -> list[Message]:
    """Come back with an id of the old server."""
    reader = Reader((channel,), "", {channel: position})
    return Parser().feed(read_page(reader).text.encode())


def numbers(messages: list[Message]) -> list[tuple[str, int]]:
    return [(m.id, json.loads(m.data)["n"]) for m in messages]


def test_client_resumes_with_its_old_id_and_misses_nothing(peer: Peer) -> None:
    peer.send("chan", 14)

    assert run().event_count == 14
    send_event("chan", "message", {"n": 15})
    drain_outbox()

    assert numbers(resume("chan", 12)) == [
        ("chan:13", 13),
        ("chan:14", 14),
        ("chan:15", 15),
    ]
    assert numbers(resume("chan", 0))[0] == ("chan:1", 1)
    assert get_current_event_id(["chan"]) == "chan:15"


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
def test_times_without_a_zone_are_those_of_the_project(
    peer: Peer, settings: Settings, zone: str
) -> None:
    settings.USE_TZ = False
    settings.TIME_ZONE = zone
    peer.send("chan", 2)
    adopting._Stored._default_manager.update(created=timezone.now())

    found = run()
    again = run()

    assert (found.event_count, again.event_count, again.conflicts) == (2, 0, [])
    for created in Event.objects.values_list("created", flat=True):
        assert abs(time.time() - created.timestamp()) < 60


def test_what_is_sent_while_the_old_one_serves_is_added_by_the_next_run(
    peer: Peer,
) -> None:
    peer.send("chan", 3)
    run()
    peer.send("chan", 2, start=4)
    peer.send("new/é", 1)

    assert run().event_count == 3
    assert run().event_count == 0

    assert [m.id for m in resume("chan", 2)] == ["chan:3", "chan:4", "chan:5"]
    assert numbers(resume("new/é", 0)) == [("new%2F%C3%A9:1", 1)]


def test_run_that_is_interrupted_goes_on_where_it_was(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopting, "BATCH", 2)
    peer.send("chan", 5)
    storage, calls = type(get_storage()), 0
    original = storage.adopt

    def dying(*args: object, **kwargs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        original(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(storage, "adopt", dying)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert Channel.objects.get(name="chan").last_eid == 2

    assert run().event_count == 3
    assert numbers(resume("chan", 0)) == [(f"chan:{n}", n) for n in range(1, 6)]


def test_client_further_back_than_what_was_kept_is_reset(peer: Peer) -> None:
    peer.send("chan", 5)
    peer.send("old", 5)
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM django_eventstream_event "
            "WHERE (channel = 'chan' AND eid = 3) OR channel = 'old'"
        )

    run()

    assert [m.id for m in resume("chan", 3)] == ["chan:4", "chan:5"]
    assert [m.type for m in resume("chan", 2)] == ["stream-reset"]
    assert [m.type for m in resume("old", 4)] == ["stream-reset"]
    assert resume("old", 5) == []
    send_event("old", "message", {"n": 6})
    drain_outbox()
    assert numbers(resume("old", 5)) == [("old:6", 6)]


def test_hole_since_the_last_run_is_no_hole_here(peer: Peer) -> None:
    peer.send("chan", 2)
    run()
    peer.send("chan", 4, start=3)
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_eventstream_event WHERE eid BETWEEN 1 AND 3")

    assert run().event_count == 3

    assert [m.id for m in resume("chan", 3)] == ["chan:4", "chan:5", "chan:6"]
    assert [m.type for m in resume("chan", 1)] == ["stream-reset"]


@pytest.mark.parametrize(
    ("trimmed", "kept"), [("3", [4, 5, 6]), ("3, 4, 5", [6]), ("4", [5, 6]), ("3, 4, 5, 6", [])]
)  # fmt: skip
def test_what_the_old_one_deletes_meanwhile_makes_no_hole(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, trimmed: str, kept: list[int]
) -> None:
    """It deletes what is old whenever it sends, and it serves while this runs."""
    monkeypatch.setattr(adopting, "BATCH", 2)
    peer.send("chan", 6)
    storage = type(get_storage())
    original = storage.adopt

    def adopt_and_trim(*args: object, **kwargs: object) -> object:
        found = original(*args, **kwargs)  # type: ignore[arg-type]
        with connection.cursor() as cursor:
            cursor.execute(
                f"DELETE FROM django_eventstream_event WHERE eid IN ({trimmed})"
            )
        return found

    monkeypatch.setattr(storage, "adopt", adopt_and_trim)
    run()

    assert Channel.objects.get(name="chan").last_eid == 6
    assert list(Event.objects.order_by("eid").values_list("eid", flat=True)) == kept
    assert [m.type for m in resume("chan", 1)] == ["stream-reset"]


def test_events_are_as_old_as_they_were(peer: Peer) -> None:
    peer.send("chan", 3)
    with connection.cursor() as cursor:
        old = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=2)
        cursor.execute(
            "UPDATE django_eventstream_event SET created = %s WHERE eid < 3", [old]
        )
    run()

    jobs.prune("default")

    assert list(Event.objects.values_list("eid", flat=True)) == [3]


def test_targets_are_not_sent_what_the_old_one_has_published(
    peer: Peer, targets: dict[str, RecordingTarget]
) -> None:
    send_event("chan2", "message", {"n": 1})
    relay_all("default")
    partition = partition_of("chan2")
    before = len(targets["a"].received)
    peer.send("chan2x", 1)
    with connection.cursor() as cursor:  # into the same partition
        for table, column in (("event", "channel"), ("eventcounter", "name")):
            cursor.execute(
                f"UPDATE django_eventstream_{table} SET {column} = %s",
                [_other_of(partition)],
            )
    run()
    relay_all("default")

    assert len(targets["a"].received) == before
    head = Partition.objects.get(number=partition).last_position
    marks = Cursor.objects.filter(partition=partition).values_list("watermark")
    assert set(marks) == {(head,)} == {(2,)}


def _other_of(partition: int) -> str:
    return next(name for n in range(1000) if partition_of(name := f"x{n}") == partition)


def test_ids_given_twice_are_found_and_can_be_recovered_from(
    peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    peer.send("chan", 2)
    peer.send("fine", 1)
    run()
    send_event("chan", "message", {"n": "ours"})
    drain_outbox()
    peer.send("chan", 1, start=3)  # some old process is still there

    with pytest.raises(SystemExit) as caught:
        call_command("eventstream", "adopt")

    assert caught.value.code == 2
    output = capsys.readouterr().out
    assert "different events: chan\n" in output
    assert "reset-readers" in output
    call_command("eventstream", "reset-readers", "--no-input")
    assert [m.type for m in resume("chan", 3)] == ["stream-reset"]


def test_own_events_after_the_change_are_no_conflict(peer: Peer) -> None:
    peer.send("chan", 2)
    run()
    for n in (3, 4):
        send_event("chan", "message", {"n": n})
    drain_outbox()
    Event.objects.filter(eid__lt=2).update(created=Now())

    found = run()

    assert (found.conflicts, found.event_count) == ([], 0)


def test_database_without_the_tables_is_told() -> None:
    with pytest.raises(AdoptionError, match="no table django_eventstream_eventcounter"):
        run()


def test_clients_whose_events_were_in_redis_are_reset_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As the guide has it: otherwise an old id may be one that was given anew."""
    call_command("eventstream", "reset-readers", "--no-input")
    for n in range(5):
        send_event("chan", "message", {"n": n})
    drain_outbox()

    reset = resume("chan", 3)[0]
    assert reset.type == "stream-reset"
    head = int(reset.id.rpartition(":")[2])
    assert [m.id for m in resume("chan", head - 1)] == [f"chan:{head}"]


def test_data_of_older_releases_are_encoded_for_the_client() -> None:
    assert adopting._text('"{\\"a\\": 1}"') == '{"a": 1}'
    assert adopting._text('{"a": 1}') == '{"a": 1}'
    assert adopting._text("no JSON") == "no JSON"


def test_check_says_line_by_line_what_to_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "shop/views.py": "import os\nfrom django_eventstream import send_event\n",
        "shop/api.py": "from django_eventstream.viewsets import EventsViewSet\n",
        "shop/own.py": "from django_eventstream.storage import StorageBase\n",
        "shop/log.py": "from django_eventstream.models import Event\n",
        "shop/wire.py": "from django_eventstream.utils import make_id\n",
        "shop/ask.py": "from django_eventstream.views import get_listener_manager\n",
        "shop/serve.py": "from django_eventstream.views import Listener, stream\n",
        "shop/mine.py": "from django_eventstream.views import events as stream_of\n",
        # Of the WebSockets, which stay.
        "site/asgi.py": "application = AuthMiddlewareStack(router)\n",
        "site/settings.py": "EVENTSTREAM_STORAGE_CLASS = 'django_eventstream.storage.DjangoModelStorage'\n",
        "site/apps.py": "INSTALLED_APPS = [\n    'eventstream',\n    'django_eventstream',\n]\n",
        "site/more.py": "INSTALLED_APPS += ['django_eventstream']\n",
        "site/urls.py": "urlpatterns = [path('e/', include(django_eventstream.urls))]\n",
        "templates/page.html": "{% static 'django_eventstream/json2.js' %}",
        "requirements.txt": "Django\ndjango-eventstream==5.3.4\n",
        ".venv/lib/x.py": "import django_eventstream",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    with pytest.raises(SystemExit) as caught:
        call_command("eventstream", "adopt", "--check", str(tmp_path))

    assert caught.value.code == 1
    output = capsys.readouterr().out
    for where, advice in (
        ("views.py:2", "the same from eventstream"),
        ("api.py:1", "eventstream.drf"),
        ("own.py:1", "a storage of your own"),
        ("log.py:1", "without Django's signals"),
        ("wire.py:1", "no counterpart"),
        ("ask.py:1", "who listens need not be known"),
        ("serve.py:1", "who listens need not be known"),
        ("mine.py:1", "needs a second route"),
        ("settings.py:1", "the database is the default"),
        ("apps.py:3", "leave it out, last of all"),
        ("more.py:1", "leave it out, last of all"),
        ("urls.py:1", "eventstream, in its place"),
        ("page.html:1", "every browser has it"),
        ("requirements.txt:2", "eventstream, in its place"),
    ):
        [line] = [line for line in output.splitlines() if where in line]
        assert advice in line
    assert ".venv" not in output
    assert "asgi.py" not in output
    # What the guide says of behaviour, for who has the package and not the guide.
    guide = (ROOT / "docs/howto/migrate.md").read_text()
    differences = re.findall(r"^- (.*)$", output, re.MULTILINE)
    assert len(differences) == 10
    assert [text for text in differences if text not in guide] == []


def test_check_of_a_project_that_has_come_over_is_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "views.py").write_text("from eventstream import send_event\n")

    call_command("eventstream", "adopt", "--check", str(tmp_path))

    assert "Nothing of django-eventstream was found" in capsys.readouterr().out
    with pytest.raises(Exception, match="is not a directory"):
        call_command("eventstream", "adopt", "--check", str(tmp_path / "no"))
