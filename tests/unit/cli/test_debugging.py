from pathlib import Path

import pytest

from crashd.cli import debugging
from crashd.cli.debugging import (
    Given,
    User,
    build_command,
    choose_user,
    find_debugger,
    private_directory,
)
from crashd.cli.debugroot import DebugRoot
from crashd.errors import UnsupportedError


def given(exe: str | None = "/t/root/x", *, debuginfod: bool = False) -> Given:
    symbols = (Path("/t/debug/x.debug"), Path("/t/root/x"))
    files = DebugRoot(
        Path("/t/root"),
        Path("/t/libraries"),
        Path("/t/debug"),
        None if exe is None else Path(exe),
        symbols,
    )
    return Given(files, debuginfod)


def test_build_command_gdb_finds_what_it_is_given_and_nothing_else() -> None:
    argv = build_command("gdb", "/usr/bin/gdb", ["-batch"], given(), Path("/t/core"))
    assert argv == [
        "/usr/bin/gdb",
        "-nx",
        "-nh",
        "-iex",
        "set auto-load off",
        "-iex",
        "set debuginfod enabled off",
        "-iex",
        "set sysroot /t/root",
        "-iex",
        "set solib-search-path /t/libraries",
        "-iex",
        "set debug-file-directory /t/debug:/usr/lib/debug",
        "-batch",
        "/t/root/x",
        "/t/core",
    ]
    assert "set debuginfod enabled on" in build_command(
        "gdb", "gdb", [], given(debuginfod=True), Path("/t/core")
    )


def test_build_command_gdb_without_executable_names_the_core_by_an_option() -> None:
    argv = build_command("gdb", "gdb", [], given(None), Path("/t/core"))
    assert argv[-2:] == ["-c", "/t/core"]


def test_build_command_others_get_the_core() -> None:
    argv = build_command("drgn", "drgn", ["s.py"], given(), Path("/c"))
    assert argv == [
        *("drgn", "--no-default-symbols", "-s", "/t/debug/x.debug", "-s", "/t/root/x"),
        *("s.py", "-c", "/c"),
    ]
    assert "--no-default-symbols" not in build_command(
        "drgn", "drgn", [], given(debuginfod=True), Path("/c")
    )
    assert build_command("crash", "crash", [], given(), Path("/c")) == ["crash", "/c"]


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
