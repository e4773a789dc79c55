"""kernel.core_pattern in the daemon's life: taken at the start, watched, given back at the end."""

import logging

from crashd import registration
from crashd.domain.crash.model import Mode
from crashd.edge.web.exporter import Exporter
from crashd.errors import ConfigError, CrashdError
from crashd.store.paths import Paths

log = logging.getLogger("crashd.service")


class CorePattern:
    """What this daemon does with kernel.core_pattern: nothing but look at it without `register`."""

    def __init__(self, paths: Paths, exporter: Exporter, *, register: bool) -> None:
        self._paths = paths
        self._exporter = exporter
        self._register = register
        self._was_owned: bool | None = None

    @property
    def is_owned(self) -> bool:
        """Whether the kernel gives crashes to crashd's handler; read from the kernel each time."""
        return registration.is_owned(self._paths)

    def take(self, pipe_limit: int, mode: Mode) -> None:
        """Register with the kernel for as long as this daemon runs, where the system lets us.

        Raises:
            ConfigError: the root makes the pattern too long.

        """
        if not self._register:
            return
        try:
            done = registration.register(self._paths, pipe_limit, mode)
        except ConfigError:
            raise
        except CrashdError as e:
            hint = f" ({e.hint})" if e.hint else ""
            log.warning("not registered as core_pattern: %s%s, ignoring", e, hint)
            return
        if done.installed:
            log.info("handler installed as %s", self._paths.handler)
        if done.changed:
            log.info("kernel.core_pattern is %s", done.pattern)

    def take_again(self, pipe_limit: int, mode: Mode) -> None:
        """Register with other settings, but leave it to a tool that took it over meanwhile."""
        if self.is_owned:
            self.take(pipe_limit, mode)

    def give_back(self) -> None:
        """Give back what this daemon, or one before it that was killed, took; once is enough."""
        if not self._register or not self._paths.registered_marker.exists():
            return
        try:
            log.info("registration given back: %s", registration.unregister(self._paths))
        except CrashdError as e:
            log.error("kernel.core_pattern was not given back: %s", e)

    def check(self) -> None:
        """Log when another tool has taken it over, and have the metrics say whose it is."""
        owned = self.is_owned
        if self._was_owned and not owned:
            log.warning(
                "kernel.core_pattern is no longer ours: another tool took it over, ignoring"
            )
        self._was_owned = owned
        self._exporter.core_pattern_owned(owned)
