"""The indexer: from the objects of hosts to rows, again and again.

Hosts are divided into shards. An indexer takes its share of them by advisory locks of its
connection, lists what their due hosts have written, loads it and moves the cursors in the same
transactions, and gives the shards back. If it is killed anywhere, PostgreSQL gives the locks back,
and what was not committed is listed again: every crash is there once. Several indexers take
different shards. A host that has written very much goes on after the others (crashd.fleet.backlog).
"""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zlib import crc32

from crashd.domain.fleet.hostid import HOST_PATTERN
from crashd.domain.fleet.keys import RECORDS, parse_records_key
from crashd.domain.text import printable
from crashd.edge.fleet.bucket import Bucket, Found
from crashd.edge.fleet.postgres import DATA_ERRORS, Connection, guard
from crashd.errors import CrashdError, FormatError
from crashd.fleet.backlog import Backlog
from crashd.fleet.cursor import Cursor, Look
from crashd.fleet.load import Bad, Batch, Loader, Result, judge
from crashd.fleet.objects import NOT_READ, Objects, Survey
from crashd.fleet.rows import FUTURE_DAYS, Refused
from crashd.fleet.schema import LOCK, SHARDS
from crashd.fleet.texts import clean
from crashd.fleet.unpack import unpack_lines

BATCH_ROWS = 4000
BATCH_BYTES = 16 << 20
BATCH_SECONDS = 0.5
"""A batch that is not full waits so long, if nothing is being loaded."""
TURN_SECONDS = 1.0
"""A host's turn ends after so long, whatever its objects unpack to."""
LONG_SECONDS = 1.0
"""So long hosts that are not done have turns in a pass; at least one each."""
HOSTS = 500
"""Hosts whose cursors are read at once."""
_STAMP = "objects, mark, late_mark, late_looked, due"
"""What every indexer that is done with a host changes, and a reindex."""
log = logging.getLogger("crashd-fleet")


@dataclass(frozen=True, slots=True)
class Pace:
    """How often hosts are listed, in seconds."""

    poll: float = 5
    """A host that has just written."""
    idle: float = 120
    """A host that has not written for long."""
    discover: float = 30
    """For new hosts."""


@dataclass(slots=True)
class Done:
    """What a pass did."""

    hosts: int = 0
    unread: set[str] = field(default_factory=set)
    """Hosts whose objects could not be listed or read."""
    objects: int = 0
    results: Counter[Result] = field(default_factory=Counter)
    oldest: datetime | None = None
    """Time of the oldest object that was indexed."""

    def add(self, other: "Done") -> None:
        """Add another one."""
        self.hosts += other.hosts
        self.unread |= other.unread
        self.objects += other.objects
        self.results += other.results
        times = [time for time in (self.oldest, other.oldest) if time is not None]
        self.oldest = min(times, default=None)


@dataclass(slots=True)
class _Work:
    """What is being gathered, and what is being loaded."""

    batch: Batch = field(default_factory=Batch)
    also: list[tuple[str, Sequence[Any]]] = field(default_factory=list)
    """Statements for the transaction of the batch: cursors whose hosts it completes."""
    pending: "Future[Counter[Result]] | None" = None
    began: float = field(default_factory=time.monotonic)

    @property
    def is_ready(self) -> bool:
        """Whether the batch is to be loaded now: it is full, or old while the writer is idle."""
        if len(self.batch) >= BATCH_ROWS or self.batch.size_bytes >= BATCH_BYTES:
            return True
        is_idle = self.pending is None or self.pending.done()
        return is_idle and time.monotonic() >= self.began + BATCH_SECONDS


