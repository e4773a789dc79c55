"""The commands of crashd-fleet, once the arguments are known."""

import argparse
import gc
import json
import logging
import signal
import socket
import time
from datetime import UTC, datetime
from typing import Any

from crashd import __version__
from crashd.domain.text import printable
from crashd.edge.fleet.bucket import Bucket
from crashd.edge.fleet.metrics import FleetMetrics
from crashd.edge.fleet.postgres import connect, guard
from crashd.edge.fleet.reader import Reader
from crashd.edge.web.metricsserver import MetricsServer
from crashd.errors import CrashdError, PermissionDeniedError, UnavailableError, UsageError
from crashd.fleet import schema
from crashd.fleet.counts import ALL
from crashd.fleet.indexer import Done, Indexer, Pace
from crashd.fleet.load import Result
from crashd.fleet.main import CORES_DAYS, CORES_PER_SIGNATURE, KEEP_DAYS
from crashd.fleet.settings import Database, check, read_setting
from crashd.fleet.summary import sum_up
from crashd.fleet.upkeep import Cores, upkeep

UPKEEP_SECONDS = 60
SUM_SECONDS, SUM_SHARE = 5, 20
"""Summaries are made this often, but take at most one part in so many of the time."""
RETRY_SECONDS = (1, 2, 5, 10, 30)
log = logging.getLogger("crashd-fleet")


def init(arguments: argparse.Namespace) -> int:
    """Make or migrate the schema; set the bucket and what is kept."""
    db = connect(arguments.dsn, name="crashd-fleet init")
    try:
        if arguments.url:
            Bucket.open(arguments.url).check()
        try:
            done = schema.migrate(db)
        except PermissionDeniedError as e:
            hint = (
                "init needs a user who may create schemas and roles, such as the database's owner"
            )
            raise PermissionDeniedError(str(e), hint=hint) from e
        for name, value in (
            ("url", arguments.url),
            ("keep_days", arguments.keep),
            ("cores_days", arguments.cores_keep),
            ("cores_per_signature", arguments.cores_per_signature),
        ):
            if value is not None:
                schema.write_setting(db, name, str(value))
        with guard():
            url = read_setting(db, "url")
    finally:
        db.close()
    steps = "schema is up to date"
    if done:
        several = f"migrations {done[0]} to {done[-1]}" if len(done) > 1 else f"migration {done[0]}"
        steps = f"{several} applied"
    print(f"{steps}; bucket: {printable(url) if url else 'not set (--url)'}")
    return 0


def read_settings(dsn: str) -> dict[str, Any]:
    """Read the fleet's settings.

    Raises:
        UsageError: no bucket is set.

    """
    db = connect(dsn, name="crashd-fleet")
    try:
        return _settings(db)
    finally:
        db.close()


def _settings(db: Database) -> dict[str, Any]:
    with guard():
        check(db)
        rows = db.execute("SELECT name, value FROM setting").fetchall()
    found: dict[str, str] = {name: value for name, value in rows}
    if "url" not in found:
        raise UsageError("no bucket is set", hint="set it with crashd-fleet init --url URL")
    numbers = {"keep_days": KEEP_DAYS, "cores_days": CORES_DAYS}
    numbers["cores_per_signature"] = CORES_PER_SIGNATURE
    return {"url": found["url"], **{name: int(found.get(name, n)) for name, n in numbers.items()}}


