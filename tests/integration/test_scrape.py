"""What a scrape costs, and what it tells, with a hundred thousand crashes in the index."""

import gc
import time
from collections.abc import Iterator

import pytest

from crashd.domain.web.unitcounts import UNITS_MAX
from crashd.edge.web.exporter import OPENMETRICS, Exporter
from crashd.store.index import Index
from crashd.store.schema import PAST_UNITS_MAX
from tests.builders.crashes import build_crash
from tests.yardstick import slowness

CRASHES = 100_000
SCRAPE_SECONDS_MAX = 0.01
"""Of CPU."""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """Crashes of as many programs, in a thousand units: one record, its row written often."""
    path = tmp_path_factory.mktemp("index") / "index.sqlite"
    with Index.open(path) as opened:
        opened.put([build_crash(0)])
        columns = [row[1] for row in opened.fetch("PRAGMA table_info(crash)")]
        own = {
            "id": "id || '-' || n",
            "token": "'t' || n",
            "comm": "CAST('prog' || n AS BLOB)",
            "unit": "'unit' || (n % 1000) || '.service'",
            "time_ns": "time_ns + n",
        }
        values = ", ".join(own.get(column, column) for column in columns)
        opened._db.execute(
            f"WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {CRASHES})"
            f" INSERT INTO crash ({', '.join(columns)}) SELECT {values} FROM c, crash"
            " WHERE crash.token = 'a-0-b'"
        )
        yield opened


@pytest.fixture(scope="module")
def exporter(index: Index) -> Exporter:
    """Seeded as the daemon does at its start."""
    seeded = Exporter("1")
    totals = index.totals()
    seeded.seed(totals.by_disposition, totals.by_signal, totals.last_ns)
    seeded.seed_units(index.unit_totals(PAST_UNITS_MAX))
    return seeded


def test_totals_at_start_are_all_crashes_of_the_index(exporter: Exporter) -> None:
    lines = exporter.render("")[0].decode().splitlines()
    total = f'crashd_crashes_total{{disposition="full",kind="process"}} {CRASHES + 1:.1f}'
    assert total in lines
    of_units = [float(line.split()[-1]) for line in lines if line.startswith("crashd_unit_cr")]
    assert len(of_units) == UNITS_MAX + 1
    assert sum(of_units) == CRASHES + 1


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_scrape_costs_less_than_10_ms_of_cpu(exporter: Exporter, accept: str) -> None:
    exporter.captured("memory", 0.02, 1, 1, 1, crash_id="id", time_ns=1)
    exporter.render(accept)
    gc.collect()
    rounds = []
    for _ in range(20):
        start = time.thread_time()
        body, _ = exporter.render(accept)
        rounds.append(time.thread_time() - start)
    print(f"{len(body)} bytes, {sorted(rounds)[10] * 1e3:.2f} ms of CPU")
    assert sorted(rounds)[10] < SCRAPE_SECONDS_MAX * slowness()
    assert len(body) < 64 << 10
