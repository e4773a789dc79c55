"""Where crashctl reads crashes from: the disk, or the daemon.

Users who can read the state directory (root, or the owner of a test root) read the disk, whether
the daemon runs or not. All others ask the daemon, which shows them only their own crashes.
"""

from __future__ import annotations

import os
import time

from crashd.cli.context import Context
from crashd.domain.crash.keys import SHORT_ID_LENGTH
from crashd.domain.crash.query import ID_PREFIX_MIN, Query
from crashd.errors import NotFoundError, PermissionDeniedError, UnavailableError, UsageError

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence
    from typing import Any

    from crashd.cli.control import ControlClient
    from crashd.cli.sourcetypes import Source
    from crashd.store.catalog import Catalog
    from crashd.store.index import Index
    from crashd.store.paths import Paths

CANDIDATES_MAX = 5
LISTING, FLEET_LISTING = "crashctl list", "crashctl --fleet list"
COUNTED_MAX = 1000
"""Matches that are counted when only the newest is used."""
_OF_DIRECTORY = "--directory is for a copy of /var/lib/crashd, with crashes and index.sqlite"


class DirectSource:
    """The store and its index on disk; shows every crash."""

    def __init__(self, context: Context, *, writable: bool) -> None:
        from crashd.store.indexread import IndexReader  # SQLite: a fleet's index is elsewhere

        self._context = context
        self._whole: Index | None = None
        if writable:
            self._whole = self._open(readonly=False)
        self._reader = self._whole or IndexReader.open_readonly(context.index_file)

    @property
    def index(self) -> Index:
        """The index with all it can do; `list` and `info` do not need it or load its code."""
        if self._whole is None:
            self._whole = self._open(readonly=True)
        return self._whole

    def _open(self, *, readonly: bool) -> Index:
        from crashd.store.index import Index

        return Index.open(self._context.paths.index, readonly=readonly)

    @property
    def catalog(self) -> Catalog:
        """The store behind the index."""
        from crashd.store.catalog import Catalog

        return Catalog(self._context.paths, self.index)

    def select(self, query: Query) -> list[dict[str, Any]]:
        """Return the crashes that match, newest first."""
        return self._reader.select(query, None)

    def each(self, query: Query) -> Iterator[dict[str, Any]]:
        """Yield the crashes that match, however many; oldest first if the query says `reverse`."""
        return self._reader.each(query)

    def listing(self, query: Query) -> list[dict[str, Any]]:
        """Return what a table shows of the crashes that match, newest first."""
        return self._reader.listing(query)

    def top(self, query: Query) -> list[dict[str, Any]]:
        """Count crashes by signature, most frequent first."""
        from crashd.store import signatures

        return signatures.top(self._reader, query, None)

    def info(self, crash_id: str) -> dict[str, Any]:
        """Return everything known about one crash."""
        from crashd.store import signatures
        from crashd.store.recordread import read_plain

        row = self._reader.get(crash_id)
        document = read_plain(self._context.crashes_dir, crash_id)
        if row is None or document is None:
            return self.catalog.info(crash_id, None)
        signature = document["signature"]
        span = signatures.span(self._reader, signature, None) if signature else {}
        return {**document, "count_of_signature": row["count_of_signature"], **span}

    def open_core(self, crash_id: str) -> int:
        """Open the stored, compressed core; the caller owns the descriptor."""
        return self.catalog.open_core(crash_id, None)

    def close(self) -> None:
        """Close the index."""
        self._reader.close()
        if self._whole is not None:
            self._whole.close()


