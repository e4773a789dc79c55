"""Processes: prctl(2), pidfds, and one race-free look at /proc/PID.

A process is identified by its pidfd, never by its number alone: the /proc directory is opened once,
and the pidfd says after that, and again at the end, that it is still the same living process
(KERNEL.md A6).
"""

import ctypes
import errno
import fcntl
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from crashd.corehandler import PROC_FILES, PROC_LINKS
from crashd.domain.crash.procfs import OWN_NAMESPACE

PR_SET_DUMPABLE = 4  # linux/prctl.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
_MAPPED_FROM_BYTES = 1 << 20
_ARENAS = 2
_KEPT_BYTES = 4 << 20
SO_PEERPIDFD = 77  # asm-generic/socket.h, 6.5
PIDFD_GET_INFO = 0xC048FF0B  # _IOWR(0xFF, 11, 72 bytes), linux/pidfd.h, 6.13; 72 bytes since 6.16
_PIDFD_INFO_CREDS, _PIDFD_INFO_CGROUPID, _PIDFD_INFO_COREDUMP = 2, 4, 16
_PIDFD_INFO_SUPPORTED, _PIDFD_INFO_COREDUMP_SIGNAL = 32, 64
_PIDFD_GET_INFO_80 = 0xC050FF0B  # the same for the 80 bytes of 6.19
_PIDFD_INFO = struct.Struct("=QQIIIIIIIIIIIiII")
NS_GET_PARENT, NS_GET_OWNER_UID = 0xB702, 0xB704  # linux/nsfs.h
_NAMESPACES_MAX = 33  # the kernel nests 32 user namespaces below the first, user_namespaces(7)
THREADS_MAX = 4096
OPEN_FDS_MAX = 256
_TEXT_MAX = 1 << 16
_BY_THE_PAGE = frozenset({"maps", "mountinfo"})
"""A read of these files returns some lines, however much is asked for (seq_read() of
fs/seq_file.c); of all others, a read that is shorter than it could be is the last one.
"""
_LAST_WITHOUT_MEMORY = "mountinfo"
"""Files of PROC_FILES after this one are read from the process's memory, which can block."""
_OF_PROCESS = frozenset({"stat"})
"""Files that describe the process even after its first thread has ended."""


@dataclass(frozen=True, slots=True)
class PidfdInfo:
    """What the kernel itself reports of a process, even after its number belongs to another."""

    pid: int
    uids: tuple[int, int, int, int] | None
    """Real, effective, saved, file system user id; None once the process is reaped."""
    gids: tuple[int, int, int, int] | None
    coredump_mask: int | None
    """PIDFD_COREDUMPED 1, SKIP 2, USER 4, ROOT 8; None if the kernel does not report it (below
    6.16).
    """
    coredump_signal: int | None = None
    """None if the kernel does not report it (below 6.19)."""


def make_undumpable() -> None:
    """Prevent core dumps, ptrace and /proc readers: a collector must not feed itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")
    # The kernel starts no pipe handler for a limit of exactly 1 (fs/coredump.c).
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    soft = 1 if hard in (resource.RLIM_INFINITY, 1) or hard >= 1 else 0
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def give_memory_back() -> None:
    """Make the C library return large memory to the kernel as soon as it is freed.

    By default glibc keeps up to 64 MiB in each of many arenas, the more the larger what was freed;
    a daemon with a thread for each reader has that many arenas (mallopt(3), M_MMAP_THRESHOLD).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)
        mallopt(M_ARENA_MAX, _ARENAS)


def keep_memory() -> None:
    """Make the C library of a short-lived worker keep what it freed, up to _KEPT_BYTES in each
    arena: a small core, and the compressor's tables.

    To fault them in again for each crash costs 400 page faults, of 1 to 7 us in a virtual machine.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, _KEPT_BYTES)


def set_oom_score(adjust: int) -> bool:
    """Set /proc/self/oom_score_adj; return False if that is not allowed."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(adjust))
    except OSError:
        return False
    return True


