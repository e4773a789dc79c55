"""What a kernel died of, from its log. Pure.

Which of the reports in a log names the crash:

1. The last boot in the log that has a fatal report, else the last that has any.
2. Its last fatal report, else its last that is more than a warning; a warning only where nothing
   came after it that the kernel wrote for half a minute: one that the machine outlived by hours is
   not what it died of.
3. From there back to the first of the chain: an error (not a warning) less than `CHAIN_S` before
   the next led to it. A lockup or a hung task takes its time, so there, with the taint that says
   that the kernel had died before (D), `SLOW_CHAIN_S`.

Everything here may be hostile; it is bounded, and no input raises.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from crashd.domain.oopskinds import PanicKind, Severity
from crashd.domain.oopsreports import Report, find_reports
from crashd.domain.oopssignature import build_signature
from crashd.domain.oopstitle import judge
from crashd.domain.oopstrace import TAINTS, Frame, collect_facts
from crashd.domain.printk import LogLine, parse_lines

__all__ = [
    "TEXT_MAX",
    "LogAnalysis",
    "PanicKind",
    "Report",
    "Severity",
    "analyse",
    "analyse_report",
    "choose",
    "find_reports",
]

TEXT_MAX: Final = 64 * 1024
"""Bytes of a report's own lines that are kept."""

CHAIN_S: Final = 30.0
SLOW_CHAIN_S: Final = 300.0
CHAIN_LINES: Final = 600
"""Instead, in a log without times."""

COMM_MAX: Final = 64
_SLOW = frozenset(
    {
        PanicKind.HUNG_TASK,
        PanicKind.SOFT_LOCKUP,
        PanicKind.HARD_LOCKUP,
        PanicKind.RCU_STALL,
        PanicKind.WORKQUEUE_LOCKUP,
    }
)


@dataclass(frozen=True, slots=True)
class LogAnalysis:
    """What one report of the kernel tells."""

    kind: PanicKind
    severity: Severity
    title: str
    """One line, the same for the same bug."""
    signature: str
    """k1- and 16 hex digits, the same for the same bug."""
    fatal: bool
    """The machine stopped here."""
    panic: str | None
    """The words of the panic that it led to."""
    function: str | None
    """Who is to blame, with what the compiler added to the name."""
    offset: str | None
    """Where in the function, and its size: 0x1c/0x40."""
    module: str | None
    """The module of that function; None for the kernel itself."""
    trace: tuple[Frame, ...]
    comm: str | None
    pid: int | None
    cpu: int | None
    taint: str | None
    """The letters, without blanks; "" for an untainted kernel, None when not told."""
    taint_words: tuple[str, ...]
    modules: tuple[str, ...]
    hardware: str | None
    release: str | None
    """The kernel's version."""
    time_s: float | None
    """Of the head, as in `LogLine`."""
    offset_bytes: int
    """Of the report's first line in the log."""
    text: str
    """The report's own lines."""


def analyse(log: bytes) -> LogAnalysis | None:
    """Analyse the log that a dead kernel left; None when it reports nothing."""
    report = choose(parse_lines(log))
    return analyse_report(report) if report is not None else None


def choose(lines: Sequence[LogLine]) -> Report | None:
    """Choose the report that names the crash which the log ends in."""
    reports = list(find_reports(lines, dead=True))
    if not reports:
        return None
    fatal = [report for report in reports if report.fatal]
    last_boot = (fatal or reports)[-1].boot
    boot = [report for report in reports if report.boot == last_boot]
    errors = [report for report in boot if report.severity is not Severity.WARNING]
    final = next((report for report in reversed(boot) if report.fatal), None)
    if final is None and errors:
        final = errors[-1]
    if final is None:
        return boot[-1] if _is_last_word(boot[-1], lines) else None
    chain = [report for report in errors if report.at <= final.at]
    first = final
    for report in reversed(chain):
        if report is not first and not _led_to(report, first, final):
            break
        first = report
    return first


def _led_to(earlier: Report, later: Report, final: Report) -> bool:
    if earlier.time_s is None or later.time_s is None:
        return later.at - earlier.last <= CHAIN_LINES
    slow = final.kind in _SLOW and "D" in _facts_taint(final)
    since = earlier.last_s if earlier.last_s is not None else earlier.time_s
    return later.time_s - since <= (SLOW_CHAIN_S if slow else CHAIN_S)


def _facts_taint(report: Report) -> str:
    return collect_facts(line.text for line in report.lines).taint


def _is_last_word(report: Report, lines: Sequence[LogLine]) -> bool:
    end = lines[-1].time_s
    if report.last_s is None or end is None:
        return len(lines) - report.last <= CHAIN_LINES
    return end - report.last_s <= CHAIN_S


def analyse_report(report: Report) -> LogAnalysis:
    """Analyse one report."""
    texts = [line.text for line in report.lines]
    facts = collect_facts(texts, headless=report.head is None)
    verdict = judge(report.head, report.match, facts, texts)
    groups = report.match.groupdict() if report.match is not None else {}
    comm, pid, cpu = groups.get("comm"), groups.get("pid"), groups.get("cpu")
    frame = verdict.frame
    taint = facts.taint if facts.release is not None else None
    return LogAnalysis(
        kind=report.kind,
        severity=report.severity,
        title=verdict.title,
        signature=build_signature(report.kind, verdict.title, verdict.blamed),
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


def _join(texts: Sequence[str]) -> str:
    """Join lines, as many whole ones as there is room for."""
    room, kept = TEXT_MAX, []
    for text in texts:
        room -= len(text.encode()) + 1
        if room < 0:
            break
        kept.append(text)
    return "\n".join(kept)
