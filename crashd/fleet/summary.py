"""Summaries of days: counts by signature and version, each with the set of its hosts.

Loading adds rows to `unsummed`, in the transaction that loads crashes, so that both always tell the
same; one indexer at a time moves them to `summary`. A set of hosts is a string of bits: bit N is
the host with number N, so that a union of many days is counted in an instant (`bit_count` is there
since PostgreSQL 14). Where crashes are gone again, sets are made anew from the tallies.
"""

from crashd.edge.fleet.postgres import Connection, guard
from crashd.fleet.counts import ALL, NO_HOSTS, widened
from crashd.fleet.schema import LOCK, SUMMING

_NONE = "(SELECT none FROM width)"
_ADD = (
    "WITH news AS (DELETE FROM unsummed RETURNING *),"
    f" width AS MATERIALIZED ({NO_HOSTS}), each AS ("
    "SELECT day, signature, version, kernel, host, crashes, first, last FROM news"
    " WHERE signature <> 0 UNION ALL "
    # a crash that only got another signature is gone from none of these
    f"SELECT day, {ALL}, version, kernel, host, sum(crashes), min(first), max(last) FROM news"
    " GROUP BY 1, 3, 4, 5)"
    " INSERT INTO summary AS s SELECT day, signature, version, kernel, sum(crashes), min(first),"
    f" max(last), coalesce(bit_or(set_bit({_NONE}, host, 1)) FILTER (WHERE crashes > 0), {_NONE}),"
    " bool_or(crashes < 0) FROM each GROUP BY 1, 2, 3, 4"
    " ON CONFLICT (day, signature, version, kernel) DO UPDATE SET"
    " crashes = s.crashes + excluded.crashes, first = least(s.first, excluded.first),"
    " last = greatest(s.last, excluded.last),"
    f" hosts = {widened('s.hosts', 'excluded.hosts')} | excluded.hosts,"
    " stale = s.stale OR excluded.stale"
).encode()
_RENEW = (
    f"WITH width AS MATERIALIZED ({NO_HOSTS})"
    " UPDATE summary s SET stale = false, hosts = coalesce(("
    f"SELECT bit_or(set_bit({_NONE}, host, 1)) FROM (SELECT DISTINCT t.host FROM tally t"
    " WHERE t.day = s.day AND t.version = s.version AND t.kernel = s.kernel AND t.crashes > 0"
    f" AND (s.signature = {ALL} OR t.signature = s.signature)) t), {_NONE}) WHERE s.stale"
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
