"""The servers for metrics: on systemd's socket, or on sockets of the configured address."""

import logging
import socket

from crashd.configuration import keys as config
from crashd.daemon.health import Health
from crashd.daemon.web.webconfig import load_guard
from crashd.edge.web import metricsserver
from crashd.edge.web.exporter import Exporter
from crashd.edge.web.webguard import Guard
from crashd.errors import ConfigError, CrashdError

log = logging.getLogger("crashd.service")


class MetricsFront:
    """All servers for metrics, and the guard in front of them.

    If the guard's file is wrong, they do not serve: crashes are still caught, and nobody reads
    metrics without permission.
    """

    def __init__(self, exporter: Exporter, health: Health) -> None:
        self._exporter = exporter
        self._health = health
        self._given: socket.socket | None = None
        self._guard = Guard()
        self._servers: list[metricsserver.MetricsServer] = []
        self._is_open = False

    @property
    def addresses(self) -> list[str]:
        """The addresses on which they listen, in the form for URLs."""
        return [_address_of(server.socket) for server in self._servers]

    def open(self, http: config.Http, given: socket.socket | None) -> None:
        """Start to serve; `http.listen` may mean several addresses ("localhost"), or none ("").

        Raises:
            UnavailableError: the address cannot be listened on.

        """
        self._given = given
        try:
            self._guard = load_guard(http.web_config)
        except ConfigError as e:
            log.error("%s, the metrics are not served until it is mended and reloaded", _told(e))
            return
        sockets = [given] if given else metricsserver.listen(http.listen) if http.listen else []
        for server in sockets:
            metrics = metricsserver.MetricsServer(
                server, self._exporter, self._health.is_alive, self._health.is_ready, self._guard
            )
            metrics.start()
            self._servers.append(metrics)
            scheme = "https" if self._guard.secure else "http"
            log.info("metrics at %s://%s/metrics", scheme, _address_of(server))
        self._is_open = True

    def reload(self, http: config.Http, before: config.Http) -> None:
        """Read the guard's file and certificates again; after an error, keep the old guard."""
        if http.listen != before.listen:
            log.warning("http.listen takes effect at the next start, ignoring")
        if not self._is_open:
            try:
                self.open(http.model_copy(update={"listen": before.listen}), self._given)
            except CrashdError as e:
                log.error("%s, the metrics are not served", _told(e))
            return
        try:
            guard = load_guard(http.web_config)
        except ConfigError as e:
            log.error("%s, keeping the old one", _told(e))
            return
        old, self._guard = self._guard, guard
        for server in self._servers:
            server.guard = guard
        if old.gate is not None:
            old.gate.stop()

    def close(self) -> None:
        """Stop the servers and close all sockets."""
        for server in self._servers:
            server.stop()
        if not self._servers and self._given is not None:
            self._given.close()
        if self._guard.gate is not None:
            self._guard.gate.stop()


def _told(error: CrashdError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)


def _address_of(server: socket.socket) -> str:
    host, port = server.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
