"""Reads that may never end, each with a time limit: a page backed by FUSE or userfaultfd may arrive
late or never.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence


class StuckError(Exception):
    """A read did not end; its thread and its buffer must not be used again."""


GRACE_SECONDS = 0.1
"""Extra time for a task that may have ended in time while this whole process was stopped."""


class _Lane:
    """One thread, its tasks and their results."""

    def __init__(self) -> None:
        self.tasks: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        arguments = (self.tasks, self._results)
        threading.Thread(target=_work, args=arguments, name="reader", daemon=True).start()

    def wait(self, timeout_seconds: float) -> BaseException | None:
        """Return the exception of the task; raise queue.Empty when it does not end in time."""
        try:
            return self._results.get(timeout=timeout_seconds)
        except queue.Empty:  # if this whole process was stopped, the thread was, too
            return self._results.get(timeout=GRACE_SECONDS)


class Reader:
    """Threads that read for another. Stuck threads are replaced, and end with the process."""

    def __init__(self) -> None:
        self.stuck = 0
        """Number of reads that did not end; with any, this process should not live long."""
        self._lanes: list[_Lane] = []

    def begin_again(self) -> None:
        """Start new threads for the next read, in a copy of the process that had the old ones."""
        self._lanes = []

    def do(
        self, task: Callable[[], object], timeout_seconds: float, *beside: Callable[[], object]
    ) -> None:
        """Run a task, and others beside it, each in a thread of its own; wait for all of them. An
        exception of a task is raised here.

        Raises:
            StuckError: a task did not end in time.

        """
        tasks = self._assign((task, *beside))
        deadline = time.monotonic() + timeout_seconds
        used = self._lanes[: len(tasks)]
        for lane, assigned in zip(used, tasks, strict=True):
            lane.tasks.put(assigned)
        try:
            errors = [lane.wait(max(0.0, deadline - time.monotonic())) for lane in used]
        except queue.Empty:
            self.stuck += 1
            self._lanes = []
            raise StuckError from None
        for error in errors:
            if error is not None:
                raise error

    def _assign(self, tasks: Sequence[Callable[[], object]]) -> Sequence[Callable[[], object]]:
        """Return a task for each thread to use: the first thread does everything if there can be
        no second.
        """
        try:
            while len(self._lanes) < len(tasks):
                self._lanes.append(_Lane())
        except RuntimeError:  # RLIMIT_NPROC, pids.max
            if not self._lanes:
                raise
            return [lambda: _one_by_one(tasks)]
        return tasks


def _one_by_one(tasks: Iterable[Callable[[], object]]) -> None:
    for task in tasks:
        task()


def _work(
    tasks: "queue.SimpleQueue[Callable[[], object]]",
    results: "queue.SimpleQueue[BaseException | None]",
) -> None:
    while True:
        try:
            tasks.get()()
        except BaseException as e:  # `do`, which waits for the task, raises it
            results.put(e)
        else:
            results.put(None)
