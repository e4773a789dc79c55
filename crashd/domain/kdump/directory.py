"""Directories of kernel dumps, recognised by name: their maker, their time, and each file's role.

    maker        directory                            dump                 log
    kdump-tools  [HOST-]YYYYmmddHHMM                  dump.STAMP[.gz …]    dmesg.STAMP
                                                      vmcore.STAMP
    SONiC        YYYYmmddHHMM                         kdump.STAMP          dmesg.STAMP
    kdump-utils  HOST-YYYY-mm-dd-HH:MM:SS             vmcore[.flat]        vmcore-dmesg.txt
    SUSE         [HOST-]YYYY-mm-dd-HH-MM (or HH:MM)   vmcore               dmesg[.txt]

Names prove nothing (vmcore.judge looks inside), and /var/crash may be writable by everyone. What
does not belong to root alone goes to `faults`; a directory with faults is never counted and never
deleted. Nothing here touches a file.

Source: kdump-config of kdump-tools 1.8.1, dracut/99kdumpbase/kdump.sh of kdump-utils,
dracut/kdump-save of SUSE's kdump 2, SONiC-kdump.md.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from stat import S_IFMT, S_ISDIR, S_ISREG
from typing import Final

from crashd.domain.text import printable

FILES_MAX: Final = 256
"""At most this many files of a dump directory are examined; no maker writes more than ten."""
FAULTS_MAX: Final = 8
ROOT_ONLY: Final = frozenset({0})
_WRITTEN_WITHIN_NS: Final = 3600 * 10**9

_EXTENSION = rb"(?:\.(?:gz|bz2|xz|lz4|zst))?"
_HOST = rb"(?P<host>[0-9A-Za-z_][0-9A-Za-z._:%-]{0,252})"
_STAMP = rb"\d{12}"

_NEVER_TOUCHED = re.compile(rb"kexec_cmd|kdump_lock|kernel_link|lost\+found|.*\.crash", re.DOTALL)
_README_UNFINISHED = b"If you see this text the crash dump is likely incomplete"


CAPTURE_LOG: Final = b"kexec-dmesg.log"


class Maker(StrEnum):
    """The tool that saved the dump."""

    KDUMP_TOOLS = "kdump-tools"
    KDUMP_UTILS = "kdump-utils"
    SUSE = "suse-kdump"
    SONIC = "sonic"


class Role(StrEnum):
    """The role of a file in a dump directory."""

    DUMP = "dump"
    LOG = "log"
    UNFINISHED_DUMP = "unfinished dump"
    UNFINISHED_LOG = "unfinished log"
    OTHER = "other"
    """Written by the maker, but neither dump nor log: README.txt, the capture kernel's own log …"""


_DIRECTORIES = (
    (Maker.KDUMP_TOOLS, re.compile(rb"(?:" + _HOST + rb"-)?(?P<stamp>\d{12})"), ("%Y%m%d%H%M",)),
    (
        Maker.KDUMP_UTILS,
        re.compile(_HOST + rb"-(?P<stamp>\d{4}([-.])\d\d\3\d\d-\d\d:\d\d:\d\d)"),
        ("%Y-%m-%d-%H:%M:%S", "%Y.%m.%d-%H:%M:%S"),  # with dots up to RHEL 6
    ),
    (
        Maker.SUSE,
        re.compile(rb"(?:" + _HOST + rb"-)?(?P<stamp>\d{4}-\d\d-\d\d-\d\d[-:]\d\d)"),
        ("%Y-%m-%d-%H-%M", "%Y-%m-%d-%H:%M"),
    ),
)
_VMCORE = rb"vmcore(?:\.flat)?"
_DEBIAN_FILES = (
    (Role.DUMP, rb"(?:k?dump|vmcore|kdump\.(?:dump|vmcore))\." + _STAMP + _EXTENSION),
    (Role.LOG, rb"(?:kdump\.)?dmesg\." + _STAMP + _EXTENSION),
    (Role.UNFINISHED_DUMP, rb"(?:kdump\.)?(?:k?dump|vmcore)-incomplete" + _EXTENSION),
)
_FILES: dict[Maker, tuple[tuple[Role, bytes], ...]] = {
    Maker.KDUMP_TOOLS: _DEBIAN_FILES,
    Maker.SONIC: _DEBIAN_FILES,
    Maker.KDUMP_UTILS: (
        (Role.DUMP, _VMCORE + rb"(?:[.-]?\d{1,3})?" + _EXTENSION),
        (Role.LOG, rb"vmcore-dmesg\.txt"),
        (Role.UNFINISHED_DUMP, rb"vmcore(?:\.flat|-flat)?-incomplete" + _EXTENSION),
        (Role.UNFINISHED_LOG, rb"vmcore-dmesg-incomplete\.txt"),
        (Role.OTHER, rb"kexec-dmesg\.log|opalcore(?:-incomplete)?"),
    ),
    Maker.SUSE: (
        (Role.DUMP, _VMCORE + rb"\d{0,3}" + _EXTENSION),
        (Role.LOG, rb"dmesg(?:\.txt)?"),
        (Role.OTHER, rb"README\.txt|rearrange\.sh|makedumpfile-R\.pl"),
        (Role.OTHER, rb"(?:vmlinu[xz]|Image|System\.map)-[\w.+~-]{1,200}"),
    ),
}
_ROLES = {
    maker: tuple((role, re.compile(pattern)) for role, pattern in files)
    for maker, files in _FILES.items()
}


