"""Builds a crash record: first from the handler's fields, then from /proc and the core's notes.

Pure: the capture path reads, this module decides what the data mean and which source counts
(KERNEL.md, trust classes). Data that the kernel vouches for (argv, pidfd) always win over data that
the process could have written. Over 400 lines because it is one decision: which source counts for
each field of a record, and who may read it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from crashd.corehandler import PROC_FILES, SCANT_PROC_BYTES
from crashd.domain import signals
from crashd.domain.crash.cgroup import parse_cgroup
from crashd.domain.crash.coremeta import CoreMeta
from crashd.domain.crash.losses import Loss
from crashd.domain.crash.model import (
    Capture,
    Crash,
    Disposition,
    Identity,
    Kind,
    Mode,
    State,
    build_id_text,
)
from crashd.domain.crash.procfs import (
    OWN_NAMESPACE,
    USER_NS_INIT,
    parse_cmdline,
    parse_core_limit,
    parse_environ,
    parse_namespace,
    parse_status,
)
from crashd.domain.crash.scrub import EnvironMode, scrub_environ
from crashd.domain.elf.auxv import AT_EUID, AT_PHDR, AT_SECURE, AT_UID, parse_auxv
from crashd.domain.elf.elfcore import CoreHead
from crashd.domain.elf.executables import DELETED, find_executables
from crashd.domain.text import printable

PAGE_BYTES = 4096
PIDFD_COREDUMP_USER = 4  # linux/pidfd.h, 6.16
THREADS_MAX = 1024
"""Threads that are listed; further ones are only in the core itself."""
_UNLIMITED_BYTES = (1 << 63) - 1
_SPOOL_SLACK_BYTES = 1 << 16
"""For what the file system needs to describe a sparse file."""


@dataclass(frozen=True, slots=True)
class ProcessCredentials:
    """What the kernel reports about the process itself, even if its pid has been reused."""

    uids: tuple[int, int, int, int] | None
    """Real, effective, saved, file system user id."""
    gids: tuple[int, int, int, int] | None
    coredump_mask: int | None
    namespace: bytes = b""
    """The owner of its user namespace, read by edge/capture/process.py: OWN_NAMESPACE, or the uid
    that has all capabilities in it; empty if it is unknown."""


@dataclass(frozen=True, slots=True)
class RecordLimits:
    """What the configuration lets be kept of a crash."""

    max_core: int | None
    """Bytes of a core that are not holes."""
    honour_rlimit: bool
    """Whether RLIMIT_CORE of the process counts, too."""
    environ: EnvironMode
    patterns: tuple[str, ...]
    """Of names in the environment whose values are not kept."""


def new_crash(
    meta: CoreMeta, *, mode: Mode, boot_id: str, hostname: bytes, has_pidfd: bool, random: int
) -> Crash:
    """Build the first record of a process crash, in state `capturing`."""
    identity = meta.identity if has_pidfd else Identity.NONE
    pid = meta.pid
    return Crash(
        id=build_id_text(meta.time_ns, boot_id, pid or meta.ns_pid or 0, random),
        kind=Kind.PROCESS,
        state=State.CAPTURING,
        time_ns=meta.time_ns,
        boot_id=boot_id,
        hostname=hostname,
        token=meta.token,
        boottime_ns=meta.seen_boottime_ns,
        pid=pid,
        tid=meta.tid,
        ns_pid=meta.ns_pid,
        uid=meta.uid,
        gid=meta.gid,
        dumpable=meta.dumpable,
        rlimit_core=meta.rlimit_core,
        signal=meta.signal,
        comm=meta.thread_comm,
        thread_comm=meta.thread_comm,
        nodename=meta.nodename,
        capture=Capture(mode=mode, identity=identity),
        title=signals.title(meta.signal, printable(meta.thread_comm), None),
        warnings=tuple(f"handler: {text}" for text in meta.malformed),
    )


def lost_crash(
    loss: Loss, time_ns: int, token: str, *, boot_id: str, hostname: bytes, random: int
) -> Crash:
    """Build the record of a crash that the kernel did not hand over."""
    named = loss.pid is not None
    title = f"lost: {printable(loss.comm)}" if named else f"lost: {loss.count} crashes"
    where = "its pid is the one in its own pid namespace"
    return Crash(
        id=build_id_text(time_ns, boot_id, loss.pid or 0, random),
        kind=Kind.PROCESS,
        state=State.LOST,
        time_ns=time_ns,
        boot_id=boot_id,
        hostname=hostname,
        token=token,
        pid=loss.pid,
        ns_pid=loss.pid,
        comm=loss.comm,
        capture=Capture(mode=Mode.NONE, disposition=Disposition.METADATA, reason=loss.reason),
        title=title,
        warnings=(where,) if named else (),
    )


def describe(
    crash: Crash,
    snapshot: Mapping[str, bytes],
    head: CoreHead | None,
    credentials: ProcessCredentials | None,
    limits: RecordLimits,
) -> tuple[Crash, "Allowance"]:
    """Add all that is known before any memory is read: what /proc and the pidfd told, the core's
    head, and who may read the crash. Return also how much of the core may be kept.
    """
    crash = add_process(
        crash, snapshot, credentials, environ_mode=limits.environ, patterns=limits.patterns
    )
    if head is not None:
        crash = add_head(crash, head)
    crash = replace(crash, owner_uid=owner_of(crash, head, credentials))
    return crash, allow(crash, max_core=limits.max_core, honour_rlimit=limits.honour_rlimit)


def add_process(
    crash: Crash,
    snapshot: Mapping[str, bytes],
    credentials: ProcessCredentials | None,
    *,
    environ_mode: EnvironMode,
    patterns: tuple[str, ...],
) -> Crash:
    """Add what was read from /proc and from the pidfd."""
    warnings = list(crash.warnings)
    if not snapshot:
        if crash.capture.identity is not Identity.NONE:
            warnings.append("the process was gone, or its pid reused, before /proc was read")
        return replace(crash, warnings=tuple(warnings))
    status = parse_status(snapshot.get("status", b""))
    uids = (credentials.uids if credentials else None) or status.uids
    gids = (credentials.gids if credentials else None) or status.gids
    environ = scrub_environ(parse_environ(snapshot.get("environ", b"")), environ_mode, patterns)
    return replace(
        _placed(crash, snapshot),
        uid=crash.uid if crash.uid is not None else (uids[0] if uids else None),
        gid=crash.gid if crash.gid is not None else (gids[0] if gids else None),
        comm=snapshot.get("comm") or _stat_comm(snapshot.get("stat", b"")) or crash.comm,
        thread_comm=_thread_comm(crash, snapshot.get("threads", b"")),
        ns_pid=crash.ns_pid or (status.ns_tgid[-1] if status.ns_tgid else None),
        exe=snapshot.get("exe", b""),
        argv=parse_cmdline(snapshot.get("cmdline", b"")),
        cwd=snapshot.get("cwd", b""),
        root=snapshot.get("root", b""),
        rlimit_core=_core_limit(crash, snapshot.get("limits", b"")),
        threads=_named_threads(snapshot.get("threads", b""), crash),
        environ=environ,
        maps=snapshot.get("maps"),
        limits=snapshot.get("limits"),
        status=snapshot.get("status"),
        mountinfo=snapshot.get("mountinfo"),
        auxv=snapshot.get("auxv"),
        open_fds=snapshot.get("open_fds"),
        warnings=(*warnings, *_cuts(snapshot, status.threads), *_replaced(snapshot)),
    )


def _placed(crash: Crash, snapshot: Mapping[str, bytes]) -> Crash:
    """Add the process's unit, slice, session, container and namespaces."""
    place = parse_cgroup(snapshot.get("cgroup", b""))
    return replace(
        crash,
        unit=place.unit,
        user_unit=place.user_unit,
        slice=place.slice,
        session=place.session,
        cgroup=place.cgroup,
        container_id=place.container_id,
        container_runtime=place.container_runtime,
        pod_uid=place.pod_uid,
        mount_ns=foreign_mount_ns(snapshot),
        user_ns=_foreign_user_ns(snapshot),
    )


