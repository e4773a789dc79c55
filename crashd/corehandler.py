#!/usr/bin/python3 -IS
"""The crash-time handler: installed as /usr/libexec/crashd-core, started by the kernel for each
crash. If the native handler (crashd/native/crashd-core.c) was built, the kernel starts that one
instead. On any trouble it executes this one, which is then installed as crashd-core.py; this one is
the reference.

One self-contained file at the bottom of the import graph, standard library only; it must not import
from crashd, but any module may import its constants. The crashed process, and everything that waits
for it, is held while this program starts. So it imports `posix` and `_socket` instead of `os` and
`socket` (1.5 ms and 7 ms more), imports nothing else on the fast path, and compiles as little code
as possible: Python compiles a main program again at each start. The lower part, which only spools,
is commented out in the installed file (store/handlerfile.py), and compiled when needed (1 ms of
2.4). It is one idea despite its length: the kernel starts one file, which must not need others.

    kernel ─ fd 0: the core, argv: core(5) specifiers ─▶ hand over to the daemon (fields +
    descriptors)
                                                          └ no receipt ─▶ spool it here

The hand-over is one SOCK_SEQPACKET message `KEY=value NUL …` with the descriptors [core, pidfd],
answered by two bytes: QUEUED, as soon as the daemon has the crash on record, and RECEIPT, when one
of its workers begins to read the core. The handler does not wait long for a daemon that does not
answer (RECEIPT_SECONDS), but waits for one that answered QUEUED: it is busy, and the connection
ends when it dies. The side that gives up first wins, atomically: the handler shuts the socket down
before it spools, and a worker reads a core only after the socket took its receipt (unix(7): a send
to a peer that shut down fails with EPIPE). So exactly one of them reads the core.

Spool entry: `<ns>-<pid>-<random>-<user>.tmp/`, renamed without `.tmp` once its contents are synced:
`meta` (the same fields), `core` (sparse), `proc.*` (raw copies from /proc/PID), `done` (how the
copy ended).

The kernel starts the handler (KERNEL.md A3) as root, without an environment, with fd 1 and 2
closed, and with RLIMIT_CORE 1, so that a crash in here does not start a second handler.
"""

import posix
import sys
from _socket import (
    AF_UNIX,
    SCM_RIGHTS,
    SHUT_RDWR,
    SO_RCVTIMEO,
    SO_SNDTIMEO,
    SOCK_CLOEXEC,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socket,
)
from time import CLOCK_BOOTTIME, clock_gettime_ns, time_ns

SPECIFIERS = "pestPIugcdFh"
"""core(5) specifiers in the order of the pattern; the short form has only the first four."""
QUEUED = b"Q"
RECEIPT = b"R"
RECEIPT_SECONDS = 3  # for a first answer
QUEUED_SECONDS = 300  # for the receipt, after QUEUED; the daemon gives up then, too
VALUE_MAX = 4096
SPOOL_DEADLINE_SECONDS = 300
PROC_DEADLINE_SECONDS = 2
TRIED = b"CRASHD_CORE"
"""Environment variable that the native handler sets after it offered the crash to the daemon in
vain: its `token seen_ns boottime_ns`. The daemon may know the crash by these; this handler only
spools it then. The kernel itself leaves the environment empty.
"""
LIMITS_NAME = "limits"
"""File in the spool: `max_core=N keep_free=N` in bytes, written by the daemon from its
configuration.
"""
MAX_CORE = 32 << 30
PAGE = 4096
HEAD_BYTES = 1 << 20
"""Bytes to keep of a core that RLIMIT_CORE forbids, for its notes; the daemon drops the rest."""
PROC_FILES = {
    "status": 1 << 14,
    "stat": 1 << 12,
    "cgroup": 1 << 14,
    "limits": 1 << 14,
    "auxv": 1 << 12,
    "maps": 8 << 20,
    "mountinfo": 1 << 20,
    "cmdline": 1 << 16,
    "environ": 1 << 18,
}
"""Files to copy from /proc/PID, with size limits in bytes. Files whose reading touches the
process's memory come last.
"""
PROC_LINKS = {
    "exe": "exe",
    "cwd": "cwd",
    "root": "root",
    "mount_ns": "ns/mnt",
    "user_ns": "ns/user",
    "init_mount_ns": "/proc/1/ns/mnt",
    "kthreadd_mount_ns": "/proc/2/ns/mnt",
}
"""Links to copy from /proc/PID, and those to the host's mount namespace, which shows whether the
process runs outside containers. There are two of these because a security module may hide PID 1.
"""


