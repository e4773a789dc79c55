"""Finds the cause of a kernel's death in its log. Pure.

These rules choose the report that names the crash:

1. The last boot in the log that has a fatal report, else the last that has any.
2. The last fatal report of that boot: the panic, or the report that the panic follows from. If an
   oops was fatal and others came less than `CHAIN_S` before it, the first of those, because it
   broke what the later ones tripped over. The kernel survived everything before that.
3. In a log without a fatal report, the last one that is more than a warning, and from there back to
   the first of the chain: an error less than `CHAIN_S` before the next one led to it.
4. A warning only if the kernel logged for at most half a minute after it: a warning hours before
   the end is not the cause.

The report before the chosen one is kept as `earlier`.

All input may be hostile; work is bounded, and no input raises.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from crashd.domain.kernellog.head import Blame
from crashd.domain.kernellog.kinds import OOPS_KINDS, Impact, PanicKind
from crashd.domain.kernellog.printk import LogLine, count_lines, is_gap
from crashd.domain.kernellog.regions import parse_regions
from crashd.domain.kernellog.reports import Report, find_reports
from crashd.domain.kernellog.signature import build_signature
from crashd.domain.kernellog.stalls import find_own_stack
from crashd.domain.kernellog.title import title_report
from crashd.domain.kernellog.trace import TAINTS, ReportFacts, TraceFrame, collect_facts

__all__ = [
    "TEXT_MAX",
    "Impact",
    "LogAnalysis",
    "PanicKind",
    "Report",
    "analyse",
    "analyse_report",
    "find_reports",
]

TEXT_MAX: Final = 64 * 1024
"""Bytes kept of a report's own lines."""

CHAIN_S: Final = 30.0
CHAIN_LINES: Final = 600
"""Used instead in a log without times."""

COMM_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class LogAnalysis:
    """The contents of one report of the kernel."""

    kind: PanicKind
    severity: Impact
    title: str
    """One line, the same for the same bug."""
    signature: str
    """k4- and 16 hex digits, the same for the same bug."""
    fatal: bool
    """Whether the machine stopped here."""
    panic: str | None
    """The message of the panic that it led to."""
    function: str | None
    """The function to blame, with the suffixes that the compiler added."""
    offset: str | None
    """The offset in the function, and its size: 0x1c/0x40."""
    module: str | None
    """The module of that function; None for the kernel itself."""
    trace: tuple[TraceFrame, ...]
    comm: str | None
    pid: int | None
    cpu: int | None
    taint: str | None
    """The letters without blanks; "" for an untainted kernel, None if unknown."""
    taint_words: tuple[str, ...]
    modules: tuple[str, ...]
    hardware: str | None
    release: str | None
    """The kernel's version."""
    time_s: float | None
    """Time of the head, as in `LogLine`."""
    offset_bytes: int
    """Offset of the report's first line in the log."""
    text: str
    """The report's own lines."""
    earlier: str | None = None
    """The title of an earlier report, which the kernel survived."""


def analyse(log: bytes) -> LogAnalysis | None:
    """Analyse the log of a dead kernel; None if it contains no report."""
    lines = parse_regions(log)
    reports = list(find_reports(lines, dead=True))
    chosen = _choose(reports, lines)
    if chosen is None:
        return None
    before = [r for r in reports if r.boot == chosen.boot and r.at < chosen.at]
    errors = [report for report in before if report.severity is not Impact.WARNING]
    earlier = (errors or before)[-1:]
    return replace(
        analyse_report(chosen),
        earlier=analyse_report(earlier[0]).title if earlier else None,
    )


