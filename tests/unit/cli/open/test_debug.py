import os
from pathlib import Path

import pytest

from crashd.cli.open import scratch
from crashd.cli.open.debug import (
    Given,
    build_command,
    choose_debugger,
    find_caller,
    find_debugger,
)
from crashd.cli.open.debugroot import DebugRoot
from crashd.cli.open.scratch import nameless_file, private_directory, write_core
from crashd.cli.open.session import User, build_environ
from crashd.errors import CrashdError, UnsupportedError


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
    assert build_command("my-debugger", "/o/my-debugger", ["-q"], given(), Path("/c")) == [
        *("/o/my-debugger", "-q", "/t/root/x", "-c", "/c"),
    ]
    assert build_command("crash", "crash", [], given(), Path("/c")) == ["crash", "/c"]


def test_build_command_lldb_reads_no_files_of_the_core_s_choice() -> None:
    argv = build_command("/usr/bin/lldb-14", "/usr/bin/lldb-14", ["-b"], given(), Path("/c"))
    assert argv[:2] == ["/usr/bin/lldb-14", "--no-lldbinit"]
    assert "settings set target.load-script-from-symbol-file false" in argv
    assert "settings set symbols.enable-external-lookup false" in argv
    assert argv[-4:] == ["-b", "--core", "/c", "/t/root/x"]


@pytest.mark.parametrize(
    ("asked", "kind", "environ", "name"),
    [
        (None, "process", {}, "gdb"),
        (None, "process", {"SYSTEMD_DEBUGGER": "lldb"}, "lldb"),
        (None, "kernel", {"SYSTEMD_DEBUGGER": "lldb"}, "crash"),
        ("/opt/x", "process", {"SYSTEMD_DEBUGGER": "lldb"}, "/opt/x"),
    ],
)
def test_choose_debugger(asked: str | None, kind: str, environ: dict[str, str], name: str) -> None:
    assert choose_debugger(asked, kind, environ) == name


def test_find_caller_of_sudo_is_the_user() -> None:
    assert find_caller({"SUDO_UID": "1000", "SUDO_GID": "100"}) == User(1000, 100)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SUDO_UID": "1000"},
        {"SUDO_UID": "0", "SUDO_GID": "0"},
        {"SUDO_UID": "-1", "SUDO_GID": "x"},
        {"SUDO_UID": "\u0663", "SUDO_GID": "\u0663"},
        {"SUDO_UID": "4294967295", "SUDO_GID": "5"},  # to setresuid(2): no change
        {"SUDO_UID": "5", "SUDO_GID": "4294967295"},
        {"SUDO_UID": "9" * 30, "SUDO_GID": "5"},
    ],
)
def test_find_caller_of_root_itself_is_none(environ: dict[str, str]) -> None:
    assert find_caller(environ) is None


def test_build_environ_hands_no_secret_and_no_path_on() -> None:
    environ = {
        "TERM": "xterm",
        "LC_ALL": "C",
        "PATH": "/root/bin",
        "AWS_SECRET": "x",
        "HOME": "/root",
    }
    environ |= {
        "LD_LIBRARY_PATH": "/root",
        "PYTHONPATH": "/root",
        "TMPDIR": "/root",
        "SHELL": "/bin/x",
    }
    built = build_environ(environ, "u", "/home/u")
    assert built.pop("PATH").startswith("/usr/local/sbin:")
    assert built == {
        "TERM": "xterm",
        "LC_ALL": "C",
        "USER": "u",
        "LOGNAME": "u",
        "HOME": "/home/u",
    }


def test_find_debugger_missing_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UnsupportedError, match="drgn is not installed") as caught:
        find_debugger("drgn")
    assert caught.value.hint == "apt-get install python3-drgn"


def test_private_directory_is_ours_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with private_directory() as directory:
        assert directory.parent == tmp_path
        assert directory.stat().st_mode & 0o777 == 0o700
        (directory / "core").touch()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0, 0o777])
def test_nameless_file_leaves_nothing_and_is_ours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = os.umask(umask)
    try:
        with nameless_file() as fd:
            assert list(tmp_path.iterdir()) == []
            status = os.fstat(fd)
            assert (status.st_nlink, status.st_mode & 0o777) == (0, 0o600)
    finally:
        os.umask(before)


def test_write_core_leaves_room_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(scratch, "KEEP_FREE_MAX", 1 << 62)
    real = os.fstatvfs

    def nearly_full(fd: int) -> os.statvfs_result:
        found = list(real(fd))
        # a twentieth of the blocks and one more
        found[4] = found[2] // 20 + 1
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "fstatvfs", nearly_full)
    with nameless_file() as fd:
        write_core(fd, [b"x"])
        with pytest.raises(CrashdError, match="has no room") as caught:
            write_core(fd, [bytes(os.fstatvfs(fd).f_frsize * 2)])
    assert caught.value.hint == "set TMPDIR to a directory with enough room"
