"""A real RabbitMQ, of Debian's package, with a port mapper of its own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.support.processes import Process, free_port, is_listening

# Not the wrapper of the same name in sbin: that becomes another user first.
_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


class RabbitMQ:
    """One node without plugins; it loses everything at the end."""

    def __init__(self) -> None:
        mapper = shutil.which("epmd")
        if mapper is None or not _SERVER.exists():
            raise AssertionError("RabbitMQ is missing: apt-get install rabbitmq-server")
        self._directory = Path(tempfile.mkdtemp(prefix="es-rmq-"))
        self.port, mapper_port = free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        (self._directory / "plugins").write_text("[].\n")
        (self._directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
        )
        env = {
            "HOME": str(self._directory),  # the cookie
            "ERL_EPMD_PORT": str(mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"es{self.port}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self._directory / "mnesia"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(self._directory / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._directory / "plugins"),
            # Erlang's schedulers would spin on a machine with few cores.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
        }
        # Ours, in the foreground: Erlang would start one that stays.
        self._mapper = Process([mapper, "-port", str(mapper_port)], env=env)
        self._mapper.wait_until(lambda: is_listening(mapper_port), "epmd listens")
        self.process = Process([str(_SERVER)], env=env, cwd=self._directory)
        self.process.wait_until(
            lambda: is_listening(self.port), "RabbitMQ listens", timeout=60
        )

    def close(self) -> None:
        self.process.stop()
        self._mapper.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
