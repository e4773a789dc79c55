"""Finds reports in the kernel's log: which lines belong to which crash. Pure.

A report begins with a head (heads.py), or with `cut here` before it. It continues with the lines of
the same caller (`[  T123]`), if the log has callers, up to its end mark, the next head, or the last
line that looks like part of a report. Lines that follow from it are part of it:

    list_del corruption. prev->next should be …   says more than the BUG that comes with it
    BUG: unable to handle …   →  Oops: 0002 [#1]  one crash, told in two heads
    watchdog: BUG: soft lockup …  →  Kernel panic - not syncing: softlockup: hung tasks

A panic that follows from a report does not name the crash, but makes it fatal. Over 400 lines,
because it is one state machine.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from crashd.domain.kernellog.head import Blame, Head
from crashd.domain.kernellog.heads import find_head
from crashd.domain.kernellog.kinds import OOPS_KINDS, WARNING_KINDS, Impact, PanicKind
from crashd.domain.kernellog.panics import causes_of, kind_of
from crashd.domain.kernellog.printk import GAP_LINES as GAP_LINES_MAX
from crashd.domain.kernellog.printk import LINE_MAX, LogLine, is_boot, is_gap
from crashd.domain.kernellog.trace import parse_frame

__all__ = ["REPORTS_MAX", "Report", "find_reports"]

REPORTS_MAX: Final = 1000
"""The newest reports that are kept of one log."""

REPORT_LINES_MAX: Final = 1000
OPEN_MAX: Final = 16
"""Reports open at the same time, each of another caller."""

GAP_LINES: Final = 24
"""A report ends after this many lines that do not look like part of one."""

GAP_S: Final = 10.0
CUT_LINES: Final = 12
"""Lines between `cut here` and the head that it announces."""

JOIN_LINES: Final = 40
PANIC_LINES: Final = 600
"""Lines between a report and the panic that follows from it; with times, PANIC_S is used."""

PANIC_S: Final = 60.0
MESSAGE_LINES: Final = 4
BATCH_S: Final = 5.0
"""Hung tasks are reported one after the other, and then comes the panic."""

HEADLESS_LINES: Final = 2
"""If a log begins in the middle of a report, its first lines show that."""
DIE_S: Final = 5.0
"""Seconds between the end of an oops and the panic that follows from it."""
TORN_LINES: Final = 16
"""The most line breaks that a process's name can have."""
_RECENT = 32

_DIED = re.compile(r"\[#\d{1,9}\]")
_CUT = ("------------[ cut here ]", "8<--- cut here ---")
_RULE = "====="
_END_TRACE = "---[ end trace"
_END_PANIC = "---[ end Kernel panic"
_BODY = re.compile(
    r"[ ]|<?\[<?[0-9a-f]{8,}|CPU\d*: |Call |Back|[ER]?(?:IP|SP|AX)\b|R\d\d: |[RE][A-D][XI]:"
    r"|[FC]S: |CR\d|"
    r"DR\d|PKRU|Code:|Stack|Modules |Hardware |Workqueue|Tainted|pc ?:|lr ?:|sp ?:|x\d{1,2} ?:"
    r"|r\d{1,2}|"
    r"pstate|psr|epc|ra |gp |[tsa]\d{1,2} ?:|status|Krnl|GPR|NIP|LR |MSR|REGS|CFAR|CTR|DAR|DEAR"
    r"|IRQMASK|XER|"
    r"TASK|THREAD|Instruction|Oops|PGD|PUD|P4D|#PF|\*pde|Mem abort|Data abort|ESR|EC|Last "
    r"|Process |task|"
    r"Kernel |---|Read |Write |The buggy|Allocated|Freed|Memory state|Show|</?[#A-Z]+>|Sending "
    r"|NMI|raw|"
    r"flags|page|Pid|EFLAGS|Internal|KASAN|Uninit|Bytes|Local|Faulting|Failing|Fault|AS:|LE |BE |"
    r"rcu|---|\(|-> |#\d|stack backtrace|other info|Possible|the existing|which lock|but task"
    r"|is trying|"
    r"and |\d+ lock|no locks|irq event|hard ?irqs|soft ?irqs|INFO: |>|ffff|[0-9a-f]{8,}|Rebooting"
    r"|Reboot|"
    r"Dumping|SMP: |Comm|user pgtable|swapper pgtable|\[[0-9a-f]{16}\]|Shutting|kexec|Aiee|note: "
    r"|Fixing|\$ ?\d|Hi  |Lo  |Status|Cause |BadVA|PrId|ERA|CRMD|PRMD|EUEN|ECFG|ESTAT|BADV|PRID"
    r"|pc [0-9a-f]|PC is |LR is |Register |[Aa]llocated|[Ff]reed|kfence-#|Out-of-bounds"
    r"|Use-after-free|Invalid |Corrupted"
)
_ALL_CPUS = re.compile(
    r"Sending NMI from CPU|rcu_\w+ kthread starved|NMI backtrace for cpu|.*All backtrace"
)
_KERNEL_PC = re.compile(
    r"(?:RIP: 0010:|E?IP: 0060:|RIP: e030:|e?pc {1,3}: |ERA: [0-9a-f]|PC is at |Krnl PSW : "
    r"|NIP \[|EIP is at )"
)
_STATE = re.compile(
    r"Modules linked in:|---\[ end trace|Kernel panic - not syncing: Fatal exception"
)
_ORPHAN = re.compile(
    r"CPU: \d{1,6} (?:UID|PID): |RIP: 0010:|E?IP: 0060:|e?pc : |PC is at |Krnl PSW : |NIP \["
    r"|Call [Tt]race:"
    r"|Modules linked in: "
    r"|R[A-D]X: [0-9a-f]{16} |CR2: [0-9a-f]{16} "
)
_TORN_HEAD = re.compile(
    r"(?:INFO: task(?!.*(?: blocked | can't die )).{0,65}"
    r"|BUG: scheduling while atomic:(?!.*/0x).{0,65})$"
)
_PANIC_FRAME = re.compile(r" {0,8}(?:\[<[0-9a-f]{8,16}>\] )?v?panic(?:\.cold)?\+0x")