def boot_id() -> str:
    """Read this boot's id, 32 hex digits."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip().replace("-", "")


def memory_total_bytes() -> int:
    """Return the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_available_bytes() -> int:
    """Return the memory available without swapping (MemAvailable of proc_meminfo(5))."""
    fd = os.open("/proc/meminfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        lines = os.read(fd, 4096).split(b"\n")
    finally:
        os.close(fd)
    for line in lines:
        if line.startswith(b"MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def pidfd_pid(pidfd: int) -> int | None:
    """Return the pid of a pidfd's process; None once it is reaped, or if it is not a pidfd."""
    buffer = bytearray(_PIDFD_INFO.size)
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, buffer)
    except OSError as e:
        if e.errno == errno.ESRCH:
            return None
        return _pid_of_fdinfo(pidfd)  # until minimum kernel 6.13
    return int(_PIDFD_INFO.unpack(buffer)[2])


def _pid_of_fdinfo(pidfd: int) -> int | None:
    try:
        fd = os.open(f"/proc/self/fdinfo/{pidfd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        raw = os.read(fd, 4096)
    finally:
        os.close(fd)
    for line in raw.split(b"\n"):
        if line.startswith(b"Pid:\t") and line[5:].isdigit():
            return int(line[5:])
    return None


def pidfd_info(pidfd: int) -> PidfdInfo | None:
    """Return a process's identity from the kernel (ioctl PIDFD_GET_INFO); None if the kernel does
    not report it.
    """
    # until minimum kernel 6.16: ENOTTY below 6.13, no coredump_mask below 6.16
    wanted = _PIDFD_INFO_CREDS | _PIDFD_INFO_CGROUPID | _PIDFD_INFO_COREDUMP
    wanted |= _PIDFD_INFO_COREDUMP_SIGNAL
    buffer = bytearray(_PIDFD_INFO.size)
    struct.pack_into("=Q", buffer, 0, wanted)
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    (mask, _cgroup, pid, _tgid, _ppid, *rest) = _PIDFD_INFO.unpack(buffer)
    ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid, _exit, coredump, signal = rest
    creds = bool(mask & _PIDFD_INFO_CREDS)
    return PidfdInfo(
        pid=pid,
        uids=(ruid, euid, suid, fsuid) if creds else None,
        gids=(rgid, egid, sgid, fsgid) if creds else None,
        coredump_mask=coredump if mask & _PIDFD_INFO_COREDUMP else None,
        coredump_signal=signal if mask & _PIDFD_INFO_COREDUMP_SIGNAL and signal else None,
    )


def signal_is_told() -> bool:
    """Return whether a pidfd reports a coredump's signal (PIDFD_INFO_COREDUMP_SIGNAL, 6.19).

    The kernel reports the bits that it knows (PIDFD_INFO_SUPPORTED) since the same version.
    """
    buffer = bytearray(80)
    struct.pack_into("=Q", buffer, 0, _PIDFD_INFO_SUPPORTED)
    pidfd = os.pidfd_open(os.getpid())
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO_80, buffer)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    (mask,) = struct.unpack_from("=Q", buffer)
    (supported,) = struct.unpack_from("=Q", buffer, 72)
    return bool(mask & _PIDFD_INFO_SUPPORTED and supported & _PIDFD_INFO_COREDUMP_SIGNAL)


def read_snapshot(pidfd: int) -> Mapping[str, bytes]:
    """Read what /proc says of the process, raw and capped; empty unless it is surely the same one.

    Keys: the names of PROC_FILES and PROC_LINKS, `comm`, `open_fds` (the first of `fd_count`),
    `threads` (`tid name` lines) and `user_ns_owner` (see `_user_ns_owner`). May block for as long
    as a page of the process's memory does, so the caller has a deadline.
    """

    return _read_surely(pidfd, _read_all)


def _read_all(process: int, pid: str) -> dict[str, bytes]:
    """Read each file once, because the process is held meanwhile and crashes come in storms."""
    found: dict[str, bytes] = {"comm": _read("comm", 64, process).rstrip(b"\n")}
    maps = _read("maps", PROC_FILES["maps"], process)
    alive = "" if maps else _with_memory(process, pid)
    for name, link in PROC_LINKS.items():
        found[name] = _link(link if link.startswith("/") else alive + link, process)
    for name, limit in PROC_FILES.items():
        if name == "maps" and not alive:
            found[name] = maps
        else:
            found[name] = _read(name if name in _OF_PROCESS else alive + name, limit, process)
        if name == _LAST_WITHOUT_MEMORY:
            found["user_ns_owner"] = _user_ns_owner(alive + "ns/user", found["user_ns"], process)
            found["threads"] = _threads(process, pid, found)
            numbers = _list("fd", process)
            found["open_fds"] = _open_fds(numbers, process)
            found["fd_count"] = b"%d" % len(numbers)
    return found


def read_proc_files(pidfd: int, names: Collection[str]) -> Mapping[str, bytes]:
    """Read some of PROC_FILES, capped; empty unless the process is surely the same one."""

    def read(process: int, pid: str) -> dict[str, bytes]:
        alive = "" if _read("maps", 1, process) else _with_memory(process, pid)
        return {name: _read(alive + name, PROC_FILES[name], process) for name in names}

    return _read_surely(pidfd, read)


def read_namespaces(pidfd: int) -> Mapping[str, bytes]:
    """Read those links of PROC_LINKS that name namespaces; empty unless the process is surely the
    same one. It reads no memory of the process, so it does not block.
    """
    links = {name: link for name, link in PROC_LINKS.items() if name.endswith("_ns")}
    return _read_surely(
        pidfd, lambda process, _: {name: _link(link, process) for name, link in links.items()}
    )


def _read_surely(pidfd: int, read: Callable[[int, str], dict[str, bytes]]) -> Mapping[str, bytes]:
    """Return what `read` finds, given the process's directory in /proc and its pid; empty unless
    the pidfd says before and after that it is the same process.
    """
    pid = pidfd_pid(pidfd)
    if pid is None:
        return {}
    try:
        process = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        if pidfd_pid(pidfd) != pid:
            return {}
        found = read(process, str(pid))
        return found if pidfd_pid(pidfd) == pid else {}
    finally:
        os.close(process)


def _with_memory(process: int, pid: str) -> str:
    """Find a thread whose files show the process's memory, if the first one has ended and others
    have not.
    """
    for tid in _list("task", process):
        if tid != pid and _read(f"task/{tid}/maps", 1, process):
            return f"task/{tid}/"
    return ""


def _read(name: str, limit: int, directory: int) -> bytes:
    parts: list[bytes] = []
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return b""
    try:
        while limit > 0:
            wanted = min(limit, 1 << 17)
            part = os.read(fd, wanted)
            parts.append(part)
            limit -= len(part)
            if not part or (len(part) < wanted and name.rpartition("/")[2] not in _BY_THE_PAGE):
                break
    except OSError:
        pass  # what was read so far counts
    finally:
        os.close(fd)
    return b"".join(parts)


def _user_ns_owner(name: str, link: bytes, directory: int) -> bytes:
    """Read which user outside a user namespace has all capabilities in it: the uid that owns its
    ancestor, or itself, right below our namespace; ns_capable() in kernel/capability.c.

    `link` is the target of `name`. Returns OWN_NAMESPACE for ours; empty if the kernel does not
    report it.
    """
    if link and link == _link("/proc/self/ns/user", directory):
        return OWN_NAMESPACE  # nsfs exists once, so the inode identifies it
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return b""
    try:
        ours = os.stat("/proc/self/ns/user")
        if os.path.samestat(os.fstat(fd), ours):
            return OWN_NAMESPACE
        for _ in range(_NAMESPACES_MAX):
            parent = fcntl.ioctl(fd, NS_GET_PARENT)
            below, fd = fd, parent
            try:
                if os.path.samestat(os.fstat(parent), ours):
                    raw = fcntl.ioctl(below, NS_GET_OWNER_UID, bytes(4))
                    return b"%d" % int.from_bytes(raw, sys.byteorder)
            finally:
                os.close(below)
    except OSError:
        pass  # EPERM: it is not below ours
    finally:
        os.close(fd)
    return b""


def is_peer_in_our_user_ns(peer: socket.socket) -> bool:
    """Return whether the process that connected a socket is surely in our user namespace."""
    try:
        pidfd = peer.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError:
        return False  # until minimum kernel 6.5
    try:
        pid = pidfd_pid(pidfd)
        theirs = os.stat(f"/proc/{pid}/ns/user")
        return os.path.samestat(theirs, os.stat("/proc/self/ns/user")) and pidfd_pid(pidfd) == pid
    except OSError:
        return False  # the process is gone
    finally:
        os.close(pidfd)


def _link(name: str, directory: int) -> bytes:
    try:
        return os.readlink(name.encode(), dir_fd=directory)
    except OSError:
        return b""


def _list(name: str, directory: int) -> list[str]:
    try:
        # by path: listing a descriptor takes twice as many system calls
        names = os.listdir(f"/proc/self/fd/{directory}/{name}")
    except OSError:
        return []
    return sorted((n for n in names if n.isdigit()), key=int)


def _threads(process: int, pid: str, found: Mapping[str, bytes]) -> bytes:
    """Read `tid name` lines; if there is one thread, everything is known already."""
    if b"\nThreads:\t1\n" in found["status"]:
        return _thread(pid, found["comm"])
    lines = [
        _thread(tid, _read(f"task/{tid}/comm", 64, process).rstrip(b"\n"))
        for tid in _list("task", process)[:THREADS_MAX]
    ]
    return b"\n".join(lines)


def _thread(tid: str, comm: bytes) -> bytes:
    return b"%s %s" % (tid.encode(), comm.replace(b"\n", b"\\n"))


def _open_fds(numbers: list[str], process: int) -> bytes:
    lines: list[bytes] = []
    for number in numbers[:OPEN_FDS_MAX]:
        target = _link(f"fd/{number}", process).replace(b"\n", b"\\n")
        lines.append(number.encode() + b":" + target)
    return b"\n".join(lines)[:_TEXT_MAX]
