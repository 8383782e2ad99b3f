"""The documentation: the site builds without a warning, and the tutorial does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.dispatch import Signal

import eventstream
from eventstream import conf, signals
from tests.acceptance.test_readme import Project, commands
from tests.support.browser import browsing
from tests.support.processes import ROOT, free_port, is_listening
from tests.support.wheel import Installation

TUTORIAL = (ROOT / "docs/tutorial.md").read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [Path(sys.executable).with_name("mkdocs"), "build", "--quiet", "-d", directory],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    # Strict: a broken link, anchor or reference is a warning, and that an error.
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def test_every_page_is_on_the_site_and_in_its_navigation(site: Path) -> None:
    home = (site / "index.html").read_text()
    decisions = (site / "decisions/index.html").read_text()

    for path in (ROOT / "docs").rglob("*.md"):
        if path.parent.name == "decisions":
            assert f'href="{path.stem}.html">{path.stem[:4]}<' in decisions, path.name
        name = path.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        name = name.replace("README", "index")
        assert (site / name).exists(), name
        assert f'href="{name}"' in home, name


def test_reference_has_all_names_settings_commands_metrics_signals_and_checks(
    site: Path,
) -> None:
    settings = (site / "reference/settings.html").read_text()
    checks = (site / "reference/checks.html").read_text()
    commands = (site / "reference/commands.html").read_text()
    metrics = (site / "reference/metrics.html").read_text()
    signals_page = (site / "reference/signals.html").read_text()
    api = (site / "reference/api.html").read_text()

    assert all(f">{setting.name}<" in settings for setting in conf.SETTINGS)
    for name in ("eventstream/checks.py", "eventstream_tasks/checks.py"):
        for check in re.findall(r'id="([\w.]+)"', (ROOT / name).read_text()):
            assert check in checks, check
    for path in ROOT.glob("eventstream*/management/commands/[a-z]*.py"):
        assert f">{path.stem}<" in commands, path.stem
    assert ">eventstream republish<" in commands
    for name in eventstream.__all__:
        assert re.search(rf'id="eventstream\.\w+\.{name}"', api), name
    names = [n for n, value in vars(signals).items() if isinstance(value, Signal)]
    assert names
    assert all(f'id="{name}"' in signals_page for name in names)
    # Those that the alerts ask for, so that the page cannot be of others.
    rules = (ROOT / "deploy/prometheus/eventstream.rules.yml").read_text()
    for name in set(re.findall(r"\beventstream_\w+", rules)):
        assert re.sub(r"_(bucket|sum|count)$", "", name) in metrics, name
    assert metrics.count("<code>eventstream_") > 20


@pytest.mark.timeout(300)
def test_tutorial_leads_to_a_page_that_misses_nothing(
    tmp_path: Path, installation: Installation
) -> None:
    project = Project(tmp_path, installation)
    install, start, startapp, make, migrate, serve, place = commands(TUTORIAL)
    for command in (install, start, startapp):
        project.run(command)
    project.edit(TUTORIAL)
    project.run(make)
    project.run(migrate)
    port = free_port()
    serve = f"{serve} --port {port}"

    with browsing() as chromium:
        page = chromium.new_page()
        lines = page.locator("#orders li")
        with project.start(serve) as web:
            web.wait_until(lambda: is_listening(port), "the server runs")
            page.goto(f"http://127.0.0.1:{port}/")
            page.get_by_role("button").click()
            lines.nth(0).wait_for()
        project.run(place)
        with project.start(serve) as web:
            web.wait_until(lambda: is_listening(port), "the server runs")
            lines.nth(1).wait_for(timeout=30_000)
            page.wait_for_timeout(500)  # and nothing twice
            assert lines.all_inner_texts() == ["tea", "coffee"]
