"""Jobs on their way through the worker pool: limits, deadlines, and recovery when a worker dies. It
is one idea despite its length: every method acts on the same queues and the same worker table.

    queued ──▶ held ──released──▶ raw ──▶ storing ──▶ done
      │          │                 │         │
      │          │                 └─────────┴── its worker dies: its copy stores the core
      │          └── its worker dies: its copy, or another worker, takes the crash
      └── no worker for QUEUED_SECONDS: the handler keeps it

A process is held only in the first two stages, and the last two never delay a held process: a
worker that reported "released" no longer counts as a reader; storers wait at the gate while any
process is held, and run at the lowest priority. Memory limits the number of crashes that are read
at the same time: each gets a part of the free buffer (`Admission`), and the rest goes to disk.
Imports and salvage hold no process: they start when no live crash waits, and never take the last
worker.

The worker, not the daemon, sends the handler its receipt. Before the receipt the handler would
spool the crash itself; after it the worker finishes the crash even if the daemon is killed. So a
crash never depends on the daemon alone.

The daemon keeps copies of a job's descriptors until the worker reports that it needs nothing more
from /proc. A worker that hangs there (on a page of the process backed by FUSE) is killed, and
another takes the core, which is still unread. After that only the worker holds the descriptors, so
closing them releases the process.
"""

import logging
import os
import select
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from crashd.base.messages import receive_message, send_message
from crashd.corehandler import QUEUED_SECONDS
from crashd.daemon.capture.worker import RECEIPT_AT
from crashd.daemon.intake.job import SMALL_BYTES, Job, Kind, Stage
from crashd.daemon.intake.pool import Nursery, Worker
from crashd.daemon.loop import Loop
from crashd.domain.crash.model import DropReason
from crashd.errors import UnavailableError

log = logging.getLogger("crashd.dispatch")

PROCESSES_MIN = 40
"""Lower bound on the limit of jobs with a worker, for a small `capture.workers`: most jobs hold a
process for a few milliseconds, or wait until their core may be stored.
"""
HELD_NS = 10 * 10**9
"""The longest time that a held process delays storing: it may be held on purpose."""
RESPAWN_NS = 10**9
"""The shortest time between two attempts to replace workers when forking fails."""
NURSERY_NS = 3 * 10**9
"""How long a fork may take. It normally takes milliseconds; if it takes longer, crashes without a
worker are left to their handlers.
"""
LINGER_NS = 10**9
"""How long surplus workers stay after the last job began: crashes come together, and a fork, with
the page faults that follow it, takes a quarter of what a small crash takes.
"""
LINGER_WORKERS = 4
"""How many times the usual number of idle workers stay that long."""
SPARE_NS = 200 * 10**6
"""How long after a job starts a missing spare worker is forked, unless no idle worker is left: most
workers are idle again by then, and a fork would compete with the capture for the CPUs.
"""
GRACE_NS = 30 * 10**9
"""How long after its own deadline a worker is killed."""


class Allotter(Protocol):
    """Decides what to keep of a crash, and which resources its capture may use."""

    def decide(self, crash_id: str, question: Mapping[str, Any], *, live: bool) -> dict[str, Any]:
        """Return the answer to a worker."""

    def ended(self, crash_id: str) -> None:
        """Take back the resources of a capture."""


class Counters(Protocol):
    """Counts drops and spilled bytes."""

    def dropped(self, reason: DropReason) -> None:
        """Count a failure."""

    def spilled(self, size_bytes: int) -> None:
        """Count bytes that waited on disk."""


