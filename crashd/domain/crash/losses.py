"""Finds, in records of the kernel's log, crashes that the kernel did not hand over. Pure.

Source: Documentation/ABI/testing/dev-kmsg; fs/coredump.c, which changed its wording in 6.9.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

_COMM_MAX = 64
# The process chose comm, so match greedily up to the last words that the kernel itself wrote.
_LOST = re.compile(
    rb"(?:coredump: |Pid )(\d{1,10})\((.*)\):? "
    rb"(over core_pipe_limit|\|.* pipe failed|Coredump socket connection .* failed"
    rb"|RLIMIT_CORE is set to 1)",
    re.DOTALL,
)
_LIMITED = re.compile(rb"Process (\d{1,10})\((.*)\) has (RLIMIT_CORE set to 1)", re.DOTALL)
"""Until 6.9."""
_SUPPRESSED = re.compile(rb"coredump_\w+: (\d{1,10}) callbacks suppressed")


class LogRecord(NamedTuple):
    """One record of /dev/kmsg."""

    sequence: int
    monotonic_ns: int
    text: bytes
    """The text, without the lines of the dictionary."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Crashes that the kernel did not hand over."""

    count: int
    pid: int | None
    """In the process's own pid namespace; None for crashes that the log does not name."""
    comm: bytes
    reason: str


def parse_record(raw: bytes) -> LogRecord | None:
    """Parse a record; None if it is malformed, or not from the kernel itself."""
    head, semicolon, text = raw.partition(b";")
    fields = head.split(b",")
    if not semicolon or len(fields) < 3 or not all(f.isdigit() for f in fields[:3]):
        return None
    priority, sequence, microseconds = (int(f[:20]) for f in fields[:3])
    if priority >> 3:  # not the kernel's facility: a program wrote it to /dev/kmsg
        return None
    return LogRecord(sequence, microseconds * 1000, text.split(b"\n", 1)[0])


def find_loss(text: bytes) -> Loss | None:
    """Return the lost crash that a line of the kernel's log reports, if any."""
    match = _LOST.match(text) or _LIMITED.match(text)
    if match is not None:
        why = match[3]
        if why.startswith(b"over"):
            reason = "kernel.core_pipe_limit processes were already dumping core"
        elif why.startswith(b"RLIMIT_CORE"):
            reason = "RLIMIT_CORE of the process was 1, with which the kernel starts no handler"
        elif why.startswith(b"|"):
            reason = "the kernel could not run the program in kernel.core_pattern"
        else:
            reason = "nothing listened on the kernel's coredump socket"
        return Loss(1, int(match[1]), match[2][:_COMM_MAX], reason)
    match = _SUPPRESSED.match(text)
    if match is not None and int(match[1]):
        return Loss(int(match[1]), None, b"", "the kernel left them out of its log")
    return None
