"""A sender, a worker or a web process of a whole installation dies: it is repaired in time."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.proof.dying import POINTS
from tests.support.processes import python, wait_for
from tests.support.sse import Crowd
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(120)

REPAIRED_WITHIN = 30.0
"""Seconds, as with the settings' defaults: the lease, 15, and one interval of the sweep."""

ENV = {
    "ES_SET": '{"EVENTSTREAM_LEASE_SECONDS": 2, "EVENTSTREAM_TASKS_REPUBLISH_EVERY": 3}',
    "ES_LINK_TIMEOUT": "3",
}

PLACES = {
    point: where
    for point, (where, *_) in POINTS.items()
    if where in ("wake", "worker", "direct", "proxied")
}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Streams of its `url` are held by Pushpin, those of its web port directly."""
    stack = Stack(with_pushpin=True, env=ENV)
    stack.start_web()
    stack.start_worker()
    stack.start_beat()
    yield stack
    stack.close()


def restart_to_die(stack: Stack, place: str, point: str) -> None:
    """Have the worker or the web process be one that dies at the point."""
    process = stack.worker if place == "worker" else stack.web
    assert process is not None
    process.stop()
    assert stack.valkey is not None
    stack.valkey.client.flushall()  # tasks of the test before would kill it at once
    stack.env["ES_DIE"] = point
    if place == "worker":
        stack.start_worker()
    else:
        stack.start_web()
    del stack.env["ES_DIE"]


def revive(stack: Stack, place: str) -> None:
    """Wait until it is dead, then start it again, as every installation's supervisor does."""
    process = stack.worker if place == "worker" else stack.web
    assert process is not None
    killed = process
    wait_for(lambda: not killed.is_running, "it dies there", timeout=20)
    assert killed.wait() == -signal.SIGKILL
    if place == "worker":
        stack.start_worker()
    else:
        stack.start_web()


@pytest.mark.parametrize("point", PLACES)
async def test_death_of_a_process_is_repaired_in_time(stack: Stack, point: str) -> None:
    place, channel = PLACES[point], f"death-{list(PLACES).index(point)}"
    if place != "wake":
        restart_to_die(stack, place, point)
    direct = f"http://127.0.0.1:{stack.web_port}"
    crowds = [
        Crowd(url, [channel] * 2)
        for url in ([stack.url] if place == "proxied" else [direct, stack.url])
    ]
    for crowd in crowds:
        await crowd.start()

    texts = ["a", "b", "c"]
    argv = ["-m", "tests.proof.dying", "wake", point if place == "wake" else "", *texts]
    with python(*argv, env={**stack.env, "ES_CHANNEL": channel}) as sender:
        code = sender.wait(30)
        assert code == (-signal.SIGKILL if place == "wake" else 0), sender.output()
    if place != "wake":
        # Not in a thread, with which the kernel would end what it started.
        revive(stack, place)
    died_at = time.monotonic()

    try:
        for crowd in crowds:
            await crowd.until_received(3, within=REPAIRED_WITHIN)
            assert crowd.faults(1, 3) == []
        assert time.monotonic() - died_at < REPAIRED_WITHIN
    finally:
        for crowd in crowds:
            await crowd.stop()
