"""When a core may be stored: never at the cost of a process that is held.

The daemon opens and closes one gate for all workers; it is a page that they share with it, so that
to look costs nothing, and no worker has to be reached. A gate is closed until a time, not for good:
a daemon that dies leaves none closed.
"""

import ctypes
import mmap
import os
import threading
import time

POLL_SECONDS = 0.005
_IOPRIO_IDLE = 3 << 13  # IOPRIO_CLASS_IDLE, linux/ioprio.h
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "s390x": 282, "ppc64le": 273}
"""Numbers of ioprio_set(2), which libc does not wrap."""
STORER_NICE = 19
STORER_NAME = "storer"
"""Of the thread that stores."""


class Gate:
    """A time, in memory that processes forked after it was made share: until then storers wait."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._until_ns = memoryview(self._page).cast("Q")

    def close_until(self, time_ns: int) -> None:
        """Close it until CLOCK_MONOTONIC says so; 0 opens it."""
        self._until_ns[0] = time_ns

    @property
    def is_closed(self) -> bool:
        """Whether storers are to wait."""
        return time.monotonic_ns() < self._until_ns[0]


class Pace:
    """How a core is stored; this one never waits."""

    def begin(self) -> None:
        """Note that nobody is held any more for what is stored; from any thread."""

    def step(self) -> None:
        """Return when the next part, of a few milliseconds, may be stored."""


def lower_storer() -> None:
    """Let the storer of this process, and the compressor's threads, give way to everybody else.

    Threads that they start inherit it. Python's others stay as they are: they read the next core,
    and a process without CAP_SYS_NICE cannot take it back. Not SCHED_IDLE: on a host whose CPUs are
    never idle the cores would stay in memory for ever.
    """
    spared = {thread.native_id for thread in threading.enumerate() if thread.name != STORER_NAME}
    for name in os.listdir("/proc/self/task"):
        if int(name) not in spared:
            _lower(int(name))


def _lower(tid: int) -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, tid, STORER_NICE)
    except OSError:
        return  # it ended meanwhile
    number = _IOPRIO_SET.get(os.uname().machine)
    if number is not None:
        # may be refused by a seccomp filter: then the disk is shared as before
        ctypes.CDLL(None).syscall(number, 1, tid, _IOPRIO_IDLE)
