"""What Prometheus is told, and that dashboard and alerts ask for what there is."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from django.db import OperationalError, connection
from django.db.models.functions import Now
from django.test import Client
from prometheus_client import REGISTRY, CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families
from pytest_django import Settings

from eventstream import EventSpec, instruments, jobs, latency, metrics, send_events
from eventstream.exceptions import PublishRejectedError, PublishUnavailableError
from eventstream.models import Cursor, Event
from eventstream.pausing import pause
from eventstream.relay import relay_all
from eventstream.rows import partition_of
from eventstream.status import Status
from eventstream.storage import get_storage
from eventstream.targets.base import Item
from eventstream.targets.grip import GripTarget
from tests.support.grip_endpoint import GripEndpoint
from tests.support.processes import ROOT
from tests.support.targets import RecordingTarget

pytestmark = pytest.mark.django_db(transaction=True)

Targets = dict[str, RecordingTarget]
DEPLOY = ROOT / "deploy"


def send(count: int) -> None:
    send_events([EventSpec("orders", "message", n) for n in range(count)])


def samples() -> dict[str, float]:
    """Return what is shown now: name{labels} → value."""
    found = {}
    for family in text_string_to_metric_families(metrics.collect().decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def of(name: str, target: str) -> str:
    return f"eventstream_{name}{{database=default,target={target}}}"


def test_counts_are_those_of_the_database(targets: Targets) -> None:
    targets["b"].is_down = True
    targets["a"].poison = {"1"}
    send(3)
    jobs.republish("default")
    send(1)

    found = samples()

    assert found["eventstream_up{database=default}"] == 1
    assert found["eventstream_events_total{database=default}"] == 4
    assert found["eventstream_numbered_total{database=default}"] == 3
    assert found["eventstream_undelivered{database=default}"] == 4
    assert found["eventstream_dead_letters{database=default}"] == 1
    assert found["eventstream_health{database=default}"] == 2
    assert found[of("confirmed_total", "a")] == 3
    assert found[of("refused_total", "a")] == 1
    assert found[of("confirmed_total", "b")] == 0
    assert found[of("failures_total", "b")] == 1
    assert (found[of("waiting", "a")], found[of("waiting", "b")]) == (1, 4)
    assert 0 < found[of("oldest_unconfirmed_seconds", "b")] < 60
    state = "eventstream_target_state{database=default,state=failing,target="
    assert (found[f"{state}b}}"], found[f"{state}a}}"]) == (1, 0)
    sweep = "eventstream_last_run_timestamp_seconds{database=default,task=sweep}"
    assert found[sweep] > 1_700_000_000
    prune = "eventstream_last_run_timestamp_seconds{database=default,task=prune}"
    assert found[prune] == 0


def test_what_is_numbered_meanwhile_is_counted_once(targets: Targets) -> None:
    send(50)
    is_numbering = False

    def number_one(execute: Any, *arguments: Any) -> Any:
        nonlocal is_numbering
        if not is_numbering:
            is_numbering = True
            get_storage().number_batch("default", partition_of("orders"), limit=1)
            is_numbering = False
        return execute(*arguments)

    with connection.execute_wrapper(number_one):
        found = samples()

    # A counter that goes back is read as a restart, and all of it as an increase.
    assert found["eventstream_events_total{database=default}"] == 50
    assert found["eventstream_numbered_total{database=default}"] > 0


def test_each_confirmed_event_is_in_the_histogram(targets: Targets) -> None:
    def count() -> float:
        name = "eventstream_confirm_seconds_count"
        return REGISTRY.get_sample_value(name, {"target": "a"}) or 0

    before = count()
    send(7)
    relay_all("default")

    assert count() == before + 7


def test_age_in_the_histogram_is_from_writing_to_confirming(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def total() -> float:
        name = "eventstream_confirm_seconds_sum"
        return REGISTRY.get_sample_value(name, {"target": "a"}) or 0

    before = total()
    send(3)
    hour_ago = Now() - datetime.timedelta(hours=1)
    Event.objects.filter(data="0").update(created=hour_ago)
    monotonic, passed = time.monotonic, [0]
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + sum(passed))
    targets["a"].before = lambda: passed.append(500)
    relay_all("default")

    assert total() - before == pytest.approx(3600 + 3 * 500, abs=90)
    latency = Cursor.objects.get(target="a", watermark=3).latency
    assert latency is not None
    assert latency.total_seconds() == pytest.approx(4100, abs=90)


def test_many_values_at_once_count_like_each_by_itself() -> None:
    registry = CollectorRegistry()
    values = [0.1, 7.0, -0.5, 0.5, 1e9, 0.0, 0.11, 0.5]
    together = metrics._BatchHistogram(
        "together", "x", ["target"], buckets=(0.1, 0.5, 5), registry=registry
    )
    single = Histogram(
        "single", "x", ["target"], buckets=(0.1, 0.5, 5), registry=registry
    )

    together.labels("a").observe_all(values)
    together.labels("a").observe_all([])
    for value in values:
        single.labels("a").observe(max(0.0, value))

    shown = {
        name: {
            (sample.name.removeprefix(name), sample.labels.get("le")): sample.value
            for sample in found.samples
            if not sample.name.endswith("_created")
        }
        for found in registry.collect()
        for name in [found.name]
    }
    assert shown["together"] == pytest.approx(shown["single"])


def test_paused_target_has_its_state(targets: Targets) -> None:
    pause("a")

    name = "eventstream_target_state{database=default,state=paused,target=a}"
    assert samples()[name] == 1


def test_database_that_does_not_answer_is_down_and_no_error(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(using: str) -> Status:
        raise OperationalError("connection refused")

    monkeypatch.setattr("eventstream.metrics.get_status", fail)

    assert samples()["eventstream_up{database=default}"] == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EVENTSTREAM_RETENTION", "x"),
        ("EVENTSTREAM_DISPATCHER", "nope.Nope"),
        ("EVENTSTREAM_DATABASES", ["default", "nope"]),
    ],
)
def test_wrong_setting_leaves_what_the_process_has_counted(
    client: Client,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: str,
) -> None:
    setattr(settings, name, value)

    response = client.get("/metrics")

    assert response.status_code == 200
    assert b"eventstream_kicks_total" in response.content
    assert name in caplog.text


def test_page_is_for_looking_only(client: Client, targets: Targets) -> None:
    response = client.get("/metrics")

    assert response["Content-Type"].startswith("text/plain; version=")
    assert b"eventstream_up" in response.content
    assert client.post("/metrics").status_code == 405


def attempts(target: str) -> dict[str, float]:
    prefix = "eventstream_publish_attempts_total{outcome="
    return {
        name.removeprefix(prefix).partition(",")[0]: value
        for name, value in samples().items()
        if name.startswith(prefix) and name.endswith(f"target={target}}}")
    }


def test_attempts_are_told_by_what_came_of_them(targets: Targets) -> None:
    targets["kinds"] = RecordingTarget("kinds")
    targets["kinds"].poison = {"1"}
    send(1)
    relay_all("default")
    send(2)
    relay_all("default")
    targets["kinds"].is_down = True
    send(1)
    relay_all("default")

    found = attempts("kinds")

    # The batch was refused, then its second half.
    assert found == {"ok": 2, "rejected": 2, "answer": 1}


def test_kinds_of_failure_of_a_real_proxy(settings: Settings) -> None:
    settings.EVENTSTREAM_PUBLISH_TIMEOUT = 0.2
    kinds = []
    with GripEndpoint() as endpoint:
        target = GripTarget({"control_uri": endpoint.url})
        for status in (500, 400):
            endpoint.status = status
            kinds.append(kind_of(target))
        endpoint.status = 200
        endpoint.hang.set()
        kinds.append(kind_of(target))
    target.close()
    kinds.append(kind_of(target))
    target.close()

    assert kinds == ["answer", "rejected", "timeout", "connection"]


def kind_of(target: GripTarget) -> str:
    with pytest.raises((PublishUnavailableError, PublishRejectedError)) as caught:
        target.publish([Item("orders", b"{}")])
    return instruments.failure_kind(caught.value)


def test_kind_is_told_by_the_cause() -> None:
    error = PublishUnavailableError("no")
    error.__cause__ = requests.ConnectTimeout()

    assert instruments.failure_kind(error) == "timeout"


# --- the sample of deliveries


def test_deliveries_are_chosen_throughout() -> None:
    sampler = latency.Sampler()
    counts = []
    for _ in range(5):
        for number in range(10_000):
            if sampler.is_next():
                sampler.take("default", "orders", number)
        counts.append(len(sampler.drain()))

    # The first is taken before anything is known of how many there will be.
    assert all(5 <= count <= 40 for count in counts[1:]), counts


def test_delivery_is_measured_by_the_databases_clock(targets: Targets) -> None:
    send(1)
    relay_all("default")
    created = Event.objects.get().created.timestamp()
    delivery = latency.Delivery("default", "orders", 1, created + 600)
    pruned = latency.Delivery("default", "orders", 99, created)

    (seconds,) = latency.measure([delivery, pruned])

    assert seconds == pytest.approx(600, abs=30)


# --- dashboard and alerts


def known_names() -> set[str]:
    """Return the names of everything that can be shown."""
    for labelled in (metrics._attempts, metrics._wake_ups):
        labelled.labels(*["x"] * len(labelled._labelnames))
    for histogram in (metrics._publish_seconds, metrics._confirm_seconds):
        histogram.labels("x")
    for held in (metrics._catch_ups, metrics._resets):
        held.labels("x")
    families = text_string_to_metric_families(metrics.collect().decode())
    return {sample.name for family in families for sample in family.samples}


def test_dashboard_and_alerts_ask_for_what_exists(targets: Targets) -> None:
    send(1)
    jobs.republish("default")
    dashboard = json.loads((DEPLOY / "grafana" / "eventstream.json").read_text())
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel["targets"]
    ]
    rules = yaml.safe_load(
        (DEPLOY / "prometheus" / "eventstream.rules.yml").read_text()
    )
    queries += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    used = {name for query in queries for name in re.findall(r"eventstream_\w+", query)}

    known = known_names()

    assert len(used) > 15
    assert used <= known
    # And the dashboard leaves nothing out that is there.
    ours = {
        re.sub(r"_(bucket|sum|count|created)$", "", name)
        for name in known
        if name.startswith("eventstream_")
    }
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    hidden = {"eventstream_last_success_timestamp_seconds", "eventstream_oldest_undelivered_seconds"}  # fmt: skip
    created = {name for name in ours if name.endswith("_created")}
    assert ours - shown - created <= hidden | {
        name.removesuffix("_total") for name in shown
    }


def promtool(*arguments: str) -> None:
    assert shutil.which("promtool"), "promtool is missing: apt-get install prometheus"
    done = subprocess.run(
        ["promtool", *arguments], cwd=DEPLOY / "prometheus", capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_alert_rules_and_scrape_configuration_are_valid() -> None:
    promtool("check", "config", "prometheus.yml")


def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", "eventstream.test.yml")


def test_each_alert_is_seen_to_fire_and_not_to() -> None:
    directory = DEPLOY / "prometheus"
    rules = yaml.safe_load((directory / "eventstream.rules.yml").read_text())
    tests = yaml.safe_load((directory / "eventstream.test.yml").read_text())["tests"]
    names = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    seen = {
        (case["alertname"], bool(case["exp_alerts"]))
        for test in tests
        for case in test["alert_rule_test"]
    }

    assert seen == {(name, fires) for name in names for fires in (True, False)}


def test_dashboard_queries_are_promql(tmp_path: Path) -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "eventstream.json").read_text())
    rules: list[dict[str, str]] = []
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "1m")
            query = query.replace("$database", ".*")
            rules.append({"record": f"query_{len(rules)}", "expr": query})
    path = tmp_path / "dashboard.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))

    assert len(rules) > 20
    promtool("check", "rules", str(path))
