"""What the kernel's log says of faults, remembered until their crashes are analysed."""

import threading
from collections import deque
from typing import Final

from crashd.domain.crash.faultlines import FaultLine, parse_fault
from crashd.domain.crash.losses import LogRecord
from crashd.domain.crash.model import Crash

LINES_MAX: Final = 1024
"""Lines that are remembered."""
APART_NS: Final = 10 * 10**9
"""The line and the crash that it is of are no further apart."""


class FaultLines:
    """The newest lines; for use from any thread."""

    def __init__(self) -> None:
        self._lines: deque[FaultLine] = deque(maxlen=LINES_MAX)
        self._lock = threading.Lock()

    def hear(self, record: LogRecord, time_ns: int) -> None:
        """Remember a record of the kernel's log, which has this time, if it reports a fault."""
        line = parse_fault(record.text, time_ns)
        if line is not None:
            with self._lock:
                self._lines.append(line)

    def of(self, crash: Crash) -> str | None:
        """Return the newest line that is surely of this crash: of its thread, its time, and its
        fault.
        """
        thread = crash.tid if crash.tid is not None else crash.pid
        with self._lock:
            lines = reversed(self._lines.copy())
        for line in lines:
            same = line.tid == thread and line.address == crash.fault_address
            if same and abs(line.time_ns - crash.time_ns) < APART_NS:
                return line.text
        return None
