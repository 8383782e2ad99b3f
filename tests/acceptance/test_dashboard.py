"""The dashboard and the alerts, asked of a real Prometheus that scrapes a real installation."""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.support.processes import ROOT, Process, free_port, is_listening, wait_for
from tests.support.sse import Stream
from tests.support.stack import Stack, running

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "eventstream.json").read_text())


@contextmanager
def prometheus(directory: Path, targets: dict[str, int]) -> Iterator[int]:
    """Run Prometheus by deploy's own configuration, with these targets; give its port."""
    binary = shutil.which("prometheus")
    assert binary, "Prometheus is missing: apt-get install prometheus"
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / "eventstream.rules.yml")]
    config["scrape_configs"] = [
        job | {"static_configs": [{"targets": [f"127.0.0.1:{targets[job['job_name']]}"]}]}
        for job in config["scrape_configs"]
        if job["job_name"] in targets
    ]  # fmt: skip
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    port = free_port()
    process = Process(
        [
            binary, f"--config.file={path}", f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
        ],
        cwd=directory,
    )  # fmt: skip
    with process:
        process.wait_until(lambda: is_listening(port), "Prometheus listens")
        yield port


def ask(port: int, path: str, **query: str) -> Any:
    address = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(address, timeout=10) as response:
        return json.load(response)["data"]


def has_figure(port: int, expression: str) -> bool:
    result = ask(port, "query", query=expression)["result"]
    return any(not math.isnan(float(row["value"][1])) for row in result)


@contextmanager
def traffic(stack: Stack) -> Iterator[None]:
    """Readers, one of whom is behind and one reset; and events all the time."""
    url = f"{stack.url}/events/?channel=x"
    stack.send("x", 5)
    stopped = threading.Event()

    def send() -> None:
        while not stopped.is_set():
            stack.send("x", 2)
            time.sleep(0.1)

    thread = threading.Thread(target=send)
    with (
        Stream(url).open(),
        Stream(url, last_event_id="x:1").open(),
        Stream(url, last_event_id="x:99999999").open(),
    ):
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()


@pytest.mark.timeout(240)
def test_every_panel_shows_what_a_running_installation_does(tmp_path: Path) -> None:
    dead, worker_port = free_port(), free_port()
    settings = {
        "GRIP_URL": f"http://127.0.0.1:{dead}/?key={'k' * 32}",
        "EVENTSTREAM_TASKS_METRICS_PORT": worker_port,
    }
    with (
        running(beat=True, env={"ES_SET": json.dumps(settings)}) as stack,
        prometheus(tmp_path, {"web": stack.web_port, "worker": worker_port}) as port,
        traffic(stack),
    ):
        for panel in DASHBOARD["panels"]:
            for target in panel["targets"]:
                query = target["expr"].replace("$__rate_interval", "30s")
                query = query.replace("$database", ".*")
                if "task" in query:
                    stack.manage("eventstream", "prune")
                wait_for(
                    partial(has_figure, port, query),
                    f"{panel['title']!r} has a figure: {query}",
                    timeout=60,
                )

        variable = DASHBOARD["templating"]["list"][1]["query"]["query"]
        assert variable == "label_values(eventstream_up, database)"
        assert ask(port, "label/database/values") == ["default"]
        rules = [
            rule for group in ask(port, "rules")["groups"] for rule in group["rules"]
        ]
        assert {rule["health"] for rule in rules} == {"ok"}
        (failing,) = [r for r in rules if r["name"] == "EventstreamTargetFailing"]
        assert failing["state"] in ("pending", "firing")
        labels = failing["alerts"][0]["labels"]
        assert labels["target"] == f"grip:http://127.0.0.1:{dead}"
        down = next(rule for rule in rules if rule["name"] == "EventstreamDown")
        assert down["state"] == "inactive"


def _lost(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            if key not in found:
                yield f"{path}/{key}"
            else:
                yield from _lost(value, found[key], f"{path}/{key}")
    elif isinstance(wanted, list) and isinstance(found, list):
        for index, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from _lost(one, other, f"{path}/{index}")
    elif wanted != found:
        yield path


def test_dashboard_is_all_that_grafanas_own_types_know() -> None:
    """Through Grafana's published types and back, nothing is unknown to them."""
    plugins.register_default_plugins()

    found = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))

    assert list(_lost(DASHBOARD, found)) == []
    misspelt = DASHBOARD | {"templatting": {}}
    back = json.loads(JSONEncoder().encode(Dashboard.from_json(misspelt)))
    assert list(_lost(misspelt, back)) == ["/templatting"]
