"""Turns the process into one that can only compute. Only importer of pyseccomp.

It gets new namespaces, an empty read-only root, no capabilities, no way to gain privileges,
resource limits, and a filter of system calls:

    isolate()   new namespaces, and a child that is pid 1 in them; the parent stays and waits
      … here the caller opens what it will read: it still sees the host's files …
    seal()      everything else is taken away; there is no way back

Requirements are tried, not checked: everything works as root, and as an ordinary user if the kernel
allows user namespaces.
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

from crashd.domain.cause.workerlines import PEAK_PREFIX
from crashd.edge.sandbox.loanedid import LoanedId, loan
from crashd.errors import CrashdError, UnsupportedError

VIEW = "/usr/lib/debug"
"""The only files of the host that stay visible, if they exist."""

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
    """The resource limits of a sealed process."""

    cpu_seconds: int
    memory_bytes: int
    """Address space, beyond what it had when it was sealed."""
    files: int = 4096
    """Open descriptors; fewer if the hard limit is lower."""
    scratch_bytes: int = 0
    """Size of a private /work in memory; 0 means no /work."""
    file_bytes: int = 0
    """Size of the largest file in it, holes included."""


_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> int:
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _syscall(name: str, *arguments: object) -> int:
    """Make a system call without a libc function; libseccomp knows its number on this machine."""
    number = pyseccomp.resolve_syscall(pyseccomp.system_arch(), name)
    return _call("syscall", ctypes.c_long(number), *arguments)


@dataclass(frozen=True, slots=True)
class Isolation:
    """The result of isolate(), for seal()."""

    waiter_fd: int
    """A pidfd of the waiting process, which has no pid in the new namespace."""
    loaned: LoanedId | None
    """The id to switch to; None if only one id is mapped."""


def isolate(parent: int | None) -> Isolation:
    """Continue as pid 1 of new namespaces; the original process waits for it.

    The waiting process ends with the status of its child, or with 128 plus the signal that killed
    it. Both die with the process that started us, which must be `parent`, if given.

    Raises:
        UnsupportedError: this host does not allow new namespaces, or has no free id.
    """
    uid, gid, mapped = os.geteuid(), os.getegid(), False
    _die_with_parent()
    if parent is not None and os.getppid() != parent:
        raise UnsupportedError("the process that started this has ended")
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
        # both processes hold it: the sealed one could close its copy, and the waiting one may die
        # first
        loaned = loan() if uid == 0 and not mapped else None
    except CrashdError as e:
        raise UnsupportedError(f"cannot confine the analysis: {e}") from e
    waiter_fd = os.pidfd_open(os.getpid())
    child = os.fork()
    if child:
        _wait(child, tell=parent is not None)
    _die_with_parent(waiter_fd)
    # Mounts made here must not propagate to the host.
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    return Isolation(waiter_fd, loaned)


def _wait(child: int, *, tell: bool) -> NoReturn:
    os.closerange(0, 2 if tell else 3)
    _, status, usage = os.wait4(child, 0)
    if tell:
        # the kernel's figure for this process itself includes that of the process that forked it
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
    """Give up everything but the descriptors `keep`; nothing can be imported afterwards.

    Raises:
        UnsupportedError: a part of it does not work on this host; the process must end.
    """
    try:
        loaned = isolation.loaned
        owner = (loaned.number,) * 2 if loaned else (os.geteuid(), os.getegid())
        _be_humble()
        _close_others([*keep, isolation.waiter_fd, *([loaned.fd] if loaned else ())])
        _change_root(limits.scratch_bytes, *owner)
        _drop_privileges(loaned)
        _die_with_parent(isolation.waiter_fd)  # again, because a change of ids resets it
        os.close(isolation.waiter_fd)
        _limit(limits)
        _filter_calls()
    except (OSError, ValueError, KeyError) as e:
        raise UnsupportedError(f"cannot confine the analysis: {e}") from e


def seal_in_unit(limits: Limits, keep: Sequence[int]) -> None:
    """Like seal(), for a process that systemd has already confined (crashd-analyze@.service).

    systemd has taken ids, capabilities, namespaces and the host's files from it.

    Raises:
        UnsupportedError: systemd has not done so, or a part of the rest does not work on this host;
            the process must end.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            powerless = "\nCapPrm:\t0000000000000000\n" in file.read()
        if os.geteuid() == 0 or not powerless or os.path.lexists("/etc/shadow"):
            raise UnsupportedError(
                "cannot confine the analysis: its unit leaves it too many privileges"
            )
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
            with contextlib.suppress(OSError):  # the listing's own descriptor
                os.close(int(name))


def _change_root(scratch_bytes: int, uid: int, gid: int) -> None:
    """Make an empty, read-only tmpfs the root, with VIEW in it if the host has that.

    It is mounted on /proc, because every host has that directory. After pivot_root() nothing of the
    host is left.
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
        with contextlib.suppress(OSError):  # unknown to this kernel
            _call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
    if loaned is not None:
        os.setgroups([])
        os.setresgid(*[loaned.number] * 3)
        os.setresuid(*[loaned.number] * 3)
    with contextlib.suppress(OSError):
        _call("unshare", CLONE_NEWUSER)  # if allowed: our ids then mean nothing outside
    with contextlib.suppress(OSError):
        _call("prctl", PR_SET_SECUREBITS, _SECUREBITS_LOCKED, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())
    _gain_nothing()


def _gain_nothing() -> None:
    """Give up gaining privileges, and being traced or dumped.

    Call this after a change of ids, which resets the second. A worker that crashes must not be
    analysed itself.
    """
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)


def _die_with_parent(parent_fd: int = -1) -> None:
    """Be killed when the parent ends; raise if its pidfd shows that it has already ended."""
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent_fd >= 0:
        poll = select.poll()
        poll.register(parent_fd, select.POLLIN)
        if poll.poll(0):
            raise UnsupportedError("the waiting process has ended")


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
    """Allow only the system calls that computing and reading need.

    All others fail with EPERM, and memory can never become executable.
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
        return  # not a call of this machine, or unknown to its libseccomp


def syscall_name(arch: int, number: int) -> str | None:
    """Return the name of a system call of an AUDIT_ARCH_* (linux/audit.h); None if unknown."""
    try:
        name: bytes = pyseccomp.resolve_syscall(arch, number)
        return name.decode("ascii", "replace")
    except (ValueError, OSError):
        return None
