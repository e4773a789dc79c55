"""The files that a held process has mapped, reached through the process itself: they may be deleted
or replaced, or lie where no path of the host leads.
"""

import os
from collections.abc import Sequence

from crashd.edge.capture.process import pidfd_pid

_TASKS_MAX = 64
_PATH = os.O_PATH | os.O_CLOEXEC


def open_mapped(pidfd: int, places: Sequence[str]) -> list[int | None]:
    """Open mapped files as O_PATH, by the names in /proc/PID/map_files; the caller owns them.

    Nothing here can block, whatever the file system: the kernel already has the files open. They
    outlive the process, and a mount that ends with it. None for a file that cannot be reached; an
    empty list if the process is not surely the same one, or the kernel does not show the files
    (CAP_CHECKPOINT_RESTORE).
    """
    pid = pidfd_pid(pidfd)
    if pid is None or not places:
        return []
    found: list[int | None] = []
    try:
        for place in places:
            found.append(None)
            found[-1] = _open(pid, place)
        if pidfd_pid(pidfd) == pid:
            return found
    except OSError:
        pass  # refused, or out of descriptors
    close_all(found)
    return []


def _open(pid: int, place: str) -> int | None:
    try:
        return os.open(f"/proc/{pid}/map_files/{place}", _PATH)
    except FileNotFoundError:
        pass
    # The first thread has ended. Only /proc/TID, which no listing shows, has a thread's map_files.
    for task in os.listdir(f"/proc/{pid}/task")[:_TASKS_MAX]:
        try:
            return os.open(f"/proc/{task}/map_files/{place}", _PATH)
        except FileNotFoundError:
            continue
    return None


def close_all(descriptors: Sequence[int | None]) -> None:
    """Close what `open_mapped` returned."""
    for fd in descriptors:
        if fd is not None:
            os.close(fd)
