"""Crashes of a fleet: from its index in PostgreSQL, cores from its bucket.

Records are hostile hosts': they are shown by the same model and the same escaping as local ones.
"""

import contextlib
import os
from typing import TYPE_CHECKING, Any

from crashd.cli.context import Fleet
from crashd.domain.crash.match import Query
from crashd.domain.crash.tally import Tally, Timeline
from crashd.edge.fleet.reader import Reader
from crashd.errors import FormatError, NotFoundError, UnsupportedError, UsageError
from crashd.fleet.questions import ROWS_MAX, Questions
from crashd.fleet.selection import Scope
from crashd.fleet.settings import check, read_setting

if TYPE_CHECKING:
    from crashd.edge.fleet.bucket import Bucket

CORE_MAX = 1 << 40
"""Bytes of a stored core that are fetched at most."""
PART_BYTES = 4 << 20
"""Bytes of one request for a part."""
STATEMENT_SECONDS = 60


class FleetSource:
    """One connection that only reads."""

    opened_mini: bool
    """Whether the core that was opened last is a mini core, smaller than its record says."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.db = Reader.connect(fleet.dsn, name="crashctl", timeout_seconds=STATEMENT_SECONDS)
        self.opened_mini = False
        self._core: tuple[str, int] | None = None
        self.scope = Scope(fleet.hosts, fleet.labels)
        self.questions = Questions(self.db, self.scope)

    @classmethod
    def open(cls, fleet: Fleet) -> "FleetSource":
        """Connect.

        Raises:
            UnavailableError: the server does not answer, or holds no index of this version.

        """
        source = cls(fleet)
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
        from crashd.edge.fleet.bucket import Bucket  # few questions need the bucket

        doc = self.info(crash_id)
        key, files = doc.get("core_object"), doc.get("fleet")
        files = files if isinstance(files, dict) else {}
        if not isinstance(key, str):
            reason = files.get("reason")
            raise NotFoundError(
                f"the core of {crash_id} is on its host only" + (f" ({reason})" if reason else ""),
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
            if cuts and not is_encrypted:
                fetch = _Parts(bucket, key, fd).fetch
            else:  # age has no parts that open alone
                bucket.copy_to(key, fd, CORE_MAX)
            if is_encrypted:
                fd = self._decrypted(fd, crash_id, files)
            if cuts:
                from crashd.store.minicopy import copy_mini

                whole, fd = fd, _unnamed_file(files)
                copy_mini(whole, fd, fetch)
                self.opened_mini = True
            return os.dup(fd)

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
        NotFoundError: there is no such object.
        FormatError: it is larger than CORE_MAX.

    """

    def __init__(self, bucket: "Bucket", key: str, fd: int) -> None:
        self._bucket, self._key, self._fd = bucket, key, fd
        self._there: set[tuple[int, int]] = set()
        size_bytes = bucket.size(key)
        if size_bytes is None:
            raise NotFoundError(f"no object {key} in the bucket")
        if size_bytes > CORE_MAX:
            raise FormatError(f"object of {size_bytes} bytes, at most {CORE_MAX} are read")
        os.ftruncate(fd, size_bytes)

    def fetch(self, start: int, size_bytes: int) -> None:
        """Write a part into the file, at the place that it has in the object."""
        if size_bytes <= 0 or (start, size_bytes) in self._there:
            return
        end, position = start + size_bytes, start
        while position < end:
            data = self._bucket.read_range(self._key, position, min(end - position, PART_BYTES))
            if not data:
                raise FormatError(f"object {self._key} ends after {position} bytes")
            position += os.pwrite(self._fd, data, position)
        self._there.add((start, size_bytes))


def _unnamed_file(files: contextlib.ExitStack) -> int:
    import tempfile  # few questions need it

    fd = os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    files.callback(os.close, fd)
    return fd