@dataclass(frozen=True, slots=True)
class DumpFile:
    """A directory entry as fstatat(2) returns it without following links."""

    name: bytes
    mode: int
    """st_mode, including the file type."""
    uid: int = 0
    nlink: int = 1
    size_bytes: int = 0
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class DumpDirectory:
    """A directory with the name of a dump's directory, and its contents."""

    name: bytes
    maker: Maker
    host: str | None
    """Name or address that the maker put before the stamp; None: this host."""
    stamp: str
    """The time in the name, by the capture kernel's clock and zone."""
    stamp_ns: int
    """The same in ns since the epoch. The zone is recorded nowhere: this host's is assumed, or UTC
    if the files' times show that."""
    dump: bytes | None = None
    """File name; if there are several, the one written last."""
    log: bytes | None = None
    parts: tuple[bytes, ...] = ()
    """All files with the name of a finished dump, in name order."""
    unfinished: bool = False
    """The maker has not given the dump its final name, or there is no dump."""
    log_unfinished: bool = False
    shared: bool = False
    """An unfinished dump lies beside a finished one: two panics in one minute."""
    readme: bytes | None = None
    """SUSE's README.txt: readme_is_unfinished() says whether the dump is being written."""
    capture_log: bytes | None = None
    """kexec-dmesg.log: messages of the capture kernel itself and of makedumpfile."""
    size_bytes: int = 0
    changed_ns: int = 0
    """When it was last written to."""
    world_readable: bool = False
    """Kernel memory that every user may read."""
    log_world_readable: bool = False
    """A kernel's log that every user may read, whatever dmesg_restrict says."""
    known: tuple[bytes, ...] = ()
    """Files that a maker puts there; they go when the dump is deleted."""
    unknown: tuple[bytes, ...] = ()
    """Files that no maker puts there."""
    faults: tuple[str, ...] = ()
    """Reasons not to trust it, a line each: planted, or owned by another user."""


def is_never_touched(name: bytes) -> bool:
    """Return whether an entry beside the dumps belongs to the makers or to Apport."""
    return _NEVER_TOUCHED.fullmatch(name) is not None


def parse_directory_name(name: bytes) -> tuple[Maker, str | None, str, int] | None:
    """Parse maker, host, stamp and its time (ns) from a name; None if it is not a dump's."""
    if is_never_touched(name):
        return None
    for maker, pattern, formats in _DIRECTORIES:
        found = pattern.fullmatch(name)
        if found is None:
            continue
        stamp = found["stamp"].decode("ascii")
        time_ns = _parse_stamp(stamp, formats)
        if time_ns is None:
            return None
        host = found["host"]
        own = host is None or host in (b"127.0.0.1", b"::1", b"localhost")
        return maker, None if own else host.decode("ascii"), stamp, time_ns
    return None


def _parse_stamp(stamp: str, formats: Iterable[str]) -> int | None:
    for form in formats:
        try:
            time = datetime.strptime(stamp, form).replace(tzinfo=UTC)
        except ValueError:
            continue
        return int(time.timestamp()) * 10**9
    return None


