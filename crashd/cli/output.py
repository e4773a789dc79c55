"""Files that crashctl writes for its user: complete or absent, sparse, private."""

import contextlib
import errno
import os
import secrets
import signal
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

from crashd.domain.text import printable
from crashd.errors import CrashdError, UsageError, reason_of

SPARSE_BLOCK = 16 << 10
"""Aligned blocks of zeros of this size become holes in the file."""
_ZEROS = bytes(SPARSE_BLOCK)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write_file(target: Path, chunks: Iterable[bytes], *, force: bool) -> int:
    """Write a sparse file, 0600; return its size. An unfinished file is removed.

    Without `force` the file must not exist. With `force` a regular file or a link is replaced, by
    one rename once the new file is complete.

    Raises:
        UsageError: `target` exists, or must not be replaced.
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
                f"{name} is not a regular file and will not be replaced",
                hint="to write to a pipe or device, use standard output",
            )


def _discard(staged: Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(staged)


def write_sparse(fd: int, chunks: Iterable[bytes]) -> int:
    """Write `chunks` to an empty file, with holes in place of zeros; return the size."""
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
    """Let SIGTERM and SIGHUP unwind the stack, so that unfinished files are removed."""

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
