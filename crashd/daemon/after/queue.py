"""Analyses, one after another, when nothing more urgent is to be done: captures go first.

Whose analyses took least lately comes next, so that nobody waits for all that another's crash loop
has queued.

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

from crashd.daemon.after.analysis import AnalysisOptions, analyse, analysed
from crashd.domain.cause.analysis import Analysis, AnalysisState, analysis_to_json, knowledge
from crashd.domain.crash.model import Crash, Kind, encode
from crashd.domain.keep.fairqueue import FairQueue
from crashd.domain.keep.site import account_of
from crashd.errors import CrashdError, FormatError, reason_of
from crashd.store.entry import ANALYSIS, Entry, open_entry
from crashd.store.index import Index
from crashd.store.paths import Paths
from crashd.store.signatures import unexplained

log = logging.getLogger("crashd.analysis")

QUEUE_MAX = 1000
ATTEMPTS_MAX = 2
"""An analysis that the daemon did not survive so often is given up."""
BEGUN_SECONDS = 1.0
"""What an analysis counts as from its beginning on: others' are begun before a second one."""
PATIENCE_SECONDS = 30.0
"""How long captures can make an analysis wait."""
RESULT_MAX = 8 << 20
_AROUND_BYTES = 4096
"""What is written around a result that is kept while a new one is made."""


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
        ended: Callable[[AnalysisState, float], None],
        first: Callable[[Crash], None],
        user_of: Callable[[int], int] = int,
    ) -> None:
        """`busy` tells whether captures are under way, `changed` is told of a record that has more
        in it now, `ended` of every analysis: `done` or `failed`, and its seconds; `first` of a
        crash whose first analysis it was.
        """
        self._first = first
        self._user_of = user_of
        self._paths = paths
        self._busy = busy
        self._changed = changed
        self._ended = ended
        self._settings = QueueSettings(enabled=False)
        self._waiting: FairQueue[str] = FairQueue(QUEUE_MAX)
        self._asked: deque[str] = deque()
        """By root, who waits for it: these are first."""
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
        return len(self._waiting) + len(self._asked)

    def add(self, crash_id: str, owner: str) -> bool:
        """Queue a crash's analysis, unless it is queued; False where there is no room for more of
        that owner's, or where analyses are turned off.
        """
        with self._condition:
            if crash_id in self._known:
                return True
            if not self._settings.enabled:
                return False
            self._known.add(crash_id)
            for dropped in self._waiting.put(owner, crash_id):
                self._known.discard(dropped)
                self.overflowed = True
            self._condition.notify()
            return crash_id in self._known

    def add_first(self, crash_id: str) -> bool:
        """Queue a crash's analysis before all others; False as for `add`.

        One that waits for its turn among others' is moved forward. One that runs is followed by
        another: its result may be written already, and who asks would wait for a newer one.
        """
        with self._condition:
            if crash_id in self._asked:
                return True
            if not self._settings.enabled or len(self._asked) >= QUEUE_MAX:
                return False
            self._known.add(crash_id)
            self._asked.append(crash_id)
            self._condition.notify()
        return True

    def ids(self) -> frozenset[str]:
        """List what is to be analysed, or being."""
        with self._condition:
            return frozenset(self._known.union(self._asked))

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
        if before is None or before.get("state") == AnalysisState.RUNNING:
            self.add(crash_id, account_of(crash, self._user_of) or "")
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
            taken = self._next(number)
            if taken is None:
                return
            owner, crash_id = taken
            started = time.monotonic()
            try:
                self._let_captures_go_first()
                started = time.monotonic()
                self._analyse(crash_id)
            except (CrashdError, OSError) as e:
                log.info("crash %s was not analysed: %s", crash_id, e)
            except Exception:  # boundary: one crash must not end the analysis of all others
                log.exception("the analysis of crash %s failed", crash_id)
                self._ended(AnalysisState.FAILED, 0.0)
            finally:
                with self._condition:
                    self._known.discard(crash_id)
                    now = time.monotonic()
                    self._waiting.charge(owner, max(0.0, now - started - BEGUN_SECONDS), now)

    def _next(self, number: int) -> tuple[str, str] | None:
        """Wait for the next crash to analyse, and tell whose it is; None at the end."""
        with self._condition:
            while not self._stopping:
                if number < self._settings.workers and self._asked:
                    return "", self._asked.popleft()
                now = time.monotonic()
                if number < self._settings.workers and (taken := self._waiting.take(now)):
                    if taken[1] not in self._known:
                        continue  # it was asked for, and analysed before its turn came
                    self._waiting.charge(taken[0], BEGUN_SECONDS, now)
                    return taken
                self._condition.wait()
        return None

    def _analyse(self, crash_id: str) -> None:
        with open_entry(self._paths, crash_id) as entry:
            crash = entry.read()
            if crash.kind is not Kind.PROCESS or not crash.state.has_core:
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
        """Write down what was found; the result last, for it says that all is written.

        What an earlier analysis found stays where this one knows less: a program may be replaced
        meanwhile, debug information removed.
        """
        with open_entry(self._paths, crash_id) as entry:
            entry.lock()
            before = entry.read()
            kept = kept_result(read_result(entry))
            why = analysis.reason or _missing(analysis)
            analysis, result = encode_result(analysis)
            if kept and before.analysis and knowledge(analysis_to_json(analysis)) < knowledge(kept):
                told = {**before.analysis, "time": _now(), "kept": why}
                crash, result = replace(before, analysis=told), encode(kept)
            else:
                told = {**summary(analysis), "stored_bytes": len(result)}
                crash = replace(analysed(before, analysis), analysis=told)
            crash = entry.write(crash, sync=True)
            entry.write_file(ANALYSIS, result)
        self._changed(crash)
        if before.analysis is None:
            self._first(crash)
        self._ended(analysis.state, analysis.seconds)
        if "kept" in told:
            log.info("crash %s: an earlier analysis knew more and is kept: %s", crash_id, why)
        elif analysis.state is AnalysisState.DONE:
            log.info("crash %s: %s: %s", crash_id, crash.title, analysis.explanation)
        else:
            log.warning("crash %s: analysis failed: %s", crash_id, analysis.reason)