class Indexer:
    """One indexer with its own connection; `stop` may be set by a signal handler."""

    def __init__(self, db: Connection, bucket: Bucket, *, keep_days: int, pace: Pace) -> None:
        self._db = db
        self._bucket = bucket
        self._keep_days = keep_days
        self._pace = pace
        self._loader = Loader(db, keep_days)
        self._objects = Objects(bucket)
        self._backlog = Backlog()
        self._writer = ThreadPoolExecutor(1, "postgres")
        self.stop = threading.Event()

    def close(self) -> None:
        """End the threads."""
        self._objects.close()
        self._writer.shutdown(cancel_futures=True)

    def discover(self) -> int:
        """Make cursors for new hosts; return how many there are."""
        names = self._bucket.prefixes(RECORDS)
        hosts = [name for name in names if HOST_PATTERN.fullmatch(name)]
        if len(hosts) < len(names):
            log.warning(
                "%d prefixes below %s are not hosts, ignoring", len(names) - len(hosts), RECORDS
            )
        with guard():
            found = self._db.execute(
                "INSERT INTO cursor (host, shard) SELECT * FROM unnest(%s::text[], %s::int[])"
                " w(host, shard) WHERE NOT EXISTS (SELECT FROM cursor c WHERE c.host = w.host)"
                " ON CONFLICT DO NOTHING",
                (hosts, [shard_of(host) for host in hosts]),
            )
        return found.rowcount

    def run_once(self) -> Done:
        """Take every shard that is due and free; index what its hosts have written."""
        done = Done()
        with guard():
            # all indexers of this index, by the name of their connections
            row = self._db.execute(
                "SELECT now(), (SELECT array_agg(DISTINCT shard) FROM cursor WHERE due <= now()),"
                " (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = current_setting('application_name'))"
            ).fetchone()
        assert row is not None
        shards = list(row[1] or ())
        random.shuffle(shards)  # so that several indexers seldom meet
        share = -(-SHARDS // max(1, row[2]))
        while not self.stop.is_set() and (mine := self._lock(shards, share)):
            with guard():
                try:
                    # a host that is due again meanwhile waits for the next pass
                    while True:
                        part = self._index_hosts(mine, row[0])
                        done.add(part)
                        if not part.hosts or self.stop.is_set():
                            break
                finally:
                    if not self._db.closed:
                        sql = "SELECT pg_advisory_unlock(%s, n) FROM unnest(%s::int[]) n"
                        self._db.execute(sql, (LOCK, mine))
            shards = [shard for shard in shards if shard not in mine]
        return done

    def _lock(self, shards: Sequence[int], most: int) -> list[int]:
        """Take free ones of some shards; more of them share a transaction's cost."""
        with guard():
            found = self._db.execute(
                "SELECT n FROM unnest(%s::int[]) n WHERE pg_try_advisory_lock(%s, n) LIMIT %s",
                (list(shards), LOCK, most),
            ).fetchall()
        return [row[0] for row in found]

    def all_due(self) -> datetime:
        """Make every host due; return the moment after which each has been listed again."""
        with guard():
            row = self._db.execute("SELECT now()").fetchone()
            assert row is not None
            self._db.execute("UPDATE cursor SET due = %s WHERE due > %s", (row[0], row[0]))
        moment: datetime = row[0]
        return moment

    def is_due(self, moment: datetime) -> bool:
        """Return whether a host has not been listed since a moment."""
        with guard():
            row = self._db.execute(
                "SELECT EXISTS (SELECT FROM cursor WHERE due <= %s)", (moment,)
            ).fetchone()
        return bool(row and row[0])

    # -- some shards -------------------------------------------------------------------------------

    def _index_hosts(self, shards: list[int], due: datetime) -> Done:
        found = self._db.execute(
            f"SELECT host, {_STAMP}, recent, idle_seconds FROM cursor"
            " WHERE shard = ANY(%s) AND due <= %s AND host <> ALL(%s) ORDER BY due LIMIT %s",
            (shards, due, self._backlog.hosts, HOSTS),
        ).fetchall()
        cursors, stamps = [], {}
        for host, objects, mark, late_mark, looked, since, recent, idle in found:
            cursors.append(Cursor(host, objects, mark, late_mark, looked, frozenset(recent), idle))
            stamps[host] = (objects, mark, late_mark, looked, since)
        done = Done(hosts=len(cursors))
        work = _Work()
        try:
            for survey in self._objects.surveys(cursors):
                survey.stamp = stamps[survey.look.cursor.host]
                self._take_turn(survey, work, done)
            if not cursors:
                self._go_on(shards, work, done)
            self._send(work, done)
        finally:
            if work.pending is not None:  # no transaction may outlive the lock
                wait([work.pending])
        self._finish(work, done)
        return done

    def _go_on(self, shards: list[int], work: "_Work", done: Done) -> None:
        """Give turns to hosts that are not done, at the end of a pass and not for long."""
        end = time.monotonic() + LONG_SECONDS
        while (surveys := self._next_turns(shards)) and not self.stop.is_set():
            for survey in surveys:
                self._take_turn(survey, work, done)
            if time.monotonic() >= end:
                break

    def _next_turns(self, shards: list[int]) -> list[Survey]:
        if not (hosts := self._backlog.hosts):
            return []
        found = self._db.execute(
            f"SELECT host, {_STAMP} FROM cursor WHERE host = ANY(%s) AND shard = ANY(%s)",
            (hosts, shards),
        ).fetchall()
        surveys = self._backlog.next({host: tuple(stamp) for host, *stamp in found})
        self._objects.go_on([survey for survey in surveys if not survey.some])
        return surveys

    def _take_turn(self, survey: Survey, work: "_Work", done: Done) -> None:
        """Index a host's objects for one turn; its cursor moves when there are no more."""
        host = survey.look.cursor.host
        today = datetime.now(UTC).date()
        days = (today - timedelta(days=self._keep_days), today + timedelta(days=FUTURE_DAYS))
        objects, end, count = self._objects.read(survey), time.monotonic() + TURN_SECONDS, 0
        try:
            for one, data in objects:
                _judge_object(work.batch, host, one, data, days)
                done.objects += 1
                count += 1
                done.oldest = min(done.oldest or one.modified, one.modified)
                if work.is_ready:
                    self._send(work, done)
                if self.stop.is_set():
                    return
                if time.monotonic() >= end and count < len(survey.some):
                    break
        except NOT_READ as e:
            self._backlog.remove(host)
            work.also.append(self._leave(host, e))
            done.unread.add(host)
            return
        finally:
            objects.close()
        del survey.some[:count]
        if survey.is_listed and not survey.some:
            self._backlog.remove(host)
            work.also.append(self._advance(survey.look))
        else:
            self._backlog.keep(survey)

    def _leave(self, host: str, error: CrashdError) -> tuple[str, Sequence[Any]]:
        """Leave a host alone for a while if the error is of its objects alone: it may have given
        one a name that no listing takes, a key of encryption that nobody else has, or a class of
        storage that is not read at once.

        Raises:
            CrashdError: the bucket does not answer at all.

        """
        self._bucket.check()
        log.warning("host %s: %s; trying again in %.0f s", host, error, self._pace.idle)
        sql = "UPDATE cursor SET due = now() + make_interval(secs => %s) WHERE host = %s"
        return sql, (self._pace.idle, host)

    def _send(self, work: "_Work", done: Done) -> None:
        """Load the batch in the writer's thread, while the next one is read."""
        self._finish(work, done)
        work.pending = self._writer.submit(self._load, work.batch, work.also)
        work.batch, work.also, work.began = Batch(), [], time.monotonic()

    def _finish(self, work: "_Work", done: Done) -> None:
        if work.pending is not None:
            done.results += work.pending.result()
            work.pending = None

    def _load(self, batch: Batch, also: list[tuple[str, Sequence[Any]]]) -> Counter[Result]:
        try:
            return self._loader.load(batch, also)
        except DATA_ERRORS as e:
            # the model took a value that PostgreSQL refuses: find the line, and keep the others
            return self._load_halves(batch, also, e)

    def _load_halves(
        self, batch: Batch, also: list[tuple[str, Sequence[Any]]], error: Exception
    ) -> Counter[Result]:
        if len(batch.rows) > 1:
            middle = len(batch.rows) // 2
            results = self._load(Batch(batch.rows[:middle], batch.bad, batch.expired), [])
            return results + self._load(Batch(batch.rows[middle:]), also)
        bad = list(batch.bad)
        for row in batch.rows:
            log.warning(
                "%s of host %s is refused by PostgreSQL: %s",
                row.id,
                row.host,
                printable(str(error)[:200]),
            )
            bad.append(Bad(row.host, row.object, row.line, "refused", clean(str(error)[:200])))
        return self._loader.load(Batch([], bad, batch.expired), also)

    def _advance(self, look: Look) -> tuple[str, Sequence[Any]]:
        now = datetime.now(UTC)
        after = look.end(now, poll=self._pace.poll, idle=self._pace.idle)
        return (
            "UPDATE cursor SET objects = %s, mark = %s, late_mark = %s, late_looked = %s,"
            " recent = %s,"
            " idle_seconds = %s, due = now() + make_interval(secs => %s) WHERE host = %s",
            (
                after.objects,
                after.mark,
                after.late_mark,
                after.late_looked,
                sorted(after.recent),
                after.idle_seconds,
                (after.idle_seconds or self._pace.poll) * random.uniform(0.9, 1.1),
                after.host,
            ),
        )


def _judge_object(
    batch: Batch, host: str, one: Found, data: bytes | Refused | None, days: tuple[date, date]
) -> None:
    """Add the lines of an object to a batch, or why it was refused."""
    if data is None:
        return
    try:
        if isinstance(data, Refused):
            raise data
        try:
            parse_records_key(one.key)
        except FormatError as e:
            raise Refused("name", str(e)) from e
        for number, line in unpack_lines(data):
            judge(line, host, one.key, number, batch, days)
    except Refused as e:
        batch.bad.append(Bad(host, one.key, 0, e.reason, clean(str(e)[:200])))


def shard_of(host: str) -> int:
    """Return the shard of a host: the same in every process and version."""
    return crc32(host.encode()) % SHARDS
