"""The dispatcher alone: its workers are ends of channels, its clock is a number."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from crashd.base.messages import receive_message, send_message
from crashd.daemon.intake.dispatch import (
    HELD_NS,
    LINGER_NS,
    LINGER_WORKERS,
    PROCESSES_MIN,
    SPARE_NS,
    Dispatcher,
)
from crashd.daemon.intake.job import SMALL_BYTES, Job, Kind, Stage
from crashd.daemon.loop import Readable
from crashd.daemon.loopclock import LoopClock
from crashd.domain.crash.model import DropReason
from crashd.errors import UnavailableError
from crashd.store.entry import Entry
from tests.builders.crashes import build_crash

SECOND_NS = 10**9


class FakeWorker:
    """A worker that says what the test says."""

    def __init__(self) -> None:
        self.channel, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.killed = False
        self.replaced = 0

    def replace(self, pid: int, pidfd: int) -> None:
        os.close(pidfd)
        self.replaced = pid

    def kill(self, crash_id: str) -> None:
        self.killed = True

    def close(self) -> None:
        self.channel.close()


class FakeGate:
    """Remembers until when it is closed."""

    def __init__(self) -> None:
        self.until_ns = 0

    def close_until(self, time_ns: int) -> None:
        self.until_ns = time_ns


class FakeNursery:
    """Has as many workers to give as it is asked for."""

    gone = False

    def __init__(self) -> None:
        self.workers: list[FakeWorker] = []
        self.asked = False
        self.gate = FakeGate()

    def fileno(self) -> int:
        return -1

    def ask(self) -> None:
        self.asked = True

    def take(self) -> FakeWorker:
        self.asked = False
        self.workers.append(FakeWorker())
        return self.workers[-1]


class Host:
    """All that a dispatcher knows of the daemon."""

    def __init__(self, clock: LoopClock) -> None:
        self.clock = clock
        self.events: list[str] = []
        self.spilled_bytes = 0
        self.answer = ""

    def watch(self, source: Readable, act: Callable[[], None]) -> None:
        pass

    def unwatch(self, source: Readable) -> None:
        pass

    def decide(self, crash_id: str, question: Mapping[str, Any], *, live: bool) -> dict[str, Any]:
        more = {"reason": self.answer} if self.answer else {}
        return {"disposition": "full", "live": live, **more}

    def ended(self, crash_id: str) -> None:
        pass

    def dropped(self, reason: DropReason) -> None:
        self.events.append(reason.value)

    def spilled(self, size_bytes: int) -> None:
        self.spilled_bytes += size_bytes

    def finished(self, job: Job) -> None:
        self.events.append("done")

    def failed(self, job: Job) -> None:
        self.events.append("failed")

    def given_back(self, job: Job) -> None:
        self.events.append("refused")


class Scene:
    """A dispatcher, and the loop's clock in the test's hands."""

    def __init__(self, directory: Path, *, workers: int = 1, storers: int = 2) -> None:
        self.directory = directory
        self.time_ns = 1000 * SECOND_NS
        self.clock = LoopClock(lambda: self.time_ns)
        self.host = Host(self.clock)
        self.events = self.host.events
        self.nursery = FakeNursery()
        self.number = 0
        self.dispatcher = Dispatcher(
            self.nursery,  # type: ignore[arg-type]  # has what is asked of a nursery
            self.host,  # type: ignore[arg-type]  # has what is asked of a loop
            self.host,
            self.host,
        )
        self.dispatcher.storers_max = storers
        self.dispatcher.threads = 2
        self.dispatcher.set_workers(workers)
        self.nurse()

    def nurse(self) -> None:
        """Let the nursery give what it is asked for."""
        while self.nursery.asked:
            self.dispatcher.born()

    def submit(self, kind: Kind = Kind.SOCKET, uid: int | None = None, size: int = 0) -> Job:
        """Submit a job."""
        self.number += 1
        entry = Entry(build_crash(self.number).id, self.open(self.directory))
        job = Job(kind, entry, [self.open("/dev/null")], self.host, uid=uid)
        job.core_bytes = size
        self.dispatcher.submit(job)
        self.nurse()
        return job

    def open(self, path: str | Path) -> int:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def worker_of(self, job: Job) -> FakeWorker:
        """Return the worker that has a job."""
        return next(w for w, j in self.dispatcher._busy.items() if j is job)  # type: ignore[return-value]

    def tell(self, job: Job, event: str, **more: Any) -> None:
        """Let a job's worker say something, the dispatcher hear it, and the nursery give."""
        self.tell_only(job, event, **more)
        self.nurse()

    def tell_only(self, job: Job, event: str, **more: Any) -> None:
        """Let a job's worker say something, and the dispatcher hear it."""
        worker = self.worker_of(job)
        send_message(worker.theirs, {"event": event, "id": job.id, **more})
        self.dispatcher.readable(worker)  # type: ignore[arg-type]  # see FakeNursery

    def release(self, job: Job, size: int = 1 << 20) -> None:
        self.tell(job, "released", read=size, spilled=0)

    def end(self, job: Job) -> None:
        self.tell(job, "done", leaves=False)

    def close(self) -> None:
        self.dispatcher.abandon()
        for worker in self.nursery.workers:
            worker.theirs.close()

    def stages(self, *jobs: Job) -> str:
        """Return the first letters of the jobs' stages."""
        return "".join(job.stage.name[0] for job in jobs)


