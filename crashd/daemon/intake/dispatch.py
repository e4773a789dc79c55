"""Jobs on their way through the worker pool: a bounded queue, deadlines, and what happens when one
dies.

The worker, not the daemon, sends the handler its receipt: until then the handler would spool the
crash itself, after that the worker finishes it even if the daemon is killed; so at no moment does a
crash hang on the daemon alone.

A job's descriptors stay here as well until the worker says that it needs nothing more of /proc: a
worker that hangs there (a page of the process behind FUSE) is killed, and the core, still unread,
goes to another. After that the worker alone holds them, so that its `release` is the release.
"""

import logging
import os
import select
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from crashd.base.messages import receive_message, send_message
from crashd.corehandler import RECEIPT_SECONDS
from crashd.daemon.capture.worker import RECEIPT_AT
from crashd.daemon.intake.pool import Nursery, Worker
from crashd.daemon.loopclock import LoopClock
from crashd.errors import UnavailableError
from crashd.store.entry import Entry

log = logging.getLogger("crashd.dispatch")

LIVE = ("capture", "socket")
"""Jobs whose process is held meanwhile."""
RESPAWN_NS = 10**9
"""At least so long between two attempts to replace workers when forking fails."""
GRACE_NS = 30 * 10**9
"""How long after its own deadline a worker is killed."""


@dataclass(slots=True)
class Job:
    """One piece of work on one entry; owns the entry and the descriptors until they are handed
    on.
    """

    kind: str
    """`capture` (from the handler), `socket` (from the kernel), `import` or `salvage`."""
    entry: Entry
    descriptors: list[int]
    more: dict[str, Any] = field(default_factory=dict)
    """What the worker is told beside kind and id."""
    finished: Callable[[], None] | None = None
    """Called when the entry is final, in the daemon's loop."""
    failed: Callable[[], None] | None = None
    """Of an import: called when it could not be done, and the spool still has all."""
    poisoned: Callable[[], None] | None = None
    """Of an import: called in place of `finished` when workers died of it."""
    uid: int | None = None
    """Whose process crashed: no user's crashes keep those of another waiting."""
    with_proc: bool = True
    accepted: bool = True
    """Whether the handler has its receipt; it is the worker who sends it."""
    identified: bool = False
    retried: bool = False
    deadline_ns: int = 0
    """By the loop's clock; of the present step."""
    receipt_by_ns: int = 0
    """CLOCK_MONOTONIC, as the handler counts: by then one without its receipt has given up."""

    @property
    def id(self) -> str:
        """The crash's id."""
        return self.entry.id

    def let_go(self) -> None:
        """Close our copies of the descriptors."""
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors.clear()

    def close(self) -> None:
        """Close all that the job owns."""
        self.let_go()
        self.entry.close()