def main(argv: "list[str]") -> int:
    """Take one crash from the kernel; return the exit status, which only tests use."""
    null = posix.open("/dev/null", posix.O_RDWR)
    while null < 3:  # 1 and 2 are closed: fill them, or a file of ours becomes "stdout"
        null = posix.dup(null)
    core = posix.dup(0)
    posix.dup2(null, 0)
    fields, pidfd = collect(argv)
    name = argv[0].removesuffix(".py")
    root = name.rsplit("/", 3)[0] if name.endswith("/usr/libexec/crashd-core") else ""
    state = root + "/var/lib/crashd"
    descriptors = [core] if pidfd is None else [core, pidfd]
    tried = posix.environ.get(TRIED, b"").split()
    fields.update(zip(("token", "seen_ns", "boottime_ns"), tried, strict=False))
    if not tried and hand_over(root + "/run/crashd/handoff.sock", fields, descriptors):
        return 0
    try:
        compile_lower_part(argv[0])
        spool(state, fields, core, pidfd)
    except OSError as e:
        pid = decimal(argv, 5) or decimal(argv, 1)
        where = (e.filename or "").removeprefix(state).strip("/")
        complain(f"crash of pid {pid} lost: {state}/{where}: {e.strerror}")
        return 1
    return 0


def compile_lower_part(path: str) -> None:
    """Define the part that is commented out in the installed file, unless it is defined already."""
    if "spool" in globals():
        return
    source = read_file(path, 1 << 20).decode()
    # other lines become empty ones, which keeps the line numbers
    lines = [line[2:] if line[:2] == "#|" else "" for line in source.split("\n")]
    exec(compile("\n".join(lines), path, "exec"), globals())


def decimal(argv: "list[str]", position: int) -> "int | None":
    """Return one numeric argument; None if it is missing or not a number below 2^31."""
    text = argv[position] if position < len(argv) else ""
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        return None
    return int(text) if int(text) < 1 << 31 else None


def collect(argv: "list[str]") -> "tuple[dict[str, bytes], int | None]":
    """Return the fields made from the arguments, and the pidfd of the crashed process."""
    fields = {
        "token": b"%x-%x-%s" % (posix.getpid(), time_ns(), posix.urandom(4).hex().encode()),
        "seen_ns": b"%d" % time_ns(),
        "boottime_ns": b"%d" % clock_gettime_ns(CLOCK_BOOTTIME),
        "argc": b"%d" % (len(argv) - 1),
    }
    encoding = sys.getfilesystemencoding()
    for key, text in zip(SPECIFIERS, argv[1:], strict=False):
        fields[key] = text.encode(encoding, "surrogateescape")[:VALUE_MAX].replace(b"\0", b"")
    number, pid = decimal(argv, 11), decimal(argv, 5)
    if number is not None:
        if not 2 < number < 100 or pidfd_pid(number) is None:
            return fields, None  # gone: another process may have its number now
        fields["identity"] = b"kernel"
        return fields, number
    if pid is None:
        compile_lower_part(argv[0])
        pid = find_process(fields.get("p", b""), fields.get("e", b""))
    if pid is None:
        return fields, None
    try:
        pidfd = posix.pidfd_open(pid, 0)
    except OSError:
        return fields, None
    status = read_file(f"/proc/{pid}/status", 1 << 14)
    if b"\nCoreDumping:\t1\n" not in status or not is_of(status, fields):
        return fields, None  # gone, and another process has its number
    fields["P"] = b"%d" % pid
    fields["identity"] = b"opened"
    return fields, pidfd


def is_of(status: bytes, fields: "dict[str, bytes]") -> bool:
    """Return whether the process's real uid and gid match those that the kernel gave, if any."""
    for key, label in (("u", b"\nUid:\t"), ("g", b"\nGid:\t")):
        real = status.partition(label)[2].partition(b"\t")[0]
        if fields.get(key, real) != real:
            return False
    return True


def pidfd_pid(number: int) -> "int | None":
    """Return the pid of a pidfd; None if it is not a pidfd or its process is gone."""
    for line in read_file(f"/proc/self/fdinfo/{number}", 4096).split(b"\n"):
        if line.startswith(b"Pid:\t") and line[5:].isdigit():
            return int(line[5:])
    return None


