"""The dispatcher alone: its workers are ends of channels, its clock is a number."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crashd.base.messages import receive_message, send_message
from crashd.daemon.intake.dispatch import Dispatcher, Job
from crashd.daemon.loopclock import LoopClock
from crashd.store.entry import Entry
from tests.builders.crashes import build_crash

SECOND_NS = 10**9


class FakeWorker:
    """A worker that says what the test says."""

    def __init__(self) -> None:
        self.channel, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.killed = False

    def kill(self) -> None:
        self.killed = True

    def close(self) -> None:
        self.channel.close()


class FakeNursery:
    """Has one worker to give."""

    gone = False

    def __init__(self) -> None:
        self.workers: list[FakeWorker] = []

    def fork_worker(self) -> FakeWorker:
        self.workers.append(FakeWorker())
        return self.workers[-1]


class Scene:
    """A dispatcher with one worker, and the loop's clock in the test's hands."""

    def __init__(self, directory: Path) -> None:
        self.time_ns = 1000 * SECOND_NS
        self.clock = LoopClock(lambda: self.time_ns)
        self.events: list[str] = []
        self.nursery = FakeNursery()
        self.dispatcher = Dispatcher(
            self.nursery,  # type: ignore[arg-type]  # has what is asked of a nursery
            watch=lambda _: None,
            unwatch=lambda _: None,
            done=lambda _: self.events.append("done"),
            dropped=self.events.append,
            refused=lambda: self.events.append("refused"),
            decide=lambda *_: {"disposition": "full"},
            ended=lambda _: None,
            clock=self.clock,
        )
        self.dispatcher.set_workers(1)
        self.worker = self.nursery.workers[0]
        entry = Entry(build_crash().id, os.open(directory, os.O_RDONLY | os.O_CLOEXEC))
        self.job = Job("socket", entry, [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)])
        self.dispatcher.submit(self.job)
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
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.dispatcher.abandon()
    for worker in made.nursery.workers:
        worker.theirs.close()


def test_sec_82_answer_that_lies_unread_is_read_before_its_deadline_is_judged(
    scene: Scene,
) -> None:
    scene.say("identified")
    scene.turn()  # the deadline is over, and the loop heard of another channel only
    assert not scene.worker.killed
    assert scene.job.identified
    scene.turn()
    assert scene.worker.killed, "of the next step's deadline, which passed"


def test_sec_82_time_in_which_the_loop_stood_still_is_no_workers(scene: Scene) -> None:
    scene.clock.look()
    scene.time_ns += 10 * SECOND_NS  # a disk that stands still: the worker waits for the loop
    scene.clock.wait(0)
    scene.dispatcher.tick(scene.clock.look())
    assert not scene.worker.killed
    scene.turn()
    assert scene.worker.killed, "which says nothing, though it is listened to"
    assert scene.events == ["deadline"]


def test_sec_82_clock_of_a_worker_starts_when_it_is_answered(scene: Scene) -> None:
    scene.say("identified")
    scene.dispatcher.readable(scene.worker)  # type: ignore[arg-type]  # see FakeNursery
    scene.time_ns += scene.dispatcher.capture_deadline_ns
    scene.say("decide")
    scene.dispatcher.readable(scene.worker)  # type: ignore[arg-type]  # see FakeNursery
    answer, _ = receive_message(scene.worker.theirs)
    assert answer == {"answer": scene.job.id, "disposition": "full"}
    scene.time_ns += scene.dispatcher.capture_deadline_ns
    scene.dispatcher.tick(scene.clock.now_ns())
    assert not scene.worker.killed
