"""The servers that an installation may have beside Redis and PostgreSQL themselves."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack, closing, suppress

import pytest

from tests.acceptance.test_browser import Tab
from tests.support.browser import browsing
from tests.support.nginx import Nginx, OldHop
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import postgres
from tests.support.processes import ROOT, free_port, wait_for
from tests.support.rabbitmq import RabbitMQ
from tests.support.sse import Message, Stream, numbers
from tests.support.stack import Stack, running
from tests.support.valkey import Sentinel, Valkey

pytestmark = pytest.mark.timeout(180)


def test_rabbitmq_carries_the_tasks_and_redis_stays_the_bus() -> None:
    with closing(RabbitMQ()) as rabbitmq:
        settings = {
            "CELERY_BROKER_URL": rabbitmq.url,
            "CELERY_BROKER_TRANSPORT_OPTIONS": {},
        }
        with running(env={"ES_SET": json.dumps(settings)}) as stack:
            with Stream(f"{stack.url}/events/?channel=orders").open() as stream:
                for count in range(20):
                    stack.send("orders")
                    # At once: neither the sweep nor the hub's look at the log.
                    assert list(numbers([stream.next(timeout=4)])) == [count + 1]
            worker, web = stack.worker, stack.web
            assert worker is not None
            assert web is not None
            assert "amqp://guest:**@127.0.0.1" in worker.output()
            assert "takes no wake-up" not in web.output()
            worker.kill()
            stack.send("alerts")  # of another partition
            waiting = re.compile(r"No worker takes .* 'eventstream'; \d tasks? wait")
            wait_for(lambda: waiting.search(look(stack)), "RabbitMQ has the task")
            wrong = rabbitmq.url.replace("guest@", "wrong@")
            stack.env["ES_SET"] = json.dumps({**settings, "CELERY_BROKER_URL": wrong})
            assert "takes no tasks: AccessRefused" in look(stack)


def look(stack: Stack) -> str:
    done = subprocess.run(
        [sys.executable, "manage.py", "eventstream", "status"],
        cwd=ROOT, env={**os.environ, **stack.env}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.stdout


def test_pgbouncer_in_transaction_mode_between_all_and_the_database() -> None:
    with postgres() as server, closing(PgBouncer(server.port)) as pooler:
        database = pooler.url_of(server.create_database("pooled"))
        with running(database_url=database, beat=True) as stack:
            with Stream(f"{stack.url}/events/?channel=orders").open() as stream:
                stack.send("orders", 50)
                assert list(numbers(stream.take(50))) == list(range(1, 51))
                pooler.process.kill()
                pooler.start()
                stack.send("orders", 50)
                assert list(numbers(stream.take(50, timeout=30))) == list(
                    range(51, 101)
                )
            late = Stream(
                f"{stack.url}/events/?channel=orders", last_event_id="orders:0"
            )
            with late.open():
                assert list(numbers(late.take(100))) == list(range(1, 101))


def test_sentinel_promotes_the_replica_and_every_event_arrives() -> None:
    with ExitStack() as exits:
        master = exits.enter_context(Valkey())
        replica = exits.enter_context(Valkey(replica_of=master.port))
        sentinel = exits.enter_context(closing(Sentinel(master)))
        settings = {
            "EVENTSTREAM_REDIS": {
                "sentinels": [["127.0.0.1", sentinel.port]],
                "service_name": Sentinel.NAME,
            },
            "EVENTSTREAM_DISPATCHER": "eventstream_tasks.dispatch.CeleryDispatcher",
            "CELERY_BROKER_URL": f"sentinel://127.0.0.1:{sentinel.port}/0",
            "CELERY_BROKER_TRANSPORT_OPTIONS": {"master_name": Sentinel.NAME},
        }
        env = {"ES_SET": json.dumps(settings)}
        stack = exits.enter_context(running(with_valkey=False, env=env))
        stream = exits.enter_context(Stream(f"{stack.url}/events/?channel=orders"))
        stream.open()
        stack.send("orders", 10)
        assert list(numbers(stream.take(10))) == list(range(1, 11))

        master.process.kill()
        stack.send("orders", 10)
        wait_for(
            lambda: sentinel.master_port() == replica.port,
            "the replica is promoted",
            timeout=30,
        )
        assert list(numbers(stream.take(10, timeout=40))) == list(range(11, 21))
        wait_for(
            lambda: replica.client.pubsub_numsub("eventstream:events:orders")[0][1],
            "the hub has found the new server",
            timeout=40,
        )
        stack.send("orders", 10)
        assert list(numbers(stream.take(10, timeout=40))) == list(range(21, 31))


def test_bus_needs_nothing_but_its_own_names() -> None:
    """The ACL of docs/howto/deploy.md; the broker has names of Celery's."""
    with ExitStack() as exits:
        valkey = exits.enter_context(Valkey())
        names = ["eventstream:*"]
        valkey.client.acl_setuser(
            "bus",
            enabled=True,
            passwords=["+secret"],
            keys=names,
            channels=names,
            commands=["+@all"],
        )
        settings = {
            "EVENTSTREAM_REDIS": f"redis://bus:secret@127.0.0.1:{valkey.port}/0",
            "EVENTSTREAM_DISPATCHER": "eventstream_tasks.dispatch.CeleryDispatcher",
            "CELERY_BROKER_URL": valkey.url,
        }
        env = {"ES_SET": json.dumps(settings)}
        stack = exits.enter_context(running(with_valkey=False, env=env))
        stream = exits.enter_context(Stream(f"{stack.url}/events/?channel=orders"))
        stream.open()
        sent = itertools.count(1)

        def is_watched() -> bool:
            """Send one; say whether a relay has listened for the next."""
            stack.send("orders")
            assert list(numbers([stream.next(timeout=4)])) == [next(sent)]
            statistics = valkey.client.info("commandstats")
            subscriptions: int = statistics["cmdstat_subscribe"]["calls"]
            return subscriptions > 1  # the hub's is one

        wait_for(is_watched, "a relay waits for the next event")

        assert valkey.client.acl_log() == []


