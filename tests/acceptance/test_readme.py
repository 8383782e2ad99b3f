"""The README's steps, read from it and taken in an empty folder."""

from __future__ import annotations

import re
import shlex
import textwrap
import urllib.request
from pathlib import Path

import pytest

from eventstream import conf
from eventstream_tasks import conf as tasks_conf
from tests.support.processes import ROOT, Process, free_port, is_listening
from tests.support.sse import Stream
from tests.support.valkey import Valkey
from tests.support.wheel import Installation

README = (ROOT / "README.md").read_text()
PRODUCTION = (ROOT / "docs/howto/production.md").read_text()
REST_FRAMEWORK = (ROOT / "docs/howto/drf.md").read_text()
GUIDES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("howto/*.md")),
    ROOT / "docs/tutorial.md",
]
_FILE = re.compile(
    r"In `((?:mysite|shop)/\S+)`(, add)?:\n\n```(?:python|html)\n(.*?)```", re.DOTALL
)
_COMMAND = re.compile(r"^\$ (.+)$", re.MULTILINE)


class Project:
    """A project that is made by following the README, with the wheel installed."""

    def __init__(self, directory: Path, installation: Installation) -> None:
        self.directory = directory
        self.installation = installation
        self.env = installation.env

    def run(self, command: str) -> str:
        return self.installation.run(command, cwd=self.directory)

    def start(self, command: str) -> Process:
        program, *arguments = shlex.split(command)
        env = {**self.env, "DJANGO_SETTINGS_MODULE": "mysite.settings"}
        # By path: the environment of a new process does not decide where it is looked for.
        argv = [str(self.installation.bin / program), *arguments]
        return Process(argv, cwd=self.directory, env=env)

    def edit(self, text: str, replacements: dict[str, str] | None = None) -> None:
        """Do what a part of the README says about files."""
        found = _FILE.findall(text)
        assert found
        for name, is_addition, code in found:
            for old, new in (replacements or {}).items():
                code = code.replace(old, new)
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if is_addition:
                path.write_text(path.read_text() + "\n" + code)
            else:
                path.write_text(code)


def part(first: str, last: str) -> str:
    return README[README.index(first) : README.index(last)]


def commands(text: str) -> list[str]:
    return _COMMAND.findall(text)


def fetch(url: str, **headers: str) -> str:
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=15) as response:
        return str(response.read().decode())


@pytest.mark.timeout(300)
def test_steps_lead_to_an_event_and_then_to_a_worker(
    tmp_path: Path, installation: Installation
) -> None:
    project = Project(tmp_path, installation)
    port = free_port()

    first = part("## A first event", "## In the browser")
    install, start, migrate, serve, curl, send = commands(first)
    assert install.startswith("pip install eventstream ")
    assert curl.startswith("curl -N")
    project.run(install)
    assert str(ROOT) not in project.run("python -c 'import eventstream as e; print(e)'")
    project.run(start)
    project.edit(first)
    project.run(migrate)
    url = curl.split("'")[1].replace(":8000", f":{port}")
    with project.start(f"{serve} --port {port}") as web:
        web.wait_until(lambda: is_listening(port), "the server runs")
        with Stream(url).open() as stream:
            project.run(send)
            message = stream.next()
        for name in ("eventstream/eventstream.js", "admin/css/base.css"):
            assert fetch(f"http://127.0.0.1:{port}/static/{name}")
    block = "".join(
        f"{line}\n"
        for line in (f"id: {message.id}", f"event: {message.type}", f"data: {message.data}")
    )  # fmt: skip
    assert block in first

    second = PRODUCTION.partition("## Behind Pushpin")[0]
    install, migrate, worker, beat = commands(second)
    project.run(install)
    with Valkey() as valkey:
        project.edit(second, {"redis://127.0.0.1:6379/0": valkey.url})
        project.run(migrate)
        assert "no issues" in project.run("python manage.py check --fail-level WARNING")
        with (
            project.start(f"{serve} --port {port}") as web,
            project.start(f"{worker} -P threads -l INFO") as tasks,
            project.start(f"{beat} -l INFO") as timer,
        ):
            web.wait_until(lambda: is_listening(port), "the server runs")
            tasks.wait_until(lambda: "ready." in tasks.output(), "the worker is ready")
            with Stream(url).open() as stream:
                project.run(send)
                assert stream.next(timeout=5).id == "orders:2"
            timer.wait_until(
                lambda: "eventstream.republish" in timer.output(),
                "beat sends the sweep",
            )
            check = "python manage.py check --database default --fail-level WARNING"
            tasks.wait_until(
                lambda: (
                    "eventstream.republish" in tasks.output().split("ready.")[1]
                    and "succeeded" in tasks.output()
                ),
                "the sweep has run",
            )
            assert "no issues" in project.run(check)


@pytest.mark.timeout(300)
def test_guide_of_rest_framework_leads_to_its_streams(
    tmp_path: Path, installation: Installation
) -> None:
    project = Project(tmp_path, installation)
    first = part("## A first event", "## In the browser")
    install, start, migrate, serve, *_ = commands(first)
    for command in (install, *commands(REST_FRAMEWORK), start):
        project.run(command)
    project.edit(first)
    project.edit(REST_FRAMEWORK)
    project.run(migrate)
    project.run(
        "python manage.py shell -c 'from django.contrib.auth.models import User; "
        'User.objects.create_user("ann")\''
    )
    token = project.run("python manage.py drf_create_token ann").split()[2]
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"

    with project.start(f"{serve} --port {port}") as web:
        web.wait_until(lambda: is_listening(port), "the server runs")
        assert "<html" in fetch(f"{url}/events/", Accept="text/html")
        for path in ("events/", "any/orders/", "rooms/7/events/"):
            with Stream(f"{url}/{path}").open() as stream:
                assert stream.status == 200
        with Stream(f"{url}/my-events/") as refused:
            assert refused.status == 401
        login = {"Authorization": f"Token {token}"}
        with Stream(f"{url}/my-events/", headers=login).open() as stream:
            assert stream.status == 200


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_settings_that_are_named_exist(path: Path) -> None:
    named = set(re.findall(r"\bEVENTSTREAM_([A-Z][A-Z_]+[A-Z])\b", path.read_text()))

    known = {setting.name for setting in [*conf.SETTINGS, *tasks_conf.SETTINGS]}
    assert named - known <= {"STORAGE_CONNECTION"}  # django-eventstream has that


def test_files_it_links_to_exist() -> None:
    links = [
        link
        for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text())
        if not (path.parent / link).exists()
    ]

    assert links == []


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_python_that_is_shown_compiles(path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)

    for block in blocks:
        body = textwrap.indent(textwrap.dedent(block), "    ")
        compile(f"async def block():\n    pass\n{body}", path.name, "exec")


def test_database_settings_of_the_guide_need_no_options_there() -> None:
    """PostgreSQL's are none, by README.md."""
    text = (ROOT / "docs/howto/deploy.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {"DATABASES": {"default": {"ENGINE": "django.db.backends.postgresql"}}}
    for block in blocks:
        if "DATABASES" in block:
            exec(textwrap.dedent(block), names)

    wanted = {"connect_timeout", "pool", "prepare_threshold"}
    assert wanted <= set(names["DATABASES"]["default"]["OPTIONS"])
