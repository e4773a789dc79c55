"""When a core may be stored: never at the cost of a process that is held.

The daemon opens and closes one gate for all workers. The gate is a page of shared memory, so a
worker looks at it at no cost and the daemon need not send a message. A gate is closed until a set
time, not for good: a daemon that dies does not leave it closed.
"""

import ctypes
import functools
import mmap
import os
import threading
import time
from collections.abc import Callable

POLL_SECONDS = 0.005
_IOPRIO_IDLE = 3 << 13  # IOPRIO_CLASS_IDLE, linux/ioprio.h
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "s390x": 282, "ppc64le": 273}
"""Numbers of ioprio_set(2), which libc does not wrap."""
STORER_NICE = 19
STORER_NAME = "storer"
"""Name of the thread that stores."""


class PaceGate:
    """The time until which storers wait, in memory shared with processes forked after creation."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._until_ns = memoryview(self._page).cast("Q")

    def close_until(self, time_ns: int) -> None:
        """Close the gate until this CLOCK_MONOTONIC time; 0 opens it."""
        self._until_ns[0] = time_ns

    @property
    def is_closed(self) -> bool:
        """Return whether storers must wait."""
        return time.monotonic_ns() < self._until_ns[0]


class Pace:
    """How a core is stored; this one never waits."""

    def begin(self) -> None:
        """Note that no process is held any more for what is stored; callable from any thread."""

    def step(self) -> None:
        """Block until the next part, which takes a few milliseconds, may be stored."""


def lower_storer() -> None:
    """Lower the priority of this process's storer and the compressor's threads below all others.

    Threads that they start inherit it. Other Python threads keep their priority: they read the next
    core, and a process without CAP_SYS_NICE cannot raise it again. SCHED_IDLE is not used: on a
    host whose CPUs are never idle the cores would stay in memory for ever.
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
    call = _ioprio_set()
    if call is not None:
        # a seccomp filter may refuse this: disk priority stays unchanged then
        call(1, tid, _IOPRIO_IDLE)


@functools.cache
def _ioprio_set() -> Callable[[int, int, int], int] | None:
    number = _IOPRIO_SET.get(os.uname().machine)
    return None if number is None else functools.partial(ctypes.CDLL(None).syscall, number)