class OneJob(Scene):
    """One worker, and its job."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.worker = self.nursery.workers[0]
        self.job = self.submit()
        message, descriptors = receive_message(self.worker.theirs)
        assert message is not None
        for fd in descriptors:
            os.close(fd)

    def say(self, event: str, **more: Any) -> None:
        """Let the worker say something."""
        send_message(self.worker.theirs, {"event": event, "id": self.job.id, **more})

    def turn(self, stands_ns: int = 0) -> None:
        """Turn the loop once: it waits as long as it may, and hears nothing while it `stands`."""
        self.clock.wait(self.dispatcher.wait_ns() or 0)
        self.time_ns += max(0, self.dispatcher.wait_ns() or 0)
        heard_ns = self.clock.look()
        self.time_ns += stands_ns
        self.dispatcher.tick(heard_ns)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[OneJob]:
    made = OneJob(tmp_path)
    yield made
    made.close()


def test_sec_82_answer_that_lies_unread_is_read_before_its_deadline_is_judged(
    scene: OneJob,
) -> None:
    scene.say("identified")
    scene.turn()  # the deadline is over, and the loop heard of another channel only
    assert not scene.worker.killed
    assert scene.job.identified
    scene.turn()
    assert scene.worker.killed, "of the next step's deadline, which passed"


def test_sec_82_time_in_which_the_loop_stood_still_is_no_workers(scene: OneJob) -> None:
    scene.clock.look()
    scene.time_ns += 10 * SECOND_NS  # a disk that stands still: the worker waits for the loop
    scene.clock.wait(0)
    scene.dispatcher.tick(scene.clock.look())
    assert not scene.worker.killed
    scene.turn()
    assert scene.worker.killed, "which says nothing, though it is listened to"
    assert scene.events == ["deadline"]


def test_sec_82_clock_of_a_worker_starts_when_it_is_answered(scene: OneJob) -> None:
    scene.say("identified")
    scene.dispatcher.readable(scene.worker)  # type: ignore[arg-type]  # see FakeNursery
    scene.time_ns += scene.dispatcher.capture_deadline_ns
    scene.say("decide")
    scene.dispatcher.readable(scene.worker)  # type: ignore[arg-type]  # see FakeNursery
    answer, _ = receive_message(scene.worker.theirs)
    assert answer == {"answer": scene.job.id, "disposition": "full", "live": True}
    scene.time_ns += scene.dispatcher.capture_deadline_ns
    scene.dispatcher.tick(scene.clock.now_ns())
    assert not scene.worker.killed


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path, workers=2)
    yield made
    made.close()


def test_worker_that_released_its_process_takes_no_holders_place(crowd: Scene) -> None:
    """Ten large cores wait to be compressed: an eleventh crash has its worker at once."""
    large = [crowd.submit(uid=1) for _ in range(10)]
    assert crowd.stages(*large) == "H" * 10
    for job in large:
        crowd.release(job, 1 << 30)
    assert crowd.stages(*large) == "S" + "R" * 9, "one of them is stored"
    assert (crowd.dispatcher.holders, crowd.dispatcher.storers) == (0, 10)
    assert crowd.submit(uid=1).stage is Stage.HELD
    assert crowd.dispatcher.holders == 1


def test_small_core_is_stored_beside_large_ones(crowd: Scene) -> None:
    large = [crowd.submit() for _ in range(3)]
    for job in large:
        crowd.release(job, SMALL_BYTES + 1)
    small = [crowd.submit() for _ in range(2)]
    for job in small:
        crowd.release(job, SMALL_BYTES)
    assert crowd.stages(*large, *small) == "SRRSR"
    crowd.end(small[0])
    assert crowd.stages(*large, *small[1:]) == "SRRS"
    crowd.end(large[0])
    assert crowd.stages(*large[1:], *small[1:]) == "SRS"


def test_storers_wait_while_anybody_is_held_but_not_for_ever(crowd: Scene) -> None:
    gate = crowd.nursery.gate
    first, second = crowd.submit(), crowd.submit()
    assert 0 < gate.until_ns <= time.monotonic_ns() + HELD_NS
    crowd.release(first)
    assert gate.until_ns, "the other one is held still"
    crowd.release(second)
    assert gate.until_ns == 0


def test_storers_go_on_where_crashes_wait_for_their_places(crowd: Scene) -> None:
    raw = [crowd.submit(uid=1) for _ in range(PROCESSES_MIN // 2)]
    waiting = crowd.submit(uid=1)
    assert waiting.stage is Stage.QUEUED, "as many places are left to others"
    assert crowd.nursery.gate.until_ns == 0
    assert crowd.submit(uid=2).stage is Stage.HELD
    crowd.release(raw[0])
    assert waiting.stage is Stage.QUEUED
    crowd.end(raw[0])
    assert crowd.stages(waiting) == "H"


def test_import_never_takes_the_last_worker_nor_goes_before_a_live_crash(tmp_path: Path) -> None:
    scene = Scene(tmp_path, workers=1)
    imports = [scene.submit(Kind.IMPORT, size=SMALL_BYTES + 1) for _ in range(2)]
    assert scene.stages(*imports) == "SQ"
    assert len(scene.dispatcher._idle) >= 1, "for the crash that comes next"
    live = scene.submit()
    assert scene.stages(live, *imports) == "HSQ"
    scene.end(imports[0])
    assert imports[1].stage is Stage.STORING
    scene.close()


def test_small_import_goes_before_large_ones_that_have_to_wait(crowd: Scene) -> None:
    large = [crowd.submit(Kind.IMPORT, size=SMALL_BYTES + 1) for _ in range(2)]
    small = crowd.submit(Kind.IMPORT, size=SMALL_BYTES)
    assert crowd.stages(*large, small) == "SQS"


def test_spilled_bytes_are_counted(crowd: Scene) -> None:
    job = crowd.submit()
    crowd.tell(job, "released", read=10, spilled=7)
    assert crowd.host.spilled_bytes == 7


def test_worker_that_waits_for_its_turn_is_not_late_and_one_that_goes_on_neither(
    crowd: Scene,
) -> None:
    storing, raw = crowd.submit(), crowd.submit()
    for job in (storing, raw):
        crowd.release(job, 1 << 30)
    assert raw.stage is Stage.RAW
    for _ in range(5):
        crowd.time_ns += crowd.dispatcher.capture_deadline_ns
        crowd.tell(storing, "alive")
        crowd.dispatcher.tick(crowd.clock.now_ns())
    assert not crowd.events
    crowd.time_ns += 2 * crowd.dispatcher.capture_deadline_ns
    crowd.dispatcher.tick(crowd.clock.now_ns())
    assert crowd.events == ["deadline"], "of the one that says nothing"
    assert crowd.worker_of(storing).killed
    assert not crowd.worker_of(raw).killed


def test_nursery_that_cannot_fork_leaves_crashes_to_their_handlers(tmp_path: Path) -> None:
    class Barren(FakeNursery):
        def ask(self) -> None:
            raise UnavailableError("no process is to be had")

    scene = Scene(tmp_path, workers=1)
    worker = scene.nursery.workers[0]
    scene.nursery.__class__ = Barren
    worker.theirs.close()
    scene.dispatcher.readable(worker)  # type: ignore[arg-type]  # see FakeNursery
    job = Job(Kind.CAPTURE, Entry(build_crash().id, scene.open(tmp_path)), [], scene.host)
    job.accepted = False
    scene.dispatcher.submit(job)
    assert scene.events == ["refused"]
    assert scene.dispatcher.queued == 0
    scene.close()


# -- forks beside a capture ------------------------------------------------------------------------


def test_no_worker_is_forked_beside_a_capture_while_an_idle_one_is_left(tmp_path: Path) -> None:
    scene = Scene(tmp_path, workers=2)
    first = scene.submit()
    assert len(scene.nursery.workers) == 2, "none was forked"
    scene.end(first)
    scene.submit()
    assert len(scene.nursery.workers) == 2, "the first worker is back"
    scene.close()


def test_missing_spare_worker_is_forked_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, workers=2)
    scene.submit()
    assert 0 < (scene.dispatcher.wait_ns() or 0) <= SPARE_NS
    now_ns = time.monotonic_ns() + SPARE_NS
    monkeypatch.setattr(time, "monotonic_ns", lambda: now_ns)
    scene.dispatcher.tick(scene.clock.now_ns())
    assert scene.nursery.asked
    scene.close()


def test_surplus_workers_stay_for_the_next_crashes_and_then_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A storm once forked a worker for nearly every crash."""
    scene = Scene(tmp_path, workers=2)
    job = scene.submit()
    scene.nursery.ask()
    scene.tell_only(job, "done", leaves=False)
    scene.nurse()
    assert len(scene.dispatcher._idle) == 3, "the worker that the third was to replace is back"
    assert 0 < (scene.dispatcher.wait_ns() or 0) <= LINGER_NS
    now_ns = time.monotonic_ns() + LINGER_NS
    monkeypatch.setattr(time, "monotonic_ns", lambda: now_ns)
    scene.dispatcher.tick(scene.clock.now_ns())
    assert len(scene.dispatcher._idle) == 2
    assert scene.dispatcher.wait_ns() is None
    scene.close()