def _missing(analysis: Analysis) -> str:
    """Say what an analysis that was done had no file of."""
    modules = analysis.facts.modules if analysis.facts is not None else ()
    missing = [module for module in modules if module.problem is not None]
    if not missing:
        return "less debug information"
    more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"{missing[0].name}: {missing[0].problem}{more}"


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
        "time": _now(),
    }


def encode_result(analysis: Analysis) -> tuple[Analysis, bytes]:
    """Encode a result, and return it; one that nobody could read again is a failure."""
    raw = encode(analysis_to_json(analysis))
    if len(raw) > RESULT_MAX:
        why = f"the result has {len(raw)} bytes, and {RESULT_MAX} are kept"
        analysis = Analysis(AnalysisState.FAILED, reason=why, seconds=analysis.seconds)
        raw = encode(analysis_to_json(analysis))
    return analysis, raw


def _now() -> float:
    return round(time.time(), 3)


def kept_result(document: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the last result that was written: this one, or what it was begun over."""
    if document is None or document.get("state") != AnalysisState.RUNNING:
        return document
    kept = document.get("kept")
    return kept if isinstance(kept, dict) else None


def read_result(entry: Entry) -> dict[str, Any] | None:
    """Read what an entry's analysis.json says; None where there is none that can be read."""
    raw = entry.read_file(ANALYSIS, RESULT_MAX + _AROUND_BYTES)
    if raw is None:
        return None
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def begin_result(entry: Entry) -> int:
    """Note that an analysis begins; return how many began, this one included, with no end.

    The result of one before it stays beside, until it is known which of them knows more.
    """
    before = read_result(entry) or {}
    attempts = before.get("attempts") if before.get("state") == AnalysisState.RUNNING else 0
    number = attempts + 1 if isinstance(attempts, int) else 1
    document = {
        "state": AnalysisState.RUNNING.value,
        "attempts": number,
        "kept": kept_result(before or None),
    }
    try:
        entry.write_file(ANALYSIS, encode(document))
    except OSError as e:
        raise FormatError(f"{ANALYSIS} cannot be written: {reason_of(e)}") from e
    return number
