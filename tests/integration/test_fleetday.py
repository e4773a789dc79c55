"""A day on which nothing that a host needs is there: neither the object store nor PostgreSQL."""

import argparse
import contextlib
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from crashd.daemon.fleet import shipping
from crashd.domain.crash.model import Crash
from crashd.fleet.run import init
from crashd.store.indexfile import PAGE_BYTES, WAL_PAGES
from crashd.store.outbox import outbox_bytes
from tests import postgres
from tests.builders.crashes import build_crash
from tests.integration.fleetindex import FleetIndex, why_no_postgres
from tests.integration.test_fleetindex import assert_tallies_agree
from tests.integration.test_fleetoutage import wait_for_rows
from tests.integration.test_ship import quick, service, settle
from tests.objectstore import BUCKET, ObjectStore
from tests.running import wait_until
from tests.shipping import Bucket, Host, Shipper

__all__ = ["quick", "service"]
HOUR_NS = 3600 * 10**9
CRASHES_AN_HOUR = 80
SIGNATURE = "p2-0123456789abcdef"
URL = f"s3://{BUCKET}/day"


@dataclass
class Clock:
    """The clock of the host, which the test moves; what waits does so by the real one."""

    offset_ns: int

    def time_ns(self) -> int:
        """Return the host's time."""
        return time.time_ns() + self.offset_ns

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


@contextlib.contextmanager
def indexing(dsn: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run an indexer until the end of the block."""
    command = [sys.executable, "-m", "crashd.fleet.main", "index", "--dsn", dsn]
    command += ["--poll", "100ms", "--idle", "200ms", "--listen", "off"]
    with log.open("ab") as file, subprocess.Popen(command, stderr=file) as process:
        try:
            yield process
        finally:
            process.terminate()


def waiting(host: Host) -> tuple[int, int]:
    """Return how many objects are made, and how many crashes wait besides."""
    with contextlib.closing(sqlite3.connect(host.paths.outbox)) as db:
        tables = "SELECT (SELECT count(*) FROM batch), (SELECT count(*) FROM pending)"
        batches, pending = db.execute(tables).fetchone()
    return batches, pending


def add(host: Host, clock: Clock, count: int, first: int) -> list[Crash]:
    """Let a host have crashes; one in forty has a core."""
    return [
        host.add(
            build_crash(number, time_ns=clock.time_ns(), signature=SIGNATURE),
            None if number % 40 else b"core %d" % number,
        )
        for number in range(first, first + count)
    ]


@pytest.mark.skipif(why_no_postgres() is not None, reason=str(why_no_postgres()))
@pytest.mark.timeout(300)
def test_day_without_store_and_database_costs_no_crash_and_doubles_none(
    short_tmp: Path, quick: None, service: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in service.environ.items():
        monkeypatch.setenv(name, value)
    clock = Clock(-24 * HOUR_NS)
    monkeypatch.setattr(shipping, "time", clock)
    log = short_tmp / "index.log"
    with postgres.running(("autovacuum=off",)) as server:
        # all crashes have one signature, and each of their cores is to arrive
        settings = {"keep": None, "cores_keep": None, "cores_per_signature": 1000}
        init(argparse.Namespace(dsn=server.dsn(), url=URL, **settings))
        fleet, bucket = FleetIndex(server.dsn(), Path()), Bucket(URL, service.environ)
        host = Host(short_tmp / "root", URL)
        shipper = Shipper(host.paths.root)
        shipper.start()
        host.start()
        try:
            with indexing(fleet.dsn, log):
                crashes = add(host, clock, 20, 0)
                settle(host)
                wait_for_rows(fleet, 20)
                service.stop()
                server.stop(signal.SIGQUIT)
                crashes += _live_a_day(host, shipper, clock)
                server.start()
            with indexing(fleet.dsn, log) as killed:  # the store is still away
                wait_until(lambda: b"bucket" in log.read_bytes(), 60, "the bucket is missed")
                killed.kill()
            service.start()
            with indexing(fleet.dsn, log):
                settle(host, 120)
                wait_for_rows(fleet, len(crashes))
            assert not host.exporter.ship_losses()
        finally:
            host.stop()
            shipper.kill()
        ids = {crash.id for crash in crashes}
        assert {found for (found,) in fleet.ask("SELECT id FROM crash")} == ids
        assert fleet.ask("SELECT count FROM signature") == [(len(ids),)]
        assert_tallies_agree(fleet)
    assert bucket.revisions() == dict.fromkeys(ids, 1)
    assert set(bucket.cores()) == {crash.id for crash in crashes if crash.core.path}
    assert b"Traceback" not in log.read_bytes() and b"trying again" in log.read_bytes()


def _live_a_day(host: Host, shipper: Shipper, clock: Clock) -> list[Crash]:
    """Let a day pass; the daemon restarts in the midst of it, and its shipper is killed."""
    crashes: list[Crash] = []
    for hour in range(24):
        clock.offset_ns += HOUR_NS
        crashes += add(host, clock, CRASHES_AN_HOUR, 20 + len(crashes))
        if hour == 8:
            shipper.kill()
            shipper.start()
        if hour == 16:
            host.stop()
            host.start()
    wait_until(lambda: waiting(host)[1] > len(crashes) / 4, 60, "crashes wait unmade")
    batches, _ = waiting(host)
    assert 0 < batches <= shipping.BATCHES_MAX
    log = host.paths.outbox.with_name(f"{host.paths.outbox.name}-wal").stat().st_size
    assert outbox_bytes(host.paths.outbox) - log < 1 << 20
    assert log < 2 * WAL_PAGES * PAGE_BYTES, "it is written back when it has so many pages"
    assert host.metric("crashd_ship_failures", "network") > 0
    return crashes
