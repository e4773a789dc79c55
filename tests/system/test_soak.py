"""The soak, for half a minute: `python -m tests.soak --minutes 60` goes on for longer."""

import pytest

from tests.soak import soak


@pytest.mark.timeout(600)
def test_half_a_minute_of_everything_breaks_nothing(core_pattern_owner: None) -> None:
    run = soak(30, 20261123)
    print("\n".join(run.report()))
    assert run.ledger.violations == []
    assert run.ledger.made.total() > 50
    assert run.ledger.dumps
    assert run.ledger.restarts
