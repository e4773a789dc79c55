"""The watch on the spool: says when the handler has finished a crash there."""

import logging
from collections.abc import Callable

from crashd.edge.host.inotify import DirectoryWatch
from crashd.errors import CrashdError
from crashd.store import spool
from crashd.store.paths import Paths

log = logging.getLogger("crashd.ingest")


class SpoolWatch:
    """Owns the watch, of which the daemon's loop is told by `watch` and `unwatch`."""

    def __init__(
        self,
        paths: Paths,
        *,
        watch: Callable[[DirectoryWatch, Callable[[], None]], None],
        unwatch: Callable[[DirectoryWatch], None],
        look: Callable[[], None],
    ) -> None:
        """`look` is called when a finished crash appeared, or may have."""
        self._paths = paths
        self._watch = watch
        self._unwatch = unwatch
        self._look = look
        self._armed: DirectoryWatch | None = None

    def renew(self) -> None:
        """Arm the watch where it is not; where that fails, the spool is looked at by timer only."""
        if self._armed is not None and not self._armed.is_current():
            self.drop()  # something was mounted over it, or it was replaced
        if self._armed is not None:
            return
        try:
            watch = DirectoryWatch(self._paths.spool, self._appeared, self._look)
        except CrashdError as e:
            log.warning("%s: the spool is looked at once a minute only, ignoring", e)
            return
        self._armed = watch
        self._watch(watch, lambda: self._read(watch))

    def drop(self) -> None:
        """Stop watching."""
        if self._armed is not None:
            self._unwatch(self._armed)
            self._armed.close()
            self._armed = None

    def _appeared(self, name: str) -> None:
        if spool.is_finished_name(name):
            self._look()

    def _read(self, watch: DirectoryWatch) -> None:
        watch.read()
        if not watch.alive:
            self.drop()
