"""Installations that the tests of a module share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import Stack, running
from tests.support.wheel import Installation, build


@pytest.fixture(scope="module", params=["direct", "pushpin"])
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A web process and a worker; streams held by either, each test's channels its own."""
    with running(with_pushpin=request.param == "pushpin") as stack:
        yield stack


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source, built as a release is: sdist first, the wheel from it."""
    directory = tmp_path_factory.mktemp("dist")
    sdist = build(directory / "sdist", kind="sdist")
    shutil.unpack_archive(sdist, directory)
    [source] = directory.glob("eventstream-*")
    return build(directory / "wheel", source=source, kind="wheel")


@pytest.fixture(scope="session")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """An empty environment in which `pip install eventstream` finds that wheel."""
    return Installation(tmp_path_factory.mktemp("venv"), wheel)
