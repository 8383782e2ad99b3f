"""docs/operations.md names the commands, alerts and signals that there are."""

from __future__ import annotations

import argparse
import re

import yaml
from django.dispatch import Signal

from eventstream import signals
from eventstream.management.commands.eventstream import Command
from tests.support.processes import ROOT

TEXT = (ROOT / "docs" / "operations.md").read_text()


def test_every_subcommand_is_documented_and_no_other() -> None:
    parser = Command().create_parser("manage.py", "eventstream")
    (subparsers,) = (
        action
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    table = TEXT.partition("## Commands")[2].partition("\n\n\n")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    named = {
        part.split()[0]
        for row in rows
        for part in re.findall(r"`([^`]+)`", row.split("|")[1])
        if not part.startswith("manage.py")
    }

    assert set(subparsers.choices) <= named
    used = set(re.findall(r"manage\.py eventstream ([a-z][a-z-]+)", TEXT))
    assert used <= set(subparsers.choices)


def test_every_alert_has_its_section() -> None:
    rules = yaml.safe_load(
        (ROOT / "deploy" / "prometheus" / "eventstream.rules.yml").read_text()
    )
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}

    assert set(re.findall(r"Eventstream[A-Z]\w+", TEXT)) == alerts
    headings = set(re.findall(r"^### (.+)$", TEXT, re.MULTILINE))
    for row in re.findall(r"^\| Eventstream.*\| (.+) \|$", TEXT, re.MULTILINE):
        assert row in headings


def test_signals_have_the_names_that_are_documented() -> None:
    for name in re.findall(r"^\| `(\w+)\(using", TEXT, re.MULTILINE):
        assert isinstance(getattr(signals, name), Signal)
