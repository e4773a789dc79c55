"""The simulator's own table, small: `python -m tests.fleet`."""

import time

import pytest

from tests.fleet.__main__ import measure
from tests.fleet.simulate import Plan
from tests.integration.fleetindex import why_no_postgres


@pytest.mark.skipif(why_no_postgres() is not None, reason=str(why_no_postgres()))
@pytest.mark.timeout(240)
def test_simulated_fleet_is_indexed_and_asked_in_time() -> None:
    # 25 s alone on two cores; the figures themselves are for a quiet machine and full size
    plan = Plan(100, 20_000, end_ns=time.time_ns())
    found = list(measure(plan, indexers=2, parent="/tmp", lag_seconds=1, poll="200ms"))
    table = {figure.what: figure.value for figure in found}
    assert table["hosts, crashes"] == "100, 20000"
    slow = {what: value for what, value in table.items() if "server, p95" in what}
    assert len(slow) >= 10
    assert all(int(value.removesuffix(" ms")) < 1500 for value in slow.values()), slow
    lag = next(value for what, value in table.items() if what.startswith("lag"))
    assert float(lag.split()[0]) < 30, lag
