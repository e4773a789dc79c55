"""The copy of a worker: continues if the worker is killed, and only then."""

import os
import signal
from collections.abc import Callable

import pytest

from crashd.edge.capture.successor import ReadOnce, Successor

pytestmark = pytest.mark.allow_subprocess


def run_worker(act: Callable[[int], None]) -> bytes:
    """Run `act` in a forked process; return all that it and its copies write to its pipe."""
    read_fd, write_fd = os.pipe()
    if not os.fork():
        os.close(read_fd)
        try:
            act(write_fd)
        finally:
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as file:
        written = file.read()  # to the end of the last copy
    os.wait()
    return written


def test_copy_continues_if_its_process_is_killed() -> None:
    def act(out_fd: int) -> None:
        guard = Successor()
        if not guard.begin():
            assert guard.is_there
            os.kill(os.getpid(), signal.SIGKILL)
        assert not guard.is_there
        os.write(out_fd, b"copy")

    assert run_worker(act) == b"copy"


def test_copy_ends_with_the_stage_that_it_guards() -> None:
    def act(out_fd: int) -> None:
        guard = Successor()
        if not guard.begin():
            guard.end()
            guard.end()
            assert not guard.is_there
            os.write(out_fd, b"worker")
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(out_fd, b"copy")

    assert run_worker(act) == b"worker"


def test_copy_lets_go_before_it_waits() -> None:
    """Of what holds the crashed process."""

    def act(out_fd: int) -> None:
        Successor().begin(lambda: os.write(out_fd, b"let go"))

    assert run_worker(act).startswith(b"let go")


def test_worker_whose_copy_was_killed_goes_on() -> None:
    def act(out_fd: int) -> None:
        guard = Successor()
        if not guard.begin(lambda: os.kill(os.getpid(), signal.SIGKILL)):
            os.wait()
            guard.end()
            os.write(out_fd, b"worker")

    assert run_worker(act) == b"worker"


def test_worker_without_memory_for_a_copy_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", refuse)
    guard = Successor()
    assert not guard.begin()
    assert not guard.is_there
    guard.end()


HEAD = b"\x7fELF" + bytes(60) + b"notes" + bytes(91)


def test_copy_knows_what_was_read_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even by the read that returned to nobody, and if it ends with zeros."""
    real = os.readv

    def read_and_die(fd: int, buffers: list[memoryview]) -> int:
        real(fd, buffers)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def act(out_fd: int) -> None:
        source, stream = os.pipe()
        os.write(stream, HEAD)
        once = ReadOnce()
        guard = Successor()
        if not guard.begin():
            head = bytearray(64)
            assert once.read(source, memoryview(head)) == 64
            assert head == HEAD[:64]
            monkeypatch.setattr(os, "readv", read_and_die)
            once.read(source, memoryview(bytearray(4096)))
        os.write(out_fd, once.bytes())

    assert run_worker(act) == HEAD


def test_nothing_read_is_nothing() -> None:
    assert ReadOnce().bytes() == b""
