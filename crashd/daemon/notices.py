"""Telling others of a crash, once it is known what there is to know: journal, hooks, webhook.

In a thread of its own with a bounded queue: a journal or a hook that hangs holds up nothing.
"""

import json
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from crashd.domain.model import Crash, Kind, to_json
from crashd.edge import journal
from crashd.edge.hooks import HookError, ask_for_all, list_hooks, run_all
from crashd.errors import UnavailableError, reason_of
from crashd.store.paths import Paths

log = logging.getLogger("crashd.notices")

QUEUE_MAX = 500
HOUR_SECONDS = 3600.0
START_SECONDS = 30.0
"""For a unit that runs the hooks to start, on a machine that is busy crashing."""
DEAF_SECONDS = 10.0
"""A journal that took nothing is not waited for again so long, or hooks were told far too late."""
_BULKY = ("maps", "mountinfo", "open_fds", "auxv_base64", "limits", "status", "log")
"""Not given to hooks: `crashctl info` has them."""


@dataclass(frozen=True, slots=True)
class NoticeSettings:
    """The [hooks] section, resolved."""

    url: str = ""
    seconds: float = 10.0
    per_hour: int = 60


class Notices:
    """The thread; `notify` may be called from any other, and never waits."""

    def __init__(self, paths: Paths, failed: Callable[[], None]) -> None:
        """`failed` is told of each notice that was not given."""
        self._paths = paths
        self._failed = failed
        self._queue: queue.Queue[Crash | None] = queue.Queue(QUEUE_MAX)
        self._settings = NoticeSettings()
        self._times: deque[float] = deque()
        self._journal_told = self._limit_told = False
        self._deaf_until = 0.0
        self._wrong_told: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def configure(self, settings: NoticeSettings) -> None:
        """Take new settings."""
        self._settings = settings

    def notify(self, crash: Crash) -> None:
        """Tell of a crash, soon."""
        try:
            self._queue.put_nowait(crash)
        except queue.Full:
            self._failed()

    def stop(self) -> None:
        """End the thread, a hook that runs included where it takes longer than a moment."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return
        if self._thread.ident is not None:
            self._thread.join(2)

    def _run(self) -> None:
        while (crash := self._queue.get()) is not None:
            try:
                if crash.kind is Kind.PROCESS:
                    self._to_journal(crash)
                self._to_hooks(crash)
            except Exception:  # boundary: what one notice did must not cost the others
                log.exception("crash %s: a notice failed", crash.id)
                self._failed()

    def _to_journal(self, crash: Crash) -> None:
        if not journal.SOCKET.exists():
            return  # there is no systemd here
        name = crash.core.path
        path = None if name is None else self._paths.crashes / crash.id / name
        seconds = 0.0 if time.monotonic() < self._deaf_until else journal.SEND_SECONDS
        try:
            journal.send(journal.build_fields(crash, path), journal.SOCKET, seconds)
            self._journal_told, self._deaf_until = False, 0.0
        except UnavailableError as e:
            if seconds:
                self._deaf_until = time.monotonic() + DEAF_SECONDS
            self._failed()
            if not self._journal_told:
                log.warning("%s, ignoring", e)
            self._journal_told = True

    def _to_hooks(self, crash: Crash) -> None:
        settings = self._settings
        hooks, wrong = list_hooks(self._paths.hooks)
        for text in wrong:
            if text not in self._wrong_told:
                self._wrong_told.add(text)
                log.warning("hook %s, ignoring", text)
        if not hooks and not settings.url:
            return
        if not self._may_run(settings.per_hour):
            self._failed()
            return
        for failure in self._run_hooks(settings, len(hooks) + 1, _document(crash)):
            self._failed()
            log.warning("%s, ignoring", failure)

    def _run_hooks(self, settings: NoticeSettings, most: int, document: bytes) -> list[str]:
        """Run them, or have them run by systemd where it listens for that."""
        if not self._paths.hooks_socket.is_socket():
            return run_all(self._paths.hooks, settings.url, document, settings.seconds)
        seconds = most * settings.seconds + START_SECONDS
        try:
            return ask_for_all(self._paths.hooks_socket, document, seconds)
        except HookError as e:
            return [reason_of(e)]

    def _may_run(self, per_hour: int) -> bool:
        now = time.monotonic()
        while self._times and now - self._times[0] > HOUR_SECONDS:
            self._times.popleft()
            self._limit_told = False
        if len(self._times) < per_hour:
            self._times.append(now)
            return True
        if not self._limit_told:
            self._limit_told = True
            log.warning("hooks ran %d times within an hour: no more for now", per_hour)
        return False


def _document(crash: Crash) -> bytes:
    document = to_json(crash)
    for key in _BULKY:
        document.pop(key, None)
    return json.dumps(document, ensure_ascii=True).encode() + b"\n"
