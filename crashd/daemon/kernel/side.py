"""Crashes of the kernel itself, from all sources: dumps, pstore, the running kernel's log."""

import os
import time

from crashd.configuration import keys as config
from crashd.daemon.indexer import Indexer
from crashd.daemon.kernel.book import DumpBook
from crashd.daemon.kernel.live import LiveOopses
from crashd.daemon.kernel.reports import ReportBook
from crashd.daemon.kernel.settings import KernelSettings
from crashd.daemon.kernel.symbolwork import SymbolWork
from crashd.daemon.kernel.watch import DumpWatch
from crashd.domain.crash.losses import LogRecord
from crashd.domain.crash.model import DropReason
from crashd.edge.web.exporter import Exporter
from crashd.store.paths import Paths


class KernelSide:
    """The part of the daemon's loop that handles crashes of the kernel."""

    def __init__(self, paths: Paths, exporter: Exporter, indexer: Indexer) -> None:
        self._exporter = exporter
        self._settings = KernelSettings(paths)
        self._live = LiveOopses()
        hostname = os.fsencode(os.uname().nodename)
        self._reports = ReportBook(paths, hostname, indexer)
        symbols = SymbolWork(paths, indexer, exporter)
        book = DumpBook(paths, hostname, indexer, symbols)
        self._dumps = DumpWatch(paths, book, symbols, self._reports, self._settings, exporter)

    def start(self) -> None:
        """Start the thread that looks after dumps."""
        self._dumps.start()

    def allow(self) -> None:
        """Begin to record: the index now has everything on disk."""
        self._dumps.allow()

    def configure(self, settings: config.Settings) -> None:
        """Take new settings."""
        self._settings.configure(settings)
        self._dumps.look()

    def stop(self) -> None:
        """End the thread."""
        self._dumps.stop()

    def analyze(self, crash_id: str) -> bool:
        """Look for a dump's symbols (again) before all others; False if the dump is not here, or
        analysis is turned off.
        """
        return self._dumps.analyze(crash_id)

    def heard(self, record: LogRecord) -> None:
        """Take a record of the running kernel's log."""
        if self._settings.live:
            self._live.add(record, time.monotonic_ns())

    @property
    def due_ns(self) -> int | None:
        """When `look` wants to be called (CLOCK_MONOTONIC)."""
        return self._live.due_ns

    @property
    def pending_from(self) -> int | None:
        """The record of the kernel's log that begins a report which has not ended yet."""
        return self._live.pending_from

    def look(self) -> None:
        """Record reports that the kernel survived."""
        for report in self._live.look(time.monotonic_ns()):
            if report.is_flood:
                self._exporter.dropped(DropReason.KERNEL_FLOOD)
            else:
                self._reports.add_live(report)