def _choose(reports: Sequence[Report], lines: Sequence[LogLine]) -> Report | None:
    """Choose the report that names the crash at the end of the log."""
    if not reports:
        return None
    fatal = [report for report in reports if report.fatal]
    last_boot = (fatal or reports)[-1].boot
    boot = [report for report in reports if report.boot == last_boot]
    final = next((report for report in reversed(boot) if report.fatal), None)
    if final is not None:
        chain = [r for r in boot if r.at <= final.at and (r is final or _breaks(r))]
        first = _first_of_chain(chain, final) if final.kind in OOPS_KINDS else final
        first.fatal, first.panic = True, final.panic
        return first
    errors = [report for report in boot if report.severity is not Impact.WARNING]
    if not errors:
        return boot[-1] if _is_last_word(boot[-1], lines) else None
    return _first_of_chain(errors, errors[-1])


def _breaks(report: Report) -> bool:
    """Return whether this report may have led to an oops."""
    return report.kind is PanicKind.KASAN or (report.kind in OOPS_KINDS and report.died)


def _first_of_chain(reports: Sequence[Report], final: Report) -> Report:
    first = final
    for report in reversed(reports):
        if report is not first and not _led_to(report, first):
            break
        first = report
    return first


def _led_to(earlier: Report, later: Report) -> bool:
    if earlier.time_s is None or later.time_s is None:
        return later.at - earlier.last <= CHAIN_LINES
    since = earlier.last_s if earlier.last_s is not None else earlier.time_s
    return later.time_s - since <= CHAIN_S


def _is_last_word(report: Report, lines: Sequence[LogLine]) -> bool:
    end = next((line.time_s for line in reversed(lines) if not is_gap(line)), None)
    if report.last_s is None or end is None:
        return count_lines(lines) - report.last <= CHAIN_LINES
    return end - report.last_s <= CHAIN_S


def analyse_report(report: Report) -> LogAnalysis:
    """Analyse one report."""
    texts = [line.text for line in report.lines]
    groups = report.match.groupdict() if report.match is not None else {}
    facts = _collect(report, texts, groups)
    verdict = title_report(report.head, report.match, facts, texts)
    comm, pid, cpu = groups.get("comm"), groups.get("pid"), groups.get("cpu")
    frame = verdict.frame
    taint = facts.taint if facts.release is not None else None
    return LogAnalysis(
        kind=report.kind,
        severity=report.severity,
        title=verdict.title,
        signature=build_signature(report.kind, verdict.key, verdict.blamed),
        fatal=report.fatal,
        panic=report.panic,
        function=frame.function if frame is not None else None,
        offset=frame.location if frame is not None else None,
        module=frame.module if frame is not None else None,
        trace=facts.trace,
        comm=(comm or facts.comm or "")[:COMM_MAX] or None,
        pid=int(pid) if pid else facts.pid,
        cpu=int(cpu) if cpu else facts.cpu,
        taint=taint,
        taint_words=tuple(TAINTS[letter] for letter in taint or "" if letter in TAINTS),
        modules=facts.modules,
        hardware=facts.hardware,
        release=facts.release or report.release,
        time_s=report.time_s,
        offset_bytes=report.lines[0].offset,
        text=_join(texts),
    )


def _collect(report: Report, texts: Sequence[str], groups: dict[str, str | None]) -> ReportFacts:
    """Collect the facts of a report; of a stall, with the stack of the stalled CPU."""
    facts = collect_facts(texts, headless=report.head is None)
    if report.head is None or report.head.blame is not Blame.STALL:
        return facts
    cpu = groups.get("cpu") or groups.get("by")
    own = collect_facts(find_own_stack(texts, int(cpu) if cpu else None))
    return replace(
        facts,
        pc=own.pc,
        interrupted=own.interrupted,
        interrupted_at=own.interrupted_at,
        trace=own.trace,
        comm=own.comm or facts.comm,
        pid=own.pid if own.comm is not None else facts.pid,
        cpu=own.cpu if own.cpu is not None else facts.cpu,
    )


def _join(texts: Sequence[str]) -> str:
    """Join as many whole lines as fit."""
    room, kept = TEXT_MAX, []
    for text in texts:
        room -= len(text.encode()) + 1
        if room < 0:
            break
        kept.append(text)
    return "\n".join(kept)
