"""Analyses, one after another, when there is nothing more urgent: captures go first.

The owner whose analyses took the least time recently comes next, so that a user does not wait for
everything that another user's crash loop has queued. Of one owner, crashes at a new site come
first; those at the same site share a worker, because most of an analysis is starting it.

`analysis.json` in the crash's own entry says what has been analysed: after the daemon was killed,
it continues with the rest, and gives up a crash that kills its analysis again and again.
"""

import logging
import os
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from crashd.daemon.after.analysis import AnalysisOptions, analyse_all, analysed, may_share
from crashd.daemon.after.backlog import QUEUE_MAX, Backlog
from crashd.daemon.after.captures import Captures
from crashd.daemon.after.faults import FaultLines
from crashd.daemon.after.notices import Notices
from crashd.daemon.after.packages import Packages
from crashd.daemon.after.retention import Retention
from crashd.daemon.indexer import Indexer
from crashd.domain.cause.analysis import Analysis, AnalysisState, analysis_to_json, knowledge
from crashd.domain.crash.model import Crash, Kind, encode
from crashd.domain.crash.package import Package, with_package
from crashd.domain.keep.site import account_of, group_of
from crashd.edge.sandbox.workerlink import OTHERS_MAX
from crashd.edge.web.exporter import Exporter
from crashd.errors import CrashdError, FormatError, reason_of
from crashd.store.entry import ANALYSIS, ANALYSIS_MAX, Entry, open_entry
from crashd.store.index import Index
from crashd.store.paths import Paths
from crashd.store.signatures import unexplained
from crashd.store.users import Users

log = logging.getLogger("crashd.analysis")

ATTEMPTS_MAX = 2
"""Give up an analysis that the daemon did not survive this many times."""
PATIENCE_SECONDS = 30.0
"""Captures can delay an analysis for this long."""
_MAPS_MAX = 4 << 20
"""Bytes of /proc/PID/maps in one request."""
_AROUND_BYTES = 4096
"""Room for what is written around a kept result while a new one is made."""
RESULT_MAX = ANALYSIS_MAX - _AROUND_BYTES


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """The [analysis] section, resolved."""

    enabled: bool = True
    workers: int = 1
    options: AnalysisOptions = field(default_factory=AnalysisOptions)


