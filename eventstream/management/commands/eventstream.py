"""manage.py eventstream status | send | tail | … ; what each does is in eventstream.console."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, DjangoHelpFormatter
from django.db import DatabaseError

from eventstream.console import (
    adoption,
    bench,
    bench_clients,
    delivery,
    doctor,
    events,
    overview,
)
from eventstream.console.arguments import number, whole
from eventstream.console.outboxes import EXIT_UNKNOWN, describe_away
from eventstream.console.screen import make_screen
from eventstream.exceptions import EventStreamError
from eventstream.log import NO_END

DAY = 86_400
EXIT_NOBODY_READS = 141  # as a shell has it of those whom SIGPIPE has ended


class _HelpFormatter(DjangoHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the examples as they are written."""


class Command(BaseCommand):
    """One command with subcommands."""

    help = "See how events fare, and help them on."
    # What is wrong with the settings is for doctor to say.
    requires_system_checks = []

    def add_arguments(self, parser: Any) -> None:
        parser.epilog = (
            "At night: `status` says what is wrong and what to do, `undelivered` which "
            "events have not reached which target."
        )
        commands = parser.add_subparsers(
            dest="subcommand", required=True, metavar="SUBCOMMAND"
        )

        def add(name: str, text: str, examples: str) -> Any:
            lines = "\n".join(
                f"  python manage.py eventstream {line}"
                for line in examples.strip().splitlines()
            )
            return commands.add_parser(
                name,
                help=text,
                description=text,
                epilog=f"examples:\n{lines}",
                formatter_class=_HelpFormatter,
            )

        sub = add(
            "status",
            "What has not reached whom, why, since when. "
            "Exits with 0: well, 1: warnings, 2: errors, 3: no answer, or settings that "
            "cannot be.",
            "status\nstatus --json | jq .level\nstatus --watch 5",
        )
        sub.add_argument("--json", action="store_true", help="One line of JSON.")
        sub.add_argument(
            "--offline",
            action="store_true",
            help="Ask the database only, not broker, bus and proxies.",
        )
        sub.add_argument(
            "--watch",
            type=number(0.1, DAY),
            metavar="SECONDS",
            help="Again and again.",
        )

        sub = add(
            "send",
            "Send one event, and wait until it is confirmed.",
            """send orders '{"number": 17}'
send news '"hello"' --type headline
send log - --text < line.txt""",
        )
        sub.add_argument("channel")
        sub.add_argument("data", help="JSON; - reads it from the standard input.")
        sub.add_argument("--type", default="message", help="The event type.")
        sub.add_argument(
            "--text", action="store_true", help="Send the data as it is, not as JSON."
        )
        sub.add_argument("--wait", type=number(0, DAY), default=10, metavar="SECONDS")
        sub.add_argument("--using", help="Database alias; by default the first.")

        sub = add(
            "tail",
            "Write what a reader of the channel receives, as it comes.",
            "tail orders\ntail orders --from 0 --count 100\ntail orders --json | jq .data",
        )
        sub.add_argument("channel")
        sub.add_argument(
            "--from", type=whole(0, NO_END), dest="position", metavar="ID",
            help="What follows this event id; without it, what is new.",
        )  # fmt: skip
        sub.add_argument("--count", type=whole(1, NO_END), help="End after so many.")
        sub.add_argument("--json", action="store_true", help="One JSON object a line.")

        sub = add(
            "undelivered",
            "Which events have not reached which target, why, since when. "
            "Exits with 1 if there are any.",
            "undelivered\nundelivered --target bus --limit 500\nundelivered --dead",
        )
        _add_targets(sub)
        sub.add_argument(
            "--limit", type=whole(1, 100_000), default=50, help="Most of a target."
        )
        sub.add_argument("--dead", action="store_true", help="The dead letters.")
        sub.add_argument("--json", action="store_true", help="One line of JSON.")
        sub.add_argument("--using", help="Database alias; by default all.")

        sub = add(
            "republish",
            "Publish whatever waits now, due or not.",
            "republish\nrepublish --target pushpin:5561",
        )
        _add_targets(sub)
        sub.add_argument("--using", help="Database alias; by default all.")

        sub = add(
            "relay",
            "Publish and prune in this process, without Celery: for small installations "
            "and for emergencies.",
            "relay\nrelay --interval 0.2\nrelay --once",
        )
        sub.add_argument(
            "--interval", type=number(0.01, 3600), default=1.0, metavar="SECONDS"
        )
        sub.add_argument("--once", action="store_true", help="One sweep, then end.")

        sub = add(
            "prune",
            "Delete confirmed events that are past the retention.",
            "prune --dry-run\nprune",
        )
        sub.add_argument("--dry-run", action="store_true", help="Only count them.")

        sub = add(
            "pause",
            "Publish nothing to a target until it is resumed.",
            'pause pushpin:5561 --reason "new certificate"',
        )
        sub.add_argument("target", help="Its name, or a part of it.")
        sub.add_argument("--reason", default="", help="For those who find it paused.")

        sub = add(
            "resume",
            "Let a paused target have what waits for it.",
            "resume pushpin:5561",
        )
        sub.add_argument("target", help="Its name, or a part of it.")

        sub = add(
            "reset-readers",
            "After a backup was restored: have every client load anew, rather than miss "
            "events in silence.",
            "reset-readers",
        )
        sub.add_argument("--no-input", action="store_true", help="Do not ask.")

        sub = add(
            "doctor",
            "Check settings, database, broker, bus, proxies, signatures, clock and beat. "
            "Exits with 0: well, 1: warnings, 2: errors.",
            "doctor\ndoctor --url https://example.com/events/ --send",
        )
        sub.add_argument(
            "--url",
            help="Where browsers open streams: checks the way through the proxy.",
        )
        sub.add_argument(
            "--send",
            action="store_true",
            help=f"Send an event on {doctor.DOCTOR_CHANNEL!r} and wait for it.",
        )

        sub = add(
            "bench-proxy",
            "Measure what a proxy takes and passes on: with --clients from send_event to so "
            "many readers, each of whom is to get every event; without, how many events a "
            "second it accepts, in batches of 1 to 1,000. Exits with 2 if anything was "
            "missing, twice or out of order.",
            """bench-proxy --url http://127.0.0.1:7999/events/ --clients 1000
bench-proxy --url https://example.com/events/ --clients 200 --events 500 --rate 50
bench-proxy pushpin:5561 --seconds 5 --bytes 1000""",
        )
        sub.add_argument(
            "target", nargs="?", help="Without --clients: its name, or a part of it."
        )
        sub.add_argument(
            "--seconds",
            type=number(0.01, 3600),
            default=2.0,
            help="Without --clients: for each size.",
        )
        sub.add_argument(
            "--bytes", type=whole(1, 900_000), default=200, help="Data of an event."
        )
        sub.add_argument(
            "--clients",
            type=whole(1, 1_000_000),
            metavar="N",
            help="Open so many streams at --url.",
        )
        sub.add_argument(
            "--url", help="Where browsers open streams: the address of the proxy."
        )
        sub.add_argument(
            "--events",
            type=whole(1, 100_000_000),
            default=1000,
            help="How many to send.",
        )
        sub.add_argument(
            "--rate",
            type=number(0, 1_000_000),
            default=100.0,
            help="Events a second; 0: at once.",
        )
        sub.add_argument(
            "--channel",
            default=bench_clients.BENCH_CHANNEL,
            help="On which. The events stay there until the retention.",
        )
        sub.add_argument(
            "--user", default="", help="Who the clients are: a user's name."
        )
        sub.add_argument(
            "--patience", type=number(0, DAY), default=30.0, metavar="SECONDS",
            help="How long to wait for what is missing.",
        )  # fmt: skip
        sub.add_argument("--json", action="store_true", help="One line of JSON.")

        sub = add(
            "adopt",
            "Take over the events and ids of django-eventstream, while it still serves. "
            "Safe to run again. Exits with 2 where both have given the same id.",
            "adopt --check\nadopt --check src templates\nadopt",
        )
        sub.add_argument(
            "--check",
            nargs="*",
            metavar="DIRECTORY",
            help="Only say what to change in the project's files; default: where it runs.",
        )
        sub.add_argument("--using", help="Database alias; by default the first.")

    def handle(self, *args: Any, **options: Any) -> None:
        name = options["subcommand"]
        try:
            code = getattr(self, "do_" + name.replace("-", "_"))(options)
            self.stdout.flush()
        except KeyboardInterrupt:
            code = 130
        except BrokenPipeError:
            # Of `head`, which has enough. At its end Python writes what is left once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = EXIT_NOBODY_READS
        except EventStreamError as error:
            raise CommandError(str(error)) from error
        except ImproperlyConfigured as error:
            raise CommandError(
                f"{error} `python manage.py check` says more.", returncode=EXIT_UNKNOWN
            ) from error
        except DatabaseError as error:
            raise CommandError(describe_away(error), returncode=EXIT_UNKNOWN) from error
        if code:
            sys.exit(code)

    def _screen(self, options: dict[str, Any]) -> Any:
        return make_screen(self.stdout, no_color=options.get("no_color", False))

    def do_status(self, options: dict[str, Any]) -> int:
        return overview.show_status(
            self._screen(options),
            as_json=options["json"],
            ask=not options["offline"],
            watch=options["watch"],
        )

    def do_send(self, options: dict[str, Any]) -> int:
        return events.send(
            self._screen(options),
            channel=options["channel"],
            data=options["data"],
            event_type=options["type"],
            is_text=options["text"],
            wait=options["wait"],
            using=options["using"],
        )

    def do_tail(self, options: dict[str, Any]) -> int:
        return events.tail(
            self._screen(options),
            channel=options["channel"],
            position=options["position"],
            count=options["count"],
            as_json=options["json"],
        )

    def do_undelivered(self, options: dict[str, Any]) -> int:
        return events.show_undelivered(
            self._screen(options),
            databases=events.choose_databases(options["using"]),
            targets=events.choose_targets(options["target"]),
            limit=options["limit"],
            is_dead=options["dead"],
            as_json=options["json"],
        )

    def do_republish(self, options: dict[str, Any]) -> int:
        return delivery.republish(
            self._screen(options),
            databases=events.choose_databases(options["using"]),
            targets=events.choose_targets(options["target"]),
        )

    def do_relay(self, options: dict[str, Any]) -> int:
        screen = self._screen(options)
        return delivery.run_relay(
            screen, interval=options["interval"], once=options["once"]
        )

    def do_prune(self, options: dict[str, Any]) -> int:
        return delivery.prune(self._screen(options), dry_run=options["dry_run"])

    def do_pause(self, options: dict[str, Any]) -> int:
        (target,) = events.choose_targets([options["target"]])
        return delivery.pause(
            self._screen(options), target=target, reason=options["reason"]
        )

    def do_resume(self, options: dict[str, Any]) -> int:
        (target,) = events.choose_targets([options["target"]])
        return delivery.resume(self._screen(options), target=target)

    def do_reset_readers(self, options: dict[str, Any]) -> int:
        if not options["no_input"]:
            question = "Every client will load its page's state anew. Go on? [y/N] "
            try:
                answer = input(question)
            except EOFError:
                raise CommandError(
                    "Nothing was changed: nobody is there to ask. --no-input does it "
                    "without a question."
                ) from None
            if answer.strip().lower() not in ("y", "yes"):
                raise CommandError("Nothing was changed.")
        return delivery.reset_readers(self._screen(options))

    def do_doctor(self, options: dict[str, Any]) -> int:
        return doctor.examine(
            self._screen(options), url=options["url"], is_sending=options["send"]
        )

    def do_adopt(self, options: dict[str, Any]) -> int:
        screen = self._screen(options)
        if options["check"] is not None:
            return adoption.check(screen, options["check"] or ["."])
        using, *_ = events.choose_databases(options["using"])
        return adoption.take_over(screen, using=using)

    def do_bench_proxy(self, options: dict[str, Any]) -> int:
        screen = self._screen(options)
        if options["clients"] is None:
            wanted = [options["target"]] if options["target"] else []
            return bench.measure(
                screen,
                targets=events.choose_targets(wanted),
                seconds=options["seconds"],
                size=options["bytes"],
            )
        if not options["url"]:
            raise CommandError(
                "--clients needs --url: where browsers open streams, such as "
                "http://127.0.0.1:7999/events/."
            )
        plan = bench_clients.Plan(
            url=options["url"],
            client_count=options["clients"],
            event_count=options["events"],
            rate=options["rate"],
            size=options["bytes"],
            channel=options["channel"],
            patience=options["patience"],
            user=options["user"],
        )
        return bench_clients.measure_clients(screen, plan, as_json=options["json"])


def _add_targets(parser: Any) -> None:
    parser.add_argument(
        "--target", action="append", default=[], help="Its name, or a part of it."
    )
