"""Imports point one way, and the core needs no Celery."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT

CORE = """
import sys, django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "eventstream"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    ROOT_URLCONF="eventstream.urls",
)
django.setup()
import eventstream
eventstream.send_event
from django.core.checks import run_checks
run_checks()
import eventstream.urls, eventstream.hub, eventstream.jobs
print(sorted(set(sys.modules) & {"celery", "kombu", "django_celery_beat", "tests"}))
"""


WITHOUT_USERS = """
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["eventstream"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    SECRET_KEY="tests-only-0123456789-0123456789-0123456789",
    ALLOWED_HOSTS=["testserver"],
    ROOT_URLCONF="eventstream.urls",
)
django.setup()
from django.core.management import call_command
call_command("check")
call_command("migrate", verbosity=0)
from eventstream import make_subscribe_token, send_event
from eventstream.testing import EventStreamTestClient
client = EventStreamTestClient()
send_event("orders", "message", "tea")
token = make_subscribe_token(None, ["orders"])
for query in ("channel=orders", f"channel=orders&token={token}"):
    events = client.read(f"/?{query}", last_event_id="orders:0")
    print([event.data for event in events])
"""


WITHOUT_CELERY = """
import sys, django
from django.conf import settings
sys.modules["celery"] = None
settings.configure(INSTALLED_APPS=["eventstream", "eventstream_tasks"])
django.setup()
"""


def imported(path: Path) -> set[str]:
    """Return the top-level packages that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        (
            "eventstream",
            {"celery", "kombu", "eventstream_tasks", "deploy", "tests", "django_celery_beat"},
        ),
        ("eventstream_tasks", {"deploy", "tests"}),
        ("deploy", {"tests"}),
    ],
)  # fmt: skip
def test_package_imports_only_what_is_below_it(
    package: str, forbidden: set[str]
) -> None:
    # Found by import: tox tests the installed packages.
    [directory] = importlib.import_module(package).__path__
    paths = sorted(Path(directory).rglob("*.py"))
    assert len(paths) > 5

    for path in paths:
        assert not imported(path) & forbidden, path


def modules(package: str) -> dict[str, ast.Module]:
    """Return every module of a package, by its dotted name."""
    [directory] = importlib.import_module(package).__path__
    found = {}
    for path in Path(directory).rglob("*.py"):
        parts = path.relative_to(directory).with_suffix("").parts
        name = ".".join([package, *parts]).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text())
    return found


def imported_at_once(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Give the (module, name) of imports that run when a module is imported."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        nodes.extend(ast.iter_child_nodes(node))


def test_no_module_imports_itself_by_way_of_another() -> None:
    trees = modules("eventstream") | modules("eventstream_tasks") | modules("deploy")
    graph: dict[str, set[str]] = {}
    for module, tree in trees.items():
        pairs = imported_at_once(tree)
        targets = {t for pair in pairs for t in (pair[0], ".".join(pair)) if t in trees}
        # `from package import module` needs the module, not what the package exports.
        graph[module] = {
            t for t in targets if t != module and not any(o.startswith(f"{t}.") for o in targets)
        }  # fmt: skip
    assert sum(map(len, graph.values())) > 200

    order = list(graphlib.TopologicalSorter(graph).static_order())

    assert len(order) == len(trees)


def test_core_runs_without_celery() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CORE],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


EARLY = """
import importlib
from eventstream import get_current_event_id, send_event
import django
from django.conf import settings
from django.core.exceptions import AppRegistryNotReady
from django.core.management import call_command
settings.configure(
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "eventstream"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
for too_early in (
    lambda: send_event("a", "message", 1),
    lambda: importlib.import_module("eventstream").SentEvent,  # a class has no stand-in
):
    try:
        too_early()
    except AppRegistryNotReady:
        print("too early")
django.setup()
call_command("migrate", verbosity=0)
send_event("a", "message", 1)
print(get_current_event_id(["a"]))
"""


def test_functions_can_be_imported_before_apps_are_ready() -> None:
    """As the clock among django-eventstream's examples does, in its apps.py."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EARLY],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    expected = ["too early", "too early", "a:1"]
    assert (done.stdout.splitlines(), done.returncode) == (expected, 0), done.stderr


def test_everybody_is_anonymous_in_a_project_without_users() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_USERS],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.stdout.splitlines() == ["['tea']", "['tea']"], done.stderr


def test_tasks_say_what_to_install_for_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_CELERY],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.stderr.endswith("needs it: pip install 'eventstream[tasks]'\n")