class AnalysisQueue:
    """Threads that wait for worker processes; any thread may call `add` and `configure`."""

    def __init__(
        self,
        paths: Paths,
        captures: Captures,
        indexer: Indexer,
        exporter: Exporter,
        notices: Notices,
        retention: Retention,
        backlog: Backlog,
        users: Users,
        faults: FaultLines,
    ) -> None:
        self._paths = paths
        self._captures = captures
        self._indexer = indexer
        self._exporter = exporter
        self._notices = notices
        self._retention = retention
        self._backlog = backlog
        self._users = users
        self._faults = faults
        self._packages = Packages()
        self._settings = QueueSettings(enabled=False)
        self._threads: list[threading.Thread] = []

    def configure(self, settings: QueueSettings) -> None:
        """Take new settings; more workers start now, fewer take effect after the current crash."""
        self._settings = settings
        wanted = settings.workers if settings.enabled else 0
        self._backlog.open_for(wanted)
        while len(self._threads) < wanted:
            number = len(self._threads)
            thread = threading.Thread(
                target=self._run, args=(number,), name=f"analysis-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def add(self, crash: Crash) -> bool:
        """Queue a crash's analysis, unless it is queued; False if the owner's share is full, or if
        analyses are turned off.
        """
        return self._backlog.put(self._owner_of(crash), crash.id, group_of(crash))

    def _owner_of(self, crash: Crash) -> str:
        return account_of(crash, self._users.user_of) or ""

    def add_first(self, crash_id: str) -> bool:
        """Queue a crash's analysis before all others; False if the queue is full or turned off."""
        return self._backlog.put_first(crash_id)

    @property
    def waiting(self) -> int | None:
        """How many crashes wait for their analysis; None if analyses are turned off."""
        return len(self._backlog) if self._settings.enabled else None

    def begin(self) -> None:
        """Queue the crashes without an analysis, and start retention once signatures are known."""
        self._catch_up()

    def look_again(self) -> None:
        """Queue the crashes for which there was no room."""
        if self._backlog.overflowed:
            self._catch_up()

    def _catch_up(self) -> None:
        """Queue the crashes without an analysis, in a separate thread: it reads many entries."""
        if self._settings.enabled:
            threading.Thread(target=self._read_left, name="analysis-start", daemon=True).start()
        else:
            self._retention.start()

    def _read_left(self) -> None:
        self._backlog.overflowed = False
        try:
            with Index.open(self._paths.index) as index:
                left = unexplained(index, QUEUE_MAX)
            for crash_id in left:
                if not self._backlog.is_closed:
                    self._add_if_new(crash_id)
        except CrashdError as e:
            log.warning("%s: earlier crashes will not be analysed, ignoring", e)
        finally:
            self._retention.start()

    def _add_if_new(self, crash_id: str) -> None:
        """Queue a crash whose entry has no analysis."""
        try:
            with open_entry(self._paths, crash_id) as entry:
                before, crash = entry.read_analysis(), entry.read()
        except CrashdError:
            return
        if before is None or before.get("state") == AnalysisState.RUNNING:
            self.add(crash)
        elif crash.signature is not None:
            self._explained(crash)  # the daemon was killed before the index knew

    def stop(self) -> None:
        """Let the threads end; a running worker dies with the daemon."""
        self._backlog.close()

    # -- the threads' ----------------------------------------------------------------------------

    def _run(self, number: int) -> None:
        while (taken := self._backlog.take(number, 1 + OTHERS_MAX)) is not None:
            owner, ids = taken
            started = time.monotonic()
            alone = ids[1:]
            try:
                self._let_captures_go_first()
                started = time.monotonic()
                alone = self._analyse(ids)
            except (CrashdError, OSError) as e:
                log.info("crash %s was not analysed: %s", ids[0], e)
            except Exception:  # boundary: one crash must not end the analysis of all others
                log.exception("the analysis of crash %s failed", ids[0])
                self._exporter.analysed(AnalysisState.FAILED, 0.0)
            finally:
                self._backlog.done(owner, ids, time.monotonic() - started)
                for crash_id in alone:
                    self._backlog.put(owner, crash_id, late=True)

    def _explained(self, crash: Crash) -> None:
        """Update the index with the explained record before it counts as analysed, because
        retention uses signatures.
        """
        self._indexer.explained(crash)
        self._indexer.settle()
        self._retention.captured()

    def _analyse(self, ids: Sequence[str]) -> list[str]:
        """Analyse crashes that are like the first one, in one worker; return those that have to be
        analysed alone.
        """
        with ExitStack() as stack:
            cores, alone = self._gather(ids, stack)
            found = analyse_all(cores, self._settings.options) if cores else []
        for (_, crash), analysis in zip(cores, found, strict=True):
            if analysis is None:
                alone.append(crash.id)
            else:
                note = None if analysis.facts is None else analysis.facts.package
                self._finish(crash.id, analysis, self._packages.find(crash, note))
        return alone

    def _gather(
        self, ids: Sequence[str], stack: ExitStack
    ) -> tuple[list[tuple[int, Crash]], list[str]]:
        """Return the crashes to analyse together, with their cores, which `stack` closes; and those
        that have to be analysed alone.
        """
        cores: list[tuple[int, Crash]] = []
        alone: list[str] = []
        room = _MAPS_MAX
        for crash_id in ids:
            try:
                with open_entry(self._paths, crash_id) as entry:
                    crash = self._reported(entry.read())
                    if crash.kind is not Kind.PROCESS or not crash.state.has_core:
                        continue
                    room -= len(crash.maps or b"")
                    if cores and (room < 0 or not may_share(cores[0][1], crash)):
                        alone.append(crash_id)
                        continue
                    begun = begin_result(entry) <= ATTEMPTS_MAX
                    if begun:
                        cores.append((entry.open_core(), crash))
                        stack.callback(os.close, cores[-1][0])
                if not begun:
                    why = f"given up: the daemon did not survive it {ATTEMPTS_MAX} times"
                    self._finish(crash_id, Analysis(AnalysisState.FAILED, reason=why))
            except (CrashdError, OSError) as e:
                log.info("crash %s was not analysed: %s", crash_id, e)
        return cores, alone

    def _reported(self, crash: Crash) -> Crash:
        """Return the crash with the kernel's own line of its fault, if it was heard."""
        line = None if crash.report else self._faults.of(crash)
        return crash if line is None else replace(crash, report=(line,))

    def _let_captures_go_first(self) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while self._captures.are_under_way and time.monotonic() < until:
            if self._backlog.is_closed:
                return
            time.sleep(0.1)

    def _finish(self, crash_id: str, analysis: Analysis, package: Package | None = None) -> None:
        """Store what was found; the result last, because it marks everything as written.

        An earlier result stays if this one knows less: a program may have been replaced in the
        meantime, or debug information removed.
        """
        with open_entry(self._paths, crash_id) as entry:
            entry.lock()
            before = self._reported(entry.read())
            kept = kept_result(entry.read_analysis())
            why = analysis.reason or _missing(analysis)
            analysis, result = encode_result(analysis)
            if kept and before.analysis and knowledge(analysis_to_json(analysis)) < knowledge(kept):
                told = {**before.analysis, "time": _now(), "kept": why}
                crash, result = replace(before, analysis=told), encode(kept)
            else:
                told = {**summary(analysis), "stored_bytes": len(result)}
                crash = replace(analysed(before, analysis), analysis=told)
            crash = entry.write(with_package(crash, package), sync=True)
            entry.write_file(ANALYSIS, result)
        self._exporter.analysed(analysis.state, analysis.seconds)  # before anybody sees its result
        self._explained(crash)
        if before.analysis is None:
            self._notices.explained(crash)
        if "kept" in told:
            log.info("crash %s: an earlier analysis knew more and is kept: %s", crash_id, why)
        elif analysis.state is AnalysisState.DONE:
            log.info("crash %s: %s: %s", crash_id, crash.title, analysis.explanation)
        else:
            log.warning("crash %s: analysis failed: %s", crash_id, analysis.reason)


def _missing(analysis: Analysis) -> str:
    """Return which modules' files a finished analysis lacked."""
    modules = analysis.facts.modules if analysis.facts is not None else ()
    missing = [module for module in modules if module.problem is not None]
    if not missing:
        return "less debug information"
    more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"{missing[0].name}: {missing[0].problem}{more}"


def summary(analysis: Analysis) -> dict[str, Any]:
    """Build the summary of an analysis for the crash's record."""
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
    """Encode a result and return both; a result too large to be read again becomes a failure."""
    raw = encode(analysis_to_json(analysis))
    if len(raw) > RESULT_MAX:
        why = f"the result has {len(raw)} bytes, and {RESULT_MAX} are kept"
        analysis = Analysis(AnalysisState.FAILED, reason=why, seconds=analysis.seconds)
        raw = encode(analysis_to_json(analysis))
    return analysis, raw


def _now() -> float:
    return round(time.time(), 3)


def kept_result(document: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the last finished result: this one, or the one kept when a new analysis began."""
    if document is None or document.get("state") != AnalysisState.RUNNING:
        return document
    kept = document.get("kept")
    return kept if isinstance(kept, dict) else None


def begin_result(entry: Entry) -> int:
    """Note that an analysis begins; return how many began without an end, including this one.

    The previous result is kept in the same file, until it is known which result knows more.
    """
    before = entry.read_analysis() or {}
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
