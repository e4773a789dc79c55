"""The daemon's lock, with the kernel's own flock(2) and /proc/locks."""

import errno
import fcntl
import os
import signal
from pathlib import Path

import pytest

from crashd.cli.main import main
from crashd.errors import BusyError, UnavailableError
from crashd.store.daemonlock import is_daemon_live, lock_root
from crashd.store.paths import Paths

STARTS = 2000


def test_is_daemon_live_without_a_runtime_directory_is_false(tmp_path: Path) -> None:
    assert not is_daemon_live(Paths(tmp_path))


def test_is_daemon_live_as_long_as_the_lock_is_held(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    lock = lock_root(paths)
    assert is_daemon_live(paths)
    with pytest.raises(BusyError, match=rf"pid {os.getpid()}\)"):
        lock_root(paths)
    os.close(lock)
    assert not is_daemon_live(paths)


def test_is_daemon_live_of_a_link_or_a_fifo_is_false(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.runtime_dir.mkdir(parents=True)
    os.mkfifo(paths.daemon_lock)
    assert not is_daemon_live(paths)
    paths.daemon_lock.unlink()
    elsewhere = tmp_path / "elsewhere"
    with elsewhere.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        paths.daemon_lock.symlink_to(elsewhere)
        assert not is_daemon_live(paths)


def test_lock_root_that_cannot_write_its_pid_says_so_and_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("crashd.store.daemonlock.os.pwrite", fail)
        with pytest.raises(UnavailableError, match=r"lock.*No space left"):
            lock_root(Paths(tmp_path))
    os.close(lock_root(Paths(tmp_path)))


def test_starts_amid_many_looks_never_fail(tmp_path: Path) -> None:
    """A look that takes the lock for a moment makes a start at that moment fail."""
    paths = Paths(tmp_path)
    os.close(lock_root(paths))
    lookers = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            while True:
                is_daemon_live(paths)
        lookers.append(pid)
    try:
        for _ in range(STARTS):
            os.close(lock_root(paths))
    finally:
        for pid in lookers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_vacuum_leaves_the_lock_to_a_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`vacuum` never asks for the lock."""
    paths = Paths(tmp_path)
    os.close(lock_root(paths))
    assert main(["--root", str(paths.root), "reindex"]) == 0

    def refuse(fd: int, operation: int) -> None:
        assert os.readlink(f"/proc/self/fd/{fd}") != str(paths.daemon_lock)

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert main(["--root", str(paths.root), "vacuum", "--dry-run"]) == 0
    assert "nothing to delete" in capsys.readouterr().err
