"""What `crashctl --fleet top` counts is what the rows are, however summaries stand."""

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from crashd.domain.crash.model import Crash, Kind
from crashd.domain.crash.query import Query
from crashd.domain.fleet.lines import DeletedBy, Deletion, Line, build_line
from crashd.edge.fleet.bucket import Bucket
from crashd.edge.fleet.postgres import connect
from crashd.edge.fleet.reader import Reader
from crashd.fleet import requests
from crashd.fleet.counts import Counts, span_of
from crashd.fleet.questions import Questions
from crashd.fleet.run import reindex
from crashd.fleet.schema import LOCK, SUMMING, migrate
from crashd.fleet.selection import Scope, moment_of, scope_conditions
from crashd.fleet.summary import FEW, sum_up
from tests.fleet.simulate import simulated_host
from tests.integration.fleetindex import (
    FleetIndex,
    fleet,
    make_crash,
    make_line,
    postgres_server,
)

__all__ = ["fleet", "postgres_server"]
HOSTS, SIGNATURES = 12, 6
VERSIONS = ("1.0", "1.1", "2.0")
ZONES = ("fra", "iad")
DAY_S = 86400
HOUR_NS = 3600 * 10**9


@dataclass
class Life:
    """A fleet that is written to, and what it should know."""

    fleet: FleetIndex
    chance: random.Random
    there: dict[str, tuple[int, Crash, dict[str, str]]] = field(default_factory=dict)
    revision: int = 10

    def write(self) -> None:
        """Have crashes of all kinds, and new revisions of some."""
        for host in {3, *self.chance.sample(range(1, HOSTS + 1), 5)}:
            lines = [self._line(host, self._new(host)) for _ in range(self.chance.randrange(1, 8))]
            for _, crash, labels in list(self.there.values()):
                if int(crash.boot_id, 16) == host and self.chance.random() < 0.15:
                    changed = replace(crash, signature=self._signature(crash.kind))
                    lines.append(self._line(host, (changed, labels)))
            self.fleet.put(host, *lines)
        self.fleet.index()

    def delete(self) -> None:
        """Have some crashes deleted: by their hosts, and by an operator."""
        bucket = Bucket.open(f"file://{self.fleet.bucket}")
        with connect(self.fleet.dsn, name="test") as db:
            for crash_id in self.chance.sample(sorted(self.there), min(6, len(self.there))):
                host, _, _ = self.there.pop(crash_id)
                if self.chance.random() < 0.5:
                    row = {"id": crash_id, "host": simulated_host(host)}
                    requests.delete(db, bucket, row)
                else:
                    self.revision += 1
                    deletion = Deletion(DeletedBy.OPERATOR, time.time_ns())
                    gone = Line(crash_id, self.revision, None, deletion=deletion)
                    self.fleet.put(host, build_line(gone))

    def _new(self, host: int) -> tuple[Crash, dict[str, str]]:
        age_s = self.chance.choice([0.5, 1, 2, 3]) * DAY_S * self.chance.random()
        kind = self.chance.choice([Kind.PROCESS, Kind.PROCESS, Kind.KERNEL])
        more = (
            {} if kind is Kind.PROCESS else {"signal": None, "comm": b"", "exe": b"", "unit": None}
        )
        crash = make_crash(host, age_s=age_s, kind=kind, signature=self._signature(kind), **more)
        labels = {"zone": ZONES[host % 2]}
        if self.chance.random() < 0.8:
            labels["version"] = self.chance.choice(VERSIONS)
        return crash, labels

    def _signature(self, kind: Kind) -> str | None:
        number = self.chance.randrange(SIGNATURES + 1)
        return f"{'k2' if kind is Kind.KERNEL else 'p2'}-{number:016x}" if number else None

    def _line(self, host: int, made: tuple[Crash, dict[str, str]]) -> bytes:
        crash, labels = made
        self.revision += 1
        self.there[crash.id] = (host, crash, labels)
        return make_line(crash, self.revision, labels)


