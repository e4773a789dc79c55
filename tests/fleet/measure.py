"""Measures the index of a simulated fleet: how fast it is made, and asked."""

import itertools
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from crashd.domain.crash.query import Query
from crashd.edge.fleet.postgres import connect
from crashd.edge.fleet.reader import Reader
from crashd.fleet.newsince import NewSince
from crashd.fleet.questions import Questions
from crashd.fleet.selection import Scope
from tests.fleet.simulate import VERSIONS, Live, Plan, Written

DAY_NS = 86400 * 10**9
RUNS, COMMANDS = 40, 12
RATE, OBJECT_CRASHES, WRITING_HOSTS = 500, 10, 250
"""Crashes a second; those of an object; hosts that write in turn, each every 5 seconds."""
LAG_LIMIT = 240
INDEX = [sys.executable, "-m", "crashd.fleet.main"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    what: str
    value: str
    aim: str = ""


def run_indexers(dsn: str, count: int) -> float:
    """Index all that is there with so many indexers; return the seconds."""
    start = time.monotonic()
    command = [*INDEX, "index", "--once", "--dsn", dsn]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(count)]
    for process in running:
        if process.wait() != 0:
            raise RuntimeError("crashd-fleet index failed")
    return time.monotonic() - start


def check(dsn: str, written: Written) -> None:
    """Check that the index has exactly what was written."""
    with connect(dsn, name="measure") as db:
        row = db.execute("SELECT count(*), count(DISTINCT (host, id)) FROM crash").fetchone()
        if row != (written.crashes, written.crashes):
            raise RuntimeError(f"{row} crashes in the index, of {written.crashes}")
        found = db.execute("SELECT signature, count FROM signature WHERE count > 0").fetchall()
        if {name: count for name, count in found} != written.by_signature:
            raise RuntimeError("the counts of signatures are wrong")
        row = db.execute("SELECT sum(crashes) FROM tally").fetchone()
        if row is None or row[0] != written.crashes:
            raise RuntimeError("the tallies are wrong")


def measure_lag(dsn: str, live: Live, hosts: int, seconds: float, poll: str) -> Figure:
    """Return how long it takes from an object to its rows while hosts write at a steady rate."""
    command = [*INDEX, "index", "--dsn", dsn, "--poll", poll, "--listen", "off"]
    with (
        Reader.connect(dsn, name="measure", timeout_seconds=60) as db,
        subprocess.Popen(command, stdout=subprocess.DEVNULL) as indexer,
    ):
        try:
            lags = _lags(db, live, min(hosts, WRITING_HOSTS), seconds)
        finally:
            indexer.terminate()
    if indexer.returncode != 0:
        raise RuntimeError("crashd-fleet index failed")
    p95 = statistics.quantiles(lags, n=20)[-1]
    return Figure(f"lag at {RATE} a second, p95, most", f"{p95:.1f} s, {max(lags):.1f} s", "< 10 s")


def _lags(db: Reader, live: Live, hosts: int, seconds: float) -> list[float]:
    """Write, and look ten times a second for what is there; return the seconds of each object."""
    written: dict[str, float] = {}
    lags: list[float] = []
    began, numbers = datetime.now(UTC), itertools.cycle(range(hosts))
    start = due = time.monotonic()
    while written or due < start + seconds:
        while due <= time.monotonic() and due < start + seconds:
            key = live.write(next(numbers), OBJECT_CRASHES)
            written[key] = time.monotonic()
            due += OBJECT_CRASHES / RATE
        found = db.execute(
            "SELECT DISTINCT object FROM crash WHERE day >= %s AND time >= %s",
            (began.date(), began),
        ).fetchall()
        now = time.monotonic()
        lags += [now - written.pop(key) for (key,) in found if key in written]
        if now > start + seconds + LAG_LIMIT:
            raise RuntimeError(f"{len(written)} objects are not indexed")
        time.sleep(0.1)
    return lags


def ask_server(dsn: str, plan: Plan) -> Iterator[Figure]:
    """Time questions in the server: the connection is there."""
    chance = random.Random(3)
    now_ns = plan.end_ns
    with Reader.connect(dsn, name="measure", timeout_seconds=60) as db:
        rows = Questions(db).select(Query(limit=200))

        def one(key: str) -> str:
            return str(chance.choice(rows)[key])

        hosts = [str(row["host"]) for row in rows]
        lists: dict[str, Callable[[], object]] = {
            "list -n 20": lambda: Questions(db).select(Query(limit=20)),
            "list -n 20 --host": lambda: Questions(db, Scope((chance.choice(hosts),))).select(
                Query(limit=20)
            ),
            "list -n 20 --label": lambda: Questions(db, Scope(labels=(("zone", "fra"),))).select(
                Query(limit=20)
            ),
            "list -n 20 --signature": lambda: Questions(db).select(
                Query(signature=one("signature"), limit=20)
            ),
            "list -n 20 UNIT": lambda: Questions(db).select(Query((one("unit"),), limit=20)),
            "list -n 20 --since -U": lambda: Questions(db).select(
                Query(
                    since_ns=now_ns - 3 * DAY_NS,
                    until_ns=now_ns - chance.randrange(DAY_NS, 2 * DAY_NS),
                    limit=20,
                )
            ),
            "info ID": lambda: Questions(db).info(one("id")),
        }
        for name, call in lists.items():
            yield Figure(f"--fleet {name}, server, p95", _p95(call), "< 100 ms")
        week = now_ns - 7 * DAY_NS
        counts: dict[str, Callable[[], object]] = {
            "top --since -7d": lambda: Questions(db).top(Query(since_ns=week, limit=20)),
            "top --by version": lambda: Questions(db).top_by(Query(limit=20), "version"),
            "top --by build": lambda: Questions(db).top_by(Query(limit=20), "build"),
            "top --by host": lambda: Questions(db).top_by(Query(limit=20), "host"),
            "top --by label:zone": lambda: Questions(db).top_by(Query(limit=20), "label:zone"),
            "top --new-since -1d": lambda: NewSince(db, Scope()).time(
                now_ns - DAY_NS, Query(limit=20)
            ),
            "top --new-since VERSION": lambda: NewSince(db, Scope()).version(
                VERSIONS[-1], Query(limit=20)
            ),
        }
        for name, call in counts.items():
            yield Figure(f"--fleet {name}, server, p95", _p95(call), "< 300 ms")


def ask_command(dsn: str) -> Iterator[Figure]:
    """Time the command, with its start."""
    crashctl = str(Path(sys.executable).with_name("crashctl"))
    environ = {**os.environ, "CRASHD_FLEET": dsn}

    def run() -> None:
        subprocess.run(
            [crashctl, "--fleet", "list", "-n", "20"],
            env=environ,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    yield Figure("crashctl --fleet list -n 20, p95", _p95(run, COMMANDS), "< 250 ms")


def _p95(call: Callable[[], object], runs: int = RUNS) -> str:
    call()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return f"{statistics.quantiles(times, n=20)[-1]:.0f} ms"
