"""The watch on the spool: starts an import when the handler has finished a crash there."""

import logging
from typing import Protocol

from crashd.daemon.loop import Loop
from crashd.edge.host.inotify import DirectoryWatch
from crashd.errors import CrashdError
from crashd.store import spool
from crashd.store.paths import Paths

log = logging.getLogger("crashd.ingest")


class Importer(Protocol):
    """Takes crashes from the spool."""

    def import_spool(self) -> None:
        """Look for crashes that the handler spooled."""


class SpoolWatch:
    """Watches the spool directory; owns the inotify watch."""

    def __init__(self, paths: Paths, loop: Loop, importer: Importer) -> None:
        self._paths = paths
        self._loop = loop
        self._importer = importer
        self._armed: DirectoryWatch | None = None

    def renew(self) -> None:
        """Arm the watch if it is not armed; if that fails, only a timer looks at the spool."""
        if self._armed is not None and not self._armed.is_current():
            self.drop()  # the directory was replaced, or something was mounted over it
        if self._armed is not None:
            return
        try:
            watch = DirectoryWatch(self._paths.spool, self._appeared, self._importer.import_spool)
        except CrashdError as e:
            log.warning("%s: the spool is looked at once a minute only, ignoring", e)
            return
        self._armed = watch
        self._loop.watch(watch, lambda: self._read(watch))

    def drop(self) -> None:
        """Stop watching."""
        if self._armed is not None:
            self._loop.unwatch(self._armed)
            self._armed.close()
            self._armed = None

    def _appeared(self, name: str) -> None:
        if spool.is_finished_name(name):
            self._importer.import_spool()

    def _read(self, watch: DirectoryWatch) -> None:
        watch.read()
        if not watch.alive:
            self.drop()
