"""`python -m deploy.pushpin`, with a Pushpin that only waits."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import ROOT, Process, free_port, python, wait_for

GUIDE = (ROOT / "docs/howto/production.md").read_text()
KEY = "k" * 32

Start = Callable[..., Process]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Where temporary folders are made."""
    path = tmp_path / "tmp"
    path.mkdir()
    return path


@pytest.fixture
def start(tmp_path: Path, folders: Path) -> Start:
    program = tmp_path / "bin" / "pushpin"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho it runs\nexec sleep 60\n")
    program.chmod(0o755)

    def start(*arguments: str, **env: str) -> Process:
        path = f"{program.parent}:{os.environ['PATH']}"
        given = {
            "PATH": path,
            "TMPDIR": str(folders),
            "PUSHPIN_STANDBY_PORT": str(free_port()),
        }
        return python("-m", "deploy.pushpin", *arguments, env={**given, **env})

    return start


def test_command_of_the_guide_says_where_browsers_go(
    start: Start, folders: Path
) -> None:
    """The web process is where the README has it."""
    command, shown = re.findall(
        r"\$ (GRIP_URL=.*) python -m deploy\.pushpin\n(.*)\n", GUIDE
    )[0]
    env = dict(re.findall(r'(\w+)="?([^" ]+)', command.replace("…", KEY)))

    with start(**env) as pushpin:
        pushpin.wait_until(lambda: "it runs" in pushpin.output(), "it runs")
        (routes,) = folders.glob("pp-*/routes")

        assert shown in pushpin.output().splitlines()
        assert "127.0.0.1:8000" in routes.read_text()
    assert f"http://{shown.partition(' ')[0]}/events/" in GUIDE


@pytest.mark.parametrize(
    ("number", "is_group"),
    [
        (signal.SIGINT, True),
        (signal.SIGTERM, True),
        (signal.SIGTERM, False),
        (signal.SIGKILL, False),
    ],
)
def test_its_folder_goes_with_it(
    start: Start, folders: Path, number: signal.Signals, is_group: bool
) -> None:
    with start(GRIP_URL=f"http://127.0.0.1:5561/?key={KEY}") as pushpin:
        pushpin.wait_until(lambda: "it runs" in pushpin.output(), "it runs")
        assert list(folders.iterdir())

        if is_group:
            pushpin.send_signal(number)
        else:
            os.kill(pushpin.pid, number)

        wait_for(lambda: not list(folders.iterdir()), "the folder is gone")


SLOW_CHILD = """
import os, runpy, sys, time
fork = os.fork
def slowly():
    pid = fork()
    if pid == 0:
        time.sleep(0.5)
    return pid
os.fork = slowly
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_its_folder_goes_with_it_however_early_it_is_ended(tmp_path: Path) -> None:
    """Ctrl-C, before the child that removes the folder has begun."""
    folder = tmp_path / "pp"
    folder.mkdir()
    standby = str(ROOT / "deploy/pushpin/standby.py")
    command = ["sh", "-c", "echo it runs; exec sleep 60"]

    with python(
        "-c", SLOW_CHILD, standby, f"--remove={folder}", str(free_port()), *command
    ) as process:
        process.wait_until(lambda: "it runs" in process.output(), "it runs")
        process.send_signal(signal.SIGINT)

        wait_for(lambda: not folder.exists(), "the folder is gone")


def test_its_folder_goes_with_it_where_it_cannot_start(
    start: Start, folders: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with start(
            GRIP_URL=f"http://127.0.0.1:5561/?key={KEY}", PUSHPIN_STANDBY_PORT=port
        ) as pushpin:
            assert pushpin.wait(15) == 1

    assert list(folders.iterdir()) == []


def test_folder_that_was_given_stays(
    start: Start, folders: Path, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    url = f"http://127.0.0.1:5561/?key={KEY}"
    with start(GRIP_URL=url, PUSHPIN_DIR=str(given)) as pushpin:
        pushpin.wait_until(lambda: "it runs" in pushpin.output(), "it runs")
        pushpin.send_signal(signal.SIGTERM)
        pushpin.wait()

    assert (given / "routes").exists()
    assert list(folders.iterdir()) == []


def test_key_is_the_first_where_the_application_names_several(
    start: Start, folders: Path
) -> None:
    url = f"http://one:5571/?key={KEY} http://two:5571/?key={KEY[::-1]}old"

    with start(GRIP_URL=url) as pushpin:
        pushpin.wait_until(lambda: "it runs" in pushpin.output(), "it runs")
        (config,) = folders.glob("pp-*/pushpin.conf")
        lines = config.read_text().splitlines()

    assert f"sig_key={KEY}" in lines
    assert "push_in_http_port=5571" in lines


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://127.0.0.1:5561/",
        f"http://127.0.0.1:5561/?key={KEY[1:]}",
        f"http://one:5561/?key={KEY} http://two:5562/?key={KEY}",
    ],
)
def test_key_that_the_settings_would_refuse_is_refused(
    start: Start, folders: Path, url: str
) -> None:
    with start(GRIP_URL=url) as pushpin:
        assert pushpin.wait(15) == 1

        assert "32 characters of key or more" in pushpin.output()
    assert list(folders.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("PUSHPIN_PORT", "http", "PUSHPIN_PORT='http': set it to a whole number"),
        ("GRIP_URL", f"http://one:x/?key={KEY}", "GRIP_URL: Port could not be cast"),
    ],
)
def test_port_that_is_no_number_is_refused(
    start: Start, folders: Path, name: str, value: str, text: str
) -> None:
    env = {"GRIP_URL": f"http://one:5571/?key={KEY}", name: value}

    with start(**env) as pushpin:
        assert pushpin.wait(15) == 1

        assert pushpin.output().startswith(text)
    assert list(folders.iterdir()) == []


def test_help_names_what_the_environment_sets(start: Start) -> None:
    source = (ROOT / "deploy/pushpin/__main__.py").read_text()
    names = re.findall(r'(?:environ\.get|get_int)\("(\w+)"', source)

    with start("--help") as pushpin:
        assert pushpin.wait(15) == 0

        assert len(names) > 8
        assert [name for name in names if name not in pushpin.output()] == []