class Dispatcher:
    """Gives jobs to workers; all its methods run in the daemon's one loop."""

    def __init__(
        self,
        nursery: Nursery,
        loop: Loop,
        allotter: Allotter,
        counters: Counters,
    ) -> None:
        self._clock = loop.clock
        self._nursery = nursery
        self._loop = loop
        self._allotter = allotter
        self._counters = counters
        self._idle: list[Worker] = []
        self._busy: dict[Worker, Job] = {}
        self._live: deque[Job] = deque()
        """Jobs that wait for a worker while their processes are held."""
        self._later: deque[Job] = deque()
        """Imports and salvage."""
        self._retry_ns = self._asked_ns = self._started_ns = 0
        self.workers = 0
        """Number of workers kept idle for the next crashes."""
        self.storers_max = 1
        """Limit on cores stored at the same time."""
        self.threads = 0
        """Threads that compress a large core if it is the only one being stored."""
        self.options: dict[str, Any] = {}
        self.snapshot_timeout_ns = 2 * 10**9
        self.capture_deadline_ns = 300 * 10**9

    # -- what there is -----------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Return the number of jobs with a worker."""
        return len(self._busy)

    @property
    def queued(self) -> int:
        """Return the number of jobs that wait for a worker."""
        return len(self._live) + len(self._later)

    @property
    def holders(self) -> int:
        """Return the number of workers that read a core whose process is held."""
        return sum(job.stage is Stage.HELD for job in self._busy.values())

    @property
    def storers(self) -> int:
        """Return the number of workers whose core waits to be stored or is being stored."""
        return len(self._busy) - self.holders

    @property
    def helpless(self) -> bool:
        """Return whether there are no workers and none can be forked."""
        return self._nursery.gone and not self._idle and not self._busy

    def ids(self) -> set[str]:
        """Return the ids of crashes that are being captured or waiting."""
        return {job.id for job in (*self._busy.values(), *self._live, *self._later)}

    def set_workers(self, count: int) -> None:
        """Set how many workers to keep idle; surplus workers end."""
        if not self.workers:
            self._loop.watch(self._nursery, self.born)
        self.workers = count
        while len(self._idle) > count:
            self._retire(self._idle.pop())
        self._replenish()

    # -- workers -----------------------------------------------------------------------------------

    def _replenish(self) -> None:
        """Ask for a worker if one is missing; `born` takes it. If workers cannot be had soon, give
        waiting crashes back to their handlers.
        """
        now_ns = time.monotonic_ns()
        if len(self._idle) < self._idle_wanted() and now_ns >= self._fork_ns():
            if not self._nursery.asked:
                self._asked_ns = now_ns
            self._nursing(self._nursery.ask)
        is_refused = now_ns < self._retry_ns and not self._busy
        if not self._idle and (self._is_nursery_silent() or is_refused):
            self._give_all_back()

    def _fork_ns(self) -> int:
        """Return when the next worker may be forked."""
        is_spare = self._idle and not self._live and not self._later
        return max(self._retry_ns, self._started_ns + SPARE_NS) if is_spare else self._retry_ns

    def _is_nursery_silent(self) -> bool:
        return self._nursery.asked and time.monotonic_ns() - self._asked_ns >= NURSERY_NS

    def _idle_wanted(self) -> int:
        return max(self.workers, 2) if self._later else self.workers

    def _idle_max(self) -> int:
        """Return how many idle workers may stay."""
        lingers = time.monotonic_ns() < self._started_ns + LINGER_NS
        return self._idle_wanted() * (LINGER_WORKERS if lingers else 1)

    def _retire_surplus(self) -> None:
        while len(self._idle) > self._idle_max():
            self._retire(self._idle.pop(0))

    def born(self) -> None:
        """Take the worker that the nursery forked."""

        def take() -> None:
            worker = self._nursery.take()
            self._idle.append(worker)
            self._loop.watch(worker, lambda: self.readable(worker))

        self._nursing(take)
        if self._nursery.gone:
            self._loop.unwatch(self._nursery)
        self._dispatch()
        self._retire_surplus()  # others came back while it was forked
        self._replenish()

    def _nursing(self, act: Callable[[], None]) -> None:
        try:
            act()
        except UnavailableError as e:
            log.error("%s, retrying", e)
            self._retry_ns = time.monotonic_ns() + RESPAWN_NS

    def _give_all_back(self) -> None:
        """Leave waiting crashes to their handlers, because a worker is not available soon."""
        for job in [job for job in self._live if not job.accepted]:
            self._live.remove(job)
            self._give_back(job)

    def _retire(self, worker: Worker) -> None:
        self._loop.unwatch(worker)
        worker.close()

    # -- queued ------------------------------------------------------------------------------------

    def submit(self, job: Job, *, first: bool = False) -> None:
        """Queue a job; it starts at once if a worker is free."""
        job.give_back_ns = time.monotonic_ns() + QUEUED_SECONDS * 10**9
        queue = self._live if job.kind.is_live else self._later
        (queue.appendleft if first else queue.append)(job)
        self._dispatch()

    def _dispatch(self) -> None:
        while self._live and self._idle:
            job = self._next_live()
            if job is None:
                break
            self._live.remove(job)
            self._start(self._idle.pop(), job)
        # One idle worker stays for the next crash, unless the nursery does not answer: a nursery
        # that hangs must not keep crashes in the spool.
        stays = 0 if self._is_nursery_silent() else 1
        while not self._live and len(self._idle) > stays:
            job = next((j for j in self._later if self._may_store_more(j.core_bytes)), None)
            if job is None:
                break
            self._later.remove(job)
            self._start(self._idle.pop(), job)
        self._replenish()
        self._set_gate()

    def _next_live(self) -> Job | None:
        """Return the first job of the user with the fewest jobs under way; None if that user has
        as many as places are left: a user takes at most as many places as are left for others.
        """
        busy = Counter(job.uid for job in self._busy.values())
        first: dict[int | None, Job] = {}
        for job in self._live:
            first.setdefault(job.uid, job)
        job = min(first.values(), key=lambda job: busy[job.uid])
        return job if self._places_left() > busy[job.uid] else None

    def _places_left(self) -> int:
        return max(PROCESSES_MIN, 4 * self.workers) - len(self._busy)

    def _is_blocked(self) -> bool:
        """Return whether no waiting crash may start, however many workers are idle."""
        if not self._live or self._places_left() > len(self._busy):
            return False
        return self._next_live() is None

    def make_room(self, uid: int | None) -> bool:
        """Give a waiting crash back to its handler, to make room for a crash of user `uid`, who has
        fewer waiting.

        Return False if this user has about as many waiting as any: their own crashes fill the
        queue.
        """
        waiting = Counter(job.uid for job in self._live if not job.accepted)
        if not waiting:
            return False
        heaviest, count = waiting.most_common(1)[0]
        if count <= waiting[uid] + 1:
            return False
        job = next(j for j in reversed(self._live) if j.uid == heaviest and not j.accepted)
        self._live.remove(job)
        self._give_back(job)
        return True

    def _give_back(self, job: Job) -> None:
        log.info("crash %s: the handler gave up waiting and keeps it in the spool", job.id)
        job.close()
        job.owner.given_back(job)

    # -- held --------------------------------------------------------------------------------------

    def _start(self, worker: Worker, job: Job) -> None:
        message = {"job": job.kind, "id": job.id, "with_proc": job.with_proc}
        message |= {"accepted": job.accepted, "options": self.options}
        descriptors = (job.entry.fd, *job.descriptors)
        self._busy[worker] = job
        job.stage = Stage.HELD if job.kind.is_live else Stage.STORING
        job.held_ns = time.monotonic_ns()
        self._started_ns = job.held_ns
        job.deadline_ns = self._clock.now_ns() + self._step_ns(job)
        try:
            send_message(worker.channel, {**message, **job.more}, descriptors)
        except OSError:
            self._lost(worker)

    def _step_ns(self, job: Job) -> int:
        """Return how long a worker may take until its next report on a job."""
        # an import reads files in the spool and a salvage reads the store: only a live process, or
        # a receipt that is not sent yet, can hang the worker
        waits = job.kind.is_live and (job.with_proc or not job.accepted)
        return self.snapshot_timeout_ns if waits else self._whole_ns()

    def _whole_ns(self) -> int:
        return self.capture_deadline_ns + GRACE_NS

    def _set_gate(self) -> None:
        """Open the gate for storing, or close it while processes are held: at most HELD_NS for
        each.

        When waiting crashes cannot start because too many are under way, they depend on those being
        stored: then the gate opens.
        """
        held = [job.held_ns for job in self._busy.values() if job.stage is Stage.HELD]
        closed = held and not self._is_blocked()
        self._nursery.gate.close_until(max(held) + HELD_NS if closed else 0)

    # -- raw, and storing --------------------------------------------------------------------------

    def _may_store_more(self, size_bytes: int) -> bool:
        """Return whether a core of this size may be stored now.

        One place stays free of large cores, so that a small core appears in the list soon.
        """
        storing = [job for job in self._busy.values() if job.stage is Stage.STORING]
        if len(storing) >= self.storers_max:
            return False
        long = sum(job.core_bytes > SMALL_BYTES for job in storing)
        return size_bytes <= SMALL_BYTES or long < max(1, self.storers_max - 1)

    def _store_more(self) -> None:
        """Let workers store their cores, the first first, as far as there are places."""
        for worker, job in list(self._busy.items()):
            if job.stage is Stage.RAW and self._may_store_more(job.core_bytes):
                self._let_store(worker, job)

    def _let_store(self, worker: Worker, job: Job) -> None:
        others = any(
            other.core_bytes > SMALL_BYTES and other.stage is Stage.STORING and other is not job
            for other in self._busy.values()
        )
        threads = 0 if others or job.core_bytes <= SMALL_BYTES else self.threads
        job.stage = Stage.STORING
        job.deadline_ns = self._clock.now_ns() + self._whole_ns()
        try:
            send_message(worker.channel, {"answer": job.id, "threads": threads})
        except OSError:
            self._lost(worker)

    # -- what workers say --------------------------------------------------------------------------

    def readable(self, worker: Worker) -> None:
        """Handle a message from a worker, or notice that it died."""
        try:
            message, descriptors = receive_message(worker.channel)
        except OSError:
            message, descriptors = None, []
        if message is not None and message.get("event") == "taken over" and descriptors:
            log.warning("crash %s: its worker was killed, a copy of it continues", message["id"])
            worker.replace(message["pid"], descriptors.pop())
            return
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
            if job.kind.is_live:
                job.let_go()  # a spooled core can be read again; its descriptor holds no process
        elif event == "decide":
            self._decide(worker, job, message)
        elif event == "released":
            self._released(worker, job, message)
        elif event == "alive":
            job.deadline_ns = self._clock.now_ns() + self._whole_ns()
        else:
            self._ended_by(worker, job, message)

    def _decide(self, worker: Worker, job: Job, question: Mapping[str, Any]) -> None:
        if job.decision is None:  # the copy of a worker may ask again
            job.decision = self._allotter.decide(job.id, question, live=job.kind.is_live)
        try:
            send_message(worker.channel, {"answer": job.id, **job.decision})
        except OSError:
            self._lost(worker)
        else:  # it waited for us until now
            job.deadline_ns = self._clock.now_ns() + self._whole_ns()

    def _released(self, worker: Worker, job: Job, message: Mapping[str, Any]) -> None:
        job.core_bytes = message["read"]
        if message["spilled"] and job.stage is Stage.HELD:  # not again by a copy
            self._counters.spilled(message["spilled"])
        if not job.kind.is_live:
            self._let_store(worker, job)  # it has had its place from the start
            return
        job.stage = Stage.RAW
        job.deadline_ns = None
        self._store_more()
        self._dispatch()

    def _ended_by(self, worker: Worker, job: Job, message: Mapping[str, Any]) -> None:
        """Handle a worker's last message on a job: reuse the worker, and finish or salvage."""
        event = message["event"]
        del self._busy[worker]
        self._allotter.ended(job.id)
        if message["leaves"] or len(self._idle) >= self._idle_max():
            self._retire(worker)
        else:
            self._idle.append(worker)
        if event == "refused":
            self._give_back(job)
        elif event == "failed" and job.kind is Kind.IMPORT:
            log.warning(
                "crash %s: taking it from the spool failed: %s, keeping it there",
                job.id,
                message.get("error"),
            )
            job.close()
            job.owner.failed(job)
        elif event == "failed":
            self._salvage(job, str(message.get("error") or "its worker gave no reason"))
        else:
            job.close()
            job.owner.finished(job)
        self._store_more()
        self._dispatch()

    def _lost(self, worker: Worker) -> None:
        """Replace a worker that died, and save as much of its job as possible."""
        job = self._busy.pop(worker, None)
        if worker in self._idle:
            self._idle.remove(worker)
        self._retire(worker)
        if job is not None:
            self._allotter.ended(job.id)
            self._counters.dropped(DropReason.WORKER_DIED)
            if job.kind.is_live and not job.identified and job.with_proc:
                log.warning(
                    "crash %s: worker died while reading /proc, capturing without it", job.id
                )
                job.with_proc, job.stage, job.decision = False, Stage.QUEUED, None
                self._live.appendleft(job)
            elif job.kind is Kind.IMPORT and not job.retried:
                log.warning(
                    "crash %s: worker died while taking it from the spool, trying again", job.id
                )
                job.retried, job.stage, job.decision = True, Stage.QUEUED, None
                self._later.append(job)
            elif not job.accepted:
                self._give_back(job)  # closed without a receipt: the handler keeps it
            else:
                job.poisonous = job.kind is Kind.IMPORT
                self._salvage(job, "the capturing worker died")
        self._store_more()
        self._dispatch()

    def _salvage(self, job: Job, reason: str) -> None:
        job.let_go()
        if job.kind is Kind.SALVAGE:
            log.error("crash %s cannot be finished: %s", job.id, reason)
            self._counters.dropped(DropReason.STORE_ERROR)
            job.close()
            return
        log.warning("crash %s: %s, salvaging", job.id, reason)
        salvage = Job(Kind.SALVAGE, job.entry, [], job.owner, {"reason": reason})
        salvage.spooled, salvage.poisonous = job.spooled, job.poisonous
        self.submit(salvage, first=True)

    # -- time --------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> None:
        """Kill workers whose step took too long, and replace missing workers.

        `now_ns` is the time of the loop's clock before the channels were read.
        """
        for worker, job in list(self._busy.items()):
            if job.deadline_ns is None or now_ns < job.deadline_ns:
                continue
            if _is_unread(worker):
                self.readable(worker)  # the next turn judges it by its message
                continue
            self._counters.dropped(DropReason.DEADLINE)
            log.warning("crash %s: %s took too long, killing its worker", job.id, job.kind)
            job.deadline_ns = now_ns + GRACE_NS
            worker.kill(job.id)  # the end of its channel triggers the rest
        given_up_ns = time.monotonic_ns()
        for job in [j for j in self._live if not j.accepted and given_up_ns >= j.give_back_ns]:
            # the handler reads the core now: as long as we keep the pipe open, the process is held
            self._live.remove(job)
            self._give_back(job)
        self._dispatch()
        self._retire_surplus()

    def wait_ns(self) -> int | None:
        """Return in how long `tick` must run; None if nothing is under way."""
        now_ns = time.monotonic_ns()
        deadlines = [job.give_back_ns - now_ns for job in self._live if not job.accepted]
        if len(self._idle) < self._idle_wanted() and not self._nursery.asked:
            deadlines.append(self._fork_ns() - now_ns)
        if len(self._idle) > self._idle_wanted():
            deadlines.append(self._started_ns + LINGER_NS - now_ns)
        if self.queued and self._nursery.asked and not self._is_nursery_silent():
            deadlines.append(self._asked_ns + NURSERY_NS - now_ns)
        now_ns = self._clock.now_ns()
        deadlines += [
            job.deadline_ns - now_ns for job in self._busy.values() if job.deadline_ns is not None
        ]
        return min(deadlines, default=None)

    def abandon(self) -> list[str]:
        """Close all jobs; workers finish theirs without the daemon. Return the ids left
        `capturing`.
        """
        left = sorted(self.ids())
        for job in (*self._busy.values(), *self._live, *self._later):
            job.close()
        for worker in (*self._idle, *self._busy):
            self._retire(worker)
        self._nursery.gate.close_until(0)
        self._loop.unwatch(self._nursery)
        for jobs in (self._idle, self._busy, self._live, self._later):
            jobs.clear()
        return left


def _is_unread(worker: Worker) -> bool:
    """Return whether a worker has sent a message that was not read."""
    poll = select.poll()
    poll.register(worker.channel, select.POLLIN)
    return bool(poll.poll(0))
