"""The indexer outlives its PostgreSQL, and follows it to another server."""

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from crashd.fleet.run import init
from tests import postgres
from tests.integration.fleetindex import FleetIndex, make_crash, make_line, why_no_postgres


def wait_for_rows(fleet: FleetIndex, count: int) -> None:
    deadline = time.monotonic() + 40
    found = 0
    while found != count:
        assert time.monotonic() < deadline, f"{found} of {count} crashes"
        time.sleep(0.1)
        try:
            ((found,),) = fleet.ask("SELECT count(*) FROM crash")
        except (psycopg.OperationalError, psycopg.errors.UndefinedTable):
            continue  # away, or a standby that lags


@pytest.mark.skipif(why_no_postgres() is not None, reason=str(why_no_postgres()))
def test_index_goes_on_after_postgresql_was_away(tmp_path: Path) -> None:
    # with fsync and all, because the server is ended as by a power cut
    with postgres.running(("autovacuum=off",)) as server:
        bucket = tmp_path / "bucket"
        bucket.mkdir()
        settings = {"keep": None, "cores_keep": None, "cores_per_signature": None}
        init(argparse.Namespace(dsn=server.dsn(), url=f"file://{bucket}", **settings))
        fleet = FleetIndex(server.dsn(), bucket)
        command = [sys.executable, "-m", "crashd.fleet.main", "index", "--dsn", fleet.dsn]
        command += ["--poll", "50ms", "--idle", "100ms", "--listen", "off"]
        fleet.put(1, *[make_line(make_crash(1)) for _ in range(50)])
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                wait_for_rows(fleet, 50)
                server.stop(signal.SIGQUIT)
                fleet.put(1, *[make_line(make_crash(1)) for _ in range(50)])
                time.sleep(0.5)
                server.start()
                wait_for_rows(fleet, 100)
            finally:
                process.terminate()
            _, text = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "Traceback" not in text
        assert "PostgreSQL: " in text and "trying again" in text


@pytest.mark.skipif(why_no_postgres() is not None, reason=str(why_no_postgres()))
def test_index_follows_a_failover_to_the_server_that_takes_writes(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    with postgres.running() as primary, postgres.running(standby_of=primary) as standby:
        settings = {"keep": None, "cores_keep": None, "cores_per_signature": None}
        # the standby first: it answers, but it takes no writes
        dsn = f"host={standby.directory},{primary.directory} dbname=postgres user=crashd"
        init(argparse.Namespace(dsn=dsn, url=f"file://{bucket}", **settings))
        fleet = FleetIndex(dsn, bucket)
        command = [sys.executable, "-m", "crashd.fleet.main", "index", "--dsn", dsn]
        command += ["--poll", "50ms", "--idle", "100ms", "--listen", "off"]
        fleet.put(1, *[make_line(make_crash(1)) for _ in range(50)])
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                # each question asks the standby, so these rows are there after the failover
                wait_for_rows(fleet, 50)
                primary.stop(signal.SIGQUIT)
                fleet.put(1, *[make_line(make_crash(1)) for _ in range(50)])
                standby.promote()
                wait_for_rows(fleet, 100)
            finally:
                process.terminate()
            _, text = process.communicate(timeout=20)
        assert fleet.ask("SELECT count(*), count(DISTINCT id) FROM crash") == [(100, 100)]
    assert process.returncode == 0
    assert "Traceback" not in text
    assert "PostgreSQL: " in text and "trying again" in text
