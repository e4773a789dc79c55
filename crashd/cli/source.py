"""Where crashctl reads crashes from: the disk itself, or the daemon.

Who may read the state directory (root, or the owner of a trial's root) works on the disk, daemon or
no daemon; everybody else asks the daemon, which shows each user his own crashes only.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from crashd.cli.context import Context
from crashd.domain.crash.match import ID_PREFIX_MIN, Query
from crashd.domain.crash.model import SHORT_ID_LENGTH, from_json, to_json
from crashd.errors import NotFoundError, PermissionDeniedError, UnavailableError, UsageError
from crashd.store.index import Index
from crashd.store.paths import Paths

if TYPE_CHECKING:
    from crashd.cli.control import ControlClient
    from crashd.store.catalog import Catalog

CANDIDATES_MAX = 5
COUNTED_MAX = 1000
"""Where the newest of many is wanted, the others are counted up to here."""


class Source(Protocol):
    """Something that has crashes."""

    def select(self, query: Query) -> list[dict[str, Any]]:
        """Find crashes, the newest first."""

    def top(self, query: Query) -> list[dict[str, Any]]:
        """Count crashes by signature, the most frequent first."""

    def info(self, crash_id: str) -> dict[str, Any]:
        """Give all that is known of one crash.

        Raises:
            NotFoundError: there is no such crash, or the caller may not see it.

        """

    def open_core(self, crash_id: str) -> int:
        """Open the stored, compressed core; the caller owns the descriptor.

        Raises:
            NotFoundError: there is none, or the caller may not see it.

        """

    def close(self) -> None:
        """Let go of index or connection."""


class DirectSource:
    """The store and its index on disk, as their owner sees them: all of it."""

    def __init__(self, paths: Paths, *, writable: bool) -> None:
        self._paths = paths
        self.index = Index.open(paths.index, readonly=not writable)

    @property
    def catalog(self) -> "Catalog":
        """The store behind the index; `list` does without it, and without loading its code."""
        from crashd.store.catalog import Catalog

        return Catalog(self._paths, self.index)

    def select(self, query: Query) -> list[dict[str, Any]]:
        """Find crashes, the newest first."""
        return self.index.select(query, None)

    def top(self, query: Query) -> list[dict[str, Any]]:
        """Count crashes by signature, the most frequent first."""
        return self.catalog.top(query, None)

    def info(self, crash_id: str) -> dict[str, Any]:
        """Give all that is known of one crash."""
        return self.catalog.info(crash_id, None)

    def open_core(self, crash_id: str) -> int:
        """Open the stored, compressed core; the caller owns the descriptor."""
        return self.catalog.open_core(crash_id, None)

    def close(self) -> None:
        """Close the index."""
        self.index.close()


class DaemonSource:
    """The daemon, by its control socket."""

    def __init__(self, client: "ControlClient") -> None:
        self._client = client

    def select(self, query: Query) -> list[dict[str, Any]]:
        """Find crashes, the newest first."""
        found = self._client.ask({"verb": "list", "query": query.to_json()})["crashes"]
        return [row for row in found if isinstance(row, dict)]

    def top(self, query: Query) -> list[dict[str, Any]]:
        """Count crashes by signature, the most frequent first."""
        found = self._client.ask({"verb": "top", "query": query.to_json()})["signatures"]
        return [row for row in found if isinstance(row, dict)]

    def info(self, crash_id: str) -> dict[str, Any]:
        """Give all that is known of one crash."""
        found: dict[str, Any] = self._client.ask({"verb": "info", "id": crash_id})["crash"]
        if "schema" not in found:
            return found  # only the index knows it
        return {**found, **to_json(from_json(found))}  # the daemon sends it as it is stored

    def open_core(self, crash_id: str) -> int:
        """Copy the stored core into a private file without a name; the caller owns its descriptor.

        The daemon passes none of its own: who holds one holds the disk's space, for ever.
        """
        return self._client.fetch({"verb": "open-core", "id": crash_id})

    def close(self) -> None:
        """Nothing is kept open."""


def can_read_store(paths: Paths) -> bool:
    """Tell whether the caller may look into the state directory by himself."""
    return os.access(paths.state_dir, os.R_OK | os.X_OK, effective_ids=True)


def open_source(context: Context) -> Source:
    """Choose where to read from.

    Raises:
        UnavailableError: there is neither a store that the caller may read nor a daemon.

    """
    if can_read_store(context.paths):
        return open_direct(context)
    if os.geteuid() == 0 or not context.paths.control_socket.exists():
        raise UnavailableError(
            f"no store in {context.paths.state_dir}, and no crashd runs",
            hint="start it (systemctl start crashd), or name its root by --root",
        )
    from crashd.cli.control import ControlClient

    return DaemonSource(ControlClient(context.paths.control_socket))


def open_direct(context: Context, *, writable: bool = False) -> DirectSource:
    """Open store and index on disk.

    Raises:
        PermissionDeniedError: the caller is neither root nor the owner.
        UnavailableError: there is no store or index, or it cannot be read.

    """
    paths = context.paths
    require_store(paths)
    if not paths.index.exists():
        raise UnavailableError(
            f"the store {paths.state_dir} has no index",
            hint="crashctl reindex makes one; a running crashd has one",
        )
    return DirectSource(paths, writable=writable)


def require_store(paths: Paths) -> None:
    """Check that the caller may work on the store itself.

    Raises:
        PermissionDeniedError: he may not.
        UnavailableError: there is none.

    """
    if can_read_store(paths):
        return
    if os.geteuid() != 0 and paths.state_dir.parent.exists():
        raise PermissionDeniedError(
            f"not permitted on the store {paths.state_dir}", hint="run as root"
        )
    raise UnavailableError(
        f"no store in {paths.state_dir}", hint="crashd makes it when it starts for the first time"
    )


def newest(context: Context, source: Source, match: Sequence[str]) -> dict[str, Any]:
    """Find the newest crash that matches; tell when there were others.

    Raises:
        NotFoundError: none does.

    """
    rows = source.select(Query(terms=tuple(match), limit=COUNTED_MAX + 1 if match else 1))
    if not rows:
        raise not_found(match)
    if len(rows) > 1:
        counted = str(len(rows)) if len(rows) <= COUNTED_MAX else f"more than {COUNTED_MAX}"
        context.note(f"newest of {counted} matching")
    return rows[0]


def matching(source: Source, match: Sequence[str]) -> list[dict[str, Any]]:
    """Find all crashes that match, the oldest first.

    Raises:
        NotFoundError: none does.

    """
    rows = source.select(Query(terms=tuple(match)))
    if not rows:
        raise not_found(match)
    return rows[::-1]


def not_found(match: Sequence[str]) -> NotFoundError:
    """Say that nothing matched; the same for what is not there and what the caller may not see."""
    if not match:
        return NotFoundError("no crashes found")
    return NotFoundError(f"no crash matches {' '.join(match)}", hint="crashctl list shows them")


def all_named_by_id(rows: Sequence[dict[str, Any]], match: Sequence[str]) -> bool:
    """Tell whether every one of `rows` was named by its own id, and none by a wider MATCH.

    The beginning of an id counts where it is that of one of `rows` only: `2026` is that of many.
    """
    named: set[str] = set()
    for term in match:
        ids = {row["id"] for row in rows if _names(term, row["id"])}
        if len(ids) == 1:
            named |= ids
    return all(row["id"] in named for row in rows)


def _names(term: str, crash_id: str) -> bool:
    if len(term) < ID_PREFIX_MIN:
        return False
    return crash_id.startswith(term) or crash_id[-SHORT_ID_LENGTH:].startswith(term)


def refuse_several(rows: Sequence[dict[str, Any]], match: Sequence[str]) -> UsageError:
    """Say that a MATCH is too wide for what is to be done."""
    named = [row["id"] for row in rows[-CANDIDATES_MAX:]]
    more = f" and {len(rows) - len(named)} more" if len(rows) > len(named) else ""
    return UsageError(
        f"{' '.join(match)} matches {len(rows)} crashes: {', '.join(named)}{more}",
        hint="give the id of the one that is meant",
    )