class DaemonSource:
    """The daemon, through its control socket."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client

    def select(self, query: Query) -> list[dict[str, Any]]:
        """Return the crashes that match, newest first."""
        found = self._client.ask({"verb": "list", "query": query.to_json()})["crashes"]
        return [row for row in found if isinstance(row, dict)]

    def top(self, query: Query) -> list[dict[str, Any]]:
        """Count crashes by signature, most frequent first."""
        found = self._client.ask({"verb": "top", "query": query.to_json()})["signatures"]
        return [row for row in found if isinstance(row, dict)]

    def info(self, crash_id: str) -> dict[str, Any]:
        """Return everything known about one crash."""
        found: dict[str, Any] = self._client.ask({"verb": "info", "id": crash_id})["crash"]
        from crashd.domain.crash.model import from_json, to_json  # only this source needs them

        if "schema" not in found:
            return found  # the record is unreadable; this is what the index has
        return {**found, **to_json(from_json(found))}  # the daemon sends the record as stored

    def open_core(self, crash_id: str) -> int:
        """Copy the stored core to a private, unnamed file; the caller owns its descriptor.

        The daemon does not pass its own descriptor: its holder could keep the disk space forever.
        """
        return self._client.fetch({"verb": "open-core", "id": crash_id})

    def close(self) -> None:
        """Do nothing: each request closes its own connection."""


def can_read_store(state_dir: str | os.PathLike[str]) -> bool:
    """Return whether the caller may read the state directory directly."""
    return os.access(state_dir, os.R_OK | os.X_OK, effective_ids=True)


def open_source(context: Context) -> Source:
    """Choose where to read from.

    Raises:
        UnavailableError: there is no store that the caller may read, and no daemon.
    """
    if context.fleet is not None:
        from crashd.cli.fleetsource import FleetSource

        return FleetSource.open(context.fleet, context.note)
    if context.index_files is not None:
        from crashd.cli.indexfiles import IndexFiles

        return IndexFiles(context.index_files)
    if can_read_store(context.state_dir) or context.state is not None:
        return open_direct(context)
    if os.geteuid() == 0 or not context.paths.control_socket.exists():
        raise UnavailableError(
            f"no store in {context.paths.state_dir}, and crashd is not running",
            hint="start it (systemctl start crashd), or give its root with --root",
        )
    from crashd.cli.control import ControlClient

    return DaemonSource(ControlClient(context.paths.control_socket))


def open_direct(context: Context, *, writable: bool = False) -> DirectSource:
    """Open store and index on disk.

    Raises:
        PermissionDeniedError: the caller is neither root nor the owner of the store.
        UnavailableError: there is no store or index, or it cannot be read.
    """
    given = context.state is not None  # by --directory: no crashd will make anything there
    if given and not os.path.isdir(context.state_dir):
        raise UnavailableError(f"no store in {context.state_dir}", hint=_OF_DIRECTORY)
    if not can_read_store(context.state_dir):
        require_store(context.paths)
    if not os.path.exists(context.index_file):
        raise UnavailableError(
            f"the store {context.state_dir} has no index",
            hint=_OF_DIRECTORY if given else "create it with crashctl reindex, or start crashd",
        )
    return DirectSource(context, writable=writable)


def require_store(paths: Paths) -> None:
    """Check that the caller may use the store directly.

    Raises:
        PermissionDeniedError: the caller may not.
        UnavailableError: there is no store.
    """
    if can_read_store(paths.state_dir):
        return
    if os.geteuid() != 0 and paths.state_dir.parent.exists():
        raise PermissionDeniedError(
            f"no permission to read the store {paths.state_dir}", hint="run as root"
        )
    raise UnavailableError(
        f"no store in {paths.state_dir}", hint="crashd creates it when it starts for the first time"
    )


def build_query(arguments: Namespace, now_ns: int) -> Query:
    """Build the query from MATCH and from those options that the verb has.

    It asks for the newest crashes first, so that a limit keeps the newest.

    Raises:
        UsageError: a time or a MATCH is not valid.
    """
    return Query(
        terms=tuple(arguments.match),
        since_ns=_time_of(arguments.since, now_ns),
        until_ns=_time_of(arguments.until, now_ns),
        kind=getattr(arguments, "kind", None),
        signature=getattr(arguments, "signature", None),
        limit=getattr(arguments, "limit", None),
    )


def _time_of(text: str | None, now_ns: int) -> int | None:
    if text is None:
        return None
    from crashd.domain.crash.timestamp import parse_time  # most listings are of all times

    return parse_time(text, now_ns)


def is_filtered(query: Query) -> bool:
    """Return whether a query filters anything."""
    wanted = (query.since_ns, query.until_ns, query.kind, query.signature)
    return bool(query.terms) or any(value is not None for value in wanted)


def newest(context: Context, source: Source, arguments: Namespace) -> dict[str, Any]:
    """Return the newest crash that a verb asks for; print a note if others match too.

    Raises:
        NotFoundError: no crash matches.
        UsageError: a time or a MATCH is not valid.
    """
    return newest_of(context, source, arguments, 1)[0]


def newest_of(
    context: Context, source: Source, arguments: Namespace, count: int
) -> list[dict[str, Any]]:
    """Return the newest `count` crashes that a verb asks for, newest first, as `newest` does."""
    query = build_query(arguments, time.time_ns())
    counted_max = max(count, COUNTED_MAX)
    filtered = is_filtered(query)
    rows = source.select(query._replace(limit=counted_max + 1 if filtered else count))
    if not rows:
        raise not_found(arguments.match, FLEET_LISTING if context.fleet else LISTING)
    if len(rows) > count:
        counted = str(len(rows)) if len(rows) <= counted_max else f"more than {counted_max}"
        context.note(f"newest{f' {count}' if count > 1 else ''} of {counted} matching crashes")
    return rows[:count]


def matching(source: Source, match: Sequence[str], listing: str = LISTING) -> list[dict[str, Any]]:
    """Return all crashes that match, oldest first; `listing` is the command that shows all.

    Raises:
        NotFoundError: no crash matches.
    """
    rows = source.select(Query(terms=tuple(match)))
    if not rows:
        raise not_found(match, listing)
    return rows[::-1]


def not_found(match: Sequence[str], listing: str = LISTING) -> NotFoundError:
    """Return the error for no match; it must not reveal crashes that the caller may not see."""
    if not match:
        return NotFoundError("no crashes found")
    return NotFoundError(f"no crash matches {' '.join(match)}", hint=f"{listing} shows all crashes")


def all_named_by_id(rows: Sequence[dict[str, Any]], match: Sequence[str]) -> bool:
    """Return whether each of `rows` was named by its own id, and none by a wider MATCH.

    The beginning of an id counts only if it fits exactly one of `rows`: `2026` fits many.
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
    """Return the error for a MATCH that selects several crashes where only one is allowed."""
    named = [row["id"] for row in rows[-CANDIDATES_MAX:]]
    more = f" and {len(rows) - len(named)} more" if len(rows) > len(named) else ""
    return UsageError(
        f"{' '.join(match)} matches {len(rows)} crashes: {', '.join(named)}{more}",
        hint="give the id of one crash",
    )
