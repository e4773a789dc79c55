"""Entries in the journal: one for each crash at once, and one for what its analysis found.

An entry is sent by the thread that knows it, without waiting, so that entries are prompt and in the
order of the crashes. What the journal does not take at once waits in a fair queue for a thread of
its own, and everything after it, too.
"""

import logging
import threading
import time
from dataclasses import dataclass

from crashd.domain.crash.boundedrecord import bounded
from crashd.domain.crash.model import Crash, DropReason
from crashd.domain.keep.fairqueue import FairQueue
from crashd.domain.keep.site import account_of
from crashd.edge.host import journal
from crashd.edge.web.exporter import Exporter
from crashd.errors import UnavailableError
from crashd.store.paths import Paths
from crashd.store.users import Users

log = logging.getLogger("crashd.notices")

QUEUE_MAX = 500
ENTRY_BYTES = 128 << 10
"""Size limit of a waiting record; the journal gets no more of it."""
DEAF_SECONDS = 10.0
"""After the journal accepted nothing, do not wait for it this long."""


@dataclass(frozen=True, slots=True)
class _Entry:
    crash: Crash
    is_explanation: bool


class JournalNotices:
    """Sends entries; any thread may call `captured` and `explained`, which never wait."""

    def __init__(self, paths: Paths, exporter: Exporter, users: Users) -> None:
        self._paths = paths
        self._exporter = exporter
        self._users = users
        self._late: FairQueue[_Entry] = FairQueue(QUEUE_MAX)
        self._changed = threading.Condition()
        self._sending = False
        """Whether the thread has an entry of `_late` in its hands."""
        self._stopping = False
        self._failed = False
        self._deaf_until = 0.0
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the queued entries, if these take only a moment."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(2)

    def captured(self, crash: Crash) -> None:
        """Send the entry of a crash of a process."""
        self._put(crash, is_explanation=False)

    def explained(self, crash: Crash) -> None:
        """Send the entry that says what a crash's analysis found."""
        self._put(crash, is_explanation=True)

    def _put(self, crash: Crash, *, is_explanation: bool) -> None:
        if not journal.SOCKET.exists():
            return  # this host does not run systemd
        entry = _Entry(bounded(crash, ENTRY_BYTES)[0], is_explanation)
        with self._changed:  # also keeps the order
            if not len(self._late) and not self._sending:
                try:
                    self._send(entry, 0.0)
                except UnavailableError:
                    pass  # the thread waits, or says that it cannot be sent
                else:
                    self._failed = False
                    return
            owner = account_of(entry.crash, self._users.user_of) or ""
            for _ in self._late.put(owner, entry):
                self._exporter.dropped(DropReason.NOTICE)
            self._changed.notify()

    def _run(self) -> None:
        while (entry := self._next()) is not None:
            try:
                seconds = 0.0 if time.monotonic() < self._deaf_until else journal.SEND_SECONDS
                self._send(entry, seconds)
                self._failed, self._deaf_until = False, 0.0
            except UnavailableError as e:
                if seconds:
                    self._deaf_until = time.monotonic() + DEAF_SECONDS
                self._exporter.dropped(DropReason.NOTICE)
                if not self._failed:
                    log.warning("%s, ignoring", e)
                self._failed = True
            except Exception:  # boundary: one entry must not cost the others
                log.exception("crash %s: no entry in the journal", entry.crash.id)
                self._exporter.dropped(DropReason.NOTICE)

    def _next(self) -> _Entry | None:
        """Wait for the next entry; None if all are sent and the thread must end."""
        with self._changed:
            self._sending = False
            while True:
                if (taken := self._late.take(time.monotonic())) is not None:
                    self._sending = True
                    return taken[1]
                if self._stopping:
                    return None
                self._changed.wait()

    def _send(self, entry: _Entry, seconds: float) -> None:
        crash = entry.crash
        name = crash.core.path
        path = None if name is None else self._paths.crashes / crash.id / name
        if entry.is_explanation:
            fields = journal.build_explanation(crash)
        else:
            fields = journal.build_fields(crash, path)
        journal.send(fields, journal.SOCKET, seconds)
