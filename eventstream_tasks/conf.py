"""Every setting of the tasks, in a table as eventstream.conf has it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from django.core.signals import setting_changed

from eventstream import values
from eventstream.conf import Setting, read

PREFIX = "EVENTSTREAM_TASKS_"

SOFT_TIME_LIMIT = Setting("TASKS_SOFT_TIME_LIMIT", 120, "Seconds, after which a task hands its partition on. Less than the time limit.", values.integer(1, 86_400))  # fmt: skip
TIME_LIMIT = Setting("TASKS_TIME_LIMIT", 150, "Seconds, after which the worker's child is replaced.", values.integer(1, 86_400))  # fmt: skip

SETTINGS = [
    Setting("TASKS_QUEUE", "eventstream", "The queue of these tasks, so that a flood of others cannot delay events.", values.name),
    SOFT_TIME_LIMIT,
    TIME_LIMIT,
    Setting("TASKS_REPUBLISH_EVERY", 10, "Seconds between two sweeps.", values.integer(1, 3600)),
    Setting("TASKS_PRUNE_EVERY", 600, "Seconds between two prunings.", values.integer(1, 86_400)),
    Setting("TASKS_WAKE_TIMEOUT", 0.5, "Seconds that a wake-up may take at most, at each step. No sender waits.", values.seconds(0.01, 60)),
    Setting("TASKS_WAKE_PAUSE", 5.0, "Seconds for which no wake-up is tried after one failed.", values.seconds(0, 3600)),
    Setting("TASKS_WAKE_LIFETIME", 30, "Seconds for which one wake-up stands for all that follow.", values.integer(1, 3600)),
    Setting("TASKS_METRICS_PORT", 0, "Port of 127.0.0.1 and the network where each worker shows its metrics to Prometheus; 0 for none.", values.integer(0, 65_535)),
]  # fmt: skip


@dataclass(frozen=True)
class Options:
    """The settings in force, checked; see SETTINGS for units."""

    queue: str
    soft_time_limit: int
    time_limit: int
    republish_every: int
    prune_every: int
    wake_timeout: float
    wake_pause: float
    wake_lifetime: int
    metrics_port: int


@cache
def get_options() -> Options:
    """Return the settings in force.

    Raises:
        ImproperlyConfigured: A setting has a value that it cannot have.
    """
    found = read(SETTINGS)
    return Options(**{name.removeprefix("tasks_"): found[name] for name in found})


def _forget(*, setting: str, **_: object) -> None:
    if setting.startswith(PREFIX):
        get_options.cache_clear()


setting_changed.connect(_forget)