@dataclass(slots=True, eq=False)
class Report:
    """The lines of one crash, collected one by one."""

    kind: PanicKind
    head: Head | None
    """None if the log begins in the middle of the report."""
    match: re.Match[str] | None
    lines: list[LogLine]
    boot: int
    """The boot within the log: 0, 1, …"""
    release: str | None
    """The release of the booted kernel, if the log has it."""
    caller: str | None
    time_s: float | None
    at: int
    """The line number of its head."""
    fatal: bool = False
    panic: str | None = None
    """The message of the panic that it led to."""
    ended: bool = False
    """Whether its end mark was seen: the kernel survived long enough to write it."""
    last: int = 0
    """The line number of its last line that looks like part of a report."""
    last_s: float | None = None
    kept: int = 0
    """How many of `lines` are up to there."""
    traced: bool = False
    all_cpus: bool = False
    body: int = 0
    """How many of the lines can only belong to a report; counted up to 2."""
    listed: bool = False

    @property
    def died(self) -> bool:
        """Whether die() wrote it: a task was killed, and what it held stays locked."""
        return self.head is None or any(_DIED.search(line.text) for line in self.lines[:16])

    @property
    def severity(self) -> Impact:
        """What it means for the machine."""
        if self.fatal:
            return Impact.FATAL
        return Impact.WARNING if self.kind in WARNING_KINDS else Impact.ERROR


def find_reports(
    lines: Iterable[LogLine], *, dead: bool = False, torn: bool | None = None
) -> Iterator[Report]:
    """Yield the reports in a log, in order; at most the last `REPORTS_MAX`.

    Args:
        lines: the log.
        dead: whether the kernel died after these lines, so that a report at their end is fatal.
        torn: whether they may begin in the middle of a report; by default the value of `dead`.
    """
    finder = _ReportFinder(torn=dead if torn is None else torn)
    for number, line in enumerate(lines):
        finder.feed(number, line)
    finder.end_boot(dead=dead)
    yield from sorted(finder.found, key=lambda report: report.at)


