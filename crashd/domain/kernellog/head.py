"""One sort of line that a kernel's report begins with. Pure."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from crashd.domain.kernellog.kinds import PanicKind

__all__ = ["FUNCTION", "SOURCE", "TRAP", "Blame", "Head", "head"]


class Blame(StrEnum):
    """Where the function stands that a title names."""

    PC = "pc"
    """The program counter, else the trace."""
    TRACE = "trace"
    HEAD = "head"
    """The head's own word, if it is no helper; else the trace."""
    LOCK = "lock"
    """`at: f`, after the lock that is taken."""
    CALLER = "caller"
    """`caller is f`, else the trace."""
    LAST = "last"
    """`last function: f`."""
    HUNG = "hung"
    """The trace, after what waits there."""
    STALL = "stall"
    """Where the CPU that does not go on was interrupted."""
    PANIC = "panic"
    """The caller of panic()."""
    NONE = "none"


FUNCTION: Final = r"(?P<func>[A-Za-z_.$][\w.$]{0,511})(?:\+0x[0-9a-f]{1,8})?"
SOURCE: Final = r"(?P<file>[\w./+-]{1,256}):\d{1,7}"
TRAP: Final = r"[0-9a-f]{4,16} (?:ilc:\d )?\[#\d{1,9}\](?: |$)"


@dataclass(frozen=True, slots=True)
class Head:
    """One sort of first line."""

    kind: PanicKind
    pattern: re.Pattern[str]
    title: str
    """With the pattern's groups, and {in_f}: " in f" where f is known."""
    blame: Blame = Blame.PC
    leads: bool = False
    """The report proper follows: its head line says less than this one."""
    follows: bool = False
    """May be the next line of a report whose first line said more."""
    evidence: bool = False
    """A report only with a call trace or registers: the line alone is too short to be sure."""
    skip: str | None = None
    """Further functions that are not to blame: a pattern for the whole name."""


def head(
    kind: PanicKind, pattern: str, title: str, blame: Blame = Blame.PC, /, **more: Any
) -> Head:
    """Build a head of a pattern's text."""
    return Head(kind, re.compile(pattern), title, blame, **more)
