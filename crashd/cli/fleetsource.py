"""Crashes of a fleet: from its index in PostgreSQL, cores from its bucket.

Records are hostile hosts': they are shown by the same model and the same escaping as local ones.
"""

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from crashd.cli.context import Fleet
from crashd.domain.crash.query import Query
from crashd.domain.crash.tally import Tally, Timeline
from crashd.domain.units import format_size
from crashd.edge.fleet.reader import Reader
from crashd.errors import (
    FormatError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    UsageError,
    reason_of,
)
from crashd.fleet.questions import ROWS_MAX, Questions
from crashd.fleet.selection import Scope
from crashd.fleet.settings import check, read_setting

if TYPE_CHECKING:
    from crashd.edge.fleet.bucket import Bucket, Version

PARTS_MAX = 1 << 30
"""Bytes of a stored core that are fetched for a mini core at most: a host writes its seek table."""
NOTED_BYTES = 256 << 20
"""A larger core is announced before it is fetched."""
PART_BYTES = 4 << 20
"""Bytes of one request for a part."""
STATEMENT_SECONDS = 60


class FleetSource:
    """One connection that only reads."""

    opened_mini: bool
    """Whether the core that was opened last is a mini core, smaller than its record says."""

    def __init__(self, fleet: Fleet, note: Callable[[str], None] | None = None) -> None:
        self._fleet = fleet
        self._note = note
        self.db = Reader.connect(fleet.dsn, name="crashctl", timeout_seconds=STATEMENT_SECONDS)
        self.opened_mini = False
        self._core: tuple[str, int] | None = None
        self.scope = Scope(fleet.hosts, fleet.labels)
        self.questions = Questions(self.db, self.scope)

    @classmethod
    def open(cls, fleet: Fleet, note: Callable[[str], None] | None = None) -> "FleetSource":
        """Connect; `note` gets what is to be said before something takes long.

        Raises:
            UnavailableError: the server does not answer, or holds no index of this version.

        """
        source = cls(fleet, note)
        try:
            check(source.db)
        except BaseException:
            source.close()
            raise
        return source

    def select(self, query: Query) -> list[dict[str, Any]]:
        """Return the crashes that match, newest first; at most ROWS_MAX of them."""
        rows = self.questions.select(query)
        if query.limit is None and len(rows) >= ROWS_MAX:
            raise UsageError(
                f"more than {ROWS_MAX} crashes match", hint="ask for fewer: -n, --since, --host"
            )
        return rows

    def top(self, query: Query) -> list[dict[str, Any]]:
        """Count crashes by signature, most frequent first."""
        return self.questions.top(query)

    def info(self, crash_id: str) -> dict[str, Any]:
        """Return everything known about one crash."""
        return self.questions.info(crash_id)

    def tally(self, query: Query, timeline: Timeline) -> Tally:
        """Count crashes by subject, and in `timeline`."""
        return self.questions.tally(query, timeline)

    def add_groups(self, query: Query, found: Tally, limit: int) -> None:
        """Add the most frequent signatures to a tally."""
        self.questions.groups(query, found, limit)

    def open_core(self, crash_id: str) -> int:
        """Fetch the stored core into a private, unnamed file; the caller owns its descriptor.

        With --mini, of a core that is not encrypted only what a mini core needs is fetched. A core
        that was opened last is not fetched again.
        """
        if self._core is None or self._core[0] != crash_id:
            fd = self._fetch_core(crash_id)
            self._forget_core()
            self._core = crash_id, fd
        # not a duplicate, which would share the position
        return os.open(f"/proc/self/fd/{self._core[1]}", os.O_RDONLY | os.O_CLOEXEC)

    def _fetch_core(self, crash_id: str) -> int:
        from crashd.domain.fleet.lines import CoreReason
        from crashd.edge.fleet.bucket import Bucket  # few questions need the bucket

        doc = self.info(crash_id)
        key, files = doc.get("core_object"), doc.get("fleet")
        files = files if isinstance(files, dict) else {}
        if not isinstance(key, str):
            if files.get("reason") == CoreReason.NO_CORE:
                raise NotFoundError(f"crash {crash_id} has no core, or its host not any more")
            texts: dict[str, str] = {
                CoreReason.ENOUGH: ": there are enough of its signature",
                CoreReason.POLICY: ": its configuration sends none ([fleet] cores, kernel_dumps)",
            }
            why = texts.get(str(files.get("reason")), "")
            raise NotFoundError(
                f"the core of {crash_id} is on its host only{why}",
                hint=f"ask for it with crashctl --fleet want {crash_id}",
            )
        self.opened_mini = files.get("mini") is True
        bucket = Bucket.open(read_setting(self.db, "url") or "")
        try:
            return self._fetch(bucket, key, crash_id)
        except NotFoundError as e:
            raise NotFoundError(
                f"the core of {crash_id} has not arrived yet, or its time in the bucket is over",
                hint=f"ask for it with crashctl --fleet want {crash_id}",
            ) from e

    def _fetch(self, bucket: "Bucket", key: str, crash_id: str) -> int:
        """Fetch the object of a core, or what a mini core needs of it; the caller owns the file."""
        is_encrypted, cuts = key.endswith(".age"), self._fleet.mini and not self.opened_mini
        with contextlib.ExitStack() as files:
            fd, fetch = _unnamed_file(files), None
            version = bucket.look(key)
            if cuts and not is_encrypted:
                fetch = _Parts(bucket, version, fd).fetch
            else:  # age has no parts that open alone
                self._check_room(version.size_bytes * (1 + is_encrypted), fd, crash_id)
                if version.size_bytes >= NOTED_BYTES and self._note is not None:
                    size = format_size(version.size_bytes)
                    self._note(f"fetching the core of {crash_id}: {size}")
                bucket.copy_to(version, fd)
            if is_encrypted:
                fd = self._decrypted(fd, crash_id, files)
            if cuts:
                from crashd.store.minicopy import copy_mini

                whole, fd = fd, _unnamed_file(files)
                copy_mini(whole, fd, fetch)
                self.opened_mini = True
            return os.dup(fd)

    def _check_room(self, size_bytes: int, fd: int, crash_id: str) -> None:
        found = os.fstatvfs(fd)
        room = found.f_bavail * found.f_frsize
        if size_bytes > room:
            import tempfile

            hint = "name a larger directory by TMPDIR"
            raise UnavailableError(
                f"the core of {crash_id} needs {format_size(size_bytes)} of"
                f" {tempfile.gettempdir()}, which has {format_size(room)}",
                hint=hint if self._fleet.mini else f"{hint}, or fetch only the stacks: --mini",
            )

    def _forget_core(self) -> None:
        if self._core is not None:
            os.close(self._core[1])
            self._core = None

    def _decrypted(self, fd: int, crash_id: str, files: contextlib.ExitStack) -> int:
        """Decrypt into another unnamed file."""
        if self._fleet.identity is None:
            raise UnsupportedError(
                f"the core of {crash_id} is encrypted", hint="give its key with --identity FILE"
            )
        from crashd.edge.fleet.age import IDENTITY_FILE_MAX, decrypt_stream, parse_identities

        path = self._fleet.identity
        with open(path, "rb") as file:
            text = file.read(IDENTITY_FILE_MAX).decode("utf-8", "replace")
        identities = parse_identities(text, str(path))
        clear = _unnamed_file(files)
        os.lseek(fd, 0, os.SEEK_SET)
        with os.fdopen(os.dup(fd), "rb") as source, os.fdopen(os.dup(clear), "wb") as target:
            decrypt_stream(source, target, identities)
        return clear

    def close(self) -> None:
        """Close the connection, and the core."""
        self._forget_core()
        self.db.close()


