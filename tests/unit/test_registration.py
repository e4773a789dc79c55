from pathlib import Path

import pytest

from crashd import registration
from crashd.domain.crash.corepattern import build_pattern
from crashd.domain.crash.model import Mode
from crashd.edge.host import sysctl
from crashd.errors import UnavailableError
from crashd.registration import Registered, choose_mode, is_owned, register, unregister
from crashd.store.paths import Paths


@pytest.fixture
def paths(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A root, and a /proc with the kernel's defaults."""
    proc = short_tmp / "proc"
    for name, value in (("kernel/core_pattern", "core"), ("kernel/core_pipe_limit", "0")):
        file = proc / "sys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value + "\n")
    (proc / "sys/fs").mkdir()
    (proc / "sys/fs/suid_dumpable").write_text("0\n")
    monkeypatch.setattr(registration, "PROC", proc)
    paths = Paths(short_tmp / "r")
    paths.runtime_dir.mkdir(parents=True)
    return paths


@pytest.mark.parametrize("configured", ["auto", "pipe", "socket"])
@pytest.mark.parametrize("passed", [False, True])
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("has_socket", [False, True])
def test_choose_mode_takes_the_socket_only_where_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, configured: str, passed: bool, told: bool, has_socket: bool
) -> None:
    monkeypatch.setattr(registration, "kernel_has_socket", lambda: has_socket)
    monkeypatch.setattr(registration, "signal_is_told", lambda: told)
    socket = has_socket and (configured == "socket" or (configured == "auto" and passed and told))
    assert choose_mode(configured, passed=passed) is (Mode.SOCKET if socket else Mode.PIPE)


def test_register_marks_what_the_daemon_took(paths: Paths) -> None:
    pattern = build_pattern(str(paths.handler))
    assert register(paths, 64) == Registered(pattern, installed=True, changed=True)
    assert paths.registered_marker.exists()
    assert register(paths, 64) == Registered(pattern, installed=False, changed=False)
    assert is_owned(paths)
    assert "core" in unregister(paths)
    assert not paths.registered_marker.exists()
    assert not is_owned(paths)


def test_register_for_good_leaves_no_mark_and_none_comes_later(paths: Paths) -> None:
    register(paths, 64)
    register(paths, 64, for_good=True)
    assert not paths.registered_marker.exists()
    register(paths, 64)
    assert not paths.registered_marker.exists()


def test_register_failing_leaves_no_mark(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> bool:
        raise UnavailableError("cannot save")

    monkeypatch.setattr(sysctl, "register", fail)
    with pytest.raises(UnavailableError):
        register(paths, 64)
    assert not paths.registered_marker.exists()