class _ReportFinder:
    """The state between lines."""

    def __init__(self, *, torn: bool) -> None:
        self.found: deque[Report] = deque(maxlen=REPORTS_MAX)
        self._open: list[Report] = []
        self._recent: deque[Report] = deque(maxlen=_RECENT)
        self._cuts: dict[str | None, tuple[int, list[LogLine]]] = {}
        self._boot = 0
        self._release: str | None = None
        self._number = 0
        self._skipped = 0
        self._headless = HEADLESS_LINES if torn else 0
        self._torn: LogLine | None = None
        self._torn_at = 0

    def feed(self, number: int, line: LogLine) -> None:
        """Process the next line."""
        number += self._skipped
        if is_gap(line):
            self._skipped += GAP_LINES_MAX
            self._headless = 0
            for report in list(self._open):
                self._close(report)
            return
        if is_boot(line):
            self.end_boot(dead=True)
            self._boot += number > 0
            self._release = line.text.split(" ", 3)[2][:128]
            self._headless = 0
        self._number = number
        text = line.text.lstrip()
        is_torn = _TORN_HEAD.match(text) is not None
        found = find_head(text) if not is_torn else None
        if found is None and self._torn is not None:
            line, found = self._mend(self._torn, line)
        if found is None and is_torn:
            self._torn, self._torn_at = line, number
        if found is not None:
            self._torn = None
            self._headless = 0
            self._begin(line, *found)
        elif text.startswith(_CUT):
            self._close_ended(line)
            self._cuts[line.caller] = (number, [line])
            if len(self._cuts) > _RECENT:
                self._cuts.clear()
        else:
            self._continue(line, text)

    def _mend(
        self, torn: LogLine, line: LogLine
    ) -> tuple[LogLine, tuple[Head, re.Match[str]] | None]:
        """Rejoin a head that is split by a line break in a process's name."""
        mended = torn._replace(text=f"{torn.text}\\x0a{line.text}"[:LINE_MAX])
        found = find_head(mended.text)
        if found is not None:
            return mended, found
        near = self._number - self._torn_at < TORN_LINES
        self._torn = mended if near and line.caller == torn.caller else None
        return line, None

    def end_boot(self, *, dead: bool) -> None:
        """Close all reports: the log ends, or another kernel boots."""
        for report in list(self._open):
            if (
                dead
                and report.kind in OOPS_KINDS
                and not report.ended
                and report.last >= self._number - 1
                and _is_death(report)
            ):
                report.fatal = True
            self._close(report)
        self._recent.clear()
        self._cuts.clear()

    def _begin(self, line: LogLine, head: Head, match: re.Match[str]) -> None:
        """Process a line that is a head."""
        if "words" in match.re.groupindex and head.kind is PanicKind.PANIC:
            self._panic(line, head, match)
            return
        open_report = self._of(line)
        if open_report is not None:
            near = self._number - open_report.at <= JOIN_LINES and not _is_late(open_report, line)
            fresh = near and not open_report.traced and not open_report.ended
            if fresh and self._join(open_report, line, head, match):
                return
            if open_report.caller == line.caller:  # else another CPU's, while all CPUs are shown
                self._close(open_report)
        report = self._open_report(line, head, match, head.kind)
        report.fatal = head.kind is PanicKind.PANIC

    def _join(self, report: Report, line: LogLine, head: Head, match: re.Match[str]) -> bool:
        """Add a head to the report before it, if it belongs to that; return whether it does."""
        first = report.head
        if first is None or not _is_one(report, first, line, head):
            return False
        self._append(report, line)
        if not first.leads and first.evidence:
            report.body += 1
        if first.pattern is head.pattern and first.blame is Blame.HEAD:
            report.match = match
        return True

    def _open_report(
        self, line: LogLine, head: Head | None, match: re.Match[str] | None, kind: PanicKind
    ) -> Report:
        # the lines since `cut here` belong to the report too
        number, cut = self._cuts.pop(line.caller, (0, []))
        report = Report(
            kind,
            head,
            match,
            cut if self._number - number <= CUT_LINES else [],
            self._boot,
            self._release,
            line.caller,
            line.time_s,
            self._number,
        )
        if len(self._open) == OPEN_MAX:
            self._close(self._open[0])
        self._open.append(report)
        self._recent.append(report)
        self._append(report, line)
        return report

    def _panic(self, line: LogLine, head: Head, match: re.Match[str]) -> None:
        """Process the head of a panic: the end of a report, or a crash of its own."""
        words = match["words"] or ""
        cause = self._find_cause(line, words)
        if cause is not None:
            cause.fatal, cause.panic, cause.ended = True, words, False
            cause.caller = line.caller
            if cause not in self._open:
                self._open = [*self._open[1 - OPEN_MAX :], cause]
            self._append(cause, line)
            return
        open_report = self._of(line)
        if open_report is not None:
            self._close(open_report)
        report = self._open_report(line, head, match, kind_of(words))
        report.fatal, report.panic = True, words

    def _find_cause(self, line: LogLine, words: str) -> Report | None:
        """Return the report that a panic follows from, if any.

        Several hung tasks are reported before one panic; then the first of the batch is the cause.
        """
        kinds = causes_of(words)
        if kinds is None:
            return None
        cause: Report | None = None
        for report in reversed(self._recent):
            if cause is not None:
                if report.kind is not PanicKind.HUNG_TASK or _gap(report, cause.time_s) > BATCH_S:
                    break
            elif not _may_cause(report, kinds) or not self._near(report, line):
                continue
            cause = report
            if report.kind is not PanicKind.HUNG_TASK:
                break
        return cause

    def _near(self, report: Report, line: LogLine) -> bool:
        if report.last_s is None or line.time_s is None:
            return self._number - report.last <= PANIC_LINES
        near_s = DIE_S if report.kind in OOPS_KINDS else PANIC_S
        return line.time_s - report.last_s <= near_s

    def _continue(self, line: LogLine, text: str) -> None:
        """Process a line that is not a head."""
        report = self._of(line)
        if report is None:
            if line.caller in self._cuts:
                number, cut = self._cuts[line.caller]
                if self._number - number <= CUT_LINES:
                    cut.append(line)
            if self._headless > 0:
                self._headless -= 1
                if _ORPHAN.match(text) or parse_frame(text) is not None:
                    self._headless = 0
                    self._open_report(line, None, None, PanicKind.OOPS)
            return
        # an indented line nearly always continues a report, as do lines that begin like registers
        looks = (text is not line.text and line.text.startswith(" ")) or bool(_BODY.match(text))
        if report.ended and not looks:
            self._close(report)
            return
        if self._is_over(report, line):
            self._close(report)
            return
        self._append(report, line, looks=looks)
        if text.startswith(_END_TRACE):
            report.ended = True
        elif text.startswith(_END_PANIC):
            self._close(report)
        elif _ALL_CPUS.match(text):
            report.all_cpus = True

    def _of(self, line: LogLine) -> Report | None:
        """Return the open report that a line belongs to."""
        for report in reversed(self._open):
            if report.caller == line.caller:
                return report
        if (line.caller or "").startswith("C") and not line.text.startswith(_RULE):
            return next((report for report in self._open if report.all_cpus), None)
        return None

    def _is_over(self, report: Report, line: LogLine) -> bool:
        return (
            _is_late(report, line)
            or self._number - report.last > GAP_LINES * (1 + len(self._open))
            or len(report.lines) >= REPORT_LINES_MAX
        )

    def _append(self, report: Report, line: LogLine, *, looks: bool = True) -> None:
        report.lines.append(line)
        if not looks:
            return
        report.last, report.kept = self._number, len(report.lines)
        if line.time_s is not None:
            report.last_s = line.time_s
        text = line.text.lstrip()
        if text.startswith(("Call Trace", "Call trace", "Backtrace", "backtrace")):
            report.traced = True
        if report.body < 2 and (
            parse_frame(text) is not None or _KERNEL_PC.match(text) or _STATE.match(text)
        ):
            report.body += 1

    def _close_ended(self, line: LogLine) -> None:
        report = self._of(line)
        if report is None or report.caller != line.caller:
            return
        if report.ended or report.traced:
            self._close(report)

    def _close(self, report: Report) -> None:
        if report in self._open:
            self._open.remove(report)
        del report.lines[report.kept :]
        if report.listed:
            return
        if report.head is None:
            if any(_PANIC_FRAME.match(line.text) for line in report.lines) and not report.panic:
                report.kind, report.fatal = PanicKind.PANIC, True
            elif not report.fatal and not _has_kernel_state(report):
                return
        elif report.head.evidence and not report.body:
            return
        report.listed = True
        self.found.append(report)


