from crashd.daemon.loopclock import SLACK_NS, LoopClock

SECOND_NS = 10**9


class Time:
    """What CLOCK_MONOTONIC says."""

    def __init__(self) -> None:
        self.ns = 1000 * SECOND_NS

    def __call__(self) -> int:
        return self.ns


def test_clock_goes_on_while_the_loop_waits_as_long_as_it_meant_to() -> None:
    now = Time()
    clock = LoopClock(now)
    started_ns = clock.now_ns()
    clock.wait(5 * SECOND_NS)
    now.ns += 5 * SECOND_NS
    assert clock.look() - started_ns == 5 * SECOND_NS
    assert clock.now_ns() - started_ns == 5 * SECOND_NS


def test_clock_stands_while_the_loop_acts_or_wakes_up_late() -> None:
    now = Time()
    clock = LoopClock(now)
    started_ns = clock.now_ns()
    clock.wait(SECOND_NS)
    now.ns += 10 * SECOND_NS  # not scheduled
    assert clock.look() - started_ns == SECOND_NS + SLACK_NS
    now.ns += 30 * SECOND_NS  # the disk stands still
    clock.wait(100 * SECOND_NS)  # other timers are far away
    assert clock.look() - started_ns == SECOND_NS + 2 * SLACK_NS


def test_clock_goes_on_in_a_loop_that_is_always_busy() -> None:
    now = Time()
    clock = LoopClock(now)
    started_ns = clock.now_ns()
    for _ in range(100):
        clock.wait(0)
        now.ns += SLACK_NS
        heard_ns = clock.look()
    assert heard_ns - started_ns == 100 * SLACK_NS