def foreign_mount_ns(snapshot: Mapping[str, bytes]) -> int | None:
    """Return the process's mount namespace if it is certainly not the host's, else None."""
    hosts = [parse_namespace(snapshot.get(f"{of}_mount_ns", b"")) for of in ("init", "kthreadd")]
    own = parse_namespace(snapshot.get("mount_ns", b""))
    return own if own not in hosts and any(hosts) else None


def _foreign_user_ns(snapshot: Mapping[str, bytes]) -> int | None:
    own = parse_namespace(snapshot.get("user_ns", b""))
    return own if own != USER_NS_INIT else None


def _cuts(snapshot: Mapping[str, bytes], threads: int | None) -> Iterator[str]:
    """Yield what of /proc is cut, because the process chose its length."""
    for name, limit in PROC_FILES.items():
        size = len(snapshot.get(name, b""))
        if size >= limit or size == SCANT_PROC_BYTES:
            yield f"{name} is cut after {size} bytes"
    named = THREADS_MAX  # the number in the core's notes, if /proc has no names
    if "threads" in snapshot:
        named = min(snapshot["threads"].count(b"\n") + 1, named)
    if threads is not None and threads > named:
        yield f"{named} of {threads} threads are named"
    listed, count = snapshot.get("open_fds", b"").count(b"\n") + 1, snapshot.get("fd_count", b"")
    if count.isdigit() and int(count) > listed:
        yield f"{listed} of {int(count)} open files are listed"


