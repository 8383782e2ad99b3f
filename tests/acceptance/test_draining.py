"""SIGTERM, or Ctrl-C, to a web process that holds streams itself."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from eventstream import draining
from tests.support.processes import free_port
from tests.support.sse import Crowd
from tests.support.stack import Stack, running

CLIENTS = 150
DRAIN = 1.5
LIMIT = 8


def moments(crowd: Crowd) -> list[float]:
    return sorted(reader.ended_at[0] for reader in crowd.readers if reader.ended_at)


async def _load(stack: Stack, stop: asyncio.Event) -> int:
    """Send to the channel until told to stop; return how many events."""
    count = 0
    while not stop.is_set():
        await asyncio.to_thread(stack.run, "from eventstream import send_event\n"
            "for n in range(20): send_event('orders', 'message', n)")  # fmt: skip
        count += 20
    return count


@pytest.mark.timeout(120)
async def test_streams_end_one_by_one_and_miss_nothing() -> None:
    with running(env={"ES_SET": f'{{"EVENTSTREAM_DRAIN_SECONDS": {DRAIN}}}'}) as stack:
        web = stack.start_web(port=(port := free_port()), limit=LIMIT)
        crowd = Crowd(f"http://127.0.0.1:{port}", ["orders"] * CLIENTS)
        await crowd.start()
        stop = asyncio.Event()
        load = asyncio.create_task(_load(stack, stop))
        await crowd.until_received(20)

        began = time.time()
        web.send_signal(signal.SIGTERM)
        await asyncio.to_thread(web.wait, 20)
        took = time.time() - began
        stack.start_web(port=port)
        stop.set()
        total = await load
        await crowd.until_received(total)
        await crowd.stop()

    ends = moments(crowd)
    assert len(ends) == CLIENTS
    assert crowd.faults(1, total) == []
    # Not cut by the server's limit, and not all at once: no tenth of the time sees
    # more than four tenths of them.
    assert took < LIMIT - 1
    assert ends[-1] - ends[0] > DRAIN / 2
    fullest = max(sum(e <= other < e + DRAIN / 10 for other in ends) for e in ends)
    assert fullest < 0.4 * CLIENTS


def test_a_few_streams_need_no_spreading() -> None:
    assert max(draining.draw_delay(3, at_most=60) for _ in range(1000)) <= 0.03
    assert max(draining.draw_delay(10**6, at_most=2) for _ in range(1000)) <= 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_one_stream_ends_at_once_and_without_an_error(
    number: signal.Signals,
) -> None:
    with running(worker=False, with_valkey=False) as stack:
        web = stack.start_web(port=(port := free_port()), limit=20)
        crowd = Crowd(f"http://127.0.0.1:{port}", ["orders"])
        await crowd.start()

        began = time.time()
        web.send_signal(number)
        await asyncio.to_thread(web.wait, 25)
        await crowd.stop()

    assert time.time() - began < 15
    assert len(moments(crowd)) == 1
    assert "Traceback" not in web.output()


@pytest.fixture
def handlers() -> Iterator[None]:
    """Give back the signals that a test takes."""
    before = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Listener:
    def __init__(self) -> None:
        self.count = 0

    def hear_end(self) -> None:
        self.count += 1


def stop(number: int, frame: FrameType | None) -> None:
    """Stand in for a server's handler."""


def interrupt(number: int, frame: FrameType | None) -> None:
    """Stand in for a test runner's handler of Ctrl-C."""


@pytest.mark.parametrize(
    "handler", [signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL, interrupt]
)
def test_a_ctrl_c_that_is_not_the_server_s_stays_as_it_is(
    handlers: None, handler: signal.Handlers | Callable[..., object]
) -> None:
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, handler)
    listener = Listener()

    draining.listen(listener)

    assert signal.getsignal(signal.SIGINT) is handler
    signal.raise_signal(signal.SIGTERM)
    assert listener.count == 1


def test_ctrl_c_of_a_script_ends_its_loop_as_before(handlers: None) -> None:
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    async def script() -> None:
        draining.listen(Listener())
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(script())

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
