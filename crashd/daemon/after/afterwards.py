"""The work after a capture, when the process no longer waits: analysis, notices, retention."""

import logging
import os

from crashd.configuration import keys as config
from crashd.daemon.after.analysis import AnalysisOptions
from crashd.daemon.after.backlog import Backlog
from crashd.daemon.after.captures import Captures
from crashd.daemon.after.faults import FaultLines
from crashd.daemon.after.notices import Notices, NoticeSettings
from crashd.daemon.after.queue import AnalysisQueue, QueueSettings
from crashd.daemon.after.retention import Retention, Spectator
from crashd.daemon.indexer import Indexer
from crashd.domain.crash.model import Crash, Kind
from crashd.domain.keep.alertbudget import AlertRates
from crashd.domain.keep.limiter import is_only_counted
from crashd.edge.host.clock import believed_now_ns
from crashd.edge.host.hooks import Webhook
from crashd.edge.host.needed import missing_for_analyses
from crashd.edge.web.exporter import Exporter
from crashd.store.paths import Paths
from crashd.store.retention import Outcome, Removed, Told
from crashd.store.users import Users

log = logging.getLogger("crashd.analysis")


class Afterwards:
    """The three parts, and which of them gets a crash."""

    def __init__(
        self,
        paths: Paths,
        indexer: Indexer,
        exporter: Exporter,
        captures: Captures,
        users: Users,
    ) -> None:
        self._paths = paths
        self._indexer = indexer
        self._exporter = exporter
        self._started = False
        backlog = Backlog(indexer)
        self.faults = FaultLines()
        """What the kernel's log says of faults, for the records of the crashes."""
        told = Told(self._removed, settled=indexer.settle)
        self.retention = Retention(paths, told, believed_now_ns, backlog, users)
        self._notices = Notices(paths, exporter, users)
        self._analyses = AnalysisQueue(
            paths,
            captures,
            indexer,
            exporter,
            self._notices,
            self.retention,
            backlog,
            users,
            self.faults,
        )

    def configure(self, settings: config.Settings) -> None:
        """Take new settings."""
        self._analyses.configure(analysis_settings(settings, self._paths))
        self._notices.configure(notice_settings(settings))
        self.retention.configure(settings.process_policy)

    def begin(self) -> None:
        """Begin with the unfinished work, once; the index must know everything on disk."""
        if not self._started:
            self._started = True
            self._notices.start()
            self._analyses.begin()

    def captured(self, crash: Crash) -> None:
        """Take a crash whose record is final."""
        self._notices.captured(crash)
        if crash.core.path is not None and not is_only_counted(crash):
            self._notices.expect(crash)  # first, because an analysis may end at once
            if not self._analyses.add(crash):
                self._notices.notify(crash)  # nothing more will be known
        else:
            self._notices.notify(crash)
        if crash.core.path is not None:
            self.retention.captured()

    def analyze(self, crash_id: str) -> bool:
        """Analyse a crash (again) before all others; False if that is not possible."""
        return self._analyses.add_first(crash_id)

    @property
    def analyses_waiting(self) -> int | None:
        """How many crashes wait for their analysis; None if analyses are turned off."""
        return self._analyses.waiting

    def vacuum(self, spectator: Spectator, *, dry_run: bool) -> Outcome:
        """Meet the limits of retention now; see `Retention.vacuum`."""
        return self.retention.vacuum(spectator, dry_run=dry_run)

    def look_again(self) -> None:
        """Queue the crashes for which there was no room."""
        self._analyses.look_again()

    def stop(self) -> None:
        """End the threads; a running analysis dies with the daemon and is repeated later."""
        self._analyses.stop()
        self._notices.stop()
        self.retention.stop()

    def _removed(self, what: Removed) -> None:
        if what.reason is not None:
            self._exporter.deleted(Kind.PROCESS, what.reason, what.freed_bytes)
        if what.tombstone is not None:
            self._indexer.changed(what.tombstone)
        else:
            self._indexer.removed(what.id)


def analysis_settings(settings: config.Settings, paths: Paths) -> QueueSettings:
    """Resolve the [analysis] section; if systemd starts the workers, use its socket. Without the
    modules that workers need, there are none.
    """
    analysis = settings.analysis
    socket = paths.analyze_socket
    missing = missing_for_analyses() if analysis.enabled else []
    if missing:
        log.warning("not installed: %s: crashes are kept, but not explained", ", ".join(missing))
    return QueueSettings(
        enabled=analysis.enabled and not missing,
        workers=analysis.workers,
        options=AnalysisOptions(
            timeout_seconds=analysis.timeout_seconds,
            memory_bytes=analysis.memory_bytes,
            python=analysis.python,
            build_id_dirs=(*analysis.build_id_dirs_bytes, os.fsencode(paths.debug_cache)),
            worker_socket=socket if socket.is_socket() else None,
            crashes=paths.crashes,
        ),
    )


def notice_settings(settings: config.Settings) -> NoticeSettings:
    """Resolve the [hooks] section."""
    hooks = settings.hooks
    rates = AlertRates(hooks.per_hour, hooks.per_signature)
    webhook = Webhook(hooks.url, hooks.body, hooks.headers_file)
    return NoticeSettings(webhook, hooks.timeout_seconds, rates, hooks.wait_seconds)