class Sender:
    """Sends events one by one, past nginx, until it is stopped."""

    def __init__(self, stack: Stack, channel: str) -> None:
        self._stack, self._channel = stack, channel
        self._is_over = threading.Event()
        self.count = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_over.wait(0.02):
            self._stack.send(self._channel)
            self.count += 1

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()


@pytest.mark.parametrize("holder", ["direct", "pushpin"])
def test_nginx_is_killed_in_the_middle_of_streams_and_every_event_arrives(
    holder: str,
) -> None:
    with ExitStack() as exits:
        stack = exits.enter_context(running(with_pushpin=holder == "pushpin"))
        port = stack.pushpin.port if stack.pushpin else stack.web_port
        nginx = Nginx(web_port=stack.web_port, streams_port=port)
        exits.callback(nginx.close)
        browser = exits.enter_context(browsing())
        context = browser.new_context(ignore_https_errors=True)
        tabs = [Tab(context, nginx.url, "orders").until("live") for _ in range(3)]

        with closing(Sender(stack, "orders")) as sender:
            for tab in tabs:
                tab.until_seen(10)
            nginx.process.kill()
            for tab in tabs:
                tab.page.wait_for_function("stream.status !== 'live'")
            missed = sender.count
            wait_for(lambda: sender.count > missed + 20, "some are sent meanwhile")
            nginx.start()
            for tab in tabs:
                tab.until_seen(missed + 30)

        for tab in tabs:
            assert tab.until_seen(sender.count) == list(range(1, sender.count + 1))
            tab.until("live")
            assert tab.page.evaluate("statuses.filter((s) => s === 'live').length") > 1
            assert tab.page.evaluate("kinds") == []


def test_page_that_a_killed_web_process_leaves_unfinished_is_no_whole_one() -> None:
    """Behind a hop of HTTP/1.0 a body without a length ends wherever the connection does."""
    count, size = 100, 250_000  # more than the sockets on the way have room for
    env = {"ES_SET": json.dumps({"EVENTSTREAM_PAGE_BYTES": count * size})}
    with ExitStack() as exits:
        stack = Stack(with_pushpin=True, env=env)
        exits.callback(stack.close)
        ports = {"web_port": free_port(), "other_port": free_port()}
        web, _ = (
            # The other implementation of uvicorn's sends chunks even to who knows of none.
            stack.start_web(port=port, extra=("--http", "h11"))
            for port in ports.values()
        )
        hop = OldHop(port=stack.web_port, **ports)
        exits.callback(hop.close)
        stack.start_worker()
        stack.send("orders", count + 1, data="x" * size)
        stack.wait_until_numbered("orders", count + 1)
        url = f"{stack.url}/events/?channel=orders"

        begun: list[Message] = []
        with Stream(url, last_event_id="orders:1").open() as stream:
            hop.process.send_signal(signal.SIGSTOP)
            web.kill()
            hop.process.send_signal(signal.SIGCONT)
            stack.send("orders", 2)
            # It ends at once, or is silent until it does.
            with suppress(EOFError, TimeoutError):
                while True:
                    begun.append(stream.next(timeout=5))
        assert all(message.data == json.dumps("x" * size) for message in begun)
        seen = [1, *numbers(begun)]
        assert len(seen) <= count - 8, "it was whole"
        with Stream(url, last_event_id=f"orders:{seen[-1]}").open() as stream:
            seen += numbers(stream.take(8))  # Pushpin may let who wants much more wait

        assert seen == list(range(1, len(begun) + 10))