def read_file(path: str, limit: int, directory: "int | None" = None) -> bytes:
    """Return up to `limit` bytes of a file; empty if it cannot be opened."""
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return b""
    parts = []
    try:
        while limit > 0:
            part = posix.read(fd, limit)
            if not part:
                break
            parts.append(part)
            limit -= len(part)
    except OSError:
        pass
    posix.close(fd)
    return b"".join(parts)


def pack(fields: "dict[str, bytes]") -> bytes:
    """Build the wire form: `KEY=value` items, each ended by NUL."""
    return b"".join([b"%s=%s\0" % (key.encode(), value) for key, value in fields.items()])


def hand_over(path: str, fields: "dict[str, bytes]", descriptors: "list[int]") -> bool:
    """Give the crash to the daemon; return True once a worker has taken it."""
    try:
        peer = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        peer.setsockopt(SOL_SOCKET, SO_SNDTIMEO, timeval(RECEIPT_SECONDS))
        peer.setsockopt(SOL_SOCKET, SO_RCVTIMEO, timeval(RECEIPT_SECONDS))
        peer.connect(path)
        rights = b"".join([fd.to_bytes(4, sys.byteorder) for fd in descriptors])
        peer.sendmsg([pack(fields)], [(SOL_SOCKET, SCM_RIGHTS, rights)])
    except OSError:
        return False
    answer = b""
    try:
        answer = peer.recv(1)
        if answer == QUEUED:
            peer.setsockopt(SOL_SOCKET, SO_RCVTIMEO, timeval(QUEUED_SECONDS))
            answer = peer.recv(1)
    except OSError:
        pass
    if answer == RECEIPT:
        return True
    try:
        peer.shutdown(SHUT_RDWR)  # from here on a receipt fails; an earlier one is in our queue
        while answer := peer.recv(1):
            if answer == RECEIPT:
                return True
    except OSError:
        pass
    return False


def timeval(seconds: int) -> bytes:
    """Build a struct timeval."""
    word = 8 if sys.maxsize > 1 << 32 else 4
    return seconds.to_bytes(word, sys.byteorder) + bytes(word)


def complain(text: str) -> None:
    """Write one line to the kernel log, because journald itself may have crashed."""
    try:
        fd = posix.open("/dev/kmsg", posix.O_WRONLY | posix.O_CLOEXEC)
        posix.write(fd, b"<3>crashd-core: %s\n" % text.encode("utf-8", "backslashreplace")[:900])
        posix.close(fd)
    except OSError:
        pass


# LOWER PART: commented out by `#|` when installed, up to the next line like this.


def list_names(path: str) -> "list[str]":
    """Return the names in a directory; empty if it is gone."""
    try:
        return posix.listdir(path)
    except OSError:
        return []


def find_process(ns_pid: bytes, comm: bytes) -> "int | None":
    """Return the pid of the process that dumps core as `ns_pid`; for the short pattern.

    The process must have a thread called `comm`, because another process may have the number by
    now, and pid namespaces use the same numbers. None if there is not exactly one such process: a
    missing identity is better than a wrong one.
    """
    found = []
    for name in posix.listdir("/proc"):
        if name.isdigit():
            status = read_file(f"/proc/{name}/status", 1 << 14)
            numbers = status.partition(b"\nNSpid:")[2].partition(b"\n")[0].split()
            if b"\nCoreDumping:\t1\n" in status and numbers[-1:] == [ns_pid]:
                found.append(name)
    found = [
        name
        for name in found
        if any(
            read_file(f"/proc/{name}/task/{tid}/comm", 64)[:-1].replace(b"/", b"!") == comm
            for tid in list_names(f"/proc/{name}/task")
        )
    ]
    return int(found[0]) if len(found) == 1 else None


def put_file(name: str, data: bytes, directory: int) -> None:
    """Write a small file into the spool entry and sync it."""
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC
    fd = posix.open(name, flags, 0o600, dir_fd=directory)
    while data:
        data = data[posix.write(fd, data) :]
    posix.fsync(fd)
    posix.close(fd)


def make_directory(name: str, parent: "int | None") -> int:
    """Create a directory unless it exists, and open it. Only the state directory itself may be a
    link, because the administrator chooses its place.
    """
    try:  # noqa: SIM105 (contextlib is one more import)
        posix.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        pass
    flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC
    return posix.open(name, flags if parent is None else flags | posix.O_NOFOLLOW, dir_fd=parent)


