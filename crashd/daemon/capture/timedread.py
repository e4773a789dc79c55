"""Reads that may never end, each with a time limit: a page backed by FUSE or userfaultfd may arrive
late or never.
"""

import queue
import threading
from collections.abc import Callable


class StuckError(Exception):
    """A read did not end; its thread and its buffer must not be used again."""


GRACE_SECONDS = 0.1
"""Extra time for a task that may have ended in time while this whole process was stopped."""


class Reader:
    """A thread that reads for another. A stuck thread is replaced, and ends with the process."""

    def __init__(self) -> None:
        self.stuck = 0
        """Number of reads that did not end; with any, this process should not live long."""
        self._renew()

    def _renew(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._started = False

    def begin_again(self) -> None:
        """Start a new thread for the next read, in a copy of the process that had the old one."""
        self._renew()

    def do(self, task: Callable[[], None], timeout_seconds: float) -> None:
        """Run a task in the thread, and wait for it; an exception of the task is raised here.

        Raises:
            StuckError: the task did not end in time.

        """
        if not self._started:
            arguments = (self._tasks, self._results)
            threading.Thread(target=_work, args=arguments, name="reader", daemon=True).start()
            self._started = True
        self._tasks.put(task)
        try:
            error = self._await(timeout_seconds)
        except queue.Empty:
            self.stuck += 1
            self._renew()
            raise StuckError from None
        if error is not None:
            raise error

    def _await(self, timeout_seconds: float) -> BaseException | None:
        try:
            return self._results.get(timeout=timeout_seconds)
        except queue.Empty:  # if this whole process was stopped, the thread was, too
            return self._results.get(timeout=GRACE_SECONDS)


def _work(
    tasks: "queue.SimpleQueue[Callable[[], None]]",
    results: "queue.SimpleQueue[BaseException | None]",
) -> None:
    while True:
        try:
            tasks.get()()
        except BaseException as e:  # `do`, which waits for the task, raises it
            results.put(e)
        else:
            results.put(None)
