"""Signatures in the index: how often each was seen and since when, and which crashes have none."""

from __future__ import annotations

from crashd.domain.crash.keys import time_text
from crashd.domain.crash.query import Query

TYPE_CHECKING = False  # as typing's
if TYPE_CHECKING:
    from collections.abc import Set
    from typing import Any

    from crashd.domain.crash.viewer import Viewer
    from crashd.store.indexread import IndexReader

_OF_NEWEST = ("title", "kind", "exe", "comm", "unit", "signal_name", "id")


def top(index: IndexReader, query: Query, viewer: Viewer | None) -> list[dict[str, Any]]:
    """Count matching crashes by signature, the most frequent first, at most `query.limit`.

    Each result has `signature count first last`, and _OF_NEWEST of its newest crash.

    Raises:
        UsageError: see `Index.select`.

    """
    where, values = index.where(query, viewer)
    where += " AND " if where else "WHERE "
    rows = index.fetch(
        "SELECT signature, count(*), min(time_ns), max(time_ns) FROM crash "
        f"{where} signature IS NOT NULL GROUP BY signature "
        "ORDER BY count(*) DESC, max(time_ns) DESC LIMIT ?",
        [*values, -1 if query.limit is None else query.limit],
    )
    found = []
    for signature, count, first_ns, last_ns in rows:
        documents = index.select(query._replace(signature=signature, limit=1), viewer)
        if documents:  # otherwise it was deleted meanwhile
            one = {key: documents[0][key] for key in _OF_NEWEST}
            times = {"first": time_text(first_ns), "last": time_text(last_ns)}
            found.append({"signature": signature, "count": count, **times, **one})
    return found


def span(index: IndexReader, signature: str, viewer: Viewer | None) -> dict[str, str]:
    """Return when a signature was seen: `first_of_signature` and `last_of_signature`."""
    where, values = index.where(Query(signature=signature), viewer)
    ((first_ns, last_ns),) = index.fetch(
        f"SELECT min(time_ns), max(time_ns) FROM crash {where}", values
    )
    if first_ns is None:
        return {}
    times = {"first_of_signature": first_ns, "last_of_signature": last_ns}
    return {key: time_text(time_ns) for key, time_ns in times.items()}


def unknown(index: IndexReader, signatures: Set[str | None]) -> set[str]:
    """Return those that the index never had; a signature stays known when its crashes are gone."""
    asked = {signature for signature in signatures if signature is not None}
    sql = "SELECT signature FROM signature_count WHERE signature = ?"
    return {signature for signature in asked if not index.fetch(sql, [signature])}


def count(index: IndexReader) -> int:
    """Return how many signatures there are."""
    ((number,),) = index.fetch("SELECT count(*) FROM signature_count WHERE count > 0")
    return int(number)


def unexplained(index: IndexReader, limit: int) -> list[str]:
    """List the newest process crashes that have a core and no signature."""
    from crashd.domain.crash.kinds import State

    with_core = ", ".join(f"'{state}'" for state in State if state.has_core)
    rows = index.fetch(
        "SELECT id FROM crash WHERE kind = 'process' AND signature IS NULL "
        f"AND state IN ({with_core}) AND stored_bytes > 0 "
        "ORDER BY time_ns DESC, id DESC LIMIT ?",
        [limit],
    )
    return [crash_id for (crash_id,) in rows]