class _Parts:
    """An object of which a file gets the parts that are needed; the descriptor stays the caller's.

    Raises:
        FormatError: it has too large a size.

    """

    def __init__(self, bucket: "Bucket", version: "Version", fd: int) -> None:
        self._bucket, self._version, self._fd = bucket, version, fd
        self._there: set[tuple[int, int]] = set()
        self._fetched_bytes = 0
        try:
            os.ftruncate(fd, version.size_bytes)
        except OSError as e:
            raise FormatError(f"object of {version.size_bytes} bytes: {reason_of(e)}") from e

    def fetch(self, start: int, size_bytes: int) -> None:
        """Write a part into the file, at the place that it has in the object."""
        if size_bytes <= 0 or (start, size_bytes) in self._there:
            return
        self._fetched_bytes += size_bytes
        if self._fetched_bytes > PARTS_MAX:
            raise FormatError(
                f"a mini core takes more than {format_size(PARTS_MAX)} of the"
                f" {format_size(self._version.size_bytes)} of {self._version.key}",
                hint="it is damaged or forged; without --mini, all of it is fetched",
            )
        end, position = start + size_bytes, start
        while position < end:
            data = self._bucket.read_range(self._version, position, min(end - position, PART_BYTES))
            if not data:
                raise FormatError(f"object {self._version.key} ends after {position} bytes")
            position += os.pwrite(self._fd, data, position)
        self._there.add((start, size_bytes))


def _unnamed_file(files: contextlib.ExitStack) -> int:
    import tempfile  # few questions need it

    fd = os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    files.callback(os.close, fd)
    return fd
