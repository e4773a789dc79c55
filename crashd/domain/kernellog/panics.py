"""Classifies the message of a panic: the reports it may follow from, and its kind. Pure.

Source: the panic() calls of kernel/, mm/, lib/ and arch/, from 2.6.32 to 6.19.
"""

import re
from typing import Final

from crashd.domain.kernellog.kinds import OOPS_KINDS, PanicKind

__all__ = ["causes_of", "kind_of"]

_WARNS = frozenset(PanicKind) - {
    PanicKind.RCU_STALL,
    PanicKind.SOFT_LOCKUP,
    PanicKind.HUNG_TASK,
    PanicKind.WORKQUEUE_LOCKUP,
    PanicKind.SYSRQ,
}
"""Stalls have switches of their own; only a hard lockup was a WARN(), until 4.x."""
_CAUSES: Final = (
    (
        re.compile(
            r"Fatal exception|Aiee, killing|Attempted to kill|Fatal error in|Oops"
            r"|Kernel Fault|Bad Address|[\w -]{3,60}: Fatal exception"
        ),
        OOPS_KINDS,
    ),
    (re.compile(r"panic_on_warn set|\S{0,40} ?panic_on_warn set"), _WARNS),
    (re.compile(r"kasan\.fault=panic"), frozenset({PanicKind.KASAN})),
    (re.compile(r"softlockup: hung tasks"), frozenset({PanicKind.SOFT_LOCKUP})),
    (re.compile(r"hung_task: blocked tasks"), frozenset({PanicKind.HUNG_TASK})),
    (
        re.compile(r"(?i:hard lockup|\S{0,20} ?hard lockup|NMI watchdog BOOM)"),
        frozenset({PanicKind.HARD_LOCKUP}),
    ),
    (re.compile(r"RCU Stall"), frozenset({PanicKind.RCU_STALL})),
    (re.compile(r"sysrq triggered crash"), frozenset({PanicKind.SYSRQ})),
    (
        re.compile(
            r"(?:Fatal|Timeout|Machine|Unrecoverable|Uncorrected)\b.{0,30}(?:[Mm]achine|hardware)"
        ),
        frozenset({PanicKind.MCE}),
    ),
    (re.compile(r"Asynchronous SError|SError"), frozenset({PanicKind.SERROR})),
    (re.compile(r"kernel stack overflow|Machine halted|Corrupt kernel stack"), OOPS_KINDS),
    (re.compile(r"bad mode|Unhandled exception"), frozenset({PanicKind.PANIC})),
    (re.compile(r"(?:\S{0,20} ?kmsan\.panic|panic_on_kmsan) set"), frozenset({PanicKind.KMSAN})),
    (re.compile(r"NMI"), frozenset({PanicKind.NMI})),
    (re.compile(r"scheduling while atomic"), frozenset({PanicKind.ATOMIC})),
)
_PANIC_KINDS: Final = (
    (re.compile(r"(?i:out of memory|system is deadlocked on memory)"), PanicKind.OOM),
    (re.compile(r"sysrq triggered crash"), PanicKind.SYSRQ),
    (re.compile(r"Kernel mode fault at addr"), PanicKind.OOPS),
    (re.compile(r"(?i:.{0,40}hard lockup|NMI watchdog BOOM)"), PanicKind.HARD_LOCKUP),
    (re.compile(r"softlockup: hung tasks"), PanicKind.SOFT_LOCKUP),
    (re.compile(r"hung_task: blocked tasks"), PanicKind.HUNG_TASK),
    (re.compile(r"RCU Stall"), PanicKind.RCU_STALL),
    (re.compile(r"(?i:.{0,40}machine check|fatal hardware error)"), PanicKind.MCE),
    (
        re.compile(r"stack-protector|corrupted stack end|kernel stack overflow"),
        PanicKind.STACK_OVERFLOW,
    ),
    (re.compile(r".{0,20}SError"), PanicKind.SERROR),
    (re.compile(r"(?:An )?NMI\b"), PanicKind.NMI),
)


def causes_of(words: str) -> frozenset[PanicKind] | None:
    """Return the kinds of reports that a panic with this message follows from.

    None for a panic that follows from no report.
    """
    return next((kinds for pattern, kinds in _CAUSES if pattern.match(words)), None)


def kind_of(words: str) -> PanicKind:
    """Return the kind of a panic that follows from no report."""
    return next((kind for pattern, kind in _PANIC_KINDS if pattern.match(words)), PanicKind.PANIC)
