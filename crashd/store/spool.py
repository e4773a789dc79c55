"""The spool: crashes that the handler kept itself; corehandler.py draws and writes the layout.

spool/limits                           what the handler may keep, from the configuration
spool/<ns>-<pid>-<rand>-<user>.tmp/    being written, or left by a handler that died
spool/<ns>-<pid>-<rand>-<user>/        finished: to be taken in; an older handler names no user
spool/<...>.bad/                       could not be understood; kept for a human, never read again
"""

import functools
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from crashd.base.files import DIRECTORY, NotRegularError, open_regular, read_file, replace_file
from crashd.corehandler import (
    LIMITS_NAME,
    PROC_FILES,
    PROC_LINKS,
    SPOOL_DEADLINE_SECONDS,
    VALUE_MAX,
    pack,
)
from crashd.domain.crash.coremeta import parse_fields
from crashd.domain.crash.model import Engine
from crashd.errors import FormatError, UnavailableError, reason_of
from crashd.store.paths import Paths

_NAME = re.compile(r"(\d{10,20})-(\d{1,10})-[0-9a-f]{8}(?:-(\d{1,10}|-))?(\.tmp)?", re.ASCII)
_META_MAX = 1 << 18
DIED = "the handler died while spooling"
"""Why a core may be incomplete. It can also be complete, if only the last sync was missing."""
ASIDE_MAX = 20
"""Spooled crashes kept although they are not valid: a user who can make one can make many."""
_HANDLER_COMMS = (b"crashd-core\n", b"crashd-core.py\n")


def write_limits(
    paths: Paths,
    *,
    max_core: int | None,
    keep_free: int,
    honour_rlimit: bool,
    program: Path | None = None,
) -> None:
    """Write the limits (bytes) for what the handler may keep itself, because it reads no
    configuration, and the interpreter that reads a process's memory for it (see
    corehandler.copy_memory).
    """
    fields = {
        "max_core": b"%d" % (max_core if max_core is not None else 1 << 62),
        "keep_free": b"%d" % keep_free,
        "honour_rlimit": b"%d" % honour_rlimit,
    }
    if program is not None:
        fields["program"] = os.fsencode(program)
    staged = paths.spool / f".{LIMITS_NAME}.new"
    replace_file(paths.spool / LIMITS_NAME, pack(fields), staged=staged)


def ready_names(paths: Paths, now_ns: int) -> list[str]:
    """List spooled crashes to take in: finished ones, and those whose handler died. Oldest first,
    but users take turns, so that no user waits for all of another's crashes.
    """
    names: list[tuple[int, str, str | None]] = []
    try:
        found = os.listdir(paths.spool)
    except FileNotFoundError:
        return []
    except OSError as e:
        raise UnavailableError(f"cannot read {paths.spool}: {reason_of(e)}") from e
    for name in found:
        match = _NAME.fullmatch(name)
        if match and (not match[4] or _abandoned(int(match[1]), int(match[2]), now_ns)):
            names.append((int(match[1]), name, match[3]))
    before: Counter[str | None] = Counter()
    turns = []
    for started_ns, name, user in sorted(names, key=lambda found: found[:2]):
        turns.append((before[user], started_ns, name))
        before[user] += 1
    return [name for *_, name in sorted(turns)]


def stored_bytes(paths: Paths, user: int | None = None) -> int:
    """Return the disk space of spooled cores that wait to be taken in: of all users, or of one."""
    try:
        names = os.listdir(paths.spool)
    except OSError:
        return 0
    found = ((name, _NAME.fullmatch(name)) for name in names)
    wanted = None if user is None else str(user)
    return sum(
        core_bytes(paths, name)
        for name, match in found
        if match and (wanted is None or match[3] == wanted)
    )


def backlog(paths: Paths) -> tuple[int, int]:
    """Return how many crashes wait to be taken in, and the disk space of their cores."""
    try:
        names = [name for name in os.listdir(paths.spool) if is_finished_name(name)]
    except OSError:
        return 0, 0
    return len(names), sum(core_bytes(paths, name) for name in names)


