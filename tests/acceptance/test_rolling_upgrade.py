"""The release before this schema, replaced under load by this source, one process at a time.

The first release has no predecessor: the previous one is the last commit before the newest
migration, taken from the history of this repository.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from tests.support.postgres import postgres
from tests.support.processes import ROOT, Process, free_port, is_listening
from tests.support.sse import Crowd
from tests.support.stack import WORKER
from tests.support.valkey import Valkey

CHANNELS = ["orders", "rooms", "users"]
NGINX = """
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 500; }}
http {{
  access_log off;
  upstream web {{
    server 127.0.0.1:{old} max_fails=1 fail_timeout=1s;
    server 127.0.0.1:{new} max_fails=1 fail_timeout=1s;
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://web;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""
READ = """
import json
from eventstream.models import Event
found = {}
for channel, data in Event.objects.order_by("eid").values_list("channel", "data"):
    found.setdefault(channel, []).append(data)
print("LOG" + json.dumps(found))
"""


def git(*arguments: str) -> bytes:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, (
        "The previous release is taken from this repository's history, which is not "
        f"here: {done.stderr.decode()}"
    )
    return done.stdout


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source tree of the last commit before the newest migration."""
    names = sorted((ROOT / "eventstream/migrations").glob("[0-9]*.py"))
    newest = str(names[-1].relative_to(ROOT))
    added = git("log", "--diff-filter=A", "--format=%H", "--", newest).split()
    assert added, f"{newest} is not committed"
    directory = tmp_path_factory.mktemp("previous")
    archive = git("archive", f"{added[-1].decode()}~1")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tree:
        tree.extractall(directory, filter="data")
    assert not (directory / newest).exists()
    return directory


class Release:
    """One source tree, and processes of it."""

    def __init__(self, tree: Path, env: dict[str, str], port: int) -> None:
        self.tree, self.env, self.port = tree, env, port

    def manage(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments], cwd=self.tree,
            env={**os.environ, **self.env}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def web(self) -> Process:
        process = self._run(
            "uvicorn", "tests.asgi:application", "--port", str(self.port),
            "--timeout-graceful-shutdown", "5", "--log-level", "warning",
        )  # fmt: skip
        process.wait_until(lambda: is_listening(self.port), "uvicorn listens")
        return process

    def worker(self) -> Process:
        process = self._run("celery", "-A", "tests", "worker", *WORKER)
        process.wait_until(lambda: "ready." in process.output(), "the worker is ready")
        return process

    def _run(self, *arguments: str) -> Process:
        # The current folder comes first: these are the tree's packages.
        argv = [sys.executable, "-m", *arguments]
        return Process(argv, cwd=self.tree, env=self.env)


class Writer:
    """Sends through the front until it is stopped."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self.sent = self.refused = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for number in itertools.count():
            if self._stop.wait(0.03):
                return
            body = {"channel": CHANNELS[number % len(CHANNELS)], "count": 2}
            request = urllib.request.Request(
                f"{self._url}/send/", data=json.dumps(body).encode()
            )
            try:
                with urllib.request.urlopen(request, timeout=10):
                    self.sent += 2
            except OSError:
                self.refused += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(15)


@pytest.mark.timeout(180)
async def test_upgrade_under_load_loses_nothing(previous: Path, tmp_path: Path) -> None:
    with postgres() as server, Valkey() as valkey:
        env = {
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "ES_DB": server.create_database("rolling"),
            "ES_REDIS": valkey.url,
        }
        old = Release(previous, env, free_port())
        new = Release(ROOT, env, free_port())
        front = free_port()
        config = tmp_path / "nginx.conf"
        config.write_text(
            NGINX.format(directory=tmp_path, old=old.port, new=new.port, port=front)
        )
        old.manage("migrate", "-v", "0")
        assert old.manage("showmigrations", "eventstream") != new.manage(
            "showmigrations", "eventstream"
        )
        nginx = ["/usr/sbin/nginx", "-c", str(config), "-g", "daemon off;"]
        with (
            old.web() as old_web,
            old.worker() as old_worker,
            Process(nginx) as balancer,
        ):
            balancer.wait_until(lambda: is_listening(front), "nginx listens")
            crowd = Crowd(f"http://127.0.0.1:{front}", CHANNELS * 10)
            await crowd.start()
            writer = Writer(f"http://127.0.0.1:{front}")
            await crowd.until_received(5)

            # Old code on the new schema.
            await asyncio.to_thread(new.manage, "migrate", "-v", "0")
            await crowd.until_received(max(r.ids[-1] for r in crowd.readers) + 10)
            refused_while_migrating = writer.refused
            with await asyncio.to_thread(new.web) as new_web:
                # New messages, old worker.
                await crowd.until_received(max(r.ids[-1] for r in crowd.readers) + 10)
                # Old and new messages wait for the new worker.
                old_worker.send_signal(signal.SIGTERM)
                await asyncio.to_thread(old_worker.wait, 30)
                await asyncio.sleep(1)
                with await asyncio.to_thread(new.worker):
                    old_web.send_signal(signal.SIGTERM)
                    await asyncio.to_thread(old_web.wait, 30)
                    stopped_at = time.time()
                    await crowd.until_received(
                        max(r.ids[-1] for r in crowd.readers) + 10
                    )
                    await asyncio.to_thread(writer.stop)
                    output = await asyncio.to_thread(
                        new.manage, "shell", "--no-imports", "-c", READ
                    )
                    log = json.loads(output.rpartition("LOG")[2])
                    await crowd.until(
                        lambda: all(
                            len(r.ids) >= len(log[r.name]) for r in crowd.readers
                        ),
                        within=30,
                    )
                    await crowd.stop()
                assert "Traceback" not in new_web.output()

    for reader in crowd.readers:
        assert reader.faults(1, len(log[reader.name])) == ""
        assert reader.data == log[reader.name]
        assert reader.times[-1] > stopped_at
    assert refused_while_migrating == 0
    assert writer.sent > 50
