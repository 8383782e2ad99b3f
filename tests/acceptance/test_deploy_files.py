"""What deploy/ ships, read by the tools that read it in production, and streams through it."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.pushpin.__main__ import configure
from tests.support.nginx import Nginx, find
from tests.support.processes import ROOT, Process, free_port, is_listening, python
from tests.support.sse import Stream, numbers
from tests.support.stack import Stack, running
from tests.support.valkey import Valkey

DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent


def run(*argv: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# --- containers


def test_dockerfile_is_clean() -> None:
    assert run(BIN / "hadolint", DEPLOY / "docker/Dockerfile") == ""


def test_image_has_what_it_copies_and_no_more() -> None:
    """.dockerignore lets through what COPY names."""
    text = (DEPLOY / "docker/Dockerfile").read_text()
    copied = {
        name
        for line in text.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for name in line.split()[1:-1]
    }
    let_through = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }

    assert let_through == copied
    assert all((ROOT / name).exists() for name in copied)


def test_compose_file_follows_the_specification() -> None:
    run(
        BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec",
        DEPLOY / "compose.yaml",
    )  # fmt: skip


def test_compose_services_wait_for_the_healthy() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    named = {
        line.partition("=")[0]
        for line in (DEPLOY / "example.env").read_text().splitlines()
        if "=" in line and not line.startswith("#")
    }

    for name, service in services.items():
        depends = service.get("depends_on", {})
        assert set(depends) <= set(services), name
        for other in depends:
            is_plain = isinstance(depends, list)
            if not is_plain and depends[other]["condition"] == "service_healthy":
                assert "healthcheck" in services[other], (name, other)
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            is_path = source.startswith((".", "$"))
            assert is_path or source in compose["volumes"], (name, volume)
    used = {
        part.split("}")[0].split(":")[0]
        for part in (DEPLOY / "compose.yaml").read_text().split("${")[1:]
    }
    assert used == named
    assert services["beat"]["deploy"]["replicas"] == 1


def test_compose_has_nginx_look_for_addresses_again() -> None:
    """It does so at its start; those behind it may have others once they are made anew."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    config = (DEPLOY / "nginx/nginx.conf").read_text()
    upstreams = set(re.findall(r"server (\w+):\d+;", config))

    depends = services["nginx"]["depends_on"]
    assert {name for name, how in depends.items() if how.get("restart")} == upstreams


def test_compose_is_not_given_links_that_lead_out_of_the_container() -> None:
    example = (DEPLOY / "example.env").read_text()

    assert "/letsencrypt/live" not in example


