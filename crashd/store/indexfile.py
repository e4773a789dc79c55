"""The index's file: how it is opened, kept private and set aside, and what SQLite's errors mean.

WAL with synchronous=FULL: what was put survives a power cut, and readers never wait for the writer.
index.py holds Index, the file's content.
"""

from __future__ import annotations

import _sqlite3 as sqlite3  # without what sqlite3 adds for dates, which takes as long again
import os
import time

from crashd.domain.text import printable
from crashd.errors import CrashdError, IndexCorruptError, UnavailableError, UsageError

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from pathlib import Path

    AnyPath = str | Path

BUSY_SECONDS = 5.0
WAL_BYTES = 16 << 20
"""The WAL shrinks to this once no reader needs more of it."""
PAGE_BYTES = 8192
"""Rows have about 1 KiB; a quarter of each smaller page would stay empty."""
WAL_PAGES = 500
"""A commit tries to write the WAL back once it has this many pages."""
_PLAIN = frozenset("/-_.ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
COMPANIONS = ("-wal", "-shm")
_TEMPORARY = "PRAGMA temp_store = MEMORY"
"""Without this, a statement that can fail half-way, as every put can, copies rows to a file in
/var/tmp: outside the root, and on a disk that may be full or missing.
"""


# -- opening ---------------------------------------------------------------------------------------


def make_private(path: Path) -> None:
    """Create the file if it is missing, and make it unreadable for other users.

    An existing file is never opened here: closing it would drop the POSIX locks of every
    connection that this process has to it, and another process could then remove the WAL under us
    (SQLite, "How To Corrupt", 2.2).
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        for name in (path, *(path.with_name(path.name + suffix) for suffix in COMPANIONS)):
            try:
                if os.stat(name, follow_symlinks=False).st_mode & 0o077:
                    os.chmod(name, 0o600)
            except FileNotFoundError:
                continue


def connect(path: Path) -> sqlite3.Connection:
    """Open the file for reading and writing; the caller owns the connection."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # for a new file
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        connection.execute(_TEMPORARY)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_readonly(path: AnyPath) -> sqlite3.Connection:
    """Open the file for reading, also on a read-only disk; the caller owns the connection."""
    uri = f"file://{_quoted(path)}"
    connection = sqlite3.connect(
        f"{uri}?mode=ro", timeout=BUSY_SECONDS, isolation_level=None, uri=True
    )
    try:
        connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.OperationalError as e:
        connection.close()
        # On a read-only file system WAL's -shm cannot be made, and nothing can be writing either.
        # Anywhere else, `immutable` would read past the locks and the WAL of an active writer.
        unwritable = e.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        if not (unwritable and os.statvfs(path).f_flag & os.ST_RDONLY):
            raise
        connection = sqlite3.connect(f"{uri}?immutable=1", isolation_level=None, uri=True)
    except BaseException:
        connection.close()
        raise
    connection.execute(_TEMPORARY)
    return connection


# -- the whole file --------------------------------------------------------------------------------


def _quoted(path: AnyPath) -> str:
    """Make a path absolute, and escape what means something in a URI.

    Not by urllib.parse or Path.as_uri(), which import what takes as long as reading a listing.
    """
    raw = os.fsencode(path if os.path.isabs(path) else os.path.join(os.getcwd(), path))
    return "".join(chr(byte) if chr(byte) in _PLAIN else f"%{byte:02X}" for byte in raw)


WAL_ALARM_BYTES = 64 << 20
"""A WAL grows to this only if a reader does not end; those of crashctl take milliseconds."""


def wal_bytes(path: Path) -> int:
    """Return the size of the index's WAL. It grows as long as a reader has a transaction open,
    because nothing can be written back until that ends.
    """
    try:
        return os.stat(path.with_name(path.name + "-wal")).st_size
    except FileNotFoundError:
        return 0


def set_index_aside(path: Path) -> str:
    """Rename an index that cannot be read, so that a new one can be made; return its new name."""
    aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
    os.rename(path, aside)
    for suffix in COMPANIONS:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return aside.name


def remove_index(path: Path) -> None:
    """Remove the file and its companions; a missing one is not an error."""
    for name in ("", *COMPANIONS):  # the file before its WAL: without that it would be damaged
        path.with_name(path.name + name).unlink(missing_ok=True)


# -- errors ----------------------------------------------------------------------------------------


class guard:
    """Turn SQLite's errors, and rows that are not ours, into our errors, in a `with` block.

    A class, because crashctl loads this at each call, and contextlib takes as long as a query.
    """

    __slots__ = ("_path",)

    def __init__(self, path: AnyPath) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (UnicodeDecodeError, sqlite3.DatabaseError)):
            raise _meant(self._path, error) from error


def _meant(path: AnyPath, error: UnicodeDecodeError | sqlite3.DatabaseError) -> CrashdError:
    """Return our error for one of SQLite's."""
    if isinstance(error, UnicodeDecodeError):
        return damaged(path, "a text is not what crashd wrote")
    if not isinstance(error, sqlite3.OperationalError):
        return damaged(path, _told(error))
    if "no such" in str(error):
        return IndexCorruptError(f"the index {path} is not crashd's: {_told(error)}")
    if "malformed JSON" in str(error):
        return damaged(path)
    if "decode to UTF-8" in str(error):  # the rest of the message is the bytes themselves
        return damaged(path, "a text is not UTF-8")
    if "user-defined function" in str(error):  # selection.py has only one, which only times out
        return UsageError("the pattern takes too long", hint="use fewer asterisks")
    return UnavailableError(f"the index {path} is not available: {_told(error)}")


def damaged(path: AnyPath, why: str = "a row is not what crashd wrote") -> IndexCorruptError:
    """Build the error for a damaged index."""
    return IndexCorruptError(
        f"the index {path} is damaged: {why}", hint="crashctl reindex rebuilds it from the store"
    )


def _told(error: sqlite3.Error) -> str:
    """Quote SQLite's message, which quotes the file."""
    return printable(str(error))[:200]