def _replaced(snapshot: Mapping[str, bytes]) -> Iterator[str]:
    """Yield that the process ran other code than the host has now, as after an upgrade."""
    exe = snapshot.get("exe", b"")
    if exe.endswith(DELETED) and not exe.startswith(b"/memfd:"):
        yield "the executable was deleted or replaced after the process started"
    files = find_executables(snapshot.get("maps", b""))
    names = [
        printable(f.name.rpartition(b"/")[2])
        for f in files
        if f.is_nameless and f.name.startswith(b"/") and f.name + DELETED != exe
        if not f.name.startswith((b"/memfd:", b"/dev/", b"/SYSV"))
    ]
    if names:
        more = f", and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"deleted or replaced after the process loaded it: {names[0][:64]}{more}"


def _thread_comm(crash: Crash, threads: bytes) -> bytes:
    """Return the crashing thread's name. The kernel's %e has `!` for each `/` in it, and its socket
    passes none.
    """
    told = crash.thread_comm
    for line in threads.split(b"\n")[:THREADS_MAX]:
        tid, _, name = line.partition(b" ")
        same = tid == b"%d" % crash.tid if crash.tid is not None else told != b""
        if same and (not told or name.replace(b"/", b"!") == told):
            return name
    return told


def _core_limit(crash: Crash, limits: bytes) -> int | None:
    """Return RLIMIT_CORE; the kernel's socket does not pass it, so read it from /proc.

    A pattern without %c does not ask for the limit, and so has none.
    """
    if crash.capture.mode is not Mode.SOCKET:
        return crash.rlimit_core
    return parse_core_limit(limits)


def _stat_comm(stat: bytes) -> bytes:
    """Return comm of /proc/PID/stat: from the first `(` to the LAST `)`; comm may contain both."""
    return stat[stat.find(b"(") + 1 : stat.rfind(b")")] if b"(" in stat and b")" in stat else b""


def _named_threads(raw: bytes, crash: Crash) -> tuple[Mapping[str, Any], ...]:
    threads: list[Mapping[str, Any]] = []
    for line in raw.split(b"\n")[:THREADS_MAX]:
        tid, _, name = line.partition(b" ")
        if tid.isdigit():
            threads.append(
                {
                    "tid": int(tid),
                    "name": printable(name),
                    "pc": None,
                    "crashed": int(tid) == crash.tid,
                }
            )
    return tuple(threads)


def add_head(crash: Crash, head: CoreHead) -> Crash:
    """Add what the core's headers and notes say; the kernel wrote them from the registers."""
    info = head.siginfo
    signal = crash.signal
    if signal is None:
        signal = info.signal if info else (head.threads[0].signal if head.threads else None)
    # the note must belong to this signal: a debugger's core, fed by hand, may hold another
    matching = info if info and info.signal == signal else None
    code = matching.code if matching else None
    words = signals.describe(
        signal,
        code,
        matching.address if matching else None,
        matching.sender_pid if matching else None,
        matching.sender_uid if matching else None,
        crash.ns_pid or crash.pid,
    )
    comm = crash.comm or head.comm
    return replace(
        crash,
        signal=signal,
        si_code=code,
        fault_address=matching.address if matching else None,
        sender_pid=matching.sender_pid if matching else None,
        sender_uid=matching.sender_uid if matching else None,
        comm=comm,
        exe=crash.exe or _exe_of(head),
        tid=crash.tid if crash.tid is not None else _head_tid(crash, head),
        threads=_merge_threads(crash, head),
        explanation=words,
        title=signals.title(signal, printable(comm), words),
        warnings=(*crash.warnings, *(f"core: {text}" for text in head.problems)),
    )


def _exe_of(head: CoreHead) -> bytes:
    """Return the file mapped at AT_PHDR, the executable; for crashes without a readable /proc."""
    phdr = head.auxv.get(AT_PHDR)
    found = [file.name for file in head.files if phdr is not None and file.start <= phdr < file.end]
    return found[0] if found and found[0].startswith(b"/") else b""