def tokens(paths: Paths) -> set[str]:
    """Return the tokens of all crashes in the spool, including those being written."""
    found: set[str] = set()
    for name in os.listdir(paths.spool):
        if _NAME.fullmatch(name):
            try:
                with SpoolEntry.open(paths, name) as spooled:
                    found.add(spooled.fields().get("token", b"").decode("ascii", "replace"))
            except (OSError, FormatError):
                continue  # not written yet, or removed meanwhile
    return found


def is_entry_name(name: str) -> bool:
    """Return whether a name in the spool is a crash's, finished or not."""
    return _NAME.fullmatch(name) is not None


def is_finished_name(name: str) -> bool:
    """Return whether a name that appeared in the spool is a finished crash's."""
    match = _NAME.fullmatch(name)
    return match is not None and not match[4]


def _abandoned(started_ns: int, pid: int, now_ns: int) -> bool:
    if _is_handler(pid):
        return False  # its own alarm ends it, whatever happened to the wall clock
    age_ns = now_ns - started_ns
    if not 0 <= age_ns < (SPOOL_DEADLINE_SECONDS + 30) * 10**9:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _is_handler(pid: int) -> bool:
    """Return whether a process is a handler. A script's comm is its file name, proc(5)."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read(64) in _HANDLER_COMMS
    except OSError:
        return False


class SpoolEntry:
    """One spooled crash; owns the descriptor of its directory."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd

    @classmethod
    def open(cls, paths: Paths, name: str) -> "SpoolEntry":
        """Open by a name that `ready_names` returned."""
        return cls(name, os.open(paths.spool / name, DIRECTORY))

    def __enter__(self) -> "SpoolEntry":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _read(self, name: str, limit: int) -> bytes | None:
        try:
            return read_file(name, limit, dir_fd=self.fd)
        except (FileNotFoundError, NotRegularError):
            return None

    def fields(self) -> dict[str, bytes]:
        """Read the handler's fields.

        Raises:
            FormatError: they are missing or malformed.

        """
        raw = self._read("meta", _META_MAX)
        if raw is None:
            raise FormatError(f"spooled crash {self.name} has no meta")
        return parse_fields(raw)

    def ending(self) -> str | None:
        """Return why the core is incomplete; None when it is complete."""
        if self._done is None:
            return DIED
        return self._done.get("reason", b"").decode("utf-8", "backslashreplace") or None

    def engine(self) -> Engine:
        """Return how the handler read the core; a handler that died had begun with the stream."""
        engine = (self._done or {}).get("engine")
        return Engine.MEMORY if engine == b"memory" else Engine.STREAM

    @functools.cached_property
    def _done(self) -> dict[str, bytes] | None:
        """How the copy ended; it is written once, before the entry gets its name."""
        raw = self._read("done", VALUE_MAX)
        try:
            return None if raw is None else parse_fields(raw)
        except FormatError:
            return None

    def snapshot(self) -> Mapping[str, bytes]:
        """Read the raw copies that the handler made of /proc."""
        found: dict[str, bytes] = {}
        for name in (*PROC_LINKS, *PROC_FILES):
            raw = self._read("proc." + name, PROC_FILES.get(name, VALUE_MAX))
            if raw is not None:
                found[name] = raw
        return found

    def open_core(self) -> int | None:
        """Open the spooled core; None without one. The caller owns the descriptor."""
        try:
            return open_regular("core", dir_fd=self.fd)
        except (FileNotFoundError, NotRegularError):
            return None


def core_bytes(paths: Paths, name: str) -> int:
    """Return the disk space of a spooled core; 0 without one."""
    try:
        return os.stat(paths.spool / name / "core", follow_symlinks=False).st_blocks * 512
    except OSError:
        return 0


def remove(paths: Paths, name: str) -> None:
    """Remove a spooled crash that was taken in; it may already be gone."""
    shutil.rmtree(paths.spool / name, ignore_errors=True)


def set_aside(paths: Paths, name: str) -> list[str]:
    """Keep an invalid spooled crash for a human, and never read it again.

    Only the newest ASIDE_MAX such crashes stay; return the names of those removed.
    """
    os.rename(paths.spool / name, paths.spool / f"{name}.bad")
    kept = sorted(found for found in os.listdir(paths.spool) if found.endswith(".bad"))
    gone = kept[:-ASIDE_MAX]  # their names begin with the time
    for found in gone:
        remove(paths, found)
    return gone
