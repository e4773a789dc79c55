"""The limit of bandwidth."""

from crashd.ship.pace import Pace


def test_pace_lets_the_rate_pass_over_time() -> None:
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    pace = Pace(1000, lambda: now[0], sleep)
    for _ in range(50):
        pace.wait(100)
    assert 4.0 <= now[0] - 100.0 <= 5.0


def test_pace_after_a_pause_lets_no_more_than_a_burst_pass() -> None:
    now = [100.0]
    slept: list[float] = []
    pace = Pace(1000, lambda: now[0], slept.append)
    pace.wait(100)
    now[0] += 3600
    for _ in range(10):
        pace.wait(100)
    assert slept and max(slept) >= 0.3


def test_pace_without_a_limit_never_waits() -> None:
    slept: list[float] = []
    pace = Pace(None, lambda: 0.0, slept.append)
    pace.wait(1 << 40)
    assert not slept
