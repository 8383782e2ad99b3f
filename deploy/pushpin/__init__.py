"""Pushpin's configuration, from the templates beside this file."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
from pathlib import Path
from string import Template

_HERE = Path(__file__).resolve().parent

PIPES = 50
"""Between two parts of Pushpin, for requests. Each takes a hundred that are not read yet; if
there is no room, the request is answered with 502 at once."""


def _find_libdir() -> str:
    """Return where internal.conf is: in the lib beside the bin of the first on PATH."""
    program = shutil.which("pushpin") or "/usr/bin/pushpin"
    return str(Path(program).resolve().parents[1] / "lib/pushpin")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PushpinConfig:
    """What differs between installations.

    Attributes:
        directory: Where everything is written. Keep it short: unix sockets in it may
            have paths of 107 bytes at most.
        is_temporary: Whether it is removed when Pushpin ends.
        backend: host:port of the web process. Several, with spaces between, are asked in this
            order: the next where one accepts no connection.
        key: Secret of at least 32 bytes, shared with the application by GRIP_URL.
        port: Where browsers connect.
        publish_port: Where the relay publishes, by HTTP; the host and port of GRIP_URL.
        standby_port: Where 502 is answered to what no web process accepts; see standby.py.
        zmq_port, sub_port, command_port: Pushpin opens these as well; unused here.
        host: Address on which browsers are served. Not all addresses, unless something
            in front of it ends TLS.
        publish_host: Address of the four ports by which one can publish and command, and
            of its Prometheus page: 127.0.0.1 or one of a private network.
        metrics_port: Where it shows that page; None for nowhere. Named in
            EVENTSTREAM_PROXY_METRICS, it tells how many readers there are.
        max_connections: Most clients; have it twice as many as are expected. Each takes a
            file descriptor, and so does a question about its stream, while it is asked.
        libdir: Where internal.conf is; by default that of the installed Pushpin.
        log_level: 0 errors, 1 warnings, 2 information.
    """

    directory: Path
    is_temporary: bool = False
    backend: str
    key: str
    port: int = 7999
    publish_port: int = 5561
    standby_port: int = 7997
    zmq_port: int = 5560
    sub_port: int = 5562
    command_port: int = 5563
    host: str = "127.0.0.1"
    publish_host: str = "127.0.0.1"
    metrics_port: int | None = None
    max_connections: int = 10000
    libdir: str = dataclasses.field(default_factory=_find_libdir)
    log_level: int = 1

    @property
    def grip_url(self) -> str:
        """The application's GRIP_URL, where both are on this machine."""
        return f"http://{self.publish_host}:{self.publish_port}/?key={self.key}"

    @property
    def services(self) -> str:
        """What the runner starts. Since 1.40 under other names, and no zurl is needed."""
        internal = Path(self.libdir, "internal.conf")
        is_new = internal.exists() and "connmgr_in_specs" in internal.read_text()
        return (
            "connmgr,proxy,handler"
            if is_new
            else "condure,zurl,pushpin-proxy,pushpin-handler"
        )

    def write(self) -> Path:
        """Write pushpin.conf and routes, and return the former's path."""
        for name in ("run", "log"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        values = {**dataclasses.asdict(self), "services": self.services}
        values["metrics"] = (
            f"prometheus_port={self.publish_host}:{self.metrics_port}"
            if self.metrics_port
            else "# prometheus_port=127.0.0.1:7998"
        )
        values["templates"] = self._write_zurl()
        for name in ("zurl-in", "connmgr-client-in", "intreq-in"):
            address = f"ipc://{{rundir}}/{{ipc_prefix}}{name}"
            values[name.replace("-", "_")] = ",".join([address] * PIPES)
        for name in ("routes", "pushpin.conf"):
            template = Template((_HERE / f"{name}.template").read_text())
            target = self.directory / name
            target.touch(mode=0o600)
            target.write_text(template.substitute(values))
        return self.directory / "pushpin.conf"

    def _write_zurl(self) -> str:
        """Have zurl make as many requests at once as there may be clients, rather than 2,000.

        Any more wait, and some hundreds later are answered with an error: clients that open
        get it, and streams that are asked about then may be given an event twice (see
        decisions/0013). From 1.40 on there is no zurl, and no such template.

        Returns:
            The line of pushpin.conf that says where the runner's templates are.
        """
        name = "runner/zurl.conf.template"
        source, target = Path(self.libdir, name), self.directory / name
        if not source.exists():
            return ""
        target.parent.mkdir(exist_ok=True)
        text = source.read_text()
        most = f"max_open_requests={self.max_connections}"
        target.write_text(re.sub(r"(?m)^max_open_requests=.*$", most, text))
        return f"libdir={self.directory}"

    def command(self) -> list[str]:
        """Write the files, and return the command that runs Pushpin in the foreground."""
        standby = [sys.executable, str(_HERE / "standby.py")]
        if self.is_temporary:
            standby.append(f"--remove={self.directory}")
        pushpin = ["pushpin", f"--config={self.write()}", "--merge-output"]
        return [*standby, str(self.standby_port), *pushpin]