def _head_tid(crash: Crash, head: CoreHead) -> int | None:
    """Return the thread id of the notes, which are numbered in the process's own pid namespace."""
    same_namespace = crash.pid is not None and crash.pid == crash.ns_pid
    return head.threads[0].tid if head.threads and same_namespace else None


def _merge_threads(crash: Crash, head: CoreHead) -> tuple[Mapping[str, Any], ...]:
    if not head.threads:
        return crash.threads
    names = {t["tid"]: t["name"] for t in crash.threads} if crash.pid == crash.ns_pid else {}
    return tuple(
        {
            "tid": thread.tid,
            "name": names.get(thread.tid, printable(crash.thread_comm) if number == 0 else None),
            "pc": None if thread.pc is None else hex(thread.pc),
            "crashed": number == 0,
        }
        for number, thread in enumerate(head.threads[:THREADS_MAX])
    )


def owner_of(
    crash: Crash, head: CoreHead | None, credentials: ProcessCredentials | None
) -> int | None:
    """Return the uid that besides root may read this crash, together with the crash's gid; or None.

    All of this must be known and true (SECURITY B1): it was dumped as an ordinary process; its
    identity comes from the kernel's pidfd; all four uids are equal, and all four gids; the
    program was not started with other rights than its user's; and it had no capabilities that
    its user lacks. ptrace(2) requires less of a reader without privileges. `Viewer` checks the
    rest, which depends on the reader.
    """
    uid, gid = crash.uid, crash.gid
    if uid is None or gid is None or head is None or credentials is None:
        return None
    auxv = head.auxv or parse_auxv(crash.auxv or b"")
    safe = (
        crash.dumpable == 1
        and crash.capture.identity is Identity.KERNEL
        and credentials.coredump_mask is not None
        and credentials.coredump_mask & PIDFD_COREDUMP_USER
        and credentials.uids == (uid, uid, uid, uid)
        and credentials.gids == (gid, gid, gid, gid)
        and auxv.get(AT_SECURE) == 0
        and auxv.get(AT_UID) == uid
        and auxv.get(AT_EUID) == uid
        and _has_no_more_power(uid, crash.status or b"", credentials.namespace)
    )
    return uid if safe else None


def _has_no_more_power(uid: int, status: bytes, namespace: bytes) -> bool:
    """Return whether a user has all capabilities of a process; see cap_ptrace_access_check().

    In the host's user namespace a user has none. In another namespace its owner has all of
    them, and nobody else may attach, even to a process without capabilities
    (security/commoncap.c).
    """
    if namespace == OWN_NAMESPACE:
        return parse_status(status).permitted == 0
    return namespace == b"%d" % uid


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much of a core may be kept."""

    size_bytes: int
    disposition: Disposition
    reason: str | None
    """Why it is limited, for the record of a core that reaches the limit."""

    def lowered(self, disposition: Disposition, reason: str | None) -> "Allowance":
        """Return it lowered to what was decided."""
        if disposition is Disposition.FULL:
            return self
        size = 0 if disposition is Disposition.METADATA else self.size_bytes
        return Allowance(size, disposition, reason or self.reason)

    def for_spooled(self, spooled_bytes: int | None) -> "Allowance":
        """Return it for a core that has so much in the spool; None for one that is not there.

        The handler kept to the same limit, page by page, and took the stacks first. Counted in
        larger blocks what it kept may seem too much, and the stacks, at the end, would be cut.
        """
        if spooled_bytes is None or not self.size_bytes:
            return self
        if spooled_bytes > self.size_bytes + self.size_bytes // 64 + _SPOOL_SLACK_BYTES:
            return self  # another limit than the handler had
        return Allowance(_UNLIMITED_BYTES, self.disposition, self.reason)


def allow(crash: Crash, *, max_core: int | None, honour_rlimit: bool) -> Allowance:
    """Decide how much of the core is kept, by the process's own limit (%c) and the configured one.

    A limit below one page means no core, as for the kernel's own core files and for
    systemd-coredump. A pattern without %c does not ask for RLIMIT_CORE, so it is not enforced.
    """
    limits: list[tuple[int, str]] = []
    if max_core is not None:
        limits.append((max_core, f"capture.max_core is {max_core} bytes"))
    if honour_rlimit and crash.rlimit_core is not None and crash.rlimit_core < 1 << 63:
        limits.append(
            (crash.rlimit_core, f"RLIMIT_CORE of the process is {crash.rlimit_core} bytes")
        )
    if not limits:
        return Allowance(_UNLIMITED_BYTES, Disposition.FULL, None)
    size, reason = min(limits)
    if size < PAGE_BYTES:
        return Allowance(0, Disposition.METADATA, reason)
    return Allowance(size, Disposition.FULL, reason)