def spool(state: str, fields: "dict[str, bytes]", core: int, pidfd: "int | None") -> None:
    """Keep the crash in the spool, where the daemon finds it when it is back."""
    from _signal import alarm  # not needed on the fast path

    alarm(SPOOL_DEADLINE_SECONDS)  # its default action ends us even in a read that never returns
    spool_fd = make_directory("spool", make_directory(state, None))
    maximum, keep_free = copy_limits(fields, spool_fd)
    share = Share(spool_fd, find_user(fields, pidfd), keep_free)
    name = f"{time_ns()}-{posix.getpid()}-{posix.urandom(4).hex()}-{share.user}"
    entry = make_directory(name + ".tmp", spool_fd)
    put_file("meta", pack(fields), entry)
    reader = posix.fork() if pidfd is not None else 0
    if pidfd is not None and reader == 0:
        # Reading its memory can block for ever (a page backed by FUSE), so a child does it, which
        # the alarm ends.
        alarm(PROC_DEADLINE_SECONDS)
        try:
            copy_proc(pidfd, entry, share)
        finally:
            posix._exit(0)
    copy = copy_core(core, entry, maximum, share, pidfd)
    if reader:
        posix.waitpid(reader, 0)
    posix.close(core)  # releases the crashed process
    copy.close()
    done = {"received": b"%d" % copy.received, "reason": copy.reason.encode()}
    done["engine"] = copy.engine
    put_file("done", pack(done), entry)
    posix.fsync(entry)
    posix.rename(name + ".tmp", name, src_dir_fd=spool_fd, dst_dir_fd=spool_fd)
    posix.fsync(spool_fd)


SCANT_PROC_BYTES = (1 << 14) - 1
"""Bytes to keep of a file in /proc when the disk is nearly full; no other limit has this value."""
SCANT_SHARE = 16
"""Number of handlers that may copy a file at the same time without using the reserved space."""


