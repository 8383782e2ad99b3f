"""Settings of the tasks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from django.conf import settings
from django.core.signals import setting_changed

PREFIX = "EVENTSTREAM_TASKS_"


@dataclass(frozen=True)
class Options:
    """The settings in force, each EVENTSTREAM_TASKS_… in capitals.

    Attributes:
        queue: The queue of these tasks, so that a flood of others cannot delay events.
        soft_time_limit: Seconds, after which a task hands its partition on.
        time_limit: Seconds, after which the worker's child is replaced.
        republish_every: Seconds between two sweeps.
        prune_every: Seconds between two prunings.
        wake_timeout: Seconds that a wake-up may take at most, at each step. No sender
            waits.
        wake_pause: Seconds for which no wake-up is tried after one failed.
        wake_lifetime: Seconds for which one wake-up stands for all that follow.
        metrics_port: Port of 127.0.0.1 and the network where each worker shows its
            metrics to Prometheus; 0 for none.
    """

    queue: str = "eventstream"
    soft_time_limit: int = 120
    time_limit: int = 150
    republish_every: int = 10
    prune_every: int = 600
    wake_timeout: float = 0.5
    wake_pause: float = 5.0
    wake_lifetime: int = 30
    metrics_port: int = 0


@cache
def get_options() -> Options:
    """Return the settings in force."""
    names = {
        name: getattr(settings, PREFIX + name.upper())
        for name in Options.__dataclass_fields__
        if hasattr(settings, PREFIX + name.upper())
    }
    return Options(**names)


def _forget(*, setting: str, **_: object) -> None:
    if setting.startswith(PREFIX):
        get_options.cache_clear()


setting_changed.connect(_forget)
