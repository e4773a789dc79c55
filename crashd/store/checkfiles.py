"""What `crashctl verify` finds wrong with files, whatever they contain, and with files beside the
entries: in the state directory and in the spool. It reads, and changes nothing.
"""

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crashd.corehandler import LIMITS_NAME, PROC_FILES, PROC_LINKS
from crashd.store import spool
from crashd.store.indexfile import COMPANIONS
from crashd.store.keptfiles import is_file_name
from crashd.store.paths import Paths

SPOOL_PATIENCE_NS: Final = 120 * 10**9
"""A running daemon looks into the spool at least once a minute."""
_IN_SPOOL: Final = frozenset({"meta", "core", "done", *(f"proc.{n}" for n in PROC_LINKS)}) | {
    f"proc.{name}" for name in PROC_FILES
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `verify` found wrong."""

    kind: str
    """A short, stable word: `no-row`, `no-entry`, `row-differs`, `bad-record`, `no-core`, …"""
    subject: str
    """The crash's id, or the name of a file."""
    text: str


# -- one file --------------------------------------------------------------------------------------


def find_open(path: Path) -> Iterator[Finding]:
    """Check that others cannot read or change a path that must be private."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return  # SQLite creates and removes its companion files
    if status.st_uid != os.geteuid():
        yield Finding("wrong-owner", str(path), f"belongs to uid {status.st_uid}")
    if stat.S_IMODE(status.st_mode) & 0o077:
        yield Finding("not-private", str(path), f"has the mode {stat.S_IMODE(status.st_mode):o}")


def find_odd(
    path: Path,
    subject: str,
    name: str,
    *,
    directory: int | None = None,
    private: bool = True,
    shared: bool = False,
) -> Iterator[Finding]:
    """Check that a file is regular, has one name (unless `shared`) and, with `private`, belongs to
    us alone.
    """
    try:
        status = os.stat(path, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        yield Finding("odd-file", subject, f"{name!r} is not a regular file")
    elif status.st_nlink != 1 and not shared:
        yield Finding("odd-file", subject, f"{name!r} has {status.st_nlink} names")
    elif private:
        yield from _ownership(status, subject, name)


def _ownership(status: os.stat_result, subject: str, name: str) -> Iterator[Finding]:
    if status.st_uid != os.geteuid():
        yield Finding("wrong-owner", subject, f"{name!r} belongs to uid {status.st_uid}")
    if stat.S_IMODE(status.st_mode) & 0o077:
        yield Finding("not-private", subject, f"{name!r} has mode {status.st_mode & 0o7777:o}")


def _of_directory(path: Path, *, private: bool) -> Iterator[Finding]:
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        yield Finding("odd-file", path.name, "is not a directory")
    elif private:
        yield from _ownership(status, path.name, path.name)


# -- beside the entries ----------------------------------------------------------------------------


def look_at_state_directory(paths: Paths) -> Iterator[Finding]:
    """Find what does not belong in the state directory, or is not as it should be."""
    directories = {paths.crashes.name, paths.spool.name}
    states = {p.name for p in (paths.limiter_state, paths.kernel_log_state, paths.pstore_state)}
    indexes = {paths.index.name, *(paths.index.name + suffix for suffix in COMPANIONS)}
    previous = paths.previous_core_pattern.name
    others = {previous, paths.pending_deletions.name}
    for name in sorted(os.listdir(paths.state_dir)):
        path = paths.state_dir / name
        if name == "lost+found" and paths.state_dir.is_mount():
            continue  # the file system's own
        if name in directories:
            yield from _of_directory(path, private=name == paths.spool.name)
        elif name in indexes:
            yield from find_odd(path, name, name, private=False)  # `findings` checks the index too
        elif name in states or name in others:
            yield from find_odd(path, name, name)
        elif name.removesuffix(".new") in states or name.startswith(f".{previous}."):
            yield Finding("leftover", name, "was left by a writer that died")
        elif name.startswith(paths.index.name + ".corrupt-"):
            text = "is an index that could not be read; delete it when it is no longer needed"
            yield Finding("set-aside", name, text)
        else:
            yield Finding("unknown-file", name, "is no file of crashd's")


def look_at_kept_files(paths: Paths) -> Iterator[Finding]:
    """Find what does not belong among the files that are kept for crashes."""
    try:
        names = sorted(os.listdir(paths.kept_files))
    except FileNotFoundError:
        return
    yield from _of_directory(paths.kept_files, private=True)
    for name in names:
        subject = f"{paths.kept_files.name}/{name}"
        if is_file_name(name):
            yield from find_odd(paths.kept_files / name, subject, name, shared=True)
        else:
            yield Finding("unknown-file", subject, "is no file of crashd's")


def look_at_spool(paths: Paths, *, live: bool) -> Iterator[Finding]:
    """Find what does not belong in the spool, or has waited too long there; `live` says whether a
    daemon runs that should take it in.
    """
    try:
        names = sorted(os.listdir(paths.spool))
    except FileNotFoundError:
        return
    ready = set(spool.ready_names(paths, time.time_ns()))
    for name in names:
        subject = f"{paths.spool.name}/{name}"
        if name == LIMITS_NAME:
            yield from find_odd(paths.spool / name, subject, name)
        elif name == f".{LIMITS_NAME}.new":
            yield Finding("leftover", subject, "was left by a writer that died")
        elif name.endswith(".bad") and spool.is_entry_name(name.removesuffix(".bad")):
            yield Finding("spool-bad", subject, "could not be understood; crashd keeps it")
        elif not spool.is_entry_name(name):
            yield Finding("unknown-file", subject, "is no file of crashd's")
        elif name in ready:
            yield from _of_waiting(paths.spool / name, subject, live=live)


def _of_waiting(directory: Path, subject: str, *, live: bool) -> Iterator[Finding]:
    try:
        age_ns = time.time_ns() - directory.lstat().st_mtime_ns
        unknown = sorted(set(os.listdir(directory)) - _IN_SPOOL)
    except FileNotFoundError:
        return  # taken in meanwhile
    except NotADirectoryError:
        yield Finding("odd-file", subject, "is not a directory")
        return
    if not live:
        yield Finding("spooled", subject, "waits for crashd to run and take it in")
    elif age_ns > SPOOL_PATIENCE_NS:
        text = f"has not been taken in by the running crashd for {age_ns // 10**9} seconds"
        yield Finding("spooled", subject, text)
    for odd in unknown:
        yield Finding("unknown-file", f"{subject}/{odd}", "is nothing that the handler writes")
