"""The daemon's status, for `crashctl status` and systemd."""

import os
import time
from typing import Any

from crashd import __version__, registration
from crashd.base.files import read_space
from crashd.daemon.after.afterwards import Afterwards
from crashd.daemon.corepattern import CorePattern
from crashd.daemon.fleet.shipping import Shipping
from crashd.daemon.health import Health
from crashd.daemon.intake.dispatch import Dispatcher
from crashd.daemon.intake.ingest import Ingest
from crashd.daemon.web.serving import MetricsFront
from crashd.domain.crash.model import Mode
from crashd.edge.web.exporter import Exporter
from crashd.store.paths import Paths


class DaemonStatus:
    """Describes the daemon; for any thread."""

    def __init__(
        self,
        paths: Paths,
        health: Health,
        core_pattern: CorePattern,
        dispatcher: Dispatcher,
        ingest: Ingest,
        exporter: Exporter,
        metrics: MetricsFront,
        afterwards: Afterwards,
        shipping: Shipping,
    ) -> None:
        self._paths = paths
        self._health = health
        self._core_pattern = core_pattern
        self._dispatcher = dispatcher
        self._ingest = ingest
        self._exporter = exporter
        self._metrics = metrics
        self._afterwards = afterwards
        self._shipping = shipping
        self._started_ns = time.time_ns()
        self.mode = Mode.PIPE

    @property
    def line(self) -> str:
        """Return one line for `systemctl status`."""
        registered = "registered" if self._core_pattern.is_owned else "NOT registered"
        in_flight = self._dispatcher.in_flight
        return f"{registered}, {self._ingest.finished_total} crashes caught, {in_flight} in flight"

    def describe(self) -> dict[str, Any]:
        """Return the data that `crashctl status` prints."""
        usage = self._exporter.store_usage()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "root": str(self._paths.root),
            "started_ns": self._started_ns,
            "ready": self._health.ready,
            "registered": self._core_pattern.is_owned,
            "core_pattern": registration.current_pattern(),
            "mode": self.mode.value,
            "workers": self._dispatcher.workers,
            "in_flight": self._dispatcher.in_flight,
            "holders": self._dispatcher.holders,
            "storers": self._dispatcher.storers,
            "queued": self._dispatcher.queued,
            "spool_backlog": self._ingest.spool_backlog,
            "analyses_waiting": self._afterwards.analyses_waiting,
            "crashes_total": self._ingest.finished_total,
            "store": {
                "entries": sum(count for count, _ in usage.values()),
                "bytes": sum(size for _, size in usage.values()),
                "free_bytes": free_bytes(self._paths),
            },
            "metrics_address": self._metrics.addresses,
            "fleet": self._shipping.describe(),
        }


def free_bytes(paths: Paths) -> int:
    """Return the free space of the store's file system.

    Raises:
        OSError: the space cannot be read.

    """
    return read_space(paths.crashes).free_bytes
