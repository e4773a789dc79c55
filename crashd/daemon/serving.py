"""The metrics' servers: on systemd's socket, or on those of the configured address."""

import logging
import socket
from collections.abc import Callable

from crashd.edge import metricsserver
from crashd.edge.exporter import Exporter

log = logging.getLogger("crashd.service")


def open_metrics(
    listen: str,
    given: socket.socket | None,
    exporter: Exporter,
    healthy: Callable[[], bool],
    ready: Callable[[], bool],
) -> list[metricsserver.MetricsServer]:
    """Start to serve; `listen` may be several addresses ("localhost"), or none ("")."""
    sockets = [given] if given else metricsserver.listen(listen) if listen else []
    servers = []
    for server in sockets:
        metrics = metricsserver.MetricsServer(server, exporter, healthy, ready)
        metrics.start()
        servers.append(metrics)
        log.info("metrics at http://%s/metrics", address_of(server))
    return servers


def address_of(server: socket.socket) -> str:
    """Write a socket's address as URLs have it."""
    host, port = server.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
