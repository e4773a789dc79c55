"""Records of the kernel's log, and the crashes that they say were not handed over. Pure.

Source: Documentation/ABI/testing/dev-kmsg; fs/coredump.c, whose words changed in 6.9.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

_COMM_MAX = 64
# comm is the process's own words, so: greedy up to the last of what the kernel itself wrote.
_LOST = re.compile(
    rb"(?:coredump: |Pid )(\d{1,10})\((.*)\):? "
    rb"(over core_pipe_limit|\|.* pipe failed|Coredump socket connection .* failed)",
    re.DOTALL,
)
_SUPPRESSED = re.compile(rb"coredump_\w+: (\d{1,10}) callbacks suppressed")


class LogRecord(NamedTuple):
    """One record of /dev/kmsg."""

    sequence: int
    monotonic_ns: int
    text: bytes
    """Without the lines of its dictionary."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Crashes that the kernel did not hand over."""

    count: int
    pid: int | None
    """In the process's own pid namespace; None for crashes that the log does not name."""
    comm: bytes
    reason: str


def parse_record(raw: bytes) -> LogRecord | None:
    """Parse a record; None when it is none, or not the kernel's own words."""
    head, semicolon, text = raw.partition(b";")
    fields = head.split(b",")
    if not semicolon or len(fields) < 3 or not all(f.isdigit() for f in fields[:3]):
        return None
    priority, sequence, microseconds = (int(f[:20]) for f in fields[:3])
    if priority >> 3:  # another facility than the kernel's: written to /dev/kmsg by a program
        return None
    return LogRecord(sequence, microseconds * 1000, text.split(b"\n", 1)[0])


def find_loss(text: bytes) -> Loss | None:
    """Tell what crash a line of the kernel's log says was lost, if it says so."""
    match = _LOST.match(text)
    if match is not None:
        why = match[3]
        if why.startswith(b"over"):
            reason = "kernel.core_pipe_limit processes were dumping core already"
        elif why.startswith(b"|"):
            reason = "the kernel could not run the program in kernel.core_pattern"
        else:
            reason = "nobody listened on the kernel's coredump socket"
        return Loss(1, int(match[1]), match[2][:_COMM_MAX], reason)
    match = _SUPPRESSED.match(text)
    if match is not None and int(match[1]):
        return Loss(int(match[1]), None, b"", "the kernel named no more of them in its log")
    return None
