"""Crashes of a fleet: from its index in PostgreSQL, cores from its bucket.

Records are hostile hosts': they are shown by the same model and the same escaping as local ones.
"""

import os
from typing import Any

from crashd.cli.context import Fleet
from crashd.domain.crash.match import Query
from crashd.domain.crash.tally import Tally, Timeline
from crashd.errors import NotFoundError, UnsupportedError, UsageError

try:
    from crashd.edge.fleet.postgres import connect
    from crashd.fleet.questions import ROWS_MAX, Questions
    from crashd.fleet.schema import check, read_setting
    from crashd.fleet.selection import Scope
except ImportError as e:
    raise UnsupportedError(
        f"the module {e.name} is not installed",
        hint="install python3-psycopg or crashd[fleet-server]",
    ) from e

CORE_MAX = 1 << 40
"""Bytes of a stored core that are fetched at most."""
STATEMENT_SECONDS = 60


class FleetSource:
    """One connection that only reads."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.db = connect(
            fleet.dsn, name="crashctl", read_only=True, timeout_seconds=STATEMENT_SECONDS
        )
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
        """Fetch the stored core into a private, unnamed file; the caller owns its descriptor."""
        from crashd.edge.fleet.bucket import Bucket  # few questions need the bucket

        doc = self.info(crash_id)
        key = doc.get("core_object")
        if not isinstance(key, str):
            reason = ((doc.get("fleet") or {}) if isinstance(doc.get("fleet"), dict) else {}).get(
                "reason"
            )
            raise NotFoundError(
                f"the core of {crash_id} is on its host only" + (f" ({reason})" if reason else ""),
                hint=f"ask for it with crashctl --fleet want {crash_id}",
            )
        bucket = Bucket.open(read_setting(self.db, "url") or "")
        fd = _unnamed_file()
        try:
            bucket.copy_to(key, fd, CORE_MAX)
            if key.endswith(".age"):
                fd = self._decrypted(fd, crash_id)
            os.lseek(fd, 0, os.SEEK_SET)
        except NotFoundError as e:
            os.close(fd)
            raise NotFoundError(
                f"the core of {crash_id} has not arrived yet, or its time in the bucket is over",
                hint=f"ask for it with crashctl --fleet want {crash_id}",
            ) from e
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _decrypted(self, fd: int, crash_id: str) -> int:
        """Decrypt into another unnamed file, and close the first one."""
        if self._fleet.identity is None:
            raise UnsupportedError(
                f"the core of {crash_id} is encrypted", hint="give its key with --identity FILE"
            )
        from crashd.edge.fleet.age import IDENTITY_FILE_MAX, decrypt_stream, parse_identities

        path = self._fleet.identity
        with open(path, "rb") as file:
            text = file.read(IDENTITY_FILE_MAX).decode("utf-8", "replace")
        identities = parse_identities(text, str(path))
        clear = _unnamed_file()
        try:
            os.lseek(fd, 0, os.SEEK_SET)
            with os.fdopen(os.dup(fd), "rb") as source, os.fdopen(os.dup(clear), "wb") as target:
                decrypt_stream(source, target, identities)
        except BaseException:
            os.close(clear)
            raise
        os.close(fd)
        return clear

    def close(self) -> None:
        """Close the connection."""
        self.db.close()


def _unnamed_file() -> int:
    import tempfile  # few questions need it

    return os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
