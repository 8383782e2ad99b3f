"""`make demo` and `make demo-check`, as a newcomer runs them."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.browser import browsing, watch
from tests.support.processes import Process, free_port, wait_for

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
        """Return what it has started, by the environment that each inherits."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("TEST_MARK") == self.mark:
                    found.append(process)
            except psutil.Error:
                continue
        return [p for p in found if p.pid != self.process.pid]

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
    os.kill(demo.process.pid, signal.SIGKILL)

    demo.assert_nothing_left()


def test_death_of_one_process_is_told_and_stops_the_rest(demo: Demo) -> None:
    lines = [(p, p.cmdline()) for p in demo.processes()]
    beat = next(p for p, line in lines if "beat" in line and line[2] == "celery")

    beat.kill()

    assert demo.process.wait(20) == 1
    assert re.search(r"beat +stopped \(rc=", demo.output())
    assert "a process ended by itself" in demo.output()
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
        assert page.locator(".gaps").all_text_contents() == ["no gap", "no gap"]
        assert errors == []
