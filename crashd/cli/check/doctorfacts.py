"""Reads the facts that `doctor` judges: crashd's own here, the host's in edge/host/hostfacts.py.

Reads only below `paths` and `proc`, so that tests can pass their own trees.
"""

import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crashd.base.files import read_space
from crashd.domain.crash.procfs import RLIM_INFINITY
from crashd.domain.host.doctor import (
    PATTERN,
    PIPE_LIMIT,
    SUID_DUMPABLE,
    DaemonFacts,
    HandlerFacts,
    Setting,
    StoreFacts,
)
from crashd.domain.host.doctorhost import Clock, Surroundings
from crashd.edge.host import clock, hostfacts, sysctl
from crashd.errors import CrashdError, FormatError, IndexCorruptError, UnavailableError, reason_of
from crashd.store.handlerfile import find_noexec, is_current
from crashd.store.paths import Paths
from crashd.store.trusted import find_untrusted

SETTINGS = (PATTERN, PIPE_LIMIT, SUID_DUMPABLE)


def read_settings(proc: Path) -> dict[str, Setting]:
    """Read the sysctls that a crash collector sets."""
    found = {}
    is_fixed = _is_read_only(proc / "sys")
    for name in SETTINGS:
        try:
            found[name] = Setting(value=sysctl.read(name, proc), is_fixed=is_fixed)
        except CrashdError as e:
            found[name] = Setting(error=str(e))
    return found


def _is_read_only(directory: Path) -> bool:
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def read_handler(paths: Paths) -> HandlerFacts:
    """Read the state of the handler and of its interpreter."""
    handler = paths.handler
    try:
        status, noexec = handler.lstat(), find_noexec(handler.parent)
    except OSError as e:
        return HandlerFacts(str(handler), error=reason_of(e), interpreter=None)
    first = hostfacts.read_small(handler).split(b"\n", 1)[0]
    if first.startswith(b"\x7fELF"):  # the native handler falls back to the Python one
        first = hostfacts.read_small(paths.handler_fallback).split(b"\n", 1)[0]
    words = first[2:].split() if first.startswith(b"#!") else []
    interpreter = os.fsdecode(words[0]) if words else None
    return HandlerFacts(
        path=str(handler),
        regular=stat.S_ISREG(status.st_mode),
        distrust=find_untrusted(handler),
        noexec=noexec,
        executable=bool(status.st_mode & stat.S_IXUSR),
        current=is_current(paths),
        interpreter=interpreter,
        interpreter_runs=interpreter is not None
        and os.path.isfile(interpreter)
        and os.access(interpreter, os.X_OK),
    )


def read_daemon(paths: Paths, ask: Callable[[], dict[str, Any]]) -> DaemonFacts:
    """Ask the daemon for its status, and read the configuration as the daemon does."""
    from crashd.configuration import files as configfiles

    status, error = None, None
    try:
        status = ask()
    except (UnavailableError, FormatError) as e:
        error = str(e)
    try:
        capture = configfiles.load(paths).capture
        files = tuple(map(str, configfiles.find_files(paths)))
    except CrashdError as e:
        return DaemonFacts(status, error, config_error=str(e).split("\n")[0])
    return DaemonFacts(
        status,
        error,
        config_files=files,
        capture_mode=capture.mode,
        honours_limits=capture.rlimit == "honour",
    )


def read_store(paths: Paths, now_ns: int) -> StoreFacts:
    """Read the state of the state directory, its file system, the spool and the index."""
    directory = paths.state_dir
    try:
        status = directory.lstat()
        space = read_space(directory)
    except OSError as e:
        found: dict[str, Any] = {
            "error": reason_of(e),
            "index_error": f"{directory}: {reason_of(e)}",
        }
        return StoreFacts(str(directory), index_hint="systemctl start crashd", **found)
    foreign = os.geteuid() == 0 and status.st_uid != 0
    waiting, bad, spool_error = _spool(paths, now_ns)
    seen = os.access(directory, os.R_OK | os.X_OK, effective_ids=True)
    count, index_error, hint = _index(paths) if seen else (0, None, None)
    return StoreFacts(
        path=str(directory),
        is_directory=stat.S_ISDIR(status.st_mode),
        foreign_owner=status.st_uid if foreign else None,
        mode=stat.S_IMODE(status.st_mode),
        free_bytes=space.free_bytes,
        total_bytes=space.total_bytes,
        free_inodes=space.free_inodes if space.total_inodes else None,
        spool_path=str(paths.spool),
        spool_waiting=waiting,
        spool_bad=bad,
        spool_error=spool_error,
        index_path=str(paths.index),
        index_wal_bytes=_alarming_wal(paths) if seen else 0,
        index_count=count,
        index_error=index_error,
        index_hint=hint,
        index_seen=seen,
    )


def _spool(paths: Paths, now_ns: int) -> tuple[int, int, str | None]:
    from crashd.store.spool import ready_names

    try:
        waiting = ready_names(paths, now_ns)
        bad = [name for name in os.listdir(paths.spool) if name.endswith(".bad")]
    except (OSError, UnavailableError) as e:
        return 0, 0, str(e)
    return len(waiting), len(bad), None


def _index(paths: Paths) -> tuple[int, str | None, str | None]:
    from crashd.store.index import Index

    if not paths.index.exists():
        return 0, "does not exist", "systemctl start crashd, or crashctl reindex"
    try:
        with Index.open(paths.index, readonly=True) as index:
            return sum(entries for entries, _ in index.usage().values()), None, None
    except IndexCorruptError as e:
        return 0, str(e), "crashctl reindex"
    except UnavailableError as e:
        return 0, str(e), e.hint


def _alarming_wal(paths: Paths) -> int:
    from crashd.store.indexfile import WAL_ALARM_BYTES, wal_bytes

    size = wal_bytes(paths.index)
    return size if size >= WAL_ALARM_BYTES else 0


def read_surroundings(paths: Paths, proc: Path, now_ns: int) -> Surroundings:
    """Read what matters of the host around crashd."""
    services, left = hostfacts.read_services(paths.root, proc)
    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    return Surroundings(
        features=hostfacts.read_features(proc),
        journal=hostfacts.read_journal(paths.root),
        clock=_clock(paths, now_ns),
        shell_limit=RLIM_INFINITY if soft == resource.RLIM_INFINITY else soft,
        boot=hostfacts.read_boot_settings(paths.root, SETTINGS),
        collectors=hostfacts.read_collectors(paths.root),
        cleaners=hostfacts.read_cleaners(paths.root, (paths.state_dir, paths.kernel_dumps)),
        services=services,
        processes_left=left,
    )


def _clock(paths: Paths, now_ns: int) -> Clock:
    from crashd.store.index import Index

    newest_ns, newest = int(os.stat(__file__).st_mtime_ns), "crashd's own files"
    try:
        with Index.open(paths.index, readonly=True) as index:
            crash_ns = max(index.totals().last_ns.values(), default=0)
    except CrashdError:
        crash_ns = 0  # another check reports an unreadable index
    if crash_ns > newest_ns:
        newest_ns, newest = crash_ns, "the newest crash"
    return Clock(now_ns, newest_ns, newest, clock.read_synchronized())
