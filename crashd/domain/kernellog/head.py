"""One kind of first line of a kernel's report. Pure."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from crashd.domain.kernellog.kinds import PanicKind

__all__ = ["FUNCTION", "SOURCE", "TRAP", "Blame", "Head", "head"]


class Blame(StrEnum):
    """Where to find the function that a title names."""

    PC = "pc"
    """At the program counter, else in the trace."""
    TRACE = "trace"
    HEAD = "head"
    """In the head, if that is not a helper; else in the trace."""
    LOCK = "lock"
    """In `at: f`, after the lock that is taken."""
    CALLER = "caller"
    """In `caller is f`, else in the trace."""
    WORK = "work"
    """The work that the first of the stalled workers does."""
    OWNER = "owner"
    """Who allocated the page, if the kernel knows that (`page_owner`), else in the trace."""
    LAST = "last"
    """In `last function: f`."""
    HUNG = "hung"
    """In the trace, below the functions that wait."""
    STALL = "stall"
    """Where the stalled CPU was interrupted."""
    PANIC = "panic"
    """At the caller of panic()."""
    NONE = "none"


FUNCTION: Final = r"(?P<func>[A-Za-z_.$][\w.$]{0,511})(?:\+0x[0-9a-f]{1,8})?"
SOURCE: Final = r"(?P<file>[\w./+-]{1,256}):\d{1,7}"
TRAP: Final = r"[0-9a-f]{4,16} (?:ilc:\d )?\[#\d{1,9}\](?: |$)"


@dataclass(frozen=True, slots=True)
class Head:
    """One kind of first line."""

    kind: PanicKind
    pattern: re.Pattern[str]
    title: str
    """May use the pattern's groups, and {in_f}: " in f" if f is known."""
    blame: Blame = Blame.PC
    leads: bool = False
    """The actual report follows; its head line says less than this one."""
    follows: bool = False
    """May continue a report with a first line that says more."""
    evidence: bool = False
    """Counts as a report only with a call trace or registers, because the line alone proves too
    little.
    """
    skip: str | None = None
    """Further functions that are not to blame: a pattern for whole names."""


def head(
    kind: PanicKind, pattern: str, title: str, blame: Blame = Blame.PC, /, **more: Any
) -> Head:
    """Build a head from the text of a pattern."""
    return Head(kind, re.compile(pattern), title, blame, **more)
