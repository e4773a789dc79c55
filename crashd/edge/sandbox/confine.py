"""Becoming a process that can do nothing but compute: namespaces, an empty read-only root, no
capability, no privilege to gain, resource limits, and a filter of system calls. Only importer of
pyseccomp.

    isolate()   new namespaces, and a child that is pid 1 of its own; the parent stays to wait
      … here the caller opens what it is to read: it still sees the host's files …
    seal()      everything else is taken away; there is no way back

What is needed for it is tried, not asked for: as root all of it works, and as an ordinary user
where the kernel lets one make a user namespace.
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import pyseccomp

from crashd.domain.cause.analysis import PEAK_PREFIX
from crashd.edge.sandbox.loanedid import LoanedId, loan
from crashd.errors import CrashdError, UnsupportedError

VIEW = "/usr/lib/debug"
"""All of the host's files that can still be seen, if there are any."""

# linux/sched.h, linux/mount.h, linux/prctl.h, linux/capability.h, linux/ioprio.h
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x20000, 0x2000000, 0x4000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID = 0x8000000, 0x10000000, 0x20000000
CLONE_NEWNET = 0x40000000
_NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 28, 38
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_LAST = 63
_SECUREBITS_LOCKED = 0x2F  # NOROOT, NO_SETUID_FIXUP and KEEP_CAPS off, each locked
_IOPRIO_IDLE = 3 << 13
_SEALED = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC

_ALLOWED = """
read pread64 preadv preadv2 readv write writev pwrite64 lseek
close dup dup2 dup3 fcntl fcntl64 ftruncate
fstat fstat64 newfstatat fstatat64 stat stat64 lstat lstat64 statx access faccessat faccessat2
open openat readlink readlinkat getdents64 getcwd fsync memfd_create
mmap mmap2 munmap mremap madvise brk mprotect
futex futex_time64 set_robust_list rseq sched_yield sched_getaffinity restart_syscall
rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack tgkill
getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getpriority
getrandom getrlimit ugetrlimit prlimit64 getrusage
clock_gettime clock_gettime64 clock_getres clock_nanosleep gettimeofday time uname sysinfo
exit exit_group
"""
_PROT_EXEC = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """What a sealed process may use."""

    cpu_seconds: int
    memory_bytes: int
    """Of address space, beyond what it had when it was sealed."""
    files: int = 4096
    """Open at once; fewer where the hard limit is lower."""
    scratch_bytes: int = 0
    """Of a private /work in memory; none with 0."""
    file_bytes: int = 0
    """Largest file in it, holes included."""


_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> int:
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _syscall(name: str, *arguments: object) -> int:
    """Make a system call that libc has no function for; libseccomp knows its number here."""
    number = pyseccomp.resolve_syscall(pyseccomp.system_arch(), name)
    return _call("syscall", ctypes.c_long(number), *arguments)


@dataclass(frozen=True, slots=True)
class Isolation:
    """What isolate() did, for seal()."""

    waiter_fd: int
    """A pidfd of the process that waits: seen from in here, it has no pid."""
    loaned: LoanedId | None
    """The id to become; None where there is no other than the one that is mapped."""


def isolate(parent: int | None) -> Isolation:
    """Go on as pid 1 of new namespaces; the process that was there waits, and ends as its child
    does (128 and the signal, where one ended it).

    Both die with the process that started us, which is to be `parent` where that is given.

    Raises:
        UnsupportedError: this host allows no new namespaces, or has no free id.

    """
    uid, gid, mapped = os.geteuid(), os.getegid(), False
    _die_with_parent()
    if parent is not None and os.getppid() != parent:
        raise UnsupportedError("whoever asked for this is gone")
    try:
        _call("unshare", _NAMESPACES)
    except OSError as first:
        try:
            _call("unshare", CLONE_NEWUSER | _NAMESPACES)
            _map_ids(uid, gid)
            mapped = True
        except OSError as e:
            raise UnsupportedError(f"cannot make namespaces: {first}; {e}") from e
    with contextlib.suppress(OSError):
        _call("unshare", CLONE_NEWCGROUP)  # since 4.6
    try:
        # held by both: who is sealed could close its own, and who waits could be killed first
        loaned = loan() if uid == 0 and not mapped else None
    except CrashdError as e:
        raise UnsupportedError(f"cannot confine the analysis: {e}") from e
    waiter_fd = os.pidfd_open(os.getpid())
    child = os.fork()
    if child:
        _wait(child, tell=parent is not None)
    _die_with_parent(waiter_fd)
    # Mounts that are made here must not appear on the host.
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    return Isolation(waiter_fd, loaned)


def _wait(child: int, *, tell: bool) -> NoReturn:
    os.closerange(0, 2 if tell else 3)
    _, status, usage = os.wait4(child, 0)
    if tell:
        # the kernel's figure for this process itself has that of whoever forked it in it
        os.write(2, b"\n%s%d" % (PEAK_PREFIX, usage.ru_maxrss))
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _map_ids(uid: int, gid: int) -> None:
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    _call(
        "mount",
        source.encode() if source else None,
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode(),
    )


