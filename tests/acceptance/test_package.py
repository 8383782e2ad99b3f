"""What is released: the wheel and the sdist, their metadata, and the papers beside them."""

from __future__ import annotations

import email
import email.message
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import eventstream
from tests.support.processes import ROOT
from tests.support.wheel import Installation, build

PACKAGES = {"eventstream", "eventstream_tasks"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def tracked(package: str) -> set[str]:
    done = subprocess.run(
        ["git", "ls-files", package],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return set(done.stdout.split())


def test_wheel_has_the_two_packages_whole_and_nothing_else(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}

    assert tops == PACKAGES | {f"eventstream-{eventstream.__version__}.dist-info"}
    for package in PACKAGES:
        inside = {name for name in names if name.startswith(f"{package}/")}
        assert inside == tracked(package)


def test_sdist_holds_what_builds_the_same_wheel(
    names: set[str], tmp_path: Path
) -> None:
    # The `wheel` fixture is built from the sdist; this one from the tree.
    from_tree = build(tmp_path / "wheel", kind="wheel")
    sdist = build(tmp_path / "sdist", kind="sdist")

    assert set(zipfile.ZipFile(from_tree).namelist()) == names
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames()}
    assert tops - PACKAGES == {
        ".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "js",
        "pyproject.toml",
    }  # fmt: skip


def test_metadata_names_licences_pythons_and_djangos(
    metadata: email.message.Message,
) -> None:
    classifiers = metadata.get_all("Classifier") or []

    assert metadata["License-Expression"] == "MIT"
    assert len(metadata.get_all("License-File") or []) == 3
    assert metadata["Requires-Python"] == ">=3.11"
    for python in ("3.11", "3.12", "3.13"):
        assert f"Programming Language :: Python :: {python}" in classifiers
    for django in ("5.2", "6.0"):
        assert f"Framework :: Django :: {django}" in classifiers
    assert "Typing :: Typed" in classifiers
    assert set(metadata.get_all("Provides-Extra") or []) == {
        "console", "drf", "metrics", "otel", "structlog", "tasks",
    }  # fmt: skip


def test_every_requirement_has_a_lower_bound_that_is_tested() -> None:
    """constraints-lowest.txt, with which tox runs the tests, is those very bounds."""
    texts = [*PROJECT["dependencies"]]
    for extra in PROJECT["optional-dependencies"].values():
        texts += extra
    lowest = {}
    for text in texts:
        requirement = Requirement(text)
        [bound] = [s.version for s in requirement.specifier if s.operator == ">="]
        lowest[canonicalize_name(requirement.name)] = Version(bound)
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {
        canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("=="))
        for pin in pins
    }

    assert pinned == lowest


def test_version_is_semantic_and_heads_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    heads = re.findall(r"^## (\S+), (unreleased|\d{4}-\d{2}-\d{2})$", changelog, re.M)

    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", eventstream.__version__)
    assert heads
    assert heads[0][0] == eventstream.__version__
    assert all(date != "unreleased" for _, date in heads[1:])


@pytest.mark.timeout(180)
def test_project_that_installs_it_sees_its_types(
    installation: Installation, tmp_path: Path
) -> None:
    installation.run("pip install eventstream", cwd=tmp_path)
    (tmp_path / "mine.py").write_text(
        "from eventstream import send_event\n"
        'reveal_type(send_event("orders", "message", {"n": 1}))\n'
        'send_event("orders", 17)\n'
    )

    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", "--python-executable",
         str(installation.python), "mine.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert 'Revealed type is "eventstream.api.SentEvent"' in done.stdout
    assert "Missing positional argument" in done.stdout
    assert "Found 1 error" in done.stdout or "Found 2 errors" in done.stdout
    assert "py.typed" not in done.stdout


def test_core_requires_no_celery(metadata: email.message.Message) -> None:
    requirements = [
        Requirement(text) for text in metadata.get_all("Requires-Dist") or []
    ]

    required = {
        requirement.name.lower()
        for requirement in requirements
        if not requirement.marker or requirement.marker.evaluate({"extra": ""})
    }

    assert "django" in required
    assert required.isdisjoint({"celery", "django-celery-beat"})
