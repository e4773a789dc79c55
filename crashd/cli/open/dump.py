"""`dump`: the core of one crash as the kernel would have written it."""

import argparse
import contextlib
import errno
import os
import secrets
import signal
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from crashd.cli.context import Context
from crashd.cli.progress import Progress, progress
from crashd.cli.source import Source, newest, open_source
from crashd.domain.text import printable
from crashd.domain.units import format_size
from crashd.errors import CrashdError, FormatError, NotFoundError, UsageError, reason_of
from crashd.store.corefile import read_core
from crashd.store.entry import write_all

SPARSE_BLOCK = 16 << 10
"""Zeros are left out of a file in blocks of this size, aligned in the core."""
_ZEROS = bytes(SPARSE_BLOCK)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_CORE = {
    "capturing": "it is still being captured",
    "metadata-only": "only its metadata was kept",
    "lost": "it was lost",
    "evicted": "it was deleted to make room",
    "missing": "it is gone from the disk",
}


def dump(context: Context, arguments: argparse.Namespace) -> int:
    """Write the core of the newest crash that matches."""
    to_file = arguments.output not in (None, "-")
    if arguments.force and not to_file:
        raise UsageError("dump: --force needs --output FILE")
    if not to_file and os.isatty(1):
        raise UsageError(
            "dump: refusing to write a core to a terminal",
            hint="name a file by --output, or redirect the output",
        )
    source = open_source(context)
    try:
        row = newest(context, source, arguments.match)
        with opened_core(context, source, row) as chunks:
            if to_file:
                target = Path(arguments.output)
                size_bytes = write_file(target, chunks, force=arguments.force)
                context.note(f"{row['id']}: {format_size(size_bytes)} written to {target}")
            else:
                sys.stdout.flush()
                for chunk in chunks:
                    write_all(1, chunk)
    finally:
        source.close()
    return 0


@contextlib.contextmanager
def opened_core(context: Context, source: Source, row: dict[str, Any]) -> Iterator[Iterator[bytes]]:
    """Open the core of a crash for reading, its own bytes in chunks; warn where it is not whole.

    Raises:
        NotFoundError: there is no core; the message says why.

    """
    fd = open_stored(context, source, row)
    try:
        size_bytes = (row.get("core") or {}).get("size_bytes") or 0
        with progress(context, "unpacking", sizes=True) as shown:
            chunks = _checked(read_core(fd, size_bytes or None), row["id"])
            yield _counted(chunks, shown, size_bytes)
    finally:
        os.close(fd)


def open_stored(context: Context, source: Source, row: dict[str, Any]) -> int:
    """Open the stored core of a crash; warn where it is not whole. The caller owns the descriptor.

    Raises:
        NotFoundError: there is no core; the message says why.

    """
    crash_id, core = row["id"], row.get("core") or {}
    reason = (row.get("capture") or {}).get("reason")
    if not core.get("path"):
        limit = (row.get("evicted") or {}).get("reason")
        deleted = f"deleted by retention ({limit})" if limit else None
        why = deleted or reason or _NO_CORE.get(str(row.get("state")), "none was kept")
        raise NotFoundError(f"crash {crash_id} has no core: {printable(str(why))}")
    fd = source.open_core(crash_id)
    if not core.get("complete"):
        context.warn(
            f"the core of {crash_id} is truncated"
            + (f": {printable(str(reason))}" if reason else "")
        )
    return fd


def _counted(chunks: Iterator[bytes], shown: Progress, total: int) -> Iterator[bytes]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        shown(done, total)


def _checked(chunks: Iterator[bytes], crash_id: str) -> Iterator[bytes]:
    try:
        yield from chunks
    except FormatError as e:
        raise FormatError(f"crash {crash_id}: {e}", hint="crashctl verify --deep tells more") from e


def write_file(target: Path, chunks: Iterable[bytes], *, force: bool) -> int:
    """Write a sparse file, 0600; return its size. What could not be finished is removed.

    Without `force` the file must not exist; with it a regular file, or a link, is replaced at once
    when the new one is whole.

    Raises:
        UsageError: `target` exists, or is nothing that may be replaced.
        CrashdError: the disk is full or broken.

    """
    name = printable(os.fsencode(target))
    if force:
        _check_replaceable(target, name)
    staged = target.with_name(f".crashctl-{secrets.token_hex(8)}") if force else target
    try:
        fd = os.open(staged, _CREATE, 0o600)
    except FileExistsError as e:
        raise UsageError(f"{name} exists", hint="--force replaces a regular file") from e
    try:
        with terminable():
            size_bytes = write_sparse(fd, chunks)
            os.fsync(fd)
            if force:
                os.rename(staged, target)
    except OSError as e:
        _discard(staged)
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
            raise CrashdError(f"cannot write {name}: {reason_of(e)}") from e
        raise
    except BaseException:
        _discard(staged)
        raise
    finally:
        os.close(fd)
    return size_bytes


def _check_replaceable(target: Path, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        mode = os.lstat(target).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise UsageError(
                f"{name} is not a regular file and is not replaced",
                hint="for a pipe or device use standard output",
            )


def _discard(staged: Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(staged)


def write_sparse(fd: int, chunks: Iterable[bytes]) -> int:
    """Write `chunks` from the start of an empty file, leaving holes for zeros; return the size."""
    position = 0
    for chunk in chunks:
        view, start, at = memoryview(chunk), 0, 0
        while at < len(chunk):
            end = min(at + SPARSE_BLOCK - (position + at) % SPARSE_BLOCK, len(chunk))
            if chunk[at] == 0 and chunk[at:end] == _ZEROS[: end - at]:
                _write_at(fd, view[start:at], position + start)
                start = end
            at = end
        _write_at(fd, view[start:], position + start)
        position += len(chunk)
    os.ftruncate(fd, position)
    return position


def _write_at(fd: int, data: memoryview, position: int) -> None:
    while data:
        written = os.pwrite(fd, data, position)
        data, position = data[written:], position + written


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, so that what is half-done is removed."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = {
        number: signal.signal(number, leave)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
