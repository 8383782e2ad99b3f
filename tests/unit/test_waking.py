"""The thread that asks the broker: forgets nothing, and holds up nobody."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from pytest_django import Settings

from eventstream_tasks.waking import Message, Waker, Wanted, get_waker


class Broker:
    """What the thread calls; it can be made to hang."""

    def __init__(self) -> None:
        self.rounds: list[list[tuple[str, int]]] = []
        self.messages: list[object] = []
        self.late_count = 0
        self.asked = itertools.count(1)
        self.answers = threading.Event()
        self.answers.set()
        self.waker = Waker(self.wake, self.post, self.expire)

    def wake(self, wanted: Wanted) -> None:
        self.rounds.append(sorted(wanted))
        assert self.answers.wait(30)

    def post(self, message: Message) -> None:
        self.messages.append(message.arguments[0])
        assert self.answers.wait(30)

    def expire(self) -> None:
        self.late_count += 1

    def hang(self) -> None:
        """Be in a round that does not end."""
        self.answers.clear()
        self.waker.want("default", [999], send)
        while not self.rounds:
            time.sleep(0.001)


def send(name: str, arguments: tuple[object, ...]) -> None:
    """Enqueue nothing."""


@pytest.fixture
def broker() -> Iterator[Broker]:
    found = Broker()
    yield found
    found.answers.set()
    assert found.waker.flush(30)


def test_what_is_wanted_is_never_forgotten(broker: Broker) -> None:
    """Whoever wants a partition finds a round of it that begins afterwards."""
    wanted_at: dict[int, int] = {}
    seen_at: dict[int, int] = {}
    clock = itertools.count(1)

    def wake(wanted: Wanted) -> None:
        for _, partition in wanted:
            seen_at[partition] = next(clock)
        time.sleep(random.random() / 2000)

    waker = Waker(wake, broker.post, broker.expire)

    def want(own: int) -> None:
        for number in range(400):
            partition = own * 4 + number % 4
            wanted_at[partition] = next(clock)
            if not waker.is_wanted("default", partition):
                waker.want("default", [partition], send)
            if number % 7 == 0:
                time.sleep(random.random() / 1000)

    threads = [threading.Thread(target=want, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert waker.flush(30)
    assert len(wanted_at) == 16
    assert [p for p, at in wanted_at.items() if seen_at.get(p, 0) < at] == []


def test_what_is_wanted_during_a_round_is_the_next(broker: Broker) -> None:
    broker.hang()

    for number in range(1000):
        broker.waker.want("default", [number % 5], send)
    broker.answers.set()

    assert broker.waker.flush(30)
    assert broker.rounds[1:] == [[("default", number) for number in range(5)]]


def test_flush_that_is_not_done_in_time_says_so(broker: Broker) -> None:
    broker.hang()

    done_in_time = broker.waker.flush(0.05)
    broker.answers.set()

    assert not done_in_time
    assert broker.waker.flush(30)


def test_nothing_to_flush_takes_no_time(broker: Broker) -> None:
    began = time.monotonic()

    assert broker.waker.flush(30)
    assert time.monotonic() - began < 10


def test_delay_is_that_of_what_waits(broker: Broker) -> None:
    assert broker.waker.delay() == 0
    broker.hang()
    broker.waker.want("default", [1], send)
    time.sleep(0.05)
    broker.waker.want("default", [2], send)

    delay = broker.waker.delay()
    broker.answers.set()

    assert delay >= 0.05
    assert broker.waker.flush(30)
    assert broker.waker.delay() == 0


def test_messages_keep_their_order(broker: Broker) -> None:
    broker.hang()
    for number in range(100):
        broker.waker.post(send, "name", (number,))
    broker.answers.set()

    assert broker.waker.flush(30)
    assert broker.messages == list(range(100))


def test_messages_that_the_broker_was_too_slow_for_are_given_up(
    broker: Broker, settings: Settings
) -> None:
    """So what a stuck thread leaves waiting is what was sent in the last moments."""
    settings.EVENTSTREAM_TASKS_WAKE_TIMEOUT = 0.05
    broker.hang()
    for number in range(50):
        broker.waker.post(send, "name", (number,))
    time.sleep(0.1)
    settings.EVENTSTREAM_TASKS_WAKE_TIMEOUT = 30
    broker.waker.post(send, "name", ("in time",))
    waiting = len(broker.waker._messages)
    broker.answers.set()

    assert broker.waker.flush(30)
    assert waiting == 1
    assert broker.late_count == 50
    assert broker.messages == ["in time"]


def test_thread_that_could_not_be_started_is_tried_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            broker.waker.want("default", [1], send)

    assert not broker.waker.is_wanted("default", 1)
    broker.waker.want("default", [1], send)
    assert broker.waker.flush(30)
    assert broker.rounds == [[("default", 1)]]


def test_thread_is_one_and_for_good(broker: Broker) -> None:
    before = set(threading.enumerate())
    threads = []
    for number in range(20):
        broker.waker.want("default", [number], send)
        assert broker.waker.flush(30)
        threads += [t for t in threading.enumerate() if t.name == "eventstream-waker"]

    assert len(set(threads) - before) == 1


# Which is what is tried here. Python says so from 3.12 on.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_child_has_a_thread_of_its_own() -> None:
    def make() -> Waker:
        return Waker(lambda _: None, lambda _: None, lambda: None)

    own = get_waker(make)
    own.want("default", [1], send)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        # What its parent's thread held when it was forked, nobody will ever give back.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        try:
            another = get_waker(make)
            another.want("default", [1], send)
            os.write(write, b"%d" % (another is not own and another.flush(10)))
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)

    assert get_waker(make) is own
    assert own.flush(30)
    assert os.read(read, 10) == b"1"
    os.close(read)