class Dispatcher:
    """Gives jobs to workers; all its methods run in the daemon's one loop."""

    def __init__(
        self,
        nursery: Nursery,
        *,
        watch: Callable[[Worker], None],
        unwatch: Callable[[Worker], None],
        done: Callable[[str], None],
        dropped: Callable[[str], None],
        refused: Callable[[], None],
        decide: Callable[[str, Mapping[str, Any]], dict[str, Any]],
        ended: Callable[[str], None],
        clock: LoopClock,
    ) -> None:
        """Take the nursery; `watch`/`unwatch` tell the loop of channels, `done` of finished
        entries, `decide` what is kept of a crash and `ended` that its capture needs nothing more.
        `clock` is the loop's: workers are judged by it.
        """
        self._clock = clock
        self._nursery = nursery
        self._watch = watch
        self._unwatch = unwatch
        self._done = done
        self._dropped = dropped
        self._refused = refused
        self._decide = decide
        self._ended = ended
        self._idle: list[Worker] = []
        self._busy: dict[Worker, Job] = {}
        self._queue: deque[Job] = deque()
        self._retry_ns = 0
        self.workers = 0
        self.options: dict[str, Any] = {}
        self.snapshot_timeout_ns = 2 * 10**9
        self.capture_deadline_ns = 300 * 10**9

    @property
    def in_flight(self) -> int:
        """Jobs with a worker."""
        return len(self._busy)

    @property
    def queued(self) -> int:
        """Jobs that wait for one."""
        return len(self._queue)

    @property
    def helpless(self) -> bool:
        """Whether there is no worker and never will be one."""
        return self._nursery.gone and not self._idle and not self._busy

    def ids(self) -> set[str]:
        """Tell the crashes that are under way or waiting."""
        return {job.id for job in (*self._busy.values(), *self._queue)}

    def set_workers(self, count: int) -> None:
        """Say how many workers there should be; those too many end when idle."""
        self.workers = count
        while self._idle and len(self._idle) + len(self._busy) > count:
            self._retire(self._idle.pop())
        self._replenish()

    def submit(self, job: Job, *, first: bool = False) -> None:
        """Queue a job; it starts at once when a worker is idle."""
        job.receipt_by_ns = time.monotonic_ns() + RECEIPT_SECONDS * 10**9
        (self._queue.appendleft if first else self._queue.append)(job)
        self._dispatch()

    def _replenish(self) -> None:
        if time.monotonic_ns() < self._retry_ns:
            return
        while len(self._idle) + len(self._busy) < self.workers:
            if not self._fork():
                return

    def _fork(self) -> bool:
        try:
            worker = self._nursery.fork_worker()
        except UnavailableError as e:
            log.error("%s, retrying", e)
            self._retry_ns = time.monotonic_ns() + RESPAWN_NS
            return False
        self._idle.append(worker)
        self._watch(worker)
        return True

    def _dispatch(self) -> None:
        while self._queue:
            busy = Counter(job.uid for job in self._busy.values())
            # the first job of the user with the fewest under way
            job = min(self._queue, key=lambda job: busy[job.uid])
            if not self._idle and not (busy[job.uid] == 0 and self._add_spare()):
                return
            self._queue.remove(job)
            self._start(self._idle.pop(), job)

    def _add_spare(self) -> bool:
        """Fork a worker above the number, for a user who has none while others have all: theirs
        may be slow on purpose.
        """
        now_ns = time.monotonic_ns()
        if len(self._busy) >= 2 * self.workers or now_ns < self._retry_ns:
            return False
        return self._fork()

    def make_room(self, uid: int | None) -> bool:
        """Give a crash that waits back to its handler, for one of a user with fewer that wait.

        False when that user has as many as any: it is his own crashes that fill the queue.
        """
        waiting = Counter(job.uid for job in self._queue if not job.accepted)
        if not waiting:
            return False
        heaviest, count = waiting.most_common(1)[0]
        if count <= waiting[uid] + 1:
            return False
        job = next(j for j in reversed(self._queue) if j.uid == heaviest and not j.accepted)
        self._queue.remove(job)
        self._give_back(job)
        return True

    def _start(self, worker: Worker, job: Job) -> None:
        message = {"job": job.kind, "id": job.id, "with_proc": job.with_proc}
        message |= {"accepted": job.accepted, "options": self.options}
        descriptors = (job.entry.fd, *job.descriptors)
        self._busy[worker] = job
        job.deadline_ns = self._clock.now_ns() + self._step_ns(job)
        try:
            send_message(worker.channel, {**message, **job.more}, descriptors)
        except OSError:
            self._lost(worker)

    def _step_ns(self, job: Job) -> int:
        """Tell how long a worker may take until it says something more of a job."""
        # a spooled snapshot reads files and a salvage the store: only a live process, or a receipt
        # that is not sent, can hang who reads
        waits = job.kind in LIVE and (job.with_proc or not job.accepted)
        return self.snapshot_timeout_ns if waits else self._whole_ns()

    def _whole_ns(self) -> int:
        return self.capture_deadline_ns + GRACE_NS

    def readable(self, worker: Worker) -> None:
        """Take what a worker says, or notice that it died."""
        try:
            message, descriptors = receive_message(worker.channel)
        except OSError:
            message, descriptors = None, []
        for fd in descriptors:
            os.close(fd)
        job = self._busy.get(worker)
        if message is None or job is None:
            self._lost(worker)
            return
        event = message["event"]
        if event == "accepted":
            job.accepted = True
            os.close(job.descriptors.pop(RECEIPT_AT))
            job.deadline_ns = self._clock.now_ns() + self._step_ns(job)
        elif event == "identified":
            job.identified = True
            job.deadline_ns = self._clock.now_ns() + self._whole_ns()
            if job.kind in LIVE:
                job.let_go()  # a spooled core can be read again, and its descriptor holds nobody
        elif event == "decide":
            try:
                send_message(worker.channel, {"answer": job.id, **self._decide(job.id, message)})
            except OSError:
                self._lost(worker)
            else:  # it waited for us until now
                job.deadline_ns = self._clock.now_ns() + self._whole_ns()
        else:
            self._ended_by(worker, job, message)

    def _ended_by(self, worker: Worker, job: Job, message: Mapping[str, Any]) -> None:
        """Take a worker's last word on a job."""
        event = message["event"]
        del self._busy[worker]
        self._ended(job.id)
        if message["leaves"] or len(self._idle) + len(self._busy) >= self.workers:
            self._retire(worker)
            self._replenish()
        else:
            self._idle.append(worker)
        if event == "refused":
            self._give_back(job)
        elif event == "failed" and job.failed is not None:
            log.warning(
                "crash %s: taking it from the spool failed: %s, keeping it there",
                job.id,
                message.get("error"),
            )
            job.close()
            job.failed()
        elif event == "failed":
            self._salvage(job, str(message.get("error") or "its worker gave no reason"))
        else:
            self._finish(job)
        self._dispatch()

    def _give_back(self, job: Job) -> None:
        log.info("crash %s: the handler gave up waiting and keeps it in the spool", job.id)
        job.close()
        self._refused()

    def _finish(self, job: Job) -> None:
        crash_id = job.id
        job.close()
        if job.finished is not None:
            job.finished()
        self._done(crash_id)

    def _retire(self, worker: Worker) -> None:
        self._unwatch(worker)
        worker.close()

    def _lost(self, worker: Worker) -> None:
        """Replace a worker that died, and save what can be saved of its job."""
        job = self._busy.pop(worker, None)
        if worker in self._idle:
            self._idle.remove(worker)
        self._retire(worker)
        if job is not None:
            self._ended(job.id)
            self._dropped("worker_died")
            if job.kind in LIVE and not job.identified and job.with_proc:
                log.warning(
                    "crash %s: worker died while reading /proc, capturing without it", job.id
                )
                job.with_proc = False
                self._queue.appendleft(job)
            elif job.kind == "import" and not job.retried:
                log.warning(
                    "crash %s: worker died while taking it from the spool, trying again", job.id
                )
                job.retried = True
                self._queue.append(job)
            elif not job.accepted:
                self._give_back(job)  # closed without a receipt: the handler keeps it
            else:
                job.finished = job.poisoned or job.finished
                self._salvage(job, "the capturing worker died")
        self._replenish()
        self._dispatch()

    def _salvage(self, job: Job, reason: str) -> None:
        job.let_go()
        if job.kind == "salvage":
            log.error("crash %s cannot be finished: %s", job.id, reason)
            self._dropped("store_error")
            job.close()
            return
        log.warning("crash %s: %s, salvaging", job.id, reason)
        self.submit(Job("salvage", job.entry, [], {"reason": reason}, job.finished), first=True)

    def tick(self, now_ns: int) -> None:
        """Kill workers whose step took too long, and replace missing ones.

        `now_ns` is what the loop's clock said before the channels were read.
        """
        for worker, job in list(self._busy.items()):
            if now_ns >= job.deadline_ns and _is_unread(worker):
                self.readable(worker)  # it is judged by what it said, at the next turn
            elif now_ns >= job.deadline_ns:
                self._dropped("deadline")
                log.warning("crash %s: %s took too long, killing its worker", job.id, job.kind)
                job.deadline_ns = now_ns + GRACE_NS
                worker.kill()  # its channel's end tells the rest
        given_up_ns = time.monotonic_ns()
        for job in [j for j in self._queue if not j.accepted and given_up_ns >= j.receipt_by_ns]:
            # the handler reads the core by now: while we have the pipe too, the process is held
            self._queue.remove(job)
            self._give_back(job)
        self._replenish()
        self._dispatch()

    def wait_ns(self) -> int | None:
        """Return in how long `tick` has something to do; None when nothing is under way."""
        now_ns = time.monotonic_ns()
        deadlines = [job.receipt_by_ns - now_ns for job in self._queue if not job.accepted]
        if len(self._idle) + len(self._busy) < self.workers:
            deadlines.append(self._retry_ns - now_ns)
        now_ns = self._clock.now_ns()
        deadlines += [job.deadline_ns - now_ns for job in self._busy.values()]
        return min(deadlines, default=None)

    def abandon(self) -> list[str]:
        """Let go of all jobs; workers finish theirs by themselves. Returns the ids left
        `capturing`.
        """
        left = sorted(self.ids())
        for job in (*self._busy.values(), *self._queue):
            job.close()
        for worker in (*self._idle, *self._busy):
            self._retire(worker)
        self._idle.clear()
        self._busy.clear()
        self._queue.clear()
        return left


def _is_unread(worker: Worker) -> bool:
    """Return whether a worker has said something that was not read."""
    poll = select.poll()
    poll.register(worker.channel, select.POLLIN)
    return bool(poll.poll(0))
