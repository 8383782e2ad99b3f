"""Ports for tests' servers, chosen in several processes at the same time."""

from __future__ import annotations

import multiprocessing
import os
import socket
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.support.processes import Ports, free_port


def _choose(path: str, first: int, connection: Connection) -> None:
    ports = Ports(path, first, 4)
    connection.send([ports.choose(), ports.choose()])
    connection.recv()


def test_each_port_is_of_one_process_for_as_long_as_that_lives(tmp_path: Path) -> None:
    path = str(tmp_path / "ports")
    first = 30_000 + os.getpid() % 600 * 4  # above those that other tests choose from
    here, there = multiprocessing.Pipe()
    other = multiprocessing.get_context("spawn").Process(
        target=_choose, args=(path, first, there), daemon=True
    )
    other.start()
    theirs = here.recv()
    ports = Ports(path, first, 4)

    ours = [ports.choose(), ports.choose()]

    assert sorted(theirs + ours) == list(range(first, first + 4))
    with pytest.raises(RuntimeError, match="no free port"):
        ports.choose()
    here.send("end")
    other.join(10)
    assert sorted([ports.choose(), ports.choose()]) == sorted(theirs)


def test_port_that_a_server_has_is_not_chosen(tmp_path: Path) -> None:
    first = free_port()
    with socket.socket() as server:
        server.bind(("127.0.0.1", first))
        ports = Ports(str(tmp_path / "ports"), first, 1)
        with pytest.raises(RuntimeError, match="no free port"):
            ports.choose()

    assert ports.choose() == first
