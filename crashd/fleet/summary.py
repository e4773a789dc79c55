"""Summaries of days: counts by signature and version, each with the set of its hosts.

Loading adds rows to `unsummed`, in the transaction that loads crashes, so that both always tell the
same; one indexer at a time moves them to `summary`. Most sets are of a few hosts, and a list.
Larger ones are strings of bits, whose union over many days is counted in an instant: bit N is the
host with number N (`bit_count` is there since PostgreSQL 14). Where crashes are gone again, sets
are made from the tallies once more.
"""

from typing import Final

from crashd.edge.fleet.postgres import Connection, guard
from crashd.fleet.counts import ALL, NO_HOSTS, widened
from crashd.fleet.schema import LOCK, SUMMING

FEW: Final = 32
"""A set of more hosts is a string of bits."""


def _bits(hosts: str) -> str:
    return f"(SELECT bit_or(set_bit(none, h, 1)) FROM width, unnest({hosts}) h)"


def _set(hosts: str) -> str:
    """Build SQL for both forms of a set; one of them is empty."""
    return (
        f"CASE WHEN cardinality({hosts}) <= {FEW} THEN {hosts} ELSE '{{}}' END,"
        f" CASE WHEN cardinality({hosts}) > {FEW} THEN {_bits(hosts)} END"
    )


_NONE = "(SELECT none FROM width)"
_LIST = "ARRAY(SELECT DISTINCT unnest(s.few || excluded.few))"
_IS_FEW = f"s.many IS NULL AND excluded.many IS NULL AND cardinality({_LIST}) <= {FEW}"
_ADD = (
    "WITH news AS (DELETE FROM unsummed RETURNING *),"
    f" width AS MATERIALIZED ({NO_HOSTS}), each AS ("
    "SELECT day, signature, version, kernel, host, crashes, first, last FROM news"
    " WHERE signature <> 0 UNION ALL "
    # a crash that only got another signature is gone from none of these
    f"SELECT day, {ALL}, version, kernel, host, sum(crashes), min(first), max(last) FROM news"
    " GROUP BY 1, 3, 4, 5), sums AS ("
    "SELECT day, signature, version, kernel, sum(crashes) AS crashes, min(first) AS first,"
    " max(last) AS last, bool_or(crashes < 0) AS stale,"
    " coalesce(array_agg(DISTINCT host) FILTER (WHERE crashes > 0), '{}') AS hosts"
    " FROM each GROUP BY 1, 2, 3, 4)"
    " INSERT INTO summary AS s (day, signature, version, kernel, crashes, first, last, stale, few,"
    " many) SELECT day, signature, version, kernel, crashes, first, last, stale,"
    f" {_set('hosts')} FROM sums"
    " ON CONFLICT (day, signature, version, kernel) DO UPDATE SET"
    " crashes = s.crashes + excluded.crashes, first = least(s.first, excluded.first),"
    " last = greatest(s.last, excluded.last), stale = s.stale OR excluded.stale,"
    f" few = CASE WHEN {_IS_FEW} THEN {_LIST} ELSE '{{}}' END,"
    f" many = CASE WHEN NOT ({_IS_FEW}) THEN coalesce({widened('s.many', _NONE)}, {_NONE})"
    f" | coalesce(excluded.many, {_NONE})"
    f" | coalesce({_bits('s.few || excluded.few')}, {_NONE}) END"
).encode()
_RENEW = (
    f"WITH width AS MATERIALIZED ({NO_HOSTS}), renewed AS ("
    "SELECT s.day, s.signature, s.version, s.kernel, ARRAY(SELECT DISTINCT t.host FROM tally t"
    " WHERE t.day = s.day AND t.version = s.version AND t.kernel = s.kernel AND t.crashes > 0"
    f" AND (s.signature = {ALL} OR t.signature = s.signature)) AS hosts"
    " FROM summary s WHERE s.stale)"
    f" UPDATE summary s SET stale = false, (few, many) = (SELECT {_set('r.hosts')})"
    " FROM renewed r WHERE s.day = r.day AND s.signature = r.signature"
    " AND s.version = r.version AND s.kernel = r.kernel"
).encode()


def sum_up(db: Connection) -> bool:
    """Move what is unsummed to the summaries, unless another indexer is at it; return whether."""
    with guard(), db.transaction():
        row = db.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", (LOCK, SUMMING)).fetchone()
        if not row or not row[0]:
            return False
        db.execute(_ADD)
        # a crash that is deleted after the first statement began is unsummed: it is for next time
        db.execute(_RENEW)
    return True
