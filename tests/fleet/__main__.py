"""`python -m tests.fleet --hosts 10000 --crashes 1000000`: simulate, index, ask, print."""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests import postgres
from tests.fleet.measure import (
    INDEX,
    Figure,
    ask_command,
    ask_server,
    check,
    measure_lag,
    run_indexers,
)
from tests.fleet.simulate import Live, Plan, write_fleet


def main() -> int:
    """Run it; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fleet", description=__doc__)
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--crashes", type=int, default=20_000)
    parser.add_argument("--signatures", type=int, default=2000)
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--indexers", type=int, default=1)
    parser.add_argument(
        "--lag", type=float, default=30, help="seconds for which its lag is measured"
    )
    parser.add_argument("--directory", default="/tmp", help="for the bucket and PostgreSQL")
    arguments = parser.parse_args()
    plan = Plan(
        arguments.hosts,
        arguments.crashes,
        arguments.signatures,
        arguments.days,
        end_ns=time.time_ns(),
    )
    for figure in measure(plan, arguments.indexers, arguments.directory, arguments.lag):
        print(f"{figure.what:<48} {figure.value:>16}  {figure.aim}", flush=True)
    return 0


def measure(
    plan: Plan, indexers: int, parent: str, lag_seconds: float, poll: str = "5s"
) -> Iterator[Figure]:
    """Simulate, index and ask; yield the lines of the table as they are known: a run of a million
    takes a quarter of an hour, and the last figure must not take the others with it.
    """
    settings = (*postgres.QUICK[:-1], *postgres.LARGE)
    with (
        tempfile.TemporaryDirectory(prefix="crashd-fleet-", dir=parent) as directory,
        postgres.running(settings, parent) as server,
    ):
        bucket = Path(directory)
        written = write_fleet(plan, bucket)
        yield Figure("hosts, crashes", f"{plan.hosts}, {written.crashes}")
        yield Figure("records, objects", f"{written.records}, {written.objects}")
        size = f"{written.size_bytes / max(1, written.records):.0f}"
        yield Figure("bytes of the bucket for each record", size)
        dsn = server.dsn()
        init = [*INDEX, "init", "--dsn", dsn, "--url", f"file://{bucket}"]
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
        seconds = run_indexers(dsn, indexers)
        rate = f"{written.records / seconds:.0f}"
        yield Figure(f"records a second, {indexers} indexer(s)", rate, ">= 5000")
        check(dsn, written)
        server_bytes = _used(server.directory)
        yield Figure("bytes of PostgreSQL for each crash", str(server_bytes // plan.crashes))
        yield from ask_server(dsn, plan)
        yield from ask_command(dsn)
        yield measure_lag(dsn, Live(plan, bucket), plan.hosts, lag_seconds, poll)


def _used(directory: Path) -> int:
    base = directory / "data/base"
    return sum(path.stat().st_size for path in base.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