def _place_stamp(utc_ns: int, changed_ns: int) -> int:
    """Return the time of a stamp, given its time as UTC and the time when the files were written.

    kdump-tools runs in the whole system, with its zone; an initramfs may have no zone. Files are
    written within minutes of the stamp, unless they were copied since.
    """
    utc = datetime.fromtimestamp(utc_ns // 10**9, UTC)
    local_ns = int(utc.replace(tzinfo=None).timestamp()) * 10**9
    nearer_ns = min((local_ns, utc_ns), key=lambda ns: abs(changed_ns - ns))
    return nearer_ns if abs(changed_ns - nearer_ns) < _WRITTEN_WITHIN_NS else local_ns


def readme_is_unfinished(text: bytes) -> bool:
    """Return whether SUSE's README.txt says that its dump is not (or not yet) complete."""
    return _README_UNFINISHED in text[:4096]


def classify(
    directory: DumpFile, files: Sequence[DumpFile], *, trusted_uids: frozenset[int] = ROOT_ONLY
) -> DumpDirectory | None:
    """Classify a directory below /var/crash; None when it is not a dump's.

    An empty one counts, because every maker makes the directory first. A link or a file with such a
    name counts too, with its fault.
    """
    named = parse_directory_name(directory.name)
    if named is None:
        return None
    maker, host, stamp, stamp_ns = named
    if maker is Maker.KDUMP_TOOLS and any(f.name.startswith(b"kdump.") for f in files[:FILES_MAX]):
        maker = Maker.SONIC
    faults = _entry_faults(directory, trusted_uids, directory=True)
    if len(files) > FILES_MAX:
        faults.append(f"{len(files)} files, no dump has more than {FILES_MAX}")
    by_role, unknown = _sort_files(maker, files[:FILES_MAX], trusted_uids, faults)
    known = [file for role in Role for file in by_role[role]]
    if files and not known and not faults:
        return None
    finished, unfinished = by_role[Role.DUMP], by_role[Role.UNFINISHED_DUMP]
    dump = _newest(finished or unfinished)
    log = _newest(by_role[Role.LOG] or by_role[Role.UNFINISHED_LOG])
    changed_ns = max([directory.mtime_ns, *(file.mtime_ns for file in known)])
    return DumpDirectory(
        name=directory.name,
        maker=maker,
        host=host,
        stamp=stamp,
        stamp_ns=_place_stamp(stamp_ns, changed_ns),
        dump=dump.name if dump else None,
        log=log.name if log else None,
        parts=tuple(file.name for file in finished),
        unfinished=not finished,
        log_unfinished=bool(by_role[Role.UNFINISHED_LOG]) and not by_role[Role.LOG],
        shared=bool(finished and unfinished),
        readme=next((f.name for f in by_role[Role.OTHER] if f.name == b"README.txt"), None),
        capture_log=next((f.name for f in by_role[Role.OTHER] if f.name == CAPTURE_LOG), None),
        size_bytes=sum(file.size_bytes for file in known),
        changed_ns=changed_ns,
        world_readable=_is_open(directory, [*finished, *unfinished]),
        log_world_readable=_is_open(directory, [*by_role[Role.LOG], *by_role[Role.UNFINISHED_LOG]]),
        known=tuple(file.name for file in known),
        unknown=unknown,
        faults=tuple(faults[:FAULTS_MAX]),
    )


def _is_open(directory: DumpFile, files: Iterable[DumpFile]) -> bool:
    """Return whether every user may read one of the files."""
    return bool(directory.mode & 0o001) and any(file.mode & 0o004 for file in files)


def _sort_files(
    maker: Maker, files: Sequence[DumpFile], trusted_uids: frozenset[int], faults: list[str]
) -> tuple[dict[Role, list[DumpFile]], tuple[bytes, ...]]:
    """Sort the files by role, and list those without one; add what is wrong to `faults`."""
    by_role: dict[Role, list[DumpFile]] = {role: [] for role in Role}
    unknown: list[bytes] = []
    for file in sorted(files, key=lambda f: f.name):
        role = _role_of(maker, file.name)
        if role is None:
            unknown.append(file.name)
            continue
        faults += _entry_faults(file, trusted_uids)
        # A link, a FIFO or a device is never listed as something to read.
        if S_ISREG(file.mode):
            by_role[role].append(file)
    return by_role, tuple(unknown)


def _role_of(maker: Maker, name: bytes) -> Role | None:
    return next((role for role, pattern in _ROLES[maker] if pattern.fullmatch(name)), None)


def _newest(files: Sequence[DumpFile]) -> DumpFile | None:
    return max(files, key=lambda f: (f.mtime_ns, f.size_bytes, f.name), default=None)


def _entry_faults(
    entry: DumpFile, trusted_uids: frozenset[int], *, directory: bool = False
) -> list[str]:
    """Return why an entry cannot have been made by root's kdump alone (SECURITY B3)."""
    what = printable(entry.name[:64])
    if not (S_ISDIR if directory else S_ISREG)(entry.mode):
        return [f"{what} is {_TYPES.get(S_IFMT(entry.mode), 'of an unknown type')}"]
    faults = []
    if entry.uid not in trusted_uids:
        faults.append(f"{what} belongs to uid {entry.uid}")
    if entry.mode & 0o022:
        faults.append(f"{what} is writable by others")
    if not directory and entry.nlink != 1:
        faults.append(f"{what} has {entry.nlink} hard links")
    return faults


_TYPES = {
    0o010000: "a FIFO",
    0o020000: "a character device",
    0o040000: "a directory",
    0o060000: "a block device",
    0o100000: "a file",
    0o120000: "a symbolic link",
    0o140000: "a socket",
}
