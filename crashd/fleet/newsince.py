"""Signatures that are new since a time or a version, and those that became more frequent."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from crashd.domain.crash.query import Query
from crashd.domain.fleet.frequency import HOSTS_MIN, RATIO_MIN, Share, is_more_frequent
from crashd.edge.fleet.reader import Reader
from crashd.errors import NotFoundError
from crashd.fleet.counts import Counts, Span
from crashd.fleet.questions import Questions
from crashd.fleet.selection import Condition, Scope, moment_of, scope_conditions
from crashd.fleet.texts import text

CANDIDATES_MAX = 200
"""Signatures whose hosts are counted: those that grew most."""
_SPAN_MAX = timedelta(days=90)


class NewSince:
    """Compares what came since a time or a version with what was before."""

    def __init__(self, db: Reader, scope: Scope) -> None:
        self._db = db
        self._scope = scope
        self._questions = Questions(db, scope)

    def time(self, since_ns: int, query: Query) -> list[dict[str, Any]]:
        """Return new signatures, and those on more hosts than in as much time before."""
        moment = moment_of(since_ns)
        with self._db.transaction():
            new = self._signatures(
                "SELECT number FROM signature s WHERE first_seen >= %s AND count > 0"
                " ORDER BY count DESC LIMIT %s",
                (moment, query.limit),
            )
            length = min(datetime.now(UTC) - moment, _SPAN_MAX)
            day, first = moment.date(), (moment - length).date()
            # days are compared as a whole: the one of the moment counts for after it
            after = self._counts(query, Condition("c.day >= %s", (day,)))
            before = self._counts(query, Condition("c.day >= %s AND c.day < %s", (first, day)))
            more = self._more(after, before, new)
        return self._rows(query, moment, new, more)

    def version(self, name: str, query: Query) -> list[dict[str, Any]]:
        """Return signatures that no earlier version had, and those that a version made more
        frequent.

        Earlier versions are those that the fleet saw before this one.

        Raises:
            NotFoundError: no host has run this version.

        """
        with self._db.transaction():
            row = self._db.execute(
                "SELECT number, first_seen FROM version WHERE version = %s", (text(name),)
            ).fetchone()
            if row is None or row[1] is None:
                raise NotFoundError(
                    f"no crash of version {name}",
                    hint='versions are the hosts\' label "version", and releases of kernels',
                )
            number, moment = row
            new = self._signatures(
                "SELECT s.number FROM signature s WHERE s.count > 0 AND EXISTS (SELECT FROM"
                " signature_version o JOIN version v ON v.number = o.version"
                " WHERE o.signature = s.number AND v.first_seen >= %s) AND NOT EXISTS (SELECT FROM"
                " signature_version o LEFT JOIN version v ON v.number = o.version"
                " WHERE o.signature = s.number AND (v.first_seen IS NULL OR v.first_seen < %s))"
                " ORDER BY s.count DESC LIMIT %s",
                (moment, moment, query.limit),
            )
            length = min(datetime.now(UTC) - moment, _SPAN_MAX)
            first = (moment - length).date()
            days = Condition("c.day >= %s AND c.day <= %s", (first, moment.date()))
            before = self._counts(query, days, Condition("c.version <> %s", (number,)))
            after = self._counts(query, Condition("c.version = %s", (number,)))
            more = self._more(after, before, new)
        return self._rows(query, moment, new, more)

    def _counts(self, query: Query, *conditions: Condition) -> Counts:
        scope = scope_conditions(self._db, self._scope)
        return Counts(self._db, scope, Span(conditions), query.kind)

    def _signatures(self, sql: str, values: Sequence[Any]) -> list[int]:
        return [row[0] for row in self._db.execute(sql, values).fetchall()]

    def _more(
        self, after: Counts, before: Counts, new: Sequence[int]
    ) -> dict[int, tuple[Share, Share]]:
        """Return the signatures on a larger share of hosts than before.

        Hosts are those that had any crash: one without sends nothing.
        """
        all_now, all_then = after.hosts(), before.hosts()
        if all_now < HOSTS_MIN or not all_then:
            return {}
        now, then = after.crashes(), before.crashes()
        scale = all_now / all_then
        grown = {
            number: count / (then.get(number, 0) * scale + 1)
            for number, count in now.items()
            if count >= HOSTS_MIN and number not in new
        }
        chosen = sorted(grown, key=lambda number: -grown[number])[:CANDIDATES_MAX]
        chosen = [number for number in chosen if grown[number] * RATIO_MIN >= 1]
        hosts_now, hosts_then = (span.hosts_of_signatures(chosen) for span in (after, before))
        found = {}
        for number in chosen:
            share = Share(hosts_now.get(number, 0), all_now)
            other = Share(hosts_then.get(number, 0), all_then)
            if is_more_frequent(share, other):
                found[number] = (share, other)
        return found

    def _rows(
        self,
        query: Query,
        moment: datetime,
        new: Sequence[int],
        more: dict[int, tuple[Share, Share]],
    ) -> list[dict[str, Any]]:
        """Build the rows: new ones first, then by how much their share has grown."""
        rows = self._questions.counted(query, moment, [*new, *more])
        found = []
        for number, row in rows:
            now, before = more.get(number, (None, None))
            row["change"] = "more" if now else "new"
            row["rate"] = None if now is None else round(now.rate, 6)
            row["rate_before"] = None if before is None else round(before.rate, 6)
            found.append(row)
        found.sort(key=lambda row: (row["change"] != "new", -(row["count"])))
        return found[: query.limit]