@pytest.mark.parametrize("name", ["web", "worker", "beat", "pushpin"])
def test_what_ends_by_itself_is_started_again(
    name: str, manifests: list[dict[str, Any]]
) -> None:
    """beat ends when its database goes at the wrong moment, a worker when its broker does."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    unit = (DEPLOY / f"systemd/eventstream-{name}.service").read_text().splitlines()
    kind = "StatefulSet" if name == "pushpin" else "Deployment"
    pod = of(manifests, kind)[name]["spec"]["template"]["spec"]

    assert services[name]["restart"] == "unless-stopped"
    assert "Restart=always" in unit
    assert "StartLimitIntervalSec=0" in unit  # for ever, not five times
    assert pod.get("restartPolicy", "Always") == "Always"


def test_worker_says_what_it_is_asked_to_say(tmp_path: Path) -> None:
    env = {
        "DJANGO_SETTINGS_MODULE": "deploy.settings",
        "DEBUG": "1",
        "DATABASE_URL": f"sqlite:///{tmp_path}/db.sqlite3",
    }
    argv = ["-m", "celery", "-A", "deploy", "worker", "-P", "solo", "-l", "INFO"]
    with (
        Valkey() as valkey,
        python(*argv, env={**env, "REDIS_URL": valkey.url}) as worker,
    ):
        worker.wait_until(lambda: "ready." in worker.output(), "it says so")


@contextmanager
def composed() -> Iterator[Callable[[str], str]]:
    """Run web, worker and Pushpin as the Compose file does; give what shows their metrics.

    Each has the environment and the command that it has there, with ports, database and
    broker of this machine. It is asked by an address that is not 127.0.0.1, as by another
    container, and by the name that it has in prometheus.yml.
    """
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    dockerfile = (DEPLOY / "docker/Dockerfile").read_text()
    image = json.loads(dockerfile.split("\nCMD ")[1].splitlines()[0])
    ports: dict[str, str] = {}

    def port(number: str) -> str:
        return ports.setdefault(number, str(free_port()))

    def move(text: str) -> str:
        text = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", text)
        text = re.sub(r"\$\{.*?\}", "0123456789-abcdefghijklmnopqrst" * 2, text)
        text = re.sub(r"\b(web|pushpin):(?=\d)", "127.0.0.1:", text)
        return re.sub(r"\b\d{4}\b", lambda found: port(found[0]), text)

    def show(target: str) -> str:
        address = f"http://127.0.0.2:{port(target.partition(':')[2])}/metrics"
        request = urllib.request.Request(address, headers={"Host": target})
        with urllib.request.urlopen(request, timeout=10) as response:
            text: str = response.read().decode()
        return text

    with (
        # Short, for Pushpin's sockets are in it.
        tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as directory,
        Valkey() as valkey,
        ExitStack() as processes,
    ):
        ours = {
            "DATABASE_POOL": "",  # of PostgreSQL alone, and the next
            "DATABASE_PREPARE": "",
            "DATABASE_URL": f"sqlite:///{directory}/db.sqlite3",
            "REDIS_URL": valkey.url,
            "PROMETHEUS_MULTIPROC_DIR": directory,
            "PUSHPIN_DIR": directory,
        }

        def env(name: str) -> dict[str, str]:
            given = {
                key: ours[key] if key in ours else move(value)
                for key, value in services[name]["environment"].items()
            }
            return {"DJANGO_SETTINGS_MODULE": "deploy.settings", **given}

        def start(name: str, argv: list[str]) -> Process:
            command = [str(BIN / argv[0]), *map(move, argv[1:])]
            return processes.enter_context(Process(command, env=env(name)))

        def manage(*arguments: str) -> None:
            process = Process([sys.executable, "manage.py", *arguments], env=env("web"))
            with process:
                assert process.wait(60) == 0, process.output()

        with pytest.MonkeyPatch.context() as patch:
            for key, value in env("pushpin").items():
                patch.setenv(key, value)
            config = dataclasses.replace(
                configure(),
                standby_port=free_port(),
                zmq_port=free_port(),
                sub_port=free_port(),
                command_port=free_port(),
            )
        pushpin = Process(config.command(), death_signal=signal.SIGTERM)
        processes.enter_context(pushpin)
        manage("migrate", "-v", "0")
        web = start("web", image)
        worker = start("worker", services["worker"]["command"])
        web.wait_until(lambda: is_listening(int(port("8000"))), "uvicorn listens")
        pushpin.wait_until(lambda: is_listening(config.publish_port), "Pushpin listens")
        worker.wait_until(lambda: "ready." in worker.output(), "the worker is ready")
        manage("eventstream", "send", "orders", "1")
        yield show


@pytest.mark.timeout(180)
def test_prometheus_finds_in_compose_what_it_scrapes() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    targets = {
        job["job_name"]: job["static_configs"][0]["targets"][0]
        for job in config["scrape_configs"]
    }

    with composed() as show:
        shown = {name: show(target) for name, target in targets.items()}

    assert 'eventstream_up{database="default"} 1.0' in shown["web"]
    # Of the worker's other processes, which publish.
    assert re.search(
        r"^eventstream_publish_attempts_total.* 1\.0$", shown["worker"], re.M
    )
    assert "connection_connected" in shown["pushpin"]
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    named = services["worker"]["environment"]["GRIP_METRICS_URL"]
    assert named == f"http://{targets['pushpin']}/metrics"


def test_image_has_what_metrics_need() -> None:
    dockerfile = (DEPLOY / "docker/Dockerfile").read_text()
    [extras] = re.findall(r"'\.\[(.*?)\]'", dockerfile)

    assert set(extras.split(",")) == {"tasks", "metrics"}


def test_grafana_is_given_the_dashboard_and_where_its_figures_are() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    folders = dict(
        volume.removesuffix(":ro").split(":")
        for volume in services["grafana"]["volumes"]
    )
    provisioning = DEPLOY / "grafana/provisioning"
    [source] = yaml.safe_load(
        (provisioning / "datasources/eventstream.yaml").read_text()
    )["datasources"]
    [provider] = yaml.safe_load(
        (provisioning / "dashboards/eventstream.yaml").read_text()
    )["providers"]

    assert folders["./grafana/provisioning"] == "/etc/grafana/provisioning"
    dashboard = Path(folders["./grafana/eventstream.json"])
    assert str(dashboard.parent) == provider["options"]["path"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")


# --- Kubernetes


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    kubectl = find("kubectl", "kubernetes-client")
    text = run(kubectl, "kustomize", str(DEPLOY / "kubernetes"))
    return [item for item in yaml.safe_load_all(text) if item]


def of(manifests: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {m["metadata"]["name"]: m for m in manifests if m["kind"] == kind}


def test_manifests_follow_the_schemas_of_kubernetes(
    manifests: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump_all(manifests))
    for version in ("1.29", "1.37"):
        run(BIN / "kubernetes-validate", "--strict", "-k", version, path)


def test_there_is_exactly_one_beat_and_budgets_for_the_rest(
    manifests: list[dict[str, Any]],
) -> None:
    deployments = of(manifests, "Deployment")
    budgets = of(manifests, "PodDisruptionBudget")
    scalers = of(manifests, "HorizontalPodAutoscaler")

    assert deployments["beat"]["spec"]["replicas"] == 1
    assert deployments["beat"]["spec"]["strategy"] == {"type": "Recreate"}
    assert set(budgets) == {"web", "worker", "pushpin"}
    assert set(scalers) == {
        "web",
        "worker",
    }  # of Pushpin there are as many as are named
    assert "replicas" not in deployments["web"]["spec"]


def test_streams_have_time_to_end(manifests: list[dict[str, Any]]) -> None:
    """DRAIN_SECONDS < uvicorn's limit < what Kubernetes grants after preStop."""
    pod = of(manifests, "Deployment")["web"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    settings = of(manifests, "ConfigMap")["eventstream"]["data"]
    dockerfile = (DEPLOY / "docker/Dockerfile").read_text()
    limit = int(dockerfile.split('--timeout-graceful-shutdown", "')[1].split('"')[0])
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])

    assert float(settings["DRAIN_SECONDS"]) < limit
    assert pause + limit < pod["terminationGracePeriodSeconds"]


