"""Notices of a crash: to the journal at once, to hooks and the webhook once its analysis is known.

Hooks run in a thread with a bounded queue, so that one that hangs does not block anything else. The
queue is fair: a user does not wait for the notices that another user's crash loop has queued, and a
notice does not wait for a slow analysis.
"""

import json
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from crashd.daemon.after.journalnotices import JournalNotices
from crashd.domain.cause.analysis import AnalysisState
from crashd.domain.crash.boundedrecord import bounded
from crashd.domain.crash.model import Crash, DropReason, Kind, to_json
from crashd.domain.keep.alertbudget import AlertBudget, AlertRates
from crashd.domain.keep.fairqueue import FairQueue
from crashd.domain.keep.limiter import is_only_counted
from crashd.domain.keep.site import account_of
from crashd.edge.host.hooks import HookError, Webhook, ask_for_all, list_hooks, run_all
from crashd.edge.web.exporter import Exporter
from crashd.errors import reason_of
from crashd.store.paths import Paths
from crashd.store.users import Users

log = logging.getLogger("crashd.notices")

QUEUE_MAX = 500
EARLY_MAX = 10_000
"""Crashes remembered because their notice went out early and must not be repeated."""
MUTED_SECONDS = 600.0
"""The log gets at most one line per this time about crashes beyond the budgets."""
NOTICE_BYTES = 128 << 10
"""Size limit of a waiting record; hooks get no more of it."""
START_SECONDS = 30.0
"""Time for the unit that runs the hooks to start, on a machine that is busy with crashes."""
_BULKY = ("maps", "mountinfo", "open_fds", "auxv_base64", "limits", "status", "log")
"""Hooks do not get these; `crashctl info` shows them."""


@dataclass(frozen=True, slots=True)
class NoticeSettings:
    """The [hooks] section, resolved."""

    webhook: Webhook = field(default_factory=Webhook)
    seconds: float = 10.0
    rates: AlertRates = field(default_factory=AlertRates)
    wait_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class _Notice:
    crash: Crash
    pending: bool = False
    """Whether the analysis is still to come."""


