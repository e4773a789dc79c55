"""The daemon's one loop: waits for descriptors, timers, signals and calls from threads.

It knows nothing about crashes. Code that runs in it must not block: all other events wait
meanwhile, including new crashes.
"""

import contextlib
import logging
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from crashd.daemon.loopclock import LoopClock

log = logging.getLogger("crashd.service")

FAILURES_MAX = 100
"""Number of failed turns in a row after which the daemon exits to be restarted."""
WAIT_MAX_NS = 60 * 10**9
"""How long a turn waits when nothing is due."""

Act = Callable[[], object]


class Readable(Protocol):
    """An object with a descriptor to wait for."""

    def fileno(self) -> int:
        """Return the descriptor; -1 if it is closed."""
        ...


class Turning(Protocol):
    """Has work in each turn of the loop, and knows when that is due."""

    def wait_ns(self) -> int | None:
        """Return how long the loop may wait at most; None if nothing is due."""
        ...

    def tick(self, heard_ns: int) -> None:
        """Do the work that is due; `heard_ns` is when the loop last listened, by its clock."""
        ...

    def act_on_signal(self, number: signal.Signals) -> None:
        """Act on a signal that the process received."""
        ...

    def is_over(self) -> bool:
        """Return whether the loop ends now."""
        ...


@dataclass(frozen=True, slots=True)
class _Timer:
    due_ns: int
    every_ns: int | None
    """None for a timer that rings once."""
    act: Act


class Loop:
    """Runs in one thread, which alone may call its methods; `call_soon` is for any thread."""

    def __init__(self) -> None:
        self.clock = LoopClock()
        self._selector = selectors.DefaultSelector()
        self._timers: dict[str, _Timer] = {}
        self._calls: deque[Act] = deque()
        self._signals: deque[signal.Signals] = deque()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._turned_ns = time.monotonic_ns()
        self.watch(self._wake_in, self._woken)

    @property
    def idle_ns(self) -> int:
        """Return how long ago the last turn was; for any thread."""
        return time.monotonic_ns() - self._turned_ns

    # -- event sources -----------------------------------------------------------------------------

    def watch(self, source: Readable, act: Act) -> None:
        """Call `act` whenever a source is readable; the caller keeps ownership of the source."""
        self._selector.register(source, selectors.EVENT_READ, act)

    def unwatch(self, source: Readable) -> None:
        """Stop watching a source; does nothing if it is not watched."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(source)

    def timer(self, name: str, every_ns: int, act: Act) -> None:
        """Call `act` every `every_ns`, first after that time; 0 removes the timer. Replaces a timer
        of the same name.
        """
        if every_ns:
            self._timers[name] = _Timer(time.monotonic_ns() + every_ns, every_ns, act)
        else:
            self._timers.pop(name, None)

    def after(self, name: str, wait_ns: int, act: Act) -> None:
        """Call `act` once, after `wait_ns`. Replaces a timer of the same name."""
        self._timers[name] = _Timer(time.monotonic_ns() + wait_ns, None, act)

    def is_set(self, name: str) -> bool:
        """Return whether a timer of this name is pending."""
        return name in self._timers

    def call_soon(self, act: Act) -> None:
        """Call `act` in the loop soon; for any thread."""
        self._calls.append(act)
        with contextlib.suppress(BlockingIOError, OSError):
            self._wake_out.send(b"\0")

    @contextlib.contextmanager
    def catching(self, numbers: Sequence[signal.Signals]) -> Iterator[None]:
        """Let the loop act on signals; the previous handlers are restored at the end.

        The handler only notes the signal. The wake-up descriptor ends the wait, because select(2)
        continues after a Python handler that does not raise (PEP 475).
        """
        previous = {number: signal.signal(number, self._note_signal) for number in numbers}
        signal.set_wakeup_fd(self._wake_out.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note_signal(self, number: int, frame: object) -> None:
        del frame
        self._signals.append(signal.Signals(number))

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_in.recv(4096)

    # -- turning -----------------------------------------------------------------------------------

    def run(self, turning: Turning) -> None:
        """Turn until `turning` is over; a failed event does not end the loop.

        Raises:
            Exception: FAILURES_MAX turns failed in a row; the exception of the last one.

        """
        failures = 0
        while not turning.is_over():
            try:
                self._turn(turning)
                failures = 0
            except Exception:  # boundary: one failed event must not cost later crashes
                failures += 1
                if failures >= FAILURES_MAX:
                    raise
                log.exception("an event in the daemon's loop failed, ignoring")

    def _turn(self, turning: Turning) -> None:
        wait_ns = self._wait_ns(turning)
        self.clock.wait(wait_ns)
        events = self._selector.select(wait_ns / 1e9)
        heard_ns = self.clock.look()
        for key, _ in events:
            key.data()
        while self._signals:
            turning.act_on_signal(self._signals.popleft())
        while self._calls:
            self._calls.popleft()()
        self._turned_ns = time.monotonic_ns()
        turning.tick(heard_ns)
        self._ring(self._turned_ns)

    def _ring(self, now_ns: int) -> None:
        for name, timer in list(self._timers.items()):
            if now_ns < timer.due_ns or self._timers.get(name) is not timer:
                continue
            if timer.every_ns is None:
                del self._timers[name]
            else:  # set before it acts: if that fails, it is tried again at the next time
                self.timer(name, timer.every_ns, timer.act)
            timer.act()

    def _wait_ns(self, turning: Turning) -> int:
        now_ns = time.monotonic_ns()
        due = [timer.due_ns - now_ns for timer in self._timers.values()]
        asked_ns = turning.wait_ns()
        if asked_ns is not None:
            due.append(asked_ns)
        return max(0, min(due, default=WAIT_MAX_NS))

    def close(self) -> None:
        """Close the loop's own descriptors."""
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()
