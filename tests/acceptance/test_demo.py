"""`make demo` and `make demo-check`, as a newcomer runs them."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.support.browser import browsing, watch
from tests.support.processes import ROOT, Process, free_port, wait_for
from tests.support.sse import Stream

pytestmark = pytest.mark.timeout(180)


class Demo:
    """A demo of this test's own."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.mark = f"{os.getpid()}-{self.port}"
        argv = ["-m", "deploy.demo", "--port", str(self.port)]
        argv += ["--directory", str(directory), *options]
        # Of this test's project nothing must reach the demo's.
        env = {"TEST_MARK": self.mark, "REDIS_URL": "", "DATABASE_URL": ""}
        self.process = Process([sys.executable, *argv], env=env)

    def wait_until_ready(self) -> None:
        self.process.wait_until(lambda: "Ready after" in self.output(), "it is ready")

    def output(self) -> str:
        return self.process.output()

    def processes(self) -> list[psutil.Process]:
        """Return what it has started: by the environment that each inherits, and by port.

        For Valkey writes its title, with its address, over its environment.
        """
        address = re.search(r"Broker and bus redis://([\d.:]+)", self.output())
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("TEST_MARK") == self.mark or (
                    address and address.group(1) in process.cmdline()[0]
                ):
                    found.append(process)
            except (psutil.Error, IndexError):
                continue
        return [p for p in found if p.pid != self.process.pid]

    def part(self, name: str) -> psutil.Process:
        """Return the process that does the work of a part."""
        words = {
            "web": "uvicorn deploy.asgi",
            "worker": "-A deploy worker",
            "beat": "-A deploy beat",
            "valkey": "valkey-server 127.0.0.1:",
            "pushpin": "pushpin --config",
            "pushpin-handler": "pushpin-handler --config",
        }[name]

        def find() -> psutil.Process | None:
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    line = " ".join(process.cmdline())
                    if words in line and "deploy.demo" not in line:  # that is its leash
                        return process
            return None

        return wait_for(find, f"{name} runs")

    def has_restarted(self, count: int) -> bool:
        return self.output().count("starting it again") == count

    def has_told_of_ends(self, count: int) -> bool:
        return len(re.findall("starting it again|giving up", self.output())) == count

    def answers(self, url: str) -> bool:
        """Say whether the page is served there."""
        try:
            with urllib.request.urlopen(f"{url}/status/", timeout=2):
                return True
        except OSError:
            return False

    def assert_nothing_left(self) -> None:
        wait_for(lambda: not self.processes(), "nothing is left running")


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    try:
        demo.wait_until_ready()
        yield demo
    finally:
        demo.process.stop()
        for process in demo.processes():
            process.kill()


@pytest.mark.parametrize("options", [[], ["--no-pushpin"]], ids=["pushpin", "direct"])
def test_check_passes_unattended(tmp_path: Path, options: list[str]) -> None:
    demo = Demo(tmp_path, "--check", *options)

    code = demo.process.wait(90)

    assert code == 0, demo.output()
    assert "PASSED" in demo.output()
    assert ("PASS  pushpin:" in demo.output()) is (not options)
    demo.assert_nothing_left()


def test_ctrl_c_stops_everything_and_is_no_failure(demo: Demo) -> None:
    assert len(demo.processes()) > 8

    os.kill(demo.process.pid, signal.SIGINT)

    assert demo.process.wait(20) == 0
    assert "nothing is left running" in demo.output()
    assert "Traceback" not in demo.output()
    demo.assert_nothing_left()


def test_nothing_outlives_a_killed_demo(demo: Demo) -> None:
    [config] = [
        Path(argument.partition("=")[2])
        for argument in demo.part("pushpin").cmdline()
        if argument.startswith("--config=")
    ]
    scratch = config.parents[1]
    assert scratch.name.startswith("es-")

    os.kill(demo.process.pid, signal.SIGKILL)

    demo.assert_nothing_left()
    assert not scratch.exists()


def test_part_that_is_killed_is_started_again_and_every_event_arrives(
    demo: Demo,
) -> None:
    line = demo.part("web").cmdline()
    direct = f"http://127.0.0.1:{line[line.index('--port') + 1]}"
    parts = ["worker", "beat", "valkey", "web", "pushpin", "pushpin-handler"]
    position = "orders:0"
    with browsing() as browser:
        page = browser.new_page()
        page.goto(demo.url)
        page.wait_for_selector("[data-window=B] .state.open")
        for count, name in enumerate(parts, 1):
            killed = demo.part(name)
            killed.kill()
            # Pushpin ends when a part of it does.
            wait_for(partial(demo.has_restarted, count), f"{name} is started again")
            assert demo.part(name).pid != killed.pid
            for url in (direct, demo.url):
                wait_for(partial(demo.answers, url), f"{url} answers")

            page.get_by_role("button", name="1 order", exact=True).click()

            for window in "AB":
                found = f"[data-window={window}] code:text-is('orders:{count}')"
                page.wait_for_selector(found)
            address = f"{direct}/events/?channel=orders"
            with Stream(address, last_event_id=position).open() as stream:
                position = stream.next().id
            assert position == f"orders:{count}"
        assert page.locator(".gaps").all_text_contents() == ["no gap", "no gap"]

    os.kill(demo.process.pid, signal.SIGINT)

    assert demo.process.wait(20) == 0
    assert "nothing is left running" in demo.output()
    demo.assert_nothing_left()


