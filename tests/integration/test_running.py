"""A daemon of a test ends with it, also where it does not do what it shall."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests import running
from tests.invariants import descendants, of_processes, started_at
from tests.running import Daemon


def test_daemon_that_is_not_ready_in_time_is_ended(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "READY_SECONDS", 0)
    daemon = Daemon(short_tmp, "--no-register")
    with pytest.raises(AssertionError, match="the daemon is ready"):
        daemon.start()
    assert daemon.process is not None
    assert daemon.process.returncode == -signal.SIGKILL


def test_daemon_that_does_not_end_in_time_is_ended(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(short_tmp, "--no-register")
    daemon.start()
    pid = daemon.pid
    family = {p: started_at(p) for p in (pid, *descendants(pid))}
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(running, "STOP_SECONDS", 0.1)
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.stop()
    assert of_processes(family) == []
