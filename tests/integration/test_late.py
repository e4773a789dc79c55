"""Answers that were there in time, and are looked at too late: they count."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crashd.base import messages
from crashd.edge.sandbox import start as sandbox

LATE = -1.0


def test_sec_82_output_of_a_worker_that_has_ended_is_read_after_its_deadline() -> None:
    with subprocess.Popen(
        ["/bin/sh", "-c", "echo found; echo odd >&2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.wait()
        output, errors = bytearray(), bytearray()
        assert sandbox._listen(process, output, errors, time.monotonic() + LATE) is None
    assert (bytes(output), bytes(errors)) == (b"found\n", b"odd\n")


def test_sec_82_worker_that_says_nothing_is_not_waited_for_after_its_deadline() -> None:
    with subprocess.Popen(
        ["sleep", "100"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        began = time.monotonic()
        told = sandbox._listen(process, bytearray(), bytearray(), began + LATE)
        process.kill()
    assert told == "it did not end in time"


def test_sec_82_request_that_has_come_is_read_after_its_deadline() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(messages.pack({"verb": "status"}))
        raw = messages.receive(ours, messages.REQUEST_MAX, time.monotonic() + LATE)
        assert messages.parse(raw) == {"verb": "status"}
        with pytest.raises(TimeoutError):
            messages.receive(ours, messages.REQUEST_MAX, time.monotonic() + LATE)


def test_sec_82_hook_that_has_ended_is_not_called_late(tmp_path: Path) -> None:
    """The daemon is stopped from before the hook ends until after its time is over."""
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\nsleep 1\n")
    hook.chmod(0o755)
    code = (
        "import pathlib, sys; from crashd.edge.host.hooks import run_hook; "
        "run_hook(pathlib.Path(sys.argv[1]), b'{}', 3.0)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, hook], cwd=Path(__file__).parents[2]
    ) as daemon:
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        daemon.send_signal(signal.SIGSTOP)
        time.sleep(4)
        daemon.send_signal(signal.SIGCONT)
        assert daemon.wait(30) == 0