def test_few_surplus_workers_stay(tmp_path: Path) -> None:
    scene = Scene(tmp_path, workers=1)
    jobs = [scene.submit() for _ in range(3 * LINGER_WORKERS)]
    for job in jobs:
        scene.tell_only(job, "done", leaves=False)
    assert len(scene.dispatcher._idle) == LINGER_WORKERS
    scene.close()


def test_last_idle_worker_is_replaced_at_once(tmp_path: Path) -> None:
    scene = Scene(tmp_path, workers=2)
    scene.submit()
    scene.submit()
    assert len(scene.nursery.workers) > 2
    scene.close()


# -- a worker's copy -------------------------------------------------------------------------------


def test_copy_of_a_killed_worker_is_the_worker(tmp_path: Path) -> None:
    scene = OneJob(tmp_path)
    pidfd = os.pidfd_open(os.getpid())
    message = {"event": "taken over", "id": scene.job.id, "pid": os.getpid()}
    send_message(scene.worker.theirs, message, (pidfd,))
    os.close(pidfd)
    scene.dispatcher.readable(scene.worker)  # type: ignore[arg-type]  # see FakeNursery
    assert scene.worker.replaced == os.getpid()
    scene.release(scene.job)
    scene.end(scene.job)
    assert scene.events == ["done"]
    scene.close()


def test_copy_that_asks_again_gets_the_same_answer(tmp_path: Path) -> None:
    scene = OneJob(tmp_path)
    answers = []
    for name in ("one", "two"):
        scene.host.answer = name
        scene.say("decide", site={}, wanted=1)
        scene.dispatcher.readable(scene.worker)  # type: ignore[arg-type]  # see FakeNursery
        message, _ = receive_message(scene.worker.theirs)
        answers.append(message)
    assert answers[0] == answers[1]
    scene.close()


def test_bytes_spilled_by_a_worker_count_once(tmp_path: Path) -> None:
    scene = OneJob(tmp_path)
    for _ in range(2):
        scene.tell(scene.job, "released", read=1 << 20, spilled=5)
    assert scene.host.spilled_bytes == 5
    scene.close()