class _Service:
    """The indexer with its connection, which is made again when it breaks."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._dsn: str = arguments.dsn
        self._pace = Pace(getattr(arguments, "poll", 5.0), getattr(arguments, "idle", 120.0))
        self.metrics = FleetMetrics(__version__, [result.value for result in Result])
        self.stopping = False
        self.healthy = False
        self._indexer: Indexer | None = None
        self._next_upkeep = 0.0
        self._next_sum = 0.0
        self._unsummed = False
        self._next_discovery = 0.0

    def stop(self, *_: object) -> None:
        """End after the transaction that runs; a second time, at once."""
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        if self._indexer is not None:
            self._indexer.stop.set()

    def open(self) -> None:
        """Connect, and check the schema and the bucket."""
        self.db = connect(self._dsn, name="crashd-fleet index")
        self.settings = _settings(self.db)
        self.bucket = Bucket.open(self.settings["url"])
        self.bucket.check()
        self._indexer = Indexer(
            self.db, self.bucket, keep_days=self.settings["keep_days"], pace=self._pace
        )
        if self.stopping:
            self._indexer.stop.set()

    def close(self) -> None:
        """Close the connection, which also gives back all locks."""
        if self._indexer is not None:
            self._indexer.close()
            self._indexer = None
            self.db.close()

    def turn(self, *, everything: bool = False) -> Done:
        """Do what is due once."""
        assert self._indexer is not None
        now = time.monotonic()
        if now >= self._next_discovery or everything:
            self._indexer.discover()
            self._next_discovery = now + self._pace.discover
        done = self._indexer.run_once()
        self.metrics.loaded({result.value: count for result, count in done.results.items()})
        if done.unread:
            self.metrics.failed()
        self.metrics.lag(0 if done.oldest is None else _age(done.oldest))
        self._sum_up(done)
        if time.monotonic() >= self._next_upkeep or everything:
            keep = self.settings["keep_days"]
            cores = Cores(self.settings["cores_days"], self.settings["cores_per_signature"])
            dropped = upkeep(self.db, self.bucket, keep, cores)
            if dropped:
                log.info("%d partitions dropped: older than %d days", dropped, keep)
            self.metrics.fleet(_gauges(self.db), self.bucket.requests)
            self._next_upkeep = time.monotonic() + UPKEEP_SECONDS
        self.healthy = True
        return done

    def _sum_up(self, done: Done) -> None:
        now = time.monotonic()
        self._unsummed |= bool(done.results)
        if self._unsummed and now >= self._next_sum:
            self._unsummed = not sum_up(self.db)
            self._next_sum = now + max(SUM_SECONDS, SUM_SHARE * (time.monotonic() - now))


def _age(moment: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - moment).total_seconds())


def _gauges(db: Database) -> dict[str, int]:
    with guard():
        row = db.execute(
            "SELECT (SELECT count(*) FROM cursor), (SELECT count(*) FROM cursor"
            " WHERE due < now() - interval '1 minute'), (SELECT count(*) FROM quarantine),"
            " (SELECT count(*) FROM request WHERE done IS NULL)"
        ).fetchone()
    names = ("hosts", "overdue_hosts", "quarantine_records", "open_requests")
    return dict(zip(names, row or (0, 0, 0, 0), strict=True))


def index(arguments: argparse.Namespace) -> int:
    """Index until a signal, or until nothing is due with --once."""
    gc.set_threshold(100_000, 50, 50)  # records are trees: most of what the collector visits lives
    service = _Service(arguments)
    signal.signal(signal.SIGTERM, service.stop)
    signal.signal(signal.SIGINT, service.stop)
    service.open()  # what is wrong from the start is an error, not a reason to wait
    if arguments.once:
        try:
            done = _run_until_done(service)
        finally:
            service.close()
        _report(done)
        return 0
    server = _serve(arguments.listen, service)
    log.info("indexing %s", service.settings["url"])
    failures = 0
    try:
        while not service.stopping:
            try:
                if service._indexer is None:
                    service.open()
                done = service.turn()
                failures = 0
                if not done.results:
                    _sleep(service, min(1.0, service._pace.poll / 2))
            except CrashdError as e:
                failures += 1
                service.healthy = False
                service.metrics.failed()
                service.close()
                wait = RETRY_SECONDS[min(failures, len(RETRY_SECONDS)) - 1]
                log.warning("%s; trying again in %d s", e, wait)
                _sleep(service, wait)
    finally:
        service.close()
        if server is not None:
            server.stop()
    return 0


def _sleep(service: _Service, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not service.stopping and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.2))


def _serve(listen: str, service: _Service) -> MetricsServer | None:
    if listen == "off":
        return None
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--listen: {listen!r} is not ADDRESS:PORT")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, int(port)), family=family, backlog=16)
    except (OSError, OverflowError) as e:
        raise UnavailableError(
            f"cannot listen on {listen}: {e}", hint="--listen=off serves no metrics"
        ) from e
    server = MetricsServer(sock, service.metrics, lambda: True, lambda: service.healthy)
    server.start()
    return server


def _run_until_done(service: _Service) -> Done:
    """List every host once, or have another indexer do it."""
    all_done = Done()
    assert service._indexer is not None
    service._indexer.discover()
    moment = service._indexer.all_due()
    while not service.stopping and service._indexer.is_due(moment):
        done = service.turn()
        all_done.add(done)
        if not done.hosts and not done.objects:
            time.sleep(0.1)
    service.turn(everything=True)
    return all_done


def _report(done: Done) -> None:
    found = done.results
    text = ", ".join(f"{found[result]} {result.value}" for result in Result if found[result])
    print(f"records: {text or 'none'}")
    if done.unread:
        raise UnavailableError(f"objects of {len(done.unread)} hosts cannot be read")


def reindex(arguments: argparse.Namespace) -> int:
    """Forget what the bucket can tell again, and read it."""
    service = _Service(arguments)
    service.open()
    try:
        with guard(), service.db.transaction():
            # waits for each indexer's transaction to end
            for part in (*range(schema.SHARDS), schema.SUMMING):
                service.db.execute("SELECT pg_advisory_xact_lock(%s, %s)", (schema.LOCK, part))
            service.db.execute("SET LOCAL lock_timeout = '60s'")
            for table in ("crash", "tally", "summary", "unsummed", "quarantine"):
                service.db.execute(f"DELETE FROM {table}".encode())
            service.db.execute("UPDATE host SET quarantined = 0")
            service.db.execute("UPDATE signature SET count = 0, cores = 0")
            service.db.execute(
                "UPDATE cursor SET objects = NULL, mark = NULL, late_mark = NULL,"
                " late_looked = NULL, recent = '{}', idle_seconds = 0, due = now()"
            )
        done = _run_until_done(service)
    finally:
        service.close()
    _report(done)
    return 0


def status(arguments: argparse.Namespace) -> int:
    """Show how far the index is."""
    db = Reader.connect(arguments.dsn, name="crashd-fleet status", timeout_seconds=60)
    try:
        found = read_status(db, _settings(db))
    finally:
        db.close()
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{count} {key}" for key, count in value.items()) or "none"
        print(f"{name.replace('_', ' '):>20}: {printable(str(value))}")
    return 0


def read_status(db: Reader, settings: dict[str, Any]) -> dict[str, Any]:
    """Read the numbers of `status`."""
    row = db.execute(
        "SELECT (SELECT coalesce(sum(crashes), 0)::bigint FROM (SELECT crashes FROM summary"
        f" WHERE signature = {ALL} UNION ALL SELECT crashes FROM unsummed) f),"
        " (SELECT count(*) FROM signature),"
        " (SELECT min(day)::text FROM tally), (SELECT max(mark)::text FROM cursor),"
        " (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crashd-fleet index'"
        " AND datname = current_database())"
    ).fetchone()
    refused = db.execute("SELECT reason, count(*) FROM quarantine GROUP BY 1 ORDER BY 1").fetchall()
    totals = db.execute("SELECT result, records FROM total ORDER BY 1").fetchall()
    crashes, signatures, first, newest, indexers = row or (0, 0, None, None, 0)
    return {
        "bucket": settings["url"],
        "crashes": crashes,
        "signatures": signatures,
        "first_day": first,
        "newest_object": newest,
        "kept_days": settings["keep_days"],
        "indexers": indexers,
        **_gauges(db),
        "quarantine": dict(refused),
        "records": dict(totals),
    }
