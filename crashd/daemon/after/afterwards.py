"""What comes after a capture, when nobody waits any more: analysis, notices, retention."""

from collections.abc import Callable

from crashd.configuration import keys as config
from crashd.daemon.after.analysis import AnalysisOptions
from crashd.daemon.after.notices import Notices, NoticeSettings
from crashd.daemon.after.queue import AnalysisQueue, QueueSettings
from crashd.daemon.after.retention import Expiry
from crashd.daemon.indexer import Indexer
from crashd.domain.crash.model import Crash, DropReason, Kind
from crashd.domain.keep.alertbudget import AlertRates
from crashd.domain.keep.limiter import is_only_counted
from crashd.domain.keep.site import account_of
from crashd.edge.host.hostfacts import believed_now_ns
from crashd.edge.web.exporter import Exporter
from crashd.store.paths import Paths
from crashd.store.retention import Removed, Told


class Afterwards:
    """The three threads, and who of them is told of what."""

    def __init__(
        self,
        paths: Paths,
        indexer: Indexer,
        exporter: Exporter,
        busy: Callable[[], bool],
        user_of: Callable[[int], int],
    ) -> None:
        """`busy` tells whether captures are under way: these go first."""
        self._paths = paths
        self._user_of = user_of
        self._indexer = indexer
        self._started = False
        self._notices = Notices(paths, lambda: exporter.dropped(DropReason.NOTICE), user_of)
        self._analyses = AnalysisQueue(
            paths,
            busy=busy,
            changed=self._explained,
            ended=exporter.analysed,
            first=self._notices.notify,
            user_of=user_of,
        )

        def removed(what: Removed) -> None:
            if what.reason is not None:
                exporter.deleted(Kind.PROCESS, what.reason, what.freed_bytes)
            if what.tombstone is not None:
                indexer.changed(what.tombstone)
            else:
                indexer.removed(what.id)

        self._expiry = Expiry(
            paths,
            Told(removed, settled=indexer.settle),
            believed_now_ns,
            lambda: indexer.untold() | self._analyses.ids(),
        )
        self.vacuum = self._expiry.vacuum
        self.reserve = self._expiry.reserve
        self.unreserve = self._expiry.ended

    def configure(self, settings: config.Settings) -> None:
        """Take new settings."""
        self._analyses.configure(analysis_settings(settings, self._paths))
        self._notices.configure(notice_settings(settings))
        self._expiry.configure(settings.retention.process.policy)

    def begin(self) -> None:
        """Begin, with what was left undone: the index knows all that is on disk. Once."""
        if not self._started:
            self._started = True
            self._notices.start()
            self._analyses.catch_up(then=self._expiry.start)

    def captured(self, crash: Crash) -> None:
        """Take a crash whose record is final."""
        if crash.core.path is not None and not is_only_counted(crash):
            self._notices.expect(crash)  # first: an analysis may end at once
            if not self._analyses.add(crash.id, account_of(crash, self._user_of) or ""):
                self._notices.notify(crash)  # no more will be known
        else:
            self._notices.notify(crash)
        if crash.core.path is not None:
            self._expiry.captured()

    def analyze(self, crash_id: str) -> bool:
        """Analyse a crash (again) before all others; False where that cannot be."""
        return self._analyses.add_first(crash_id)

    def look_again(self) -> None:
        """Take up what there was no room for."""
        if self._analyses.overflowed:
            self._analyses.catch_up()

    def stop(self) -> None:
        """End the threads; an analysis that runs dies with the daemon, and is made anew."""
        self._analyses.stop()
        self._notices.stop()
        self._expiry.stop()

    def _explained(self, crash: Crash) -> None:
        self._indexer.changed(crash)
        self._indexer.settle()  # before it counts as analysed: retention goes by signatures
        self._expiry.captured()


def analysis_settings(settings: config.Settings, paths: Paths) -> QueueSettings:
    """Resolve the [analysis] section; where systemd starts the workers, they are asked for."""
    analysis = settings.analysis
    socket = paths.analyze_socket
    return QueueSettings(
        enabled=analysis.enabled,
        workers=analysis.workers,
        options=AnalysisOptions(
            timeout_seconds=analysis.timeout_seconds,
            memory_bytes=analysis.memory_bytes,
            python=analysis.python,
            build_id_dirs=analysis.build_id_dirs_bytes,
            worker_socket=socket if socket.is_socket() else None,
        ),
    )


def notice_settings(settings: config.Settings) -> NoticeSettings:
    """Resolve the [hooks] section."""
    hooks = settings.hooks
    rates = AlertRates(hooks.per_hour, hooks.per_signature)
    return NoticeSettings(hooks.url, hooks.timeout_seconds, rates, hooks.wait_seconds)