def test_static_files_are_served_in_the_cluster(
    manifests: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The ingress sends them to the web process, which is asked as its pods are."""
    paths = of(manifests, "Ingress")["streams"]["spec"]["rules"][0]["http"]["paths"]
    assert [path["path"] for path in paths] == ["/events/", "/"]
    port = free_port()
    env = {
        "DJANGO_SETTINGS_MODULE": "deploy.settings",
        "SECRET_KEY": "0123456789-abcdefghijklmnopqrst" * 2,
        "DATABASE_URL": f"sqlite:///{tmp_path}/db.sqlite3",
        **of(manifests, "ConfigMap")["eventstream"]["data"],
    }
    argv = ["-m", "uvicorn", "deploy.asgi:application", "--port", str(port)]
    address = f"http://127.0.0.1:{port}/static/eventstream/eventstream.js"
    request = urllib.request.Request(address, headers={"Host": "example.com"})

    with python(*argv, env=env) as web:
        web.wait_until(lambda: is_listening(port), "uvicorn listens")
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.status == 200


def test_every_pushpin_is_published_to(manifests: list[dict[str, Any]]) -> None:
    count = of(manifests, "StatefulSet")["pushpin"]["spec"]["replicas"]
    expected = {f"pushpin-{n}.pushpin:5561" for n in range(count)}

    for name in ("web", "worker", "beat"):
        pod = of(manifests, "Deployment")[name]["spec"]["template"]["spec"]
        env = {e["name"]: e.get("value", "") for e in pod["containers"][0]["env"]}
        hosts = {url.split("/")[2] for url in env["GRIP_URL"].split()}
        assert hosts == expected, name


# --- systemd


@pytest.mark.parametrize("unit", ["web", "worker", "beat", "pushpin"])
def test_systemd_takes_the_unit(unit: str, tmp_path: Path) -> None:
    analyze = find("systemd-analyze", "systemd")
    text = (DEPLOY / f"systemd/eventstream-{unit}.service").read_text()
    # Programs are looked for where they will be; here any that exists does.
    path = tmp_path / f"eventstream-{unit}.service"
    [command] = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    program = command.removeprefix("ExecStart=").split()[0]
    path.write_text(text.replace(program, "/bin/true"))

    # For this unit alone: the machine's own may have faults.
    done = subprocess.run(
        [analyze, "verify", "--man=no", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line for line in done.stderr.splitlines() if path.name in line] == []
    assert (BIN / Path(program).name).exists()


def test_procfile_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "(web, worker, beat, proxy)" in run(BIN / "honcho", "check")
    # honcho gives each process a PORT of its own, and Pushpin asks the web process.
    [port] = re.findall(r"--port (\S+)", (ROOT / "Procfile").read_text())
    monkeypatch.setenv("GRIP_URL", f"http://127.0.0.1:5561/?key={'k' * 32}")
    assert configure().backend == f"127.0.0.1:{port}"


# --- in front


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running(with_pushpin=True) as stack:
        yield stack


def test_stream_through_nginx_by_http2_is_not_buffered(stack: Stack) -> None:
    assert stack.pushpin is not None
    curl = [find("curl", "curl"), "-sk", "--http2"]

    with Nginx(web_port=stack.web_port, streams_port=stack.pushpin.port) as nginx:
        argv = [*curl, "-N", "-i", f"{nginx.url}/events/?channel=nginx"]
        with Process(argv) as client:
            client.wait_until(
                lambda: "stream-open" in client.output(), "the stream opens"
            )
            for count in range(1, 6):
                sent = time.monotonic()
                stack.send("nginx")
                client.wait_until(
                    lambda count=count: f"nginx:{count}\n" in client.output(),  # type: ignore[misc]
                    "the event comes at once",
                    timeout=5,
                )
                assert time.monotonic() - sent < 5
            head = client.output().split("\r\n\r\n")[0]
            assert head.startswith("HTTP/2 200")

        def status(path: str) -> str:
            return run(*curl, "-o", "/dev/null", "-w", "%{http_code}", nginx.url + path)

        assert status("/events/next/x/") == "404"
        assert status("/events/health/ready") == "404"
        for path in ("/metrics", "//metrics", "/%6detrics", "/events/../metrics"):
            assert run(*curl, "--path-as-is", nginx.url + path).count("404") == 2, path
        moved = run(*curl, "-i", f"http://127.0.0.1:{nginx.plain_port}/a?b=c")
        assert "location: https://127.0.0.1/a?b=c" in moved.lower()


def test_stream_through_caddy_is_not_buffered(stack: Stack, tmp_path: Path) -> None:
    assert stack.pushpin is not None
    caddy = BIN / "caddy"
    port = free_port()
    env = {
        "SITE": f"http://127.0.0.1:{port}",
        "WEB": f"127.0.0.1:{stack.web_port}",
        "STREAMS": f"127.0.0.1:{stack.pushpin.port}",
        "XDG_DATA_HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    config = tmp_path / "Caddyfile"
    # Its admin port is one for the machine.
    shipped = (DEPLOY / "caddy/Caddyfile").read_text()
    config.write_text("{\n\tadmin off\n}\n" + shipped)
    run(
        caddy,
        "validate",
        "--adapter",
        "caddyfile",
        "--config",
        DEPLOY / "caddy/Caddyfile",
    )
    assert run(caddy, "fmt", DEPLOY / "caddy/Caddyfile") == shipped

    argv = [str(caddy), "run", "--adapter", "caddyfile", "--config", str(config)]
    with Process(argv, env=env) as process:
        process.wait_until(lambda: is_listening(port), "Caddy listens")
        url = f"http://127.0.0.1:{port}/events/"
        with Stream(f"{url}?channel=caddy").open() as stream:
            for count in range(1, 6):
                stack.send("caddy")
                assert list(numbers([stream.next(timeout=5)])) == [count]
        for path in ("next/x/", "health/ready", "../metrics", "..//%6detrics"):
            with Stream(url + path) as answer:
                assert answer.status == 404, path
        stack.pushpin.process.kill()
        headers = {"Origin": "https://shop.example.com"}
        with Stream(f"{url}?channel=caddy", headers=headers) as stream:
            assert stream.status == 200
            assert stream.headers["Content-Type"] == "text/event-stream"
            allowed = stream.headers["Access-Control-Allow-Origin"]
            assert allowed == headers["Origin"]
            with pytest.raises(EOFError):
                stream.next(timeout=5)
        with Stream(f"{url}?channel=caddy", headers={"Accept": "*/*"}) as answer:
            assert answer.status == 502
        stack.pushpin.start()
