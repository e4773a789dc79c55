"""Loans ids: a user id, and a group id of the same number, that nothing else on the host has.

    /run/crashd/ids/60578    locked (flock) while a process has this id; never deleted

A process with the shared id of `nobody` can be killed and traced by every other such process. So
each sandbox, and each debugger that root starts without sudo, borrows an id for its lifetime.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from crashd.errors import CrashdError, reason_of

IDS = range(60578, 61184)
"""Above the ids of accounts and systemd-homed, below those of DynamicUser=: systemd does not use
them (see its document "Users, Groups, UIDs and GIDs"), and a container with 65536 ids maps them."""
DIRECTORY = Path("/run/crashd/ids")
_STATUS_MAX = 16 << 10  # /proc/PID/status with hundreds of groups
_FILE_MAX = 4 << 20


@dataclass(frozen=True, slots=True)
class LoanedId:
    """An id that is ours until the last copy of `fd` is closed; the receiver owns `fd`."""

    number: int
    fd: int


@dataclass(frozen=True, slots=True)
class Places:
    """Where to look up and reserve ids."""

    etc: Path = Path("/etc")
    proc: Path = Path("/proc")
    reserved: Path = DIRECTORY


HOST = Places()


def loan(places: Places = HOST) -> LoanedId:
    """Reserve an id without an account, a subordinate range or a process. Requires root.

    Raises:
        CrashdError: no id is free, or it cannot be reserved.
    """
    try:
        taken = _read_assigned(places.etc)
        directory = _open_directory(places.reserved)
        try:
            start = int.from_bytes(os.urandom(4), "little") % len(IDS)
            # start at random, so that things left by an earlier borrower rarely meet the next one
            for number in (*IDS[start:], *IDS[:start]):
                if number in taken or (fd := _lock(directory, number)) is None:
                    continue
                # checked only now: an earlier borrower may have left a process
                taken |= _read_used(places.proc)
                if number not in taken:
                    return LoanedId(number, fd)
                os.close(fd)
        finally:
            os.close(directory)
    except OSError as e:
        raise CrashdError(f"cannot reserve a user id in {places.reserved}: {reason_of(e)}") from e
    raise CrashdError(f"no free user id between {IDS[0]} and {IDS[-1]}")


def _open_directory(path: Path) -> int:
    for directory, mode in ((path.parent, 0o755), (path, 0o700)):
        with contextlib.suppress(FileExistsError):
            directory.mkdir()
            directory.chmod(mode)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(fd)
        raise CrashdError(f"{path} is not private to root")
    return fd


def _lock(directory: int, number: int) -> int | None:
    """Lock the file of an id; None if another process holds it."""
    # opened read-only, because a sealed process keeps a copy
    flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(str(number), flags, 0o600, dir_fd=directory)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _read_assigned(etc: Path) -> set[int]:
    """Read which of IDS are assigned; reads only files, because a name service may never answer."""
    found: set[int] = set()
    for name, columns in (("passwd", (2, 3)), ("group", (2,))):
        found |= parse_accounts(_read(etc / name, _FILE_MAX), columns)
    for name in ("subuid", "subgid"):
        found |= parse_ranges(_read(etc / name, _FILE_MAX))
    return found


def _read_used(proc: Path) -> set[int]:
    found: set[int] = set()
    for entry in os.scandir(proc):
        if entry.name.isdigit():
            found |= parse_ids(_read(Path(entry.path, "status"), _STATUS_MAX))
    return found


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except (FileNotFoundError, ProcessLookupError):
        return b""


def parse_accounts(raw: bytes, columns: Iterable[int]) -> set[int]:
    """Parse the ids in these columns of passwd(5) or group(5)."""
    lines = [line.split(b":") for line in raw.splitlines()]
    return {
        int(fields[column])
        for fields in lines
        for column in columns
        if column < len(fields) and _is_id(fields[column])
    }


def parse_ranges(raw: bytes) -> set[int]:
    """Parse which of IDS lie in the ranges of subuid(5)."""
    found: set[int] = set()
    for line in raw.splitlines():
        fields = line.split(b":")
        if len(fields) == 3 and _is_id(fields[1]) and _is_id(fields[2]):
            first, count = int(fields[1]), int(fields[2])
            found |= set(range(max(first, IDS.start), min(first + count, IDS.stop)))
    return found


def parse_ids(status: bytes) -> set[int]:
    """Parse all ids of a process in its /proc/PID/status."""
    return set(_ids_of(status))


def _ids_of(status: bytes) -> Iterator[int]:
    for line in status.splitlines():
        key, _, values = line.partition(b":")
        if key in (b"Uid", b"Gid", b"Groups"):
            yield from (int(value) for value in values.split() if _is_id(value))


def _is_id(text: bytes) -> bool:
    return text.isdigit() and len(text) <= 10
