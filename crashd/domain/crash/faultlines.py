"""The line that the kernel logs of a fault that kills a process, with the processor's error code.

Source: show_signal_msg() of arch/x86/mm/fault.c. The kernel logs some of them only (ratelimit), and
none with debug.exception-trace=0. Other architectures have no error code in theirs.
"""

import re
from typing import Final, NamedTuple

from crashd.domain.crash.model import Crash
from crashd.domain.text import printable

_WORDS_MAX: Final = 300
# The process chose its name, so match greedily up to the last words that the kernel itself wrote.
_LINE = re.compile(
    rb".*\[(\d{1,10})\]: segfault at ([0-9a-f]{1,16}) ip ([0-9a-f]{1,16}) sp [0-9a-f]{1,16} "
    rb"error ([0-9a-f]{1,8})\b.*",
    re.DOTALL,
)


class FaultLine(NamedTuple):
    """What the kernel said of one fault."""

    tid: int
    """In the host's pid namespace."""
    address: int
    pc: int
    error_code: int
    time_ns: int
    """CLOCK_REALTIME."""
    text: str


def parse_fault(text: bytes, time_ns: int = 0) -> FaultLine | None:
    """Parse a line of the kernel's log; None for other lines."""
    found = _LINE.fullmatch(text)
    if found is None:
        return None
    tid, address, pc, error = int(found[1]), *(int(found[n], 16) for n in (2, 3, 4))
    return FaultLine(tid, address, pc, error, time_ns, printable(text[:_WORDS_MAX]))


def error_code_of(crash: Crash, address: int | None, pc: int | None) -> int | None:
    """Return the error code in the kernel's line that the record has, if it is of this fault."""
    for text in crash.report[:1]:
        line = parse_fault(text.encode("ascii", "replace"))
        if line is not None and (line.address, line.pc) == (address, pc):
            return line.error_code
    return None
