"""The kinds of crash that a kernel reports, and what each means for the machine."""

from enum import StrEnum
from typing import Final

__all__ = ["OOPS_KINDS", "WARNING_KINDS", "Impact", "PanicKind"]


class PanicKind(StrEnum):
    """The kind of crash that the kernel reported."""

    PANIC = "panic"
    OOPS = "oops"
    BUG = "bug"
    GPF = "gpf"
    DIVIDE = "divide-error"
    INVALID_OPCODE = "invalid-opcode"
    DOUBLE_FAULT = "double-fault"
    STACK_OVERFLOW = "stack-overflow"
    SERROR = "serror"
    HUNG_TASK = "hung-task"
    SOFT_LOCKUP = "soft-lockup"
    HARD_LOCKUP = "hard-lockup"
    WORKQUEUE_LOCKUP = "workqueue-lockup"
    RCU_STALL = "rcu-stall"
    KASAN = "kasan"
    KMSAN = "kmsan"
    KCSAN = "kcsan"
    KFENCE = "kfence"
    UBSAN = "ubsan"
    WARNING = "warning"
    ATOMIC = "atomic"
    DEADLOCK = "deadlock"
    LEAK = "leak"
    MCE = "mce"
    NMI = "nmi"
    OOM = "oom"
    SYSRQ = "sysrq"


class Impact(StrEnum):
    """What a report means for the machine."""

    WARNING = "warning"
    """Something is wrong; everything continues."""
    ERROR = "error"
    """A task was killed, hangs, or works on broken data; the machine may continue."""
    FATAL = "fatal"
    """The machine stopped."""


WARNING_KINDS: Final = frozenset(
    {
        PanicKind.WARNING,
        PanicKind.UBSAN,
        PanicKind.KCSAN,
        PanicKind.ATOMIC,
        PanicKind.DEADLOCK,
        PanicKind.LEAK,
    }
)
"""Kinds after which the kernel continues as before."""

OOPS_KINDS: Final = frozenset(
    {
        PanicKind.OOPS,
        PanicKind.BUG,
        PanicKind.GPF,
        PanicKind.DIVIDE,
        PanicKind.INVALID_OPCODE,
        PanicKind.DOUBLE_FAULT,
        PanicKind.STACK_OVERFLOW,
        PanicKind.SERROR,
    }
)
"""Kinds that die() reports: the task is killed, or with `panic_on_oops` the machine stops."""
