import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from crashd.daemon.loop import FAILURES_MAX, Loop

MS = 10**6


class Turns:
    """What turns in the loop: until a condition holds, or for so many turns."""

    def __init__(self, until: Callable[[], bool], most: int = 1000) -> None:
        self.until = until
        self.left = most
        self.signals: list[signal.Signals] = []

    def wait_ns(self) -> int | None:
        return 10 * MS

    def tick(self, heard_ns: int) -> None:
        assert heard_ns
        self.left -= 1

    def act_on_signal(self, number: signal.Signals) -> None:
        self.signals.append(number)

    def is_over(self) -> bool:
        return self.until() or self.left <= 0


@pytest.fixture
def loop() -> Iterator[Loop]:
    found = Loop()
    yield found
    found.close()


def test_timers_ring_again_and_once_and_a_cancelled_one_never(loop: Loop) -> None:
    rung: list[str] = []
    loop.timer("often", MS, lambda: rung.append("often"))
    loop.after("once", MS, lambda: rung.append("once"))
    loop.timer("never", MS, lambda: rung.append("never"))
    loop.timer("never", 0, lambda: rung.append("never"))
    assert loop.is_set("once")
    assert not loop.is_set("never")
    loop.run(Turns(lambda: rung.count("often") >= 3))
    assert rung.count("often") == 3
    assert rung.count("once") == 1
    assert "never" not in rung
    assert not loop.is_set("once")
    assert loop.is_set("often")


def test_timer_that_another_one_cancels_in_the_same_turn_does_not_ring(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    rung: list[str] = []

    def first() -> None:
        rung.append("first")
        loop.timer("second", 0, first)

    loop.after("first", 1, first)
    loop.after("second", 1, lambda: rung.append("second"))
    loop.run(Turns(lambda: bool(rung), most=1000))
    assert rung == ["first"]
    assert caplog.text == ""


def test_call_from_another_thread_ends_the_wait(loop: Loop) -> None:
    called: list[int] = []
    loop.timer("far", 3600 * 10**9, lambda: None)
    caller = threading.Thread(target=lambda: loop.call_soon(lambda: called.append(1)))
    caller.start()
    turns = Turns(lambda: bool(called))
    loop.run(turns)
    caller.join()
    assert called == [1]


def test_source_acts_while_it_is_readable_and_not_after_unwatch(loop: Loop) -> None:
    out, into = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    read: list[bytes] = []
    with os.fdopen(out, "rb", buffering=0) as source, os.fdopen(into, "wb", buffering=0) as sink:
        loop.watch(source, lambda: read.append(os.read(out, 1)))
        sink.write(b"ab")
        loop.run(Turns(lambda: len(read) == 2))
        loop.unwatch(source)
        loop.unwatch(source)
        sink.write(b"c")
        loop.run(Turns(lambda: False, most=3))
    assert read == [b"a", b"b"]


def test_event_that_fails_is_logged_and_costs_the_others_nothing(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    rung: list[str] = []

    def fail() -> None:
        raise ValueError("this one")

    loop.call_soon(fail)
    loop.after("other", MS, lambda: rung.append("other"))
    with caplog.at_level(logging.ERROR):
        loop.run(Turns(lambda: bool(rung)))
    assert rung == ["other"]
    assert caplog.text.count("an event in the daemon's loop failed") == 1


def test_loop_in_which_every_turn_fails_gives_up(loop: Loop) -> None:
    failed: list[int] = []

    def fail() -> None:
        failed.append(1)
        loop.call_soon(fail)
        raise ValueError("again")

    loop.call_soon(fail)
    with pytest.raises(ValueError, match="again"):
        loop.run(Turns(lambda: False, most=10 * FAILURES_MAX))
    assert len(failed) == FAILURES_MAX


def test_signal_is_acted_on_in_the_loop_and_given_back_after_it(loop: Loop) -> None:
    before = signal.getsignal(signal.SIGHUP)
    turns = Turns(lambda: bool(turns.signals))
    with loop.catching([signal.SIGHUP]):
        signal.raise_signal(signal.SIGHUP)
        assert turns.signals == []
        loop.run(turns)
    assert turns.signals == [signal.SIGHUP]
    assert signal.getsignal(signal.SIGHUP) is before


def test_idle_time_is_that_since_the_last_turn(loop: Loop) -> None:
    before_ns = time.monotonic_ns()
    loop.run(Turns(lambda: False, most=1))
    assert 0 <= loop.idle_ns <= time.monotonic_ns() - before_ns
