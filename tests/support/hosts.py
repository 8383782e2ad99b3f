"""Several machines on one: network namespaces that reach nothing but each other.

Each host has a link to one switch, which is a namespace too, so that this machine's own
network is not touched. A process belongs to the host in which it was started.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _ip(*arguments: str) -> str:
    program = shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")
    assert program, "ip is missing: apt-get install iproute2"
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (
        f"This machine makes no network namespaces, which this test is about (root, "
        f"CAP_SYS_ADMIN and CAP_NET_ADMIN are needed): ip {' '.join(arguments)}: "
        f"{done.stderr.strip()}"
    )
    return done.stdout


def _enter(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(descriptor)


class Host:
    """One machine: an address, and a link that can be cut."""

    def __init__(self, network: Network, name: str, number: int) -> None:
        self.name = name
        self.address = f"192.0.2.{number}"  # TEST-NET-1: nobody's
        self._switch = network.switch
        self._namespace = f"{network.prefix}{name}"
        self._port = f"es{number}"
        _ip("netns", "add", self._namespace)
        _ip("link", "add", self._port, "netns", self._switch, "type", "veth",
            "peer", "name", "eth0", "netns", self._namespace)  # fmt: skip
        _ip("-n", self._switch, "link", "set", self._port, "master", "bridge", "up")
        _ip("-n", self._namespace, "link", "set", "lo", "up")
        _ip(
            "-n", self._namespace, "address", "add", f"{self.address}/24", "dev", "eth0"
        )
        _ip("-n", self._namespace, "link", "set", "eth0", "up")

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let this thread, and what it starts, be on this host."""
        outside = f"/proc/{os.getpid()}/task/{_libc.gettid()}/ns/net"
        descriptor = os.open(outside, os.O_RDONLY)
        try:
            _enter(f"/run/netns/{self._namespace}")
            yield
        finally:
            _enter(f"/proc/self/fd/{descriptor}")
            os.close(descriptor)

    def kill_all(self) -> None:
        """SIGKILL whatever runs here, as a power cut does."""
        listed = _ip("netns", "pids", self._namespace).split()
        for pid in {int(text) for text in listed} - {os.getpid()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def cut(self) -> None:
        """Pull the plug of its link: what is sent is lost, and nobody is told."""
        _ip("-n", self._switch, "link", "set", self._port, "down")

    def mend(self) -> None:
        _ip("-n", self._switch, "link", "set", self._port, "up")


class Network:
    """A switch and its hosts, by name."""

    def __init__(self, *names: str) -> None:
        self.prefix = f"es{os.getpid()}-"
        self.switch = f"{self.prefix}switch"
        self.hosts: dict[str, Host] = {}
        self._remove_leftovers()
        try:
            _ip("netns", "add", self.switch)
            _ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self.switch, "link", "set", "bridge", "up")
            for number, name in enumerate(names, 10):
                self.hosts[name] = Host(self, name, number)
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def close(self) -> None:
        for host in self.hosts.values():
            host.kill_all()  # also what a killed process has left behind
        for path in Path("/run/netns").glob(f"{self.prefix}*"):
            _ip("netns", "delete", path.name)

    def _remove_leftovers(self) -> None:
        """Delete what a run that was killed has left."""
        for path in Path("/run/netns").glob("es*-*"):
            pid = path.name.removeprefix("es").partition("-")[0]
            if pid.isdecimal() and not Path("/proc", pid).exists():
                _ip("netns", "delete", path.name)

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
