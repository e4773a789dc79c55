"""Analyses, one after another, when nothing more urgent is to be done: captures go first.

What has been analysed is told by `analysis.json` in the crash's own entry: so a daemon that is
killed goes on with what is left, and what kills an analysis again and again is given up.
"""

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from crashd.daemon.analysis import AnalysisOptions, analyse, analysed
from crashd.domain.analysis import Analysis, AnalysisState, analysis_to_json
from crashd.domain.model import Crash, Kind, State
from crashd.errors import CrashdError, FormatError, reason_of
from crashd.store.entry import ANALYSIS, Entry, open_entry
from crashd.store.index import Index
from crashd.store.paths import Paths
from crashd.store.signatures import unexplained

log = logging.getLogger("crashd.analysis")

QUEUE_MAX = 1000
ATTEMPTS_MAX = 2
"""An analysis that the daemon did not survive so often is given up."""
PATIENCE_SECONDS = 30.0
"""How long captures can make an analysis wait."""
_ANALYSABLE = frozenset({State.COMPLETE, State.TRUNCATED})
_RESULT_MAX = 8 << 20


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """The [analysis] section, resolved."""

    enabled: bool = True
    workers: int = 1
    options: AnalysisOptions = field(default_factory=AnalysisOptions)


class AnalysisQueue:
    """Threads that wait for worker processes; `add` and `configure` may be called from any."""

    def __init__(
        self,
        paths: Paths,
        *,
        busy: Callable[[], bool],
        changed: Callable[[Crash], None],
        ended: Callable[[str, float], None],
        first: Callable[[Crash], None],
    ) -> None:
        """`busy` tells whether captures are under way, `changed` is told of a record that has more
        in it now, `ended` of every analysis: `done` or `failed`, and its seconds; `first` of a
        crash whose first analysis it was.
        """
        self._first = first
        self._paths = paths
        self._busy = busy
        self._changed = changed
        self._ended = ended
        self._settings = QueueSettings(enabled=False)
        self._waiting: deque[str] = deque()
        self._known: set[str] = set()
        self._condition = threading.Condition()
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self.overflowed = False
        """Some did not fit: look for them later."""

    def configure(self, settings: QueueSettings) -> None:
        """Take new settings; more workers are started, fewer end after what they do."""
        with self._condition:
            self._settings = settings
            wanted = settings.workers if settings.enabled else 0
            while len(self._threads) < wanted:
                number = len(self._threads)
                thread = threading.Thread(
                    target=self._run, args=(number,), name=f"analysis-{number}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
            self._condition.notify_all()

    @property
    def waiting(self) -> int:
        """How many analyses are to be done."""
        return len(self._waiting)

    def add(self, crash_id: str, *, first: bool = False) -> bool:
        """Queue a crash's analysis, unless it is queued; False where there is no room, or where
        analyses are turned off.
        """
        with self._condition:
            if crash_id in self._known:
                return True
            if not self._settings.enabled:
                return False
            if len(self._waiting) >= QUEUE_MAX:
                self.overflowed = True
                return False
            self._known.add(crash_id)
            if first:
                self._waiting.appendleft(crash_id)
            else:
                self._waiting.append(crash_id)
            self._condition.notify()
        return True

    def ids(self) -> frozenset[str]:
        """List what is to be analysed, or being."""
        with self._condition:
            return frozenset(self._known)

    def catch_up(self, then: Callable[[], None] = lambda: None) -> None:
        """Queue what was not analysed so far, by a thread of its own: it reads many entries.
        `then` is called after.
        """
        if not self._settings.enabled:
            then()
            return

        def run() -> None:
            try:
                self._catch_up()
            finally:
                then()

        threading.Thread(target=run, name="analysis-start", daemon=True).start()

    def _catch_up(self) -> None:
        self.overflowed = False
        try:
            with Index.open(self._paths.index) as index:
                left = unexplained(index, QUEUE_MAX)
        except CrashdError as e:
            log.warning("%s: crashes of before are not analysed, ignoring", e)
            return
        for crash_id in left:
            if not self._stopping:
                self._add_if_new(crash_id)

    def _add_if_new(self, crash_id: str) -> None:
        """Queue a crash that no analysis is known of, by what its entry holds."""
        try:
            with open_entry(self._paths, crash_id) as entry:
                before, crash = read_result(entry), entry.read()
        except CrashdError:
            return
        if before is None or before.get("state") == "running":
            self.add(crash_id)
        elif crash.signature is not None:
            self._changed(crash)  # the daemon was killed before the index knew

    def stop(self) -> None:
        """Let the threads end; a worker that runs dies with the daemon."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()

    # -- the threads' ----------------------------------------------------------------------------

    def _run(self, number: int) -> None:
        while True:
            crash_id = self._next(number)
            if crash_id is None:
                return
            try:
                self._analyse(crash_id)
            except (CrashdError, OSError) as e:
                log.info("crash %s was not analysed: %s", crash_id, e)
            except Exception:  # boundary: one crash must not end the analysis of all others
                log.exception("the analysis of crash %s failed", crash_id)
                self._ended("failed", 0.0)
            finally:
                with self._condition:
                    self._known.discard(crash_id)

    def _next(self, number: int) -> str | None:
        with self._condition:
            while not self._stopping:
                if number < self._settings.workers and self._waiting:
                    return self._waiting.popleft()
                self._condition.wait()
        return None

    def _analyse(self, crash_id: str) -> None:
        self._let_captures_go_first()
        with open_entry(self._paths, crash_id) as entry:
            crash = entry.read()
            if crash.kind is not Kind.PROCESS or crash.state not in _ANALYSABLE:
                return
            attempts = begin_result(entry)
            if attempts > ATTEMPTS_MAX:
                why = f"given up: the daemon did not survive it {ATTEMPTS_MAX} times"
                self._finish(crash_id, Analysis(AnalysisState.FAILED, reason=why))
                return
            core = entry.open_core()
        try:
            analysis = analyse(core, crash, self._settings.options)
        finally:
            os.close(core)
        self._finish(crash_id, analysis)

    def _let_captures_go_first(self) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while self._busy() and time.monotonic() < until and not self._stopping:
            time.sleep(0.1)

    def _finish(self, crash_id: str, analysis: Analysis) -> None:
        """Write down what was found; the result last, for it says that all is written."""
        with open_entry(self._paths, crash_id) as entry:
            entry.lock()
            before = entry.read()
            result = _encode(analysis)
            told = {**summary(analysis), "stored_bytes": len(result)}
            crash = replace(analysed(before, analysis), analysis=told)
            entry.write(crash, sync=True)
            entry.write_file(ANALYSIS, result)
        self._changed(crash)
        if before.analysis is None:
            self._first(crash)
        self._ended(analysis.state.value, analysis.seconds)
        if analysis.state is AnalysisState.DONE:
            log.info("crash %s: %s: %s", crash_id, crash.title, analysis.explanation)
        else:
            log.warning("crash %s: analysis failed: %s", crash_id, analysis.reason)


def summary(analysis: Analysis) -> dict[str, Any]:
    """Build what the crash's record says of its analysis."""
    return {
        "state": analysis.state.value,
        "reason": analysis.reason,
        "cause": analysis.cause,
        "seconds": analysis.seconds,
        "cpu_seconds": analysis.cpu_seconds,
        "peak_bytes": analysis.peak_bytes,
        "warnings": list(analysis.warnings),
        "time": round(time.time(), 3),
    }


def _encode(analysis: Analysis) -> bytes:
    return json.dumps(analysis_to_json(analysis), ensure_ascii=True).encode()


def read_result(entry: Entry) -> dict[str, Any] | None:
    """Read what an entry's analysis.json says; None where there is none that can be read."""
    raw = entry.read_file(ANALYSIS, _RESULT_MAX)
    if raw is None:
        return None
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def begin_result(entry: Entry) -> int:
    """Note that an analysis begins; return how many began, this one included, with no end."""
    before = read_result(entry) or {}
    attempts = before.get("attempts") if before.get("state") == "running" else 0
    number = attempts + 1 if isinstance(attempts, int) else 1
    try:
        entry.write_file(ANALYSIS, json.dumps({"state": "running", "attempts": number}).encode())
    except OSError as e:
        raise FormatError(f"{ANALYSIS} cannot be written: {reason_of(e)}") from e
    return number
