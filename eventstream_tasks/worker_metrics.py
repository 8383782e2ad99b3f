"""A worker's own metrics: how long targets take, what fails, how late events are."""

from __future__ import annotations

import logging
import os
from typing import Any

from celery.signals import worker_process_shutdown, worker_ready
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    multiprocess,
    start_http_server,
)

from eventstream_tasks.conf import get_options

logger = logging.getLogger(__name__)


@worker_ready.connect
def serve(sender: Any = None, **_: Any) -> None:
    """Show them on EVENTSTREAM_TASKS_METRICS_PORT, from the worker's main process."""
    port = get_options().metrics_port
    if not port:
        return
    registry = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    elif "prefork" in type(getattr(sender, "pool", None)).__module__:
        logger.warning(
            "The worker's processes count for themselves: set PROMETHEUS_MULTIPROC_DIR "
            "to an empty directory, or run it with -P threads, to see all of it"
        )
    try:
        start_http_server(port, registry=registry)
    except OSError as error:
        logger.warning("No metrics on port %s: %s", port, error)


@worker_process_shutdown.connect
def forget(pid: int | None = None, **_: Any) -> None:
    """Have a process that ends no longer count as alive."""
    if pid is not None and os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