def spans() -> Iterator[Query]:
    """Spans of all forms: whole days, one or both ends within a day, within one day."""
    now_ns = time.time_ns()
    yield Query()
    for since, until in ((50, None), (30, None), (3, None), (None, 26), (60, 8), (30, 29), (2, 1)):
        yield Query(
            since_ns=None if since is None else now_ns - since * HOUR_NS,
            until_ns=None if until is None else now_ns - until * HOUR_NS,
        )


NAMES = {
    "build": "b.build",
    "host": "h.host",
    "version": "v.version",
    "label:zone": "l.labels ->> 'zone'",
}
"""What `top --by` counts by, and its name in a crash."""
SCOPES = {
    "true": Scope(),
    "l.labels ->> 'zone' = 'fra'": Scope(labels=(("zone", "fra"),)),
    f"h.host = '{simulated_host(3)}'": Scope((simulated_host(3),)),
}


def assert_counts_are_those_of_rows(fleet: FleetIndex) -> None:
    """Ask everything that is counted, and count it in the rows."""
    with Reader.connect(fleet.dsn, name="test", timeout_seconds=60) as db:
        for first, (sql, scope) in enumerate(SCOPES.items()):
            for number, query in enumerate(spans(), first):
                kind = (None, "kernel", None, "process")[number % 4]
                by = list(NAMES)[number // 2 % len(NAMES)]
                Expected(fleet, sql, query._replace(kind=kind), by).compare(db, scope)


@dataclass
class Expected:
    """What one question should find, counted in the rows."""

    fleet: FleetIndex
    sql: str
    query: Query
    by: str

    def compare(self, db: Reader, scope: Scope) -> None:
        """Compare with what is found."""
        counts = Counts(db, scope_conditions(db, scope), span_of(self.query), self.query.kind)
        wanted = self._ask(
            "SELECT c.signature, count(*), count(DISTINCT c.version), count(DISTINCT c.host)"
            " FROM ROWS AND c.signature <> 0 GROUP BY 1 ORDER BY 1"
        )
        found = counts.top(None)
        hosts = counts.hosts_of_signatures([row[0] for row in found])
        assert sorted((n, c, v, hosts.get(n, 0)) for n, c, _, _, v in found) == wanted
        crashes = {number: count for number, count in counts.crashes().items() if count}
        assert crashes == {row[0]: row[1] for row in wanted}
        assert [(counts.hosts(),)] == self._ask("SELECT count(DISTINCT c.host) FROM ROWS")
        rows = Questions(db, scope).top_by(self.query, self.by)
        counted = {(r["name"], r["count"], r["hosts"], r["signatures"]) for r in rows}
        assert counted == set(
            self._ask(
                f"SELECT coalesce({NAMES[self.by]}, ''), count(*), count(DISTINCT c.host),"
                " count(DISTINCT nullif(signature, 0)) FROM ROWS GROUP BY 1"
            )
        )

    def _ask(self, text: str) -> list[tuple[Any, ...]]:
        sql = self.sql
        values: list[Any] = []
        for operator, time_ns in ((">=", self.query.since_ns), ("<=", self.query.until_ns)):
            if time_ns is not None:
                sql += f" AND c.time {operator} %s"
                values.append(moment_of(time_ns))
        if self.query.kind is not None:
            sql, values = sql + " AND c.kind = %s", [*values, self.query.kind]
        rows = (
            "crash c JOIN host h ON h.number = c.host JOIN labelset l ON l.number = c.labels"
            " LEFT JOIN version v ON v.number = c.version LEFT JOIN build b ON b.number = c.build"
            f" WHERE {sql}"
        )
        return self.fleet.ask(text.replace("ROWS", rows), *values)


@pytest.mark.timeout(240)
def test_counts_are_those_of_rows_however_summaries_stand(fleet: FleetIndex) -> None:
    life = Life(fleet, random.Random(1))
    with connect(fleet.dsn, name="test") as db:
        for step in range(5):
            life.write()
            if step % 2:
                assert sum_up(db)
                assert fleet.ask("SELECT count(*) FROM unsummed") == [(0,)]
            if step % 3 == 1:
                life.delete()
                fleet.index()
                assert sum_up(db)
            assert_counts_are_those_of_rows(fleet)
    assert fleet.ask("SELECT count(*) FROM crash") == [(len(life.there),)]
    assert len(life.there) > 50


def test_sets_of_hosts_grow_from_lists_to_bits_and_shrink_again(fleet: FleetIndex) -> None:
    day_s = time.time() % DAY_S
    ages = [1, day_s + 100]  # today and yesterday

    def have(hosts: range) -> list[Crash]:
        made = [make_crash(host, age_s=age) for host in hosts for age in ages]
        for host in hosts:
            own = [crash for crash in made if int(crash.boot_id, 16) == host]
            fleet.put(host, *(make_line(crash) for crash in own))
        fleet.index()
        return made

    def sets() -> set[tuple[int, bool]]:
        return set(
            fleet.ask("SELECT cardinality(few), many IS NOT NULL FROM summary WHERE signature > 0")
        )

    have(range(3, 3 + FEW))
    assert sets() == {(FEW, False)}
    with connect(fleet.dsn, name="test") as db:
        for hosts in (range(20, 21 + FEW), range(2000, 2040)):
            fleet.ask(f"SELECT setval(pg_get_serial_sequence('host', 'number'), {hosts[0] * 3})")
            have(hosts)
            assert_counts_are_those_of_rows(fleet)
            assert sum_up(db) and sets() == {(0, True)}
            assert_counts_are_those_of_rows(fleet)
        bucket = Bucket.open(f"file://{fleet.bucket}")
        for crash_id, host in fleet.ask(
            "SELECT c.id, h.host FROM crash c JOIN host h ON h.number = c.host"
            " WHERE c.day = CURRENT_DATE AND h.hostname NOT IN ('host-3', 'host-2001')"
        ):
            requests.delete(db, bucket, {"id": crash_id, "host": host})
        assert sum_up(db) and sets() == {(2, False), (0, True)}
    assert_counts_are_those_of_rows(fleet)


def test_summary_is_made_by_one_at_a_time(fleet: FleetIndex) -> None:
    with connect(fleet.dsn, name="one") as one, connect(fleet.dsn, name="other") as other:
        with one.transaction():
            one.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCK, SUMMING))
            assert not sum_up(other)
        assert sum_up(other)


