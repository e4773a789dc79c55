"""A worker before its first job."""

import resource
import socket
import threading

import pytest

from crashd.base.messages import send_message
from crashd.daemon.capture import worker
from crashd.daemon.capture.pace import PaceGate
from crashd.daemon.capture.source import small_room

DATA = b"x" * len(small_room())


@pytest.mark.parametrize("has_job", [False, True])
def test_worker_rehearses_only_while_no_job_waits(
    has_job: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsed = threading.Event()
    monkeypatch.setattr(worker, "_rehearse", rehearsed.set)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        with ours:
            if has_job:
                send_message(ours, {"answer": "too late"})
            working = threading.Thread(target=worker.work, args=(theirs, PaceGate()))
            working.start()
            if not has_job:
                assert rehearsed.wait(20)
        working.join(20)
        assert not working.is_alive()
    assert rehearsed.is_set() is not has_job


def test_room_for_a_small_core_is_faulted_in_by_a_rehearsal() -> None:
    small_room.cache_clear()  # this process may have used its room already
    worker._rehearse()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    small_room()[:] = DATA
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < len(DATA) // 4096 // 4
