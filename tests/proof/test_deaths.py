"""Whatever dies, wherever it dies: the next sweep makes it good."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.proof.dying import POINTS
from tests.support.grip_endpoint import GripEndpoint
from tests.support.postgres import postgres
from tests.support.processes import ROOT, wait_for
from tests.support.stack import Stack, migrated_database

pytestmark = pytest.mark.timeout(120)

ALONE = [
    name
    for name, point in POINTS.items()
    if point.work in ("send", "relay") and "with a key" not in name
]

REPAIRED_WITHIN = 30.0
"""Seconds: the lease, 15 by default and 1 here, and one interval of the sweep, 10."""


class Mortals(Stack):
    """An installation without servers, whose processes do one piece of work each."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(with_valkey=False, **arguments)
        self._forks: subprocess.Popen[str] | None = None

    def work(self, what: str, point: str, *texts: str) -> tuple[int, str]:
        """Do a piece of work in a process of its own; return its exit code and output."""
        if self._forks is None:
            self._forks = subprocess.Popen(
                [sys.executable, "-m", "tests.proof.dying"], cwd=ROOT, text=True,
                env={**os.environ, **self.env}, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        assert self._forks.stdin
        assert self._forks.stdout
        self._forks.stdin.write(json.dumps([what, point, *texts]) + "\n")
        self._forks.stdin.flush()
        output = ""
        for line in self._forks.stdout:
            if line.startswith("exit code "):
                return int(line.split()[-1]), output
            output += line
        raise AssertionError(f"no more work can be done:\n{output}")

    def close(self) -> None:
        if self._forks is not None:
            self._forks.communicate()
        super().close()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[Iterator[str | None]]:
    """A supply of migrated databases; None is a new SQLite file."""
    if request.param == "sqlite":
        yield iter(lambda: None, "")
        return
    with postgres() as server:
        yield (migrated_database(server, f"death_{n}") for n in range(1000))


@pytest.fixture
def endpoint() -> Iterator[GripEndpoint]:
    with GripEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def stack(database: Iterator[str | None], endpoint: GripEndpoint) -> Iterator[Mortals]:
    env = {"ES_GRIP": f"{endpoint.url}?key={'k' * 32}"}
    url = next(database)
    stack = Mortals(database_url=url, is_migrated=url is not None, env=env)
    yield stack
    stack.close()


def work(stack: Mortals, what: str, point: str, *texts: str) -> int:
    """Do a piece of work; return its exit code: that of an end, or of a death as was wanted."""
    code, output = stack.work(what, point, *texts)
    assert code in (0, -signal.SIGKILL), output
    return code


def sweep_until_quiet(stack: Mortals) -> float:
    """Sweep as beat would; return the seconds until nothing is left to do."""
    began = time.monotonic()
    while time.monotonic() - began < REPAIRED_WITHIN:
        _, output = stack.work("sweep", "")
        if output.startswith("0 events, 0 partitions"):
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
    stack: Mortals, endpoint: GripEndpoint, point: str
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
    stack: Mortals, endpoint: GripEndpoint, point: str
) -> None:
    stack.env["ES_KEYED"] = "1"

    assert work(stack, "send", point, "a", "b") == -signal.SIGKILL
    assert work(stack, "send", "", "a", "b") == 0
    sweep_until_quiet(stack)

    assert judge(endpoint) == ["a", "b"]


def test_every_death_above_is_real(stack: Mortals) -> None:
    """A point that is never reached would prove nothing: the process would end well."""
    assert work(stack, "send", "", "a") == 0
    assert work(stack, "relay", "relay, second batch published") == 0


LEFT = """
from eventstream.models import Event
print(*Event.objects.order_by("eid").values_list("eid", flat=True))
"""


def test_prune_that_dies_leaves_no_hole_and_is_taken_up(
    stack: Mortals, endpoint: GripEndpoint
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
