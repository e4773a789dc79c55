from pathlib import Path

import pytest

from crashd.cli import debugging
from crashd.cli.context import Context
from crashd.cli.debugging import (
    User,
    build_command,
    choose_user,
    find_debugger,
    find_exe,
    private_directory,
)
from crashd.errors import UnsupportedError
from crashd.store.paths import Paths

CONTEXT = Context(Paths(Path("/nowhere")), color=False, legend=True, quiet=False, width=None)


def test_build_command_gdb_loads_nothing_by_itself() -> None:
    argv = build_command("gdb", "/usr/bin/gdb", ["-batch"], "/usr/bin/x", Path("/t/core"))
    assert argv == [
        "/usr/bin/gdb",
        "-nx",
        "-nh",
        "-iex",
        "set auto-load off",
        "-batch",
        "/usr/bin/x",
        "/t/core",
    ]


def test_build_command_gdb_without_executable_names_the_core_by_an_option() -> None:
    argv = build_command("gdb", "gdb", [], None, Path("/t/core"))
    assert argv[-2:] == ["-c", "/t/core"]


def test_build_command_others_get_the_core() -> None:
    assert build_command("drgn", "drgn", ["s.py"], "/x", Path("/c")) == ["drgn", "s.py", "-c", "/c"]
    assert build_command("crash", "crash", [], None, Path("/c")) == ["crash", "/c"]


def test_choose_user_not_root_needs_none() -> None:
    assert choose_user(1000, {"SUDO_UID": "5", "SUDO_GID": "5"}) is None


def test_choose_user_of_sudo_is_its_caller() -> None:
    assert choose_user(0, {"SUDO_UID": "1000", "SUDO_GID": "100"}) == User(1000, 100)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SUDO_UID": "1000"},
        {"SUDO_UID": "0", "SUDO_GID": "0"},
        {"SUDO_UID": "-1", "SUDO_GID": "x"},
        {"SUDO_UID": "٣", "SUDO_GID": "٣"},
    ],
)
def test_choose_user_of_root_itself_is_nobodys(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(debugging, "PROC", tmp_path)
    user = choose_user(0, environ)
    assert user is not None
    assert user.uid == user.gid
    assert 61184 <= user.uid <= 65519  # no account and no service of systemd's has it


def test_find_debugger_missing_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UnsupportedError, match="drgn is not installed") as caught:
        find_debugger("drgn")
    assert caught.value.hint == "apt-get install python3-drgn"


def test_find_exe_there_is_taken(tmp_path: Path) -> None:
    program = tmp_path / "x"
    program.touch()
    assert find_exe(CONTEXT, {"exe": str(program), "root": "/"}) == str(program)


@pytest.mark.parametrize(
    ("doc", "warning"),
    [
        ({"exe": "/nonexistent/x\x1b (deleted)", "root": "/"}, "x\\x1b (deleted) is not there"),
        ({"exe": "/bin/sh", "root": "/var/lib/c/\x1broot"}, "inside of /var/lib/c/\\x1broot"),
        ({"exe": "-x", "root": "/"}, ""),
        ({"exe": None}, ""),
    ],
)
def test_find_exe_not_the_hosts_is_not_taken(
    doc: dict[str, str], warning: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_exe(CONTEXT, doc) is None
    assert warning in capsys.readouterr().err


@pytest.mark.parametrize(("user", "mode"), [(None, 0o700), (User(65000, 65000), 0o711)])
def test_private_directory_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: User | None, mode: int
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with private_directory(user) as directory:
        assert directory.parent == tmp_path
        assert directory.stat().st_mode & 0o777 == mode
        (directory / "core").touch()
    assert list(tmp_path.iterdir()) == []
