"""mkdocs hook: the navigation, the home page and the reference, made from their sources."""

from __future__ import annotations

import argparse
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import django
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from prometheus_client.metrics import MetricWrapperBase

if TYPE_CHECKING:
    from eventstream.conf import Setting

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
_FIRST = ["index.md", "tutorial.md", "architecture.md", "guarantees.md"]
_API = """# Python

::: eventstream.api
    options:
      members: [send_event, send_events, asend_event, asend_events, SentEvent, EventState,
        get_current_event_id, aget_current_event_id, channel_permission_changed,
        achannel_permission_changed]
::: eventstream.specs
    options:
      members: [EventSpec]
::: eventstream.tokens
    options:
      members: [make_subscribe_token]
::: eventstream.channelmanager
    options:
      members: [ChannelManagerBase, DefaultChannelManager, InitialState, Authorizer]
::: eventstream.exceptions
::: eventstream.testing
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List whatever pages there are."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    pages = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))
    top = [name for name in pages if "/" not in name and name not in _FIRST]
    nav: list[Any] = [name for name in _FIRST if name in {*pages, "index.md"}]
    nav += top
    folders = sorted({name.split("/")[0] for name in pages if "/" in name})
    for folder in sorted(folders, key=lambda name: name == "decisions"):
        inside = [name for name in pages if name.startswith(f"{folder}/")]
        if folder == "decisions":
            inside.insert(0, "decisions/index.md")
        nav.append({folder.replace("howto", "how to").capitalize(): inside})
    reference = [{"Settings": "reference/settings.md"}, "reference/api.md"]
    reference += [
        "reference/commands.md",
        "reference/metrics.md",
        "reference/signals.md",
        "reference/checks.md",
    ]
    nav.insert(-1, {"Reference": reference})
    nav.append("changelog.md")
    config["nav"] = nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    made = {
        "index.md": _at_root("README.md"),
        "changelog.md": _at_root("CHANGELOG.md"),
        "decisions/index.md": decisions_page(),
        "reference/settings.md": settings_page(),
        "reference/api.md": _API,
        "reference/metrics.md": metrics_page(),
        "reference/signals.md": signals_page(),
        "reference/commands.md": commands_page(),
        "reference/checks.md": checks_page(),
    }
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Leave links to pages; of those to the source keep the text."""
    folder = (DOCS / page.file.src_path).parent

    def replace(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        if target.is_dir() and target.is_relative_to(DOCS):
            index = target / "index.md"
            return f"[{match[1]}]({os.path.relpath(index, folder)})"
        if target == ROOT / "README.md":
            home = os.path.relpath(DOCS / "index.md", folder)
            return f"[{match[1]}]({home}{match[3] or ''})"
        if target.is_relative_to(DOCS) or not target.exists():
            return match[0]
        return match[1]

    return _LINK.sub(replace, markdown)


def _at_root(name: str) -> str:
    """Return a page of the root, whose links begin there."""

    def replace(match: re.Match[str]) -> str:
        path = match[2]
        if path == "CHANGELOG.md":
            return f"[{match[1]}](changelog.md)"
        if path.startswith("docs/"):
            return f"[{match[1]}]({path.removeprefix('docs/')}{match[3] or ''})"
        return match[1]

    return _LINK.sub(replace, (ROOT / name).read_text())


def decisions_page() -> str:
    """Every decision, by its number."""
    text = (
        "# Decisions\n\nWhat was decided, why, and what was rejected. One that no longer "
        "holds is superseded by another, which says so, rather than rewritten. A number that "
        "is missing was never used.\n\n"
    )
    for path in sorted((DOCS / "decisions").glob("*.md")):
        title = path.read_text().splitlines()[0].removeprefix("# ")
        text += f"- [{path.stem[:4]}]({path.name}) {title}\n"
    return text


def settings_page() -> str:
    """Every setting, from the table that the checks use."""
    from eventstream import conf  # noqa: PLC0415  needs Django's settings
    from eventstream_tasks import conf as tasks_conf  # noqa: PLC0415

    text = (
        "# Settings\n\nEach with the prefix `EVENTSTREAM_`. A value of another type, or out "
        "of range, is an error of `manage.py check`.\n"
    )
    text += "".join(map(_describe_setting, conf.SETTINGS))
    text += "\n# Settings of the tasks\n\nEach with the prefix `EVENTSTREAM_`, too.\n"
    return text + "".join(map(_describe_setting, tasks_conf.SETTINGS))


def _describe_setting(setting: Setting) -> str:
    default = setting.default() if callable(setting.default) else setting.default
    return (
        f"\n## {setting.name}\n\n{setting.help}\n\n"
        f"- Default: `{default!r}`\n- Value: {_values_of(setting.check)}\n"
    )


def _values_of(check: Callable[[object], str | None]) -> str:
    """Return what a setting can be, in the words in which its check refuses others."""
    kind = (check(object()) or "").removeprefix("must be ")
    limits = (check(-(10**18)) or "").removeprefix("must be ")
    text = kind if limits in (kind, "") else f"{kind}, {limits}"
    return f"{text}, or `None`" if check(None) is None else text


def metrics_page() -> str:
    """Every metric, with its own help and labels."""
    from eventstream import metrics  # noqa: PLC0415

    text = (
        "# Metrics\n\n`eventstream.metrics.view` shows them to Prometheus (extra `metrics`). "
        "What each process counts for itself is not in one scrape of several processes; what "
        "is read from the database is in each. [Operations](../operations.md) says what to "
        "watch, and `deploy/prometheus` has alerts.\n"
    )
    own = [m for m in vars(metrics).values() if isinstance(m, MetricWrapperBase)]
    counted = [(family, m) for m in own for family in m.describe()]
    # There is no outbox here: each family without a figure.
    read = [(family, family) for family in metrics.DatabaseCollector().collect()]
    for title, found in (
        ("Counted by each process", counted),
        ("Read from the database", read),
    ):
        text += (
            f"\n## {title}\n\n| metric | type | labels | |\n| --- | --- | --- | --- |\n"
        )
        for family, labelled in found:
            total = "_total" if family.type == "counter" else ""
            labels = ", ".join(f"`{name}`" for name in labelled._labelnames)
            text += f"| `{family.name}{total}` | {family.type} | {labels} | {family.documentation} |\n"
    return text


def signals_page() -> str:
    """Every signal, with the comment above it."""
    source = (ROOT / "eventstream/signals.py").read_text()
    text = (
        "# Signals\n\nOf `eventstream.signals`; each is sent after the transaction.\n"
    )
    found = re.findall(r"((?:^# .*\n)+)(\w+) = Signal\(\)", source, re.M)
    for comment, name in found:
        lines = [line.removeprefix("# ") for line in comment.splitlines()]
        text += f"\n## {name}\n\n{' '.join(lines)}\n"
    return text


def commands_page() -> str:
    """Every management command, with its own help."""
    from django.core.management import load_command_class  # noqa: PLC0415

    text = "# Commands\n"
    for package in ("eventstream", "eventstream_tasks"):
        for path in sorted((ROOT / package / "management/commands").glob("[a-z]*.py")):
            command = load_command_class(package, path.stem)
            parser = command.create_parser("manage.py", path.stem)
            parser.formatter_class = argparse.HelpFormatter
            text += f"\n## {path.stem}\n\n```text\n{parser.format_help()}```\n"
            for action in parser._actions:
                if isinstance(action, argparse._SubParsersAction):
                    for name, sub in action.choices.items():
                        sub.formatter_class = argparse.HelpFormatter
                        text += f"\n### {path.stem} {name}\n\n```text\n{sub.format_help()}```\n"
    return text


def checks_page() -> str:
    """The tables of the modules that make the checks."""
    from eventstream import checks  # noqa: PLC0415
    from eventstream_tasks import checks as task_checks  # noqa: PLC0415

    text = "# System checks\n\n`manage.py check --database default` runs all of them.\n"
    for module in (checks, task_checks):
        lines = (inspect.getdoc(module) or "").splitlines()
        text += "\n" + "\n".join(line for line in lines if line.startswith("|")) + "\n"
    return text
