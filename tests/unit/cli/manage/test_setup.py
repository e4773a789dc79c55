import os
import socket
from pathlib import Path

import pytest

from crashd import registration
from crashd.cli.main import main
from crashd.cli.manage import setup
from crashd.domain.crash.corepattern import build_pattern
from crashd.store.paths import Paths

BEFORE = {"kernel/core_pattern": "core", "kernel/core_pipe_limit": "0", "fs/suid_dumpable": "0"}


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc as it is without crashd, for a root that need not be."""
    proc = tmp_path / "proc"
    for name, value in BEFORE.items():
        file = proc / "sys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value + "\n")
    monkeypatch.setattr(registration, "PROC", proc)
    monkeypatch.setattr(setup, "_is_root", lambda: True)
    return proc


def values(proc: Path) -> dict[str, str]:
    return {name: (proc / "sys" / name).read_text().rstrip("\n") for name in BEFORE}


def test_install_registers_for_good_and_tells(
    proc: Path, short_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = Paths(short_tmp / "r")
    paths.registered_marker.parent.mkdir(parents=True)
    paths.registered_marker.touch()
    assert main(["--root", str(paths.root), "install"]) == 0
    pattern = build_pattern(str(paths.handler))
    after = values(proc)
    assert after["kernel/core_pattern"] == pattern
    assert int(after["kernel/core_pipe_limit"]) > 0
    assert after["fs/suid_dumpable"] == "2"
    assert paths.handler.stat().st_mode & 0o777 == 0o755
    assert not paths.registered_marker.exists()
    assert capsys.readouterr().out.splitlines() == [
        f"{paths.handler}: installed",
        f"kernel.core_pattern: core -> {pattern}",
        f"kernel.core_pipe_limit: 0 -> {after['kernel/core_pipe_limit']}",
        "fs.suid_dumpable: 0 -> 2",
    ]


def test_install_again_changes_nothing(
    proc: Path, short_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(short_tmp / "r")
    main(["--root", root, "install"])
    before = values(proc)
    capsys.readouterr()
    assert main(["--root", root, "install"]) == 0
    assert capsys.readouterr().out == "already registered\n"
    assert values(proc) == before


def test_uninstall_puts_back_what_was(
    proc: Path, short_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(short_tmp / "r")
    main(["--root", root, "install"])
    capsys.readouterr()
    assert main(["--root", root, "uninstall"]) == 0
    assert values(proc) == BEFORE
    assert "-> core\n" in capsys.readouterr().out


def test_uninstall_leaves_anothers_pattern_alone(
    proc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "r")
    main(["--root", root, "install"])
    (proc / "sys/kernel/core_pattern").write_text("|/other %p\n")
    capsys.readouterr()
    assert main(["--root", root, "uninstall"]) == 0
    assert values(proc)["kernel/core_pattern"] == "|/other %p"
    assert "|/other %p" in capsys.readouterr().out


def test_install_of_the_socket_on_a_kernel_without_registers_the_pipe(
    proc: Path, short_tmp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a kernel takes @@ for a file name: crashes are lost while crashd is down."""
    paths = Paths(short_tmp / "r")
    paths.config_file.parent.mkdir(parents=True)
    paths.config_file.write_text('[capture]\nmode = "socket"\n')
    monkeypatch.setattr(registration, "kernel_has_socket", lambda: False)
    assert main(["--root", str(paths.root), "install"]) == 0
    assert values(proc)["kernel/core_pattern"] == build_pattern(str(paths.handler))
    assert "no coredump socket" in capsys.readouterr().err
    monkeypatch.setattr(registration, "kernel_has_socket", lambda: True)
    assert main(["--root", str(paths.root), "install"]) == 0
    assert values(proc)["kernel/core_pattern"] == f"@@{paths.kernel_socket}"


def test_install_by_itself_takes_the_socket_only_where_somebody_listens(
    proc: Path, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of a dead one stays: the kernel finds nobody there, and crashes are lost."""
    paths = Paths(short_tmp / "r")
    paths.runtime_dir.mkdir(parents=True)
    for name in ("kernel_has_socket", "signal_is_told"):
        monkeypatch.setattr(registration, name, lambda: True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(paths.kernel_socket))
        server.listen()
        assert main(["--root", str(paths.root), "install"]) == 0
        assert values(proc)["kernel/core_pattern"] == f"@@{paths.kernel_socket}"
    assert paths.kernel_socket.is_socket()
    assert main(["--root", str(paths.root), "install"]) == 0
    assert values(proc)["kernel/core_pattern"] == build_pattern(str(paths.handler))


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_install_without_being_root_is_status_3(
    proc: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
) -> None:
    monkeypatch.setattr(setup, "_is_root", lambda: False)
    assert main(["--root", str(tmp_path / "r"), verb]) == 3
    assert values(proc) == BEFORE
    assert "only root" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["proc"]