def seal(limits: Limits, keep: Sequence[int], isolation: Isolation) -> None:
    """Give everything away but the descriptors `keep`; nothing may be imported after it.

    Raises:
        UnsupportedError: something of it does not work here; the process must end.

    """
    try:
        loaned = isolation.loaned
        owner = (loaned.number,) * 2 if loaned else (os.geteuid(), os.getegid())
        _be_humble()
        _close_others([*keep, isolation.waiter_fd, *([loaned.fd] if loaned else ())])
        _change_root(limits.scratch_bytes, *owner)
        _drop_privileges(loaned)
        _die_with_parent(isolation.waiter_fd)  # a change of ids takes it back
        os.close(isolation.waiter_fd)
        _limit(limits)
        _filter_calls()
    except (OSError, ValueError, KeyError) as e:
        raise UnsupportedError(f"cannot confine the analysis: {e}") from e


def seal_in_unit(limits: Limits, keep: Sequence[int]) -> None:
    """As seal(), where systemd took ids, capabilities, namespaces and the host's files away
    before this program began (crashd-analyze@.service).

    Raises:
        UnsupportedError: it has not, or something of the rest does not work here; the process must
            end.

    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            powerless = "\nCapPrm:\t0000000000000000\n" in file.read()
        if os.geteuid() == 0 or not powerless or os.path.lexists("/etc/shadow"):
            raise UnsupportedError("cannot confine the analysis: its unit leaves it too much")
        _close_others(keep)
        _gain_nothing()
        _limit(limits)
        _filter_calls()
    except (OSError, ValueError, KeyError) as e:
        raise UnsupportedError(f"cannot confine the analysis: {e}") from e


def _be_humble() -> None:
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    _syscall("ioprio_set", 1, 0, _IOPRIO_IDLE)


def _close_others(keep: Sequence[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with contextlib.suppress(OSError):  # that of the list itself
                os.close(int(name))


def _change_root(scratch_bytes: int, uid: int, gid: int) -> None:
    """Make an empty tmpfs the root, with VIEW in it where the host has one; nothing can be written.

    /proc is where it is mounted, since every host has it; behind it nothing of the host is left.
    """
    root = "/proc"
    os.umask(0o022)
    has_view = os.path.isdir(VIEW) and os.path.realpath(VIEW) == VIEW
    view = os.open(VIEW, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW) if has_view else None
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755,size=64k")
    os.mkdir(f"{root}/old")
    if view is not None:
        os.makedirs(root + VIEW)
        _mount(VIEW, root + VIEW, None, MS_BIND)
        _mount(None, root + VIEW, None, MS_REMOUNT | MS_BIND | _SEALED)
        os.close(view)
    if scratch_bytes:
        os.mkdir(f"{root}/work")
        flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
        data = f"mode=0700,uid={uid},gid={gid},size={scratch_bytes}"
        _mount("tmpfs", f"{root}/work", "tmpfs", flags, data)
    os.chdir(root)
    _syscall("pivot_root", b".", b"old")
    os.chdir("/")
    _call("umount2", b"/old", MNT_DETACH)
    os.rmdir("/old")
    _mount(None, "/", None, MS_REMOUNT | _SEALED)


def _drop_privileges(loaned: LoanedId | None) -> None:
    for capability in range(_CAP_LAST + 1):
        with contextlib.suppress(OSError):  # not known to this kernel
            _call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
    if loaned is not None:
        os.setgroups([])
        os.setresgid(*[loaned.number] * 3)
        os.setresuid(*[loaned.number] * 3)
    with contextlib.suppress(OSError):
        _call("unshare", CLONE_NEWUSER)  # where it is allowed: then no id means anything outside
    with contextlib.suppress(OSError):
        _call("prctl", PR_SET_SECUREBITS, _SECUREBITS_LOCKED, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())
    _gain_nothing()


def _gain_nothing() -> None:
    """Gain no privilege, and let nobody trace us. After a change of ids, which resets the second: a
    worker that crashes is not to be analysed.
    """
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)


def _die_with_parent(parent_fd: int = -1) -> None:
    """Be killed when the parent ends; end now where it has, by its pidfd, ended before."""
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent_fd >= 0:
        poll = select.poll()
        poll.register(parent_fd, select.POLLIN)
        if poll.poll(0):
            raise UnsupportedError("whoever waited for this is gone")


def _limit(limits: Limits) -> None:
    for kind, value in (
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, max(limits.file_bytes, 64 << 20)),
        (resource.RLIMIT_NOFILE, min(limits.files, resource.getrlimit(resource.RLIMIT_NOFILE)[1])),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _filter_calls() -> None:
    """Allow what computing and reading need; anything else fails with EPERM, and memory can never
    become code.
    """
    rules = pyseccomp.SyscallFilter(pyseccomp.ERRNO(1))
    for name in _ALLOWED.split():
        if name in ("mmap", "mmap2", "mprotect"):
            no_exec = pyseccomp.Arg(2, pyseccomp.MASKED_EQ, _PROT_EXEC, 0)
            _allow(rules, name, no_exec)
        else:
            _allow(rules, name)
    rules.load()


def _allow(rules: pyseccomp.SyscallFilter, name: str, *arguments: pyseccomp.Arg) -> None:
    try:
        rules.add_rule(pyseccomp.ALLOW, name, *arguments)
    except (OSError, ValueError):
        return  # no such call on this machine, or not known to its libseccomp


def syscall_name(arch: int, number: int) -> str | None:
    """Name a system call of an AUDIT_ARCH_* (linux/audit.h); None where libseccomp knows none."""
    try:
        name: bytes = pyseccomp.resolve_syscall(arch, number)
        return name.decode("ascii", "replace")
    except (ValueError, OSError):
        return None
