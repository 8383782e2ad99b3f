"""Imports point one way, and the core needs no Celery."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
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


def test_core_runs_without_celery() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CORE],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
