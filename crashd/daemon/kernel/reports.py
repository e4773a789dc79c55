"""Kernel crashes that left no dump: recorded from a report, unless a dump shows the same crash."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crashd.daemon.indexer import Indexer
from crashd.daemon.kernel.live import LiveReport
from crashd.domain.crash.model import BOOT_UNKNOWN, Crash, Kind, Mode, State
from crashd.domain.crash.query import Query
from crashd.domain.kdump.record import SAME_EVENT_NS, add_words, split_log, survived
from crashd.domain.kernellog.pstore import (
    CONSOLE,
    GROUP_NS,
    PACKED,
    PstoreLog,
    assemble,
    merge_events,
)
from crashd.edge.capture import process
from crashd.errors import CrashdError, reason_of
from crashd.store import entry as entries
from crashd.store.index import Index
from crashd.store.paths import Paths
from crashd.store.pstorefiles import PstoreDirectory, list_records, read_parts
from crashd.store.statefile import read_state, write_state

if TYPE_CHECKING:
    from crashd.domain.kernellog.analyse import LogAnalysis

log = logging.getLogger("crashd.kdump")

_DONE_MAX = 20_000
_AROUND_MAX = 200
_LAST_LINES = 400
_PSTORE = ("sys/fs/pstore", "var/lib/systemd/pstore")


class ReportBook:
    """Records each report of pstore and of the running kernel's log once."""

    def __init__(self, paths: Paths, hostname: bytes, indexer: Indexer) -> None:
        self._paths = paths
        self._hostname = hostname
        self._indexer = indexer
        self._boot_id = process.boot_id()
        self._pstore_done: set[str] = set()
        self._pstore_seen: list[PstoreDirectory] | None = None
        self._pstore_left_out = 0

    def add_live(self, report: LiveReport) -> None:
        """Record a report of the running kernel, which survived it."""
        token = f"oops-{self._boot_id}-{report.sequence}"
        if self._is_known(token):
            return
        age_ns = max(0, time.monotonic_ns() - report.time_ns)
        self._record(
            survived(
                report.analysis,
                mode=Mode.KMSG,
                time_ns=time.time_ns() - age_ns,
                boot_id=self._boot_id,
                hostname=self._hostname,
                token=token,
                log=report.analysis.text.splitlines(),
                source="kmsg",
                random=secrets.randbits(40),
            )
        )

    def read_pstore(self) -> None:
        """Record the last words that the firmware kept, if there is no dump of the same crash.

        Raises:
            CrashdError: the index cannot be read.

        """
        found = [list_records(self._paths.root / name) for name in _PSTORE]
        if found == self._pstore_seen:
            return
        if any(directory.records for directory in found) and not self._indexer.settle():
            return  # the scan's own dumps have to be in the index first
        self._tell_left_out(sum(directory.left_out for directory in found))
        events = merge_events(assemble(part for d in found for part in read_parts(d)))
        # Console logs last: a record that the kernel wrote for the crash itself says more.
        events.sort(key=lambda words: words.reason == CONSOLE)
        done = self._pstore_done | _load_done(self._paths.pstore_state)
        settled = True
        for words in events:
            if (
                not done.isdisjoint(words.tokens)
                or any(map(self._is_known, words.tokens))
                or self._take(words, events)
            ):
                done.update(words.tokens)
            else:
                settled = False
        self._keep_done(done, {token for words in events for token in words.tokens})
        self._pstore_seen = found if settled else None

    def _take(self, words: PstoreLog, events: Sequence[PstoreLog]) -> bool:
        """Record an event if necessary; False if it must be looked at again."""
        from crashd.domain.kernellog.analyse import analyse  # see live.py

        analysis = analyse(words.text) if words.text else None
        if words.reason == CONSOLE and (analysis is None or _is_told(words, analysis, events)):
            return True
        if analysis is None and not words.is_crash:
            log.info("pstore: a record of %s names no crash, ignoring", words.backend)
            return True
        row = self._find_dump(words, analysis)
        if row is None:
            return self._record(self._of_pstore(words, analysis))
        kernel = row["kernel"]
        if row["state"] == State.CAPTURING or kernel.get("log_pending"):
            return False  # it is not known yet what the dump's own log says
        if analysis is not None and _lacks_log(kernel):
            return self._add_words(str(row["id"]), words, analysis)
        log.info("pstore has the log of crash %s, which has a dump", row["id"])
        return True

    def _tell_left_out(self, number: int) -> None:
        if number and number != self._pstore_left_out:
            log.warning("pstore: %d older records are not read, only the newest ones", number)
        self._pstore_left_out = number

    def _of_pstore(self, words: PstoreLog, analysis: LogAnalysis | None) -> Crash:
        crash = survived(
            analysis,
            mode=Mode.PSTORE,
            time_ns=words.time_ns,
            boot_id=BOOT_UNKNOWN,
            hostname=self._hostname,
            token=words.token,
            log=split_log(words.text),
            source=_source(words),
            random=secrets.randbits(40),
        )
        if words.reason == PACKED:
            why = "its records in pstore are compressed in a way that cannot be read here"
            return replace(crash, title=f"kernel crash: {why}")
        return crash

    def _add_words(self, crash_id: str, words: PstoreLog, analysis: LogAnalysis) -> bool:
        """Add pstore's log of the same crash to the record of a dump without a log."""
        try:
            _, crash = entries.change(
                self._paths,
                crash_id,
                lambda crash: add_words(crash, split_log(words.text), analysis, _source(words)),
            )
        except (OSError, CrashdError) as e:
            log.error("crash %s cannot get its log from pstore: %s, ignoring", crash_id, e)
            return False
        log.info("crash %s: its log is from pstore", crash_id)
        self._indexer.changed(crash)
        return True

    def _keep_done(self, done: set[str], present: set[str]) -> None:
        """Remember the handled records, also for the next daemon, so that a deleted crash does not
        come back.
        """
        if done == self._pstore_done:
            return
        # Records move from one directory to the other: one that is absent now may be back soon.
        self._pstore_done = done if len(done) <= _DONE_MAX else done & present
        try:
            write_state(self._paths.pstore_state, {"done": sorted(self._pstore_done)})
        except OSError as e:
            log.warning("%s cannot be written: %s", self._paths.pstore_state, reason_of(e))

    def _record(self, crash: Crash) -> bool:
        try:
            with entries.create(self._paths, crash) as entry:
                entry.write(crash, sync=True)
        except OSError as e:
            log.error("a kernel crash cannot be recorded: %s, ignoring", reason_of(e))
            return False
        self._indexer.recorded(crash)
        self._indexer.finished(crash.id)
        return True

    def _is_known(self, token: str) -> bool:
        try:
            with Index.open(self._paths.index) as index:
                return index.id_of_token(token) is not None
        except CrashdError as e:
            log.error("%s, ignoring", e)
            return False

    def _find_dump(
        self, words: PstoreLog, analysis: LogAnalysis | None
    ) -> Mapping[str, Any] | None:
        """Find the record of the same crash, from a dump or from another record in pstore: by its
        signature, or by its time, because a machine does not crash twice within such a short time.
        """
        around = Query(
            kind=Kind.KERNEL,
            since_ns=words.time_ns - SAME_EVENT_NS,
            until_ns=words.time_ns + SAME_EVENT_NS,
            limit=_AROUND_MAX,
        )
        with Index.open(self._paths.index) as index:
            rows = list(index.select(around, None))
        for row in rows:
            if analysis is not None and row.get("signature") == analysis.signature:
                return row
        near = [row for row in rows if _is_same_time(row, words)]
        return min(near, key=lambda row: abs(_time_ns(row) - words.time_ns), default=None)


