"""Whatever dies, wherever it dies: the next sweep makes it good."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.proof.dying import POINTS
from tests.support.grip_endpoint import GripEndpoint
from tests.support.postgres import postgres
from tests.support.processes import python, wait_for
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(120)

ALONE = [
    name
    for name, point in POINTS.items()
    if point.work in ("send", "relay") and "with a key" not in name
]

REPAIRED_WITHIN = 30.0
"""Seconds: the lease, 15 by default and 1 here, and one interval of the sweep, 10."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[Iterator[str | None]]:
    """A supply of empty databases; None is a new SQLite file."""
    if request.param == "sqlite":
        yield iter(lambda: None, "")
        return
    with postgres() as server:
        yield (server.create_database(f"death_{n}") for n in range(1000))


@pytest.fixture
def endpoint() -> Iterator[GripEndpoint]:
    with GripEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def stack(database: Iterator[str | None], endpoint: GripEndpoint) -> Iterator[Stack]:
    env = {"ES_GRIP": f"{endpoint.url}?key={'k' * 32}"}
    stack = Stack(database_url=next(database), with_valkey=False, env=env)
    yield stack
    stack.close()


def work(stack: Stack, what: str, point: str, *texts: str) -> int:
    """Do a piece of work in a process of its own; return its exit code."""
    with python("-m", "tests.proof.dying", what, point, *texts, env=stack.env) as done:
        code = done.wait(30)
        assert code in (0, -signal.SIGKILL), done.output()
        return code


def sweep_until_quiet(stack: Stack) -> float:
    """Sweep as beat would; return the seconds until nothing is left to do."""
    began = time.monotonic()
    while time.monotonic() - began < REPAIRED_WITHIN:
        with python("-m", "tests.proof.dying", "sweep", "", env=stack.env) as sweep:
            sweep.wait(30)
            if sweep.output().startswith("0 events, 0 partitions"):
                return time.monotonic() - began
        time.sleep(0.2)
    raise AssertionError(f"not repaired within {REPAIRED_WITHIN} s")


def judge(endpoint: GripEndpoint) -> list[str]:
    """Return the data in the order in which the target first had them; ids must be right."""
    first: dict[int, str] = {}
    for _, eid, text in endpoint.events:
        data = text.strip('"')
        if eid in first:
            assert first[eid] == data, f"id {eid} has two events"
        else:
            assert eid == len(first) + 1, f"id {eid} came after {len(first)}"
            first[eid] = data
    return list(first.values())


@pytest.mark.parametrize("point", ALONE)
def test_death_loses_nothing_and_gives_no_id_twice(
    stack: Stack, endpoint: GripEndpoint, point: str
) -> None:
    what = POINTS[point].work
    before = ["a", "b", "c", "d", "e"]
    expected = list(before)
    assert work(stack, "send", "", *before) == 0

    assert work(stack, what, point, "f", "g") == -signal.SIGKILL

    if point == "sender, committed, nobody woken":
        expected += ["f", "g"]
    assert work(stack, "send", "", "h") == 0
    expected.append("h")
    sweep_until_quiet(stack)

    assert judge(endpoint) == expected


@pytest.mark.parametrize(
    "point",
    [
        "sender, row with a key written, not committed",
        "sender, committed, nobody woken",
    ],
)
def test_sender_that_died_and_repeats_itself_by_key_is_heard_once(
    stack: Stack, endpoint: GripEndpoint, point: str
) -> None:
    stack.env["ES_KEYED"] = "1"

    assert work(stack, "send", point, "a", "b") == -signal.SIGKILL
    assert work(stack, "send", "", "a", "b") == 0
    sweep_until_quiet(stack)

    assert judge(endpoint) == ["a", "b"]


def test_every_death_above_is_real(stack: Stack) -> None:
    """A point that is never reached would prove nothing: the process would end well."""
    assert work(stack, "send", "", "a") == 0
    assert work(stack, "relay", "relay, second batch published") == 0


LEFT = """
from eventstream.models import Event
print(*Event.objects.order_by("eid").values_list("eid", flat=True))
"""


def test_prune_that_dies_leaves_no_hole_and_is_taken_up(
    stack: Stack, endpoint: GripEndpoint
) -> None:
    assert work(stack, "send", "", *"abcde") == 0
    sweep_until_quiet(stack)
    stack.run(
        "import datetime\n"
        "from django.db.models.functions import Now\n"
        "from eventstream.models import Event\n"
        "old = Now() - datetime.timedelta(days=2)\n"
        "Event.objects.filter(eid__in=[1, 2, 4]).update(created=old)"
    )

    point = "prune, first batch deleted"
    assert work(stack, "prune", point) == -signal.SIGKILL
    assert stack.run(LEFT).split() == ["2", "3", "4", "5"]

    def is_pruned() -> bool:
        assert work(stack, "prune", "") == 0
        return stack.run(LEFT).split() != ["2", "3", "4", "5"]

    wait_for(is_pruned, "another has pruned, as the lease is over", timeout=30)
    # From the first to the last: 4 is old, too, and behind one that is not.
    assert stack.run(LEFT).split() == ["3", "4", "5"]