def _is_one(report: Report, first: Head, line: LogLine, head: Head) -> bool:
    """Return whether a head continues the report before it."""
    before = report.lines[report.kept - 1].text
    if (head.follows or first.leads) and report.caller == line.caller:
        return True
    if (
        first.pattern is head.pattern
    ):  # each inlined function repeats the head, and so does each CPU that locks up
        return "[inline]" in before or first.blame is Blame.STALL
    # kernels before 4.20 print the message of a warning after its place
    return head.leads and first.kind is PanicKind.WARNING and len(report.lines) <= MESSAGE_LINES


def _has_kernel_state(report: Report) -> bool:
    """Return whether lines without a head belong to a crash, and not to a mere stack dump."""
    texts = [line.text.lstrip() for line in report.lines]
    return any(_STATE.match(text) for text in texts) and any(
        parse_frame(text) is not None or _KERNEL_PC.match(text) for text in texts
    )


def _is_death(report: Report) -> bool:
    """Return whether a report at the end of a log is the reason for the end."""
    if report.head is None:
        return _has_kernel_state(report)
    return report.died or report.head.blame is Blame.PC


def _may_cause(report: Report, kinds: frozenset[PanicKind]) -> bool:
    return report.panic is None and (report.head is None or report.kind in kinds)


def _is_late(report: Report, line: LogLine) -> bool:
    return (
        report.last_s is not None
        and line.time_s is not None
        and line.time_s - report.last_s > GAP_S
    )


def _gap(report: Report, time_s: float | None) -> float:
    if report.time_s is None or time_s is None:
        return 0.0
    return abs(time_s - report.time_s)