class Notices:
    """The thread; any other thread may call `expect` and `notify`, which never wait."""

    def __init__(self, paths: Paths, exporter: Exporter, users: Users) -> None:
        self._paths = paths
        self._exporter = exporter
        self._users = users
        self._journal = JournalNotices(paths, exporter, users)
        self._queue: FairQueue[_Notice] = FairQueue(QUEUE_MAX)
        self._kernel: deque[_Notice] = deque()
        """Crashes of the kernel: their notices go out first, and always."""
        self._held: dict[str, tuple[float, Crash]] = {}
        """By id: crashes that wait for their analysis, and until when."""
        self._told_early: dict[str, None] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._settings = NoticeSettings()
        self._budget = AlertBudget()
        self._muted_until = 0.0
        self._wrong_told: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def start(self) -> None:
        """Start the threads."""
        self._journal.start()
        self._thread.start()

    def configure(self, settings: NoticeSettings) -> None:
        """Take new settings."""
        self._settings = settings

    def captured(self, crash: Crash) -> None:
        """Note a crash of a process in the journal at once."""
        if crash.kind is Kind.PROCESS:
            self._journal.captured(crash)

    def explained(self, crash: Crash) -> None:
        """Note in the journal what an analysis found, and give notice as `notify` does."""
        if crash.kind is Kind.PROCESS and crash.signature is not None:
            self._journal.explained(crash)
        self.notify(crash)

    def expect(self, crash: Crash) -> None:
        """Give notice of a crash when `notify` is called for it, or when that takes too long."""
        with self._changed:
            crash = bounded(crash, NOTICE_BYTES)[0]
            if len(self._held) < QUEUE_MAX:
                self._held[crash.id] = (time.monotonic() + self._settings.wait_seconds, crash)
            else:  # only a hook that hangs fills this: bounded, like the queue
                self._tell_early(crash)
            self._changed.notify()

    def notify(self, crash: Crash) -> None:
        """Give notice of a crash soon, unless that happened early after `expect`."""
        with self._changed:
            if crash.id in self._told_early:
                del self._told_early[crash.id]
                return
            self._held.pop(crash.id, None)
            self._put(_Notice(bounded(crash, NOTICE_BYTES)[0]))
            self._changed.notify()

    def stop(self) -> None:
        """End the thread after the queued notices, if these take only a moment."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(2)
        self._journal.stop()

    def _put(self, notice: _Notice) -> None:
        if notice.crash.kind is Kind.KERNEL:
            self._kernel.append(notice)
            return
        for _ in self._queue.put(self._owner_of(notice.crash), notice):
            self._exporter.dropped(DropReason.NOTICE)

    def _run(self) -> None:
        while (notice := self._next()) is not None:
            crash, began = notice.crash, time.monotonic()
            try:
                self._to_hooks(notice)
            except Exception:  # boundary: what one notice did must not cost the others
                log.exception("crash %s: a notice failed", crash.id)
                self._exporter.dropped(DropReason.NOTICE)
            now = time.monotonic()
            with self._changed:
                self._queue.charge(self._owner_of(crash), now - began, now)

    def _next(self) -> _Notice | None:
        """Wait for the next notice; None if all notices are given and the thread must end."""
        with self._changed:
            while True:
                now = time.monotonic()
                self._release(now)
                if self._kernel:
                    return self._kernel.popleft()
                if (taken := self._queue.take(now)) is not None:
                    return taken[1]
                if self._stopping:
                    return None
                due = min((due for due, _ in self._held.values()), default=None)
                self._changed.wait(None if due is None else max(0.0, due - now))

    def _release(self, now: float) -> None:
        """Queue the crashes that have waited long enough for their analysis."""
        for crash_id, (due, crash) in list(self._held.items()):
            if now >= due:
                del self._held[crash_id]
                self._tell_early(crash)

    def _tell_early(self, crash: Crash) -> None:
        self._told_early[crash.id] = None
        while len(self._told_early) > EARLY_MAX:
            del self._told_early[next(iter(self._told_early))]
        self._put(_Notice(crash, pending=True))

    def _to_hooks(self, notice: _Notice) -> None:
        settings = self._settings
        if is_only_counted(notice.crash):
            return
        hooks, wrong = list_hooks(self._paths.hooks)
        for text in wrong:
            if text not in self._wrong_told:
                self._wrong_told.add(text)
                log.warning("hook %s, ignoring", text)
        if not hooks and not settings.webhook.url:
            return
        if not self._may_run(notice.crash):
            self._exporter.dropped(DropReason.NOTICE)
            return
        for failure in self._run_hooks(settings, len(hooks) + 1, _document(notice)):
            self._exporter.dropped(DropReason.NOTICE)
            log.warning("%s, ignoring", failure)

    def _run_hooks(self, settings: NoticeSettings, most: int, document: bytes) -> list[str]:
        """Run the hooks, or let systemd run them if it listens for that."""
        if not self._paths.hooks_socket.is_socket():
            return run_all(self._paths.hooks, settings.webhook, document, settings.seconds)
        seconds = most * settings.seconds + START_SECONDS
        try:
            return ask_for_all(self._paths.hooks_socket, document, seconds)
        except HookError as e:
            return [reason_of(e)]

    def _owner_of(self, crash: Crash) -> str:
        return account_of(crash, self._users.user_of) or ""

    def _may_run(self, crash: Crash) -> bool:
        if crash.kind is Kind.KERNEL:
            return True
        owner, now = self._owner_of(crash), time.monotonic()
        if self._budget.take(self._settings.rates, owner, _kind_of(crash), now):
            return True
        if now >= self._muted_until:
            self._muted_until = now + MUTED_SECONDS
            log.warning("crash %s of %s: hooks ran as often as [hooks] allows", crash.id, owner)
        return False


def _kind_of(crash: Crash) -> str:
    """Return what a crash counts as an occurrence of: its signature, or signal and program."""
    program = (crash.exe or crash.comm).decode("utf-8", "surrogateescape")
    return crash.signature or f"{crash.signal} {program}"


def _document(notice: _Notice) -> bytes:
    document = to_json(notice.crash)
    for key in _BULKY:
        document.pop(key, None)
    if notice.pending:
        document["analysis"] = {"state": AnalysisState.PENDING.value}
    return json.dumps(document, ensure_ascii=True).encode() + b"\n"