def test_index_of_older_schema_is_counted_after_its_migration(fleet: FleetIndex) -> None:
    life = Life(fleet, random.Random(3))
    life.write()
    fleet.ask("DROP TABLE summary, unsummed")
    fleet.ask("DROP INDEX crash_core")
    fleet.ask("CREATE INDEX tally_version ON tally (version, signature, host)")
    records = fleet.ask("SELECT id, doc FROM crashes ORDER BY id")
    fleet.ask("DROP VIEW crashes")
    fleet.ask(
        "ALTER TABLE crash DROP CONSTRAINT crash_doc, ALTER doc TYPE jsonb USING doc::jsonb,"
        ' ALTER id TYPE text COLLATE "default", ALTER short TYPE text COLLATE "default"'
    )
    fleet.ask("CREATE VIEW crashes AS SELECT doc FROM crash")
    fleet.ask("DELETE FROM migration WHERE number > 2")
    with connect(fleet.dsn, name="test") as db:
        assert migrate(db)[0] == 3
        assert fleet.ask("SELECT id, doc FROM crashes ORDER BY id") == records
        assert_counts_are_those_of_rows(fleet)
        assert sum_up(db)
    assert_counts_are_those_of_rows(fleet)


def test_reindex_forgets_summaries_first(fleet: FleetIndex) -> None:
    life = Life(fleet, random.Random(4))
    life.write()
    life.write()
    arguments = argparse.Namespace(dsn=fleet.dsn, once=True, poll=0.05, idle=0.05, listen="off")
    assert reindex(arguments) == 0
    assert_counts_are_those_of_rows(fleet)


def test_host_that_came_after_a_summary_has_a_place_in_its_set(fleet: FleetIndex) -> None:
    fleet.put(3, make_line(make_crash(3)))
    fleet.index()
    fleet.ask("SELECT setval(pg_get_serial_sequence('crashd.host', 'number'), 5000)")
    fleet.put(2, make_line(make_crash(2)))
    assert_counts_are_those_of_rows(fleet)
    fleet.index()
    assert_counts_are_those_of_rows(fleet)
    assert fleet.ask("SELECT max(number) FROM host") == [(5001,)]
