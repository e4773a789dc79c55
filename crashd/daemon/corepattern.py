"""kernel.core_pattern while the daemon runs: set at the start, watched, restored at the end."""

import logging

from crashd import registration
from crashd.domain.crash.model import Mode
from crashd.edge.web.exporter import Exporter
from crashd.errors import ConfigError, CrashdError
from crashd.store.paths import Paths

log = logging.getLogger("crashd.service")


class CorePattern:
    """Sets, watches and restores kernel.core_pattern; without `register` it only reads it."""

    def __init__(self, paths: Paths, exporter: Exporter, *, register: bool) -> None:
        self._paths = paths
        self._exporter = exporter
        self._register = register
        self._was_owned: bool | None = None

    @property
    def is_owned(self) -> bool:
        """Return whether the kernel gives crashes to crashd's handler; reads it each time."""
        return registration.is_owned(self._paths)

    def take(self, pipe_limit: int, mode: Mode) -> None:
        """Register with the kernel for as long as this daemon runs, if the system allows it.

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
        """Register with new settings, unless another tool took the pattern over meanwhile."""
        if self.is_owned:
            self.take(pipe_limit, mode)

    def give_back(self) -> None:
        """Restore the settings that this daemon, or an earlier one that was killed, replaced. Only
        the first call has an effect.
        """
        if not self._register or not self._paths.registered_marker.exists():
            return
        try:
            log.info("registration given back: %s", registration.unregister(self._paths))
        except CrashdError as e:
            log.error("kernel.core_pattern was not given back: %s", e)

    def check(self) -> None:
        """Log when another tool has taken the pattern over, and report the owner in the metrics."""
        owned = self.is_owned
        if self._was_owned and not owned:
            log.warning(
                "kernel.core_pattern is no longer ours: another tool took it over, ignoring"
            )
        self._was_owned = owned
        self._exporter.core_pattern_owned(owned)
