"""The right to set kernel.core_pattern and its companions, and putting them back."""

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crashd.edge.host import sysctl
from crashd.errors import CrashdError

LOCK_NAME: Final = "crashd-core-pattern.lock"
"""The lock of tests/conftest.py: one program on a machine plays with these settings."""


@dataclass(frozen=True, slots=True)
class Sysctls:
    """Values of the three settings of a crash collector."""

    pattern: str
    pipe_limit: str
    suid_dumpable: str = sysctl.SUID_ROOT_ONLY

    def apply(self) -> None:
        """Set all three, read back.

        Raises:
            CrashdError: the kernel does not take one.

        """
        if read_sysctls() != self:
            # In this order: suid_dumpable=2 wants a pattern that is a pipe or absolute.
            sysctl.write(sysctl.PATTERN, self.pattern)
            sysctl.write(sysctl.PIPE_LIMIT, self.pipe_limit)
            sysctl.write(sysctl.SUID_DUMPABLE, self.suid_dumpable)


def read_sysctls() -> Sysctls:
    """Read all three; raises as `crashd.edge.host.sysctl.read`."""
    return Sysctls(
        sysctl.read(sysctl.PATTERN),
        sysctl.read(sysctl.PIPE_LIMIT),
        sysctl.read(sysctl.SUID_DUMPABLE),
    )


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Put all three back at the end; one that fails does not keep the others from it."""
    saved = read_sysctls()
    try:
        yield
    finally:
        for name, value in (
            (sysctl.SUID_DUMPABLE, saved.suid_dumpable),
            (sysctl.PIPE_LIMIT, saved.pipe_limit),
            (sysctl.PATTERN, saved.pattern),
        ):
            try:
                sysctl.write(name, value)
            except CrashdError as e:
                print(f"bench: {e}; it was {value!r}", file=sys.stderr)


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Wait until nobody else on this machine plays with them, and be the only one until the end."""
    directory = Path("/run/lock")
    if not os.access(directory, os.W_OK):
        directory = Path("/tmp")
    path = directory / LOCK_NAME
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        told = False
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    owner = os.pread(fd, 16, 0).decode("ascii", "replace").strip()
                    print(f"bench: waiting for {path}, held by pid {owner}", file=sys.stderr)
                told = True
                time.sleep(0.2)
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(fd)