def test_part_that_does_not_stay_up_is_told_and_stops_the_rest(demo: Demo) -> None:
    for count in range(1, 5):  # the first may have run for a while
        beat = demo.part("beat")
        beat.kill()
        beat.wait(10)
        wait_for(partial(demo.has_told_of_ends, count), "its end is told")
        if "giving up" in demo.output():
            break

    assert demo.process.wait(20) == 1
    assert "ended by SIGKILL, again soon after its start: giving up" in demo.output()
    assert re.search(r"beat +stopped \(rc=137\)", demo.output())
    assert "a part does not stay up" in demo.output()
    demo.assert_nothing_left()


def test_second_demo_in_the_same_folder_is_refused(demo: Demo, tmp_path: Path) -> None:
    second = Demo(tmp_path)

    assert second.process.wait(20) == 1
    assert f"it is running already in {tmp_path}" in second.output()


def test_taken_port_is_refused(demo: Demo, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "deploy.demo", "--port", str(demo.port)]
    second = Process(argv)

    assert second.wait(20) == 1
    assert f"port {demo.port} is taken; choose another with --port" in second.output()


@pytest.mark.parametrize("port", ["80000", "0", "-1"])
def test_port_that_cannot_be_is_refused(tmp_path: Path, port: str) -> None:
    argv = [sys.executable, "-m", "deploy.demo", "--directory", str(tmp_path)]
    with Process([*argv, "--port", port]) as demo:
        assert demo.wait(15) == 1
        assert demo.output().splitlines() == [
            f"demo: --port is a number from 1 to 65535, not {port}"
        ]


def test_board_shows_events_rollbacks_and_a_stopped_worker(
    demo: Demo, tmp_path: Path
) -> None:
    with browsing() as browser:
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        errors = watch(page)
        page.goto(demo.url)
        page.wait_for_selector("[data-window=B] .state.open")

        def ids(window: str) -> list[str]:
            cells = page.locator(f"[data-window={window}] tr.new td:first-child")
            return cells.all_text_contents()

        page.get_by_role("button", name="10 orders").click()
        page.wait_for_function("document.querySelectorAll('tr.new').length == 20")
        newest_first = [str(number) for number in range(10, 0, -1)]
        assert ids("A") == ids("B") == newest_first

        page.get_by_role("button", name="rolled back").click()
        page.get_by_text("1 rolled back: nothing arrived").wait_for()
        page.locator("[data-window=B] .connection").click()
        page.get_by_role("button", name="1 order", exact=True).click()
        page.wait_for_selector("[data-window=A] code:text-is('orders:11')")
        assert ids("B") == newest_first
        page.locator("[data-window=B] .connection").click()
        page.wait_for_selector("[data-window=B] code:text-is('orders:11')")

        page.get_by_role("button", name="Stop the worker").click()
        wait_for(lambda: "stopped from the page" in demo.output(), "the worker stops")
        page.get_by_role("button", name="10 orders").click()
        page.wait_for_selector("#waiting:text-is('10')")
        page.screenshot(path=tmp_path / "board.png")
        page.get_by_role("button", name="Start the worker").click()
        page.wait_for_selector("[data-window=A] code:text-is('orders:21')")
        page.wait_for_selector("[data-window=B] code:text-is('orders:21')")
        page.wait_for_selector("#waiting:text-is('0')")
        assert ids("A")[:3] == ["21", "20", "19"]

        shown = page.locator("footer code").last.inner_text()
        assert shown.endswith("/manage demo_send 5")
        subprocess.run(shlex.split(shown), cwd=ROOT, check=True)
        page.wait_for_selector("[data-window=A] code:text-is('orders:26')")
        [status] = re.findall(r"How it is +(.+)", demo.output())

        def is_well() -> bool:
            done = subprocess.run(
                shlex.split(status),
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            return "Every event has reached every target." in done.stdout

        wait_for(is_well, "the first sweep, which beat asks for after its interval")
        assert page.locator(".gaps").all_text_contents() == ["no gap", "no gap"]
        assert errors == []


def test_as_many_windows_as_one_likes_and_on_a_small_screen(demo: Demo) -> None:
    with browsing() as browser:
        context = browser.new_context(viewport={"width": 320, "height": 600})
        pages = [context.new_page() for _ in range(4)]
        for page in pages:
            page.goto(demo.url)  # two streams each, of six that a browser opens
            page.wait_for_selector("[data-window=A] .state.open")
            page.wait_for_selector("[data-window=B] .state.open")

        pages[0].get_by_role("button", name="10 orders").click()

        for page in pages:
            page.wait_for_function("document.querySelectorAll('tr.new').length == 20")
            assert page.locator(".gaps").all_text_contents() == ["no gap", "no gap"]
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width == 320  # nothing stands out to the right