def copy_proc(pidfd: int, entry: int, share: "Share") -> None:
    """Copy the process's files from /proc, unparsed. Checking the pidfd before and after opening
    its directory proves that it is the same process.
    """
    pid = pidfd_pid(pidfd)
    if pid is None:
        return
    process = posix.open(f"/proc/{pid}", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    if pidfd_pid(pidfd) != pid:
        return
    for name, link in PROC_LINKS.items():
        try:
            put_file("proc." + name, posix.readlink(link.encode(), dir_fd=process), entry)
        except OSError:
            continue
    for name, limit in PROC_FILES.items():
        if share.free_bytes(scant=True) < 0 and name not in ("status", "stat", "cgroup"):
            continue
        data = read_file(name, limit, process)
        if share.left_bytes(scant=True) < SCANT_SHARE * len(data):
            data = data[:SCANT_PROC_BYTES]
        put_file("proc." + name, data, entry)


def copy_limits(fields: "dict[str, bytes]", spool_fd: int) -> "tuple[int, int]":
    """Return how many bytes of core may be kept, and how much space must stay free."""
    limits = {"max_core": MAX_CORE, "keep_free": -1, "honour_rlimit": 1}
    for item in read_file(LIMITS_NAME, 4096, spool_fd).split(b"\0"):
        key, _, value = item.partition(b"=")
        if value.isdigit():
            limits[key.decode("ascii", "replace")] = int(value)
    if limits["keep_free"] < 0:
        filesystem = posix.statvfs(spool_fd)
        limits["keep_free"] = filesystem.f_blocks * filesystem.f_frsize // 10
    maximum, soft = limits["max_core"], fields.get("c", b"")
    if limits["honour_rlimit"] and soft.isdigit() and len(soft) <= 20:
        maximum = min(maximum, int(soft))
    return max(maximum, HEAD_BYTES), limits["keep_free"]


SCANT_HEAD_BYTES = 1 << 16
"""Bytes to keep of a core when the disk is nearly full: enough for the notes of a dozen threads."""
SHARE_LOOK_BYTES = 1 << 20
"""After this many bytes, the spool use of all the user's crashes is added up again."""
SHARED_NAMES = ("core", "proc.maps", "proc.mountinfo", "proc.environ", "proc.cmdline")
"""Files of a spool entry that can be large."""
RANGES_MAX = 10_000
NEARLY_FULL = "disk nearly full"
SHARE_USED = "the user's other crashes have their share of the spool"


def parse_subuids(subuid: bytes, passwd: bytes) -> "list[tuple[int, int, int]]":
    """Parse subuid(5) with the help of passwd(5); return first uid, end and user of each range.

    The ranges of root, and of names that are not in passwd(5), count for one separate user per
    name, whose uid is the first uid of the name's first range.
    """
    owners: dict[bytes, int] = {}
    ranges = []
    for line in subuid.split(b"\n")[:RANGES_MAX]:
        name, *numbers = line.split(b":")
        if name and len(numbers) == 2 and all(n.isdigit() and len(n) <= 10 for n in numbers):
            first, count = int(numbers[0]), int(numbers[1])
            found = (b"\n" + passwd).partition(b"\n%s:" % name)[2].split(b":", 2)[1:2]
            uid = name if name.isdigit() else found[0] if found else b""
            owner = int(uid) if uid.isdigit() and len(uid) <= 10 else 0
            ranges.append((first, first + count, owners.setdefault(name, owner or first)))
    return ranges


def user_of(uid: int, ranges: "list[tuple[int, int, int]]") -> int:
    """Return the uid of the user that a process counts for; its own uid may be a user's subuid."""
    for first, end, user in ranges:
        if 0 < first <= uid < end:
            return user
    return uid


def find_user(fields: "dict[str, bytes]", pidfd: "int | None") -> str:
    """Return the user whose share of the spool a crash takes; `-` if that is unknown."""
    uid = fields.get("u", b"")
    if not uid and pidfd is not None:
        status = read_file(f"/proc/{pidfd_pid(pidfd)}/status", 1 << 14)
        uid = status.partition(b"\nUid:\t")[2].partition(b"\t")[0]
    if not uid.isdigit() or len(uid) > 10:
        return "-"
    subuid, passwd = read_file("/etc/subuid", 1 << 20), read_file("/etc/passwd", 1 << 20)
    return str(user_of(int(uid), parse_subuids(subuid, passwd)))


class Share:
    """One user's share of the spool: at most as much as they leave to other users.

    Of the free space above `keep_free`, the first user may take half, the second a quarter, and so
    on: however many users have crashes at once, there is room for the next one.
    """

    def __init__(self, spool_fd: int, user: str, keep_free: int) -> None:
        self.spool_fd = spool_fd
        self.user = user
        self.keep_free = keep_free

    def used_bytes(self) -> int:
        """Return how many bytes the user's crashes take in the spool."""
        used = 0
        for entry in posix.listdir(self.spool_fd):
            if entry.removesuffix(".tmp").split("-", 3)[3:] == [self.user]:
                for name in SHARED_NAMES:
                    try:
                        status = posix.stat(
                            f"{entry}/{name}", dir_fd=self.spool_fd, follow_symlinks=False
                        )
                    except OSError:
                        continue
                    used += status.st_blocks * 512
        return used

    def free_bytes(self, scant: bool = False) -> int:
        """Return the free space of the file system less `keep_free`; less only half of that if
        `scant`, which is for the small files that describe the crash.
        """
        filesystem = posix.fstatvfs(self.spool_fd)
        keep_free = self.keep_free // 2 if scant else self.keep_free
        return filesystem.f_bavail * filesystem.f_frsize - keep_free

    def left_bytes(self, scant: bool = False) -> int:
        """Return how much more the user's crashes may take."""
        return self.free_bytes(scant) - self.used_bytes()


class SparseCore:
    """A core being written into the spool, with pages of zeros as holes; owns the descriptor.

    Holes take no space, and do not count toward any limit.
    """

    def __init__(self, out: int, maximum: int, share: Share) -> None:
        self.out = out
        self.maximum = maximum
        self.share = share
        self.received = self.kept = self.looked = 0
        self.reason = ""
        """Why the core is cut; empty while it may continue."""
        self.engine = b"stream"
        self.used = share.used_bytes()
        # When half of the reserved space is gone, not even the notes are kept: on a full disk the
        # crash could not be recorded at all.
        if share.free_bytes(scant=True) < self.used:
            self.reason = NEARLY_FULL if share.free_bytes(scant=True) < 0 else SHARE_USED

    def put(self, chunk: bytes) -> None:
        """Write the next bytes, as far as limits and space allow; if they do not, set `reason`.

        Free space is checked before each write, because a thousand small cores fill a disk just
        like a large one.
        """
        if self.kept - self.looked >= SHARE_LOOK_BYTES:
            self.used, self.looked = self.share.used_bytes(), self.kept
        free = self.share.free_bytes() - len(chunk)
        scant = free < self.used + self.kept - self.looked
        if scant and self.received + len(chunk) > SCANT_HEAD_BYTES:
            chunk = chunk[: max(0, SCANT_HEAD_BYTES - self.received)]
            self.reason = NEARLY_FULL if free < 0 else SHARE_USED
        zero, position = bytes(PAGE), 0
        while position < len(chunk):  # runs of pages that are not all zero, each in one write
            start = position
            while position < len(chunk) and chunk[position : position + PAGE] != zero:
                position += PAGE
            run = chunk[start:position]
            if self.kept + len(run) > self.maximum:
                run, self.reason = run[: self.maximum - self.kept], "size limit"
                chunk = chunk[: start + len(run)]
            self.kept += len(run)
            at = self.received + min(position, len(chunk)) - len(run)
            while run:
                count = posix.pwrite(self.out, run, at)
                run, at = run[count:], at + count
            position = position if position > start else position + PAGE
        self.received += len(chunk)

    def close(self) -> None:
        """Set the file's length and sync it; an error here does not replace an earlier `reason`."""
        try:
            posix.ftruncate(self.out, self.received)
            posix.fsync(self.out)
        except OSError as e:
            self.reason = self.reason or e.strerror or "error"
        posix.close(self.out)


def copy_core(core: int, entry: int, maximum: int, share: Share, pidfd: "int | None") -> SparseCore:
    """Copy the core; a large one from its process's memory, if that is possible."""
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC
    copy = SparseCore(posix.open("core", flags, 0o600, dir_fd=entry), maximum, share)
    try:
        while not copy.reason:
            if pidfd is not None and copy.received > LARGE_BYTES:
                if copy_memory(copy, entry, pidfd):
                    break
                pidfd = None  # no second try
            chunk = posix.read(core, 1 << 20)
            if not chunk:
                break
            copy.put(chunk)
    except OSError as e:
        copy.reason = e.strerror or "error"
    return copy


LARGE_BYTES = 16 << 20
"""Up to this size, copying a core takes less time than starting the full program (0.1 s)."""
MEMORY_SECONDS = 240
"""Time for the full program; the rest of SPOOL_DEADLINE_SECONDS is left for the stream."""
MEMORY_MODULE = "crashd.daemon.capture.spoolmemory"


def copy_memory(copy: SparseCore, entry: int, pidfd: int) -> bool:
    """Start the full program to read the process's memory into the core's file. That takes time in
    proportion to the resident memory; the kernel writes the whole address space through a pipe of
    64 KiB.

    Return False if the program is missing, not permitted, or in doubt about the memory; the stream
    is still complete then. The program is the interpreter that the daemon named in LIMITS_NAME.
    """
    from _signal import alarm

    limits = b"\0" + read_file(LIMITS_NAME, 4096, copy.share.spool_fd)
    program = limits.partition(b"\0program=")[2].partition(b"\0")[0]
    if program[:1] != b"/":
        return False
    numbers = (entry, copy.share.spool_fd, pidfd, copy.maximum, copy.share.keep_free)
    answer, write_end = posix.pipe()
    child = posix.fork()
    if child == 0:
        try:
            alarm(MEMORY_SECONDS)  # stays set when it becomes the program
            posix.dup2(write_end, 1)
            for number in numbers[:3]:
                posix.set_inheritable(number, True)
            # argv[0] is the interpreter's own path, by which it finds its library
            name = program.decode(sys.getfilesystemencoding(), "surrogateescape")
            words = [name, "-I", "-m", MEMORY_MODULE, copy.share.user]
            posix.execve(name, [*words, *[str(number) for number in numbers]], {})
        finally:
            posix._exit(127)
    posix.close(write_end)
    said = b""
    while part := posix.read(answer, 4096):
        said = (said + part)[:4096]
    posix.close(answer)
    received, _, reason = said.partition(b" ")
    if posix.waitpid(child, 0)[1] or not received.isdigit():
        posix.ftruncate(copy.out, copy.received)  # its data may differ from the kernel's
        return False
    copy.received, copy.reason = int(received), reason.decode("utf-8", "replace")
    copy.engine = b"memory"
    return True


# END OF LOWER PART


if __name__ == "__main__":
    try:
        status = main(sys.argv)
    except BaseException as e:  # boundary: the kernel is our caller, and shows no traceback
        complain(f"{type(e).__name__} in the handler: {e}")
        status = 1
    posix._exit(status)
