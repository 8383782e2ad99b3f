"""Targets: where the relay publishes to."""

from __future__ import annotations

import os
import threading

from eventstream import conf
from eventstream.targets.base import Target
from eventstream.targets.bus import BusTarget
from eventstream.targets.grip import GripTarget

_local = threading.local()


def get_targets() -> dict[str, Target]:
    """Return the configured targets by name: GRIP proxies first, then the bus.

    One set for each thread and process: connections are shared by neither.
    """
    proxies = conf.grip_proxies()
    arguments = conf.redis_arguments()
    key = (os.getpid(), repr(proxies), repr(arguments))
    if getattr(_local, "key", None) != key:
        targets: list[Target] = [GripTarget(proxy) for proxy in proxies]
        if arguments is not None:
            targets.append(BusTarget(arguments))
        _local.targets = {target.name: target for target in targets}
        _local.key = key
    found: dict[str, Target] = _local.targets
    return found
