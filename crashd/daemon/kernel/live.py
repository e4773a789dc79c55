"""Oopses, warnings, lockups and machine checks that the running kernel survived, from its log.

What tells a report's head is imported for the first line, and the rest for the first report: the
patterns of kernellog take a tenth of the daemon's start, and few kernels report anything.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crashd.domain.crash.losses import LogRecord
from crashd.domain.kernellog.printk import LogLine, parse_lines

if TYPE_CHECKING:
    from crashd.domain.kernellog.analyse import LogAnalysis, Report

WINDOW = 1500
"""Records that are kept around a report."""
SETTLE_NS = 2 * 10**9
"""How long the kernel may pause in a report."""
SETTLE_MAX_NS = 10 * 10**9
PER_SIGNATURE_MAX, PER_HOUR_MAX = 3, 30
"""Reports recorded in an hour; the others are only counted."""
HOUR_NS = 3600 * 10**9


@dataclass(frozen=True, slots=True)
class LiveReport:
    """A report that the running kernel survived."""

    analysis: LogAnalysis
    sequence: int
    """Sequence number of its first record in the kernel's log."""
    time_ns: int
    """CLOCK_MONOTONIC."""
    is_flood: bool
    """Whether it is one of too many in this hour, to be counted but not recorded."""


class LiveOopses:
    """Collects the kernel's lines, and analyses them once a report seems complete.

    For the daemon's loop only: `add` each record, and call `look` at `due_ns`.
    """

    def __init__(self) -> None:
        self._records: deque[LogRecord] = deque(maxlen=WINDOW)
        self._begun_ns: int | None = None
        self._last_ns = 0
        self._told = -1
        self._hour_ns = -HOUR_NS
        self._counts: Counter[str] = Counter()

    def add(self, record: LogRecord, now_ns: int) -> None:
        """Take a record of the kernel's log."""
        self._records.append(record)
        self._last_ns = now_ns
        if self._begun_ns is None and _is_head(record):
            self._begun_ns = now_ns

    @property
    def due_ns(self) -> int | None:
        """When to look (CLOCK_MONOTONIC); None while no report has begun."""
        if self._begun_ns is None:
            return None
        return min(self._last_ns + SETTLE_NS, self._begun_ns + SETTLE_MAX_NS)

    @property
    def pending_from(self) -> int | None:
        """The sequence number at which reading must start again if it ended now."""
        if self._begun_ns is None:
            return None
        return next(
            (r.sequence for r in self._records if _is_head(r) and r.sequence > self._told), None
        )

    def look(self, now_ns: int) -> Iterator[LiveReport]:
        """Analyse the collected lines, if it is time; the caller must consume the iterator."""
        due_ns = self.due_ns
        if due_ns is None or now_ns < due_ns:
            return
        from crashd.domain.kernellog.analyse import find_reports

        self._begun_ns = None
        times = {record.sequence: record.monotonic_ns for record in self._records}
        last = self._records[-1].sequence
        for report in find_reports(_lines(self._records)):
            sequence = report.lines[0].seq
            if sequence is not None and sequence > self._told:
                yield self._analyse(report, sequence, times.get(sequence, now_ns))
        self._told = last

    def _analyse(self, report: Report, sequence: int, time_ns: int) -> LiveReport:
        """Analyse a report and count it, so that a kernel that never stops reporting does not fill
        the disk.
        """
        from crashd.domain.kernellog.analyse import analyse_report

        now_ns = time.monotonic_ns()
        if now_ns - self._hour_ns >= HOUR_NS:
            self._hour_ns, self._counts = now_ns, Counter()
        analysis = analyse_report(report)
        self._counts[analysis.signature] += 1
        seldom = self._counts[analysis.signature] <= PER_SIGNATURE_MAX
        flood = not seldom or sum(self._counts.values()) > PER_HOUR_MAX
        return LiveReport(analysis, sequence, time_ns, flood)


def _is_head(record: LogRecord) -> bool:
    from crashd.domain.kernellog.heads import find_head

    text = record.text[:512].decode("utf-8", "backslashreplace").lstrip()
    return find_head(text) is not None


def _lines(records: deque[LogRecord]) -> list[LogLine]:
    raw = b"\n".join(
        b"4,%d,%d,-;%s" % (record.sequence, record.monotonic_ns // 1000, record.text)
        for record in records
    )
    return parse_lines(raw)