def _is_same_time(row: Mapping[str, Any], words: PstoreLog) -> bool:
    """Return whether a dump's crash, by the dump's own clock, is as old as the words."""
    kernel = row.get("kernel") or {}
    told = kernel.get("source") == "kdump" and kernel.get("crash_time_source") == "dump"
    return told and abs(_time_ns(row) - words.time_ns) <= GROUP_NS


def _time_ns(row: Mapping[str, Any]) -> int:
    crashed = (row.get("kernel") or {}).get("crash_time")
    return crashed * 10**9 if isinstance(crashed, int) else 0


def _lacks_log(kernel: Mapping[str, Any]) -> bool:
    return kernel.get("source") == "kdump" and not kernel.get("log_source")


def _source(words: PstoreLog) -> str:
    what = f"{words.parts} parts" if words.reason != CONSOLE else "console"
    return f"pstore ({words.backend}, {what})"


def _is_told(words: PstoreLog, analysis: LogAnalysis, events: Sequence[PstoreLog]) -> bool:
    """Return whether a console's log has no crash, or another record's crash.

    The two share a line with the kernel's own timestamp. The console file's time does not help,
    because it is the time of the next boot.
    """
    if not analysis.fatal:
        return True
    lines = [line for line in words.text.splitlines() if b"] " in line]
    told = {line.rpartition(b"] ")[0].rpartition(b"[")[2] + b"] " for line in lines[-_LAST_LINES:]}
    return any(
        other.reason != CONSOLE and any(stamp in other.text for stamp in told) for other in events
    )


def _load_done(path: Path) -> set[str]:
    match read_state(path):
        case {"done": list(tokens)}:
            return {token for token in tokens if isinstance(token, str)}
    return set()
