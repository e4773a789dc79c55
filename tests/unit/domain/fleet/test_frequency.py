"""Shares of hosts, now and before."""

import pytest

from crashd.domain.fleet.frequency import Share, is_more_frequent


@pytest.mark.parametrize(
    ("now", "before"),
    [
        (Share(50, 1000), Share(5, 1000)),
        (Share(10, 100), Share(0, 100)),
        (Share(300, 3000), Share(100, 6000)),
    ],
)
def test_is_more_frequent_of_many_more_hosts_is_true(now: Share, before: Share) -> None:
    assert is_more_frequent(now, before)


@pytest.mark.parametrize(
    ("now", "before"),
    [
        (Share(2, 10), Share(0, 1000)),  # two hosts are chance
        (Share(60, 1000), Share(50, 1000)),  # not twice as many
        (Share(500, 1000), Share(50, 100)),  # ten times the hosts, the same share
        (Share(4, 100), Share(1, 100)),  # by chance
        (Share(50, 100), Share(0, 0)),  # nothing to compare with
        (Share(0, 0), Share(0, 0)),
        (Share(7, 5), Share(9, 3)),  # counts of different moments
    ],
)
def test_is_more_frequent_of_chance_or_of_more_hosts_is_false(now: Share, before: Share) -> None:
    assert not is_more_frequent(now, before)
