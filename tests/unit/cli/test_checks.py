import os
import resource
from pathlib import Path
from typing import Any

import pytest

from crashd.cli import checks
from crashd.cli.checks import Level
from crashd.domain.corepattern import build_pattern
from crashd.errors import UnavailableError
from crashd.store.handlerfile import install_handler
from crashd.store.index import Index
from crashd.store.paths import Paths

SYSTEMD = "|/lib/systemd/systemd-coredump %P %u %g %s %t 9223372036854775808 %h"
APPORT = "|/usr/share/apport/apport -p%p -s%s -c%c -d%d -P%P -u%u -g%g -- %E"


@pytest.fixture
def paths(short_tmp: Path) -> Paths:
    """A root with a handler and a store."""
    paths = Paths(short_tmp / "root")
    for directory in (paths.crashes, paths.spool):
        directory.mkdir(mode=0o700, parents=True)
    for directory in (paths.state_dir, paths.handler.parent):
        directory.mkdir(exist_ok=True, parents=True)
    paths.state_dir.chmod(0o700)
    paths.handler.parent.chmod(0o755)
    install_handler(paths)
    Index.open(paths.index).close()
    return paths


@pytest.fixture
def proc(tmp_path: Path, paths: Paths) -> Path:
    """A /proc with crashd registered."""
    proc = tmp_path / "proc"
    set_sysctl(proc, "kernel/core_pattern", build_pattern(str(paths.handler)))
    set_sysctl(proc, "kernel/core_pipe_limit", "64")
    set_sysctl(proc, "fs/suid_dumpable", "2")
    return proc


def set_sysctl(proc: Path, name: str, value: str) -> None:
    file = proc / "sys" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value + "\n")


def ready() -> dict[str, Any]:
    return {"ready": True, "version": "1", "pid": 5}


def test_run_checks_all_in_place_finds_no_problem(
    paths: Paths, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    found = list(checks.run_checks(paths, proc, ready))
    assert [(check.name, check.text) for check in found if check.level is not Level.OK] == []
    assert len({check.name for check in found}) == len(found) >= 14


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (SYSTEMD, "crashes go to /lib/systemd/systemd-coredump"),
        (APPORT, "crashes go to /usr/share/apport/apport"),
        ("core", "'core' is not crashd's"),
    ],
)
def test_check_core_pattern_of_others_is_a_problem(
    paths: Paths, proc: Path, pattern: str, text: str
) -> None:
    set_sysctl(proc, "kernel/core_pattern", pattern)
    check = checks.check_core_pattern(paths, proc)
    assert (check.level, check.text) == (Level.PROBLEM, text)
    assert check.hint


def test_check_core_pattern_unreadable_is_a_problem(paths: Paths, tmp_path: Path) -> None:
    assert checks.check_core_pattern(paths, tmp_path / "none").level is Level.PROBLEM


def test_check_handler_in_place_is_ok(paths: Paths) -> None:
    assert checks.check_handler(paths).level is Level.OK


def test_check_handler_missing_is_a_problem(paths: Paths) -> None:
    paths.handler.unlink()
    check = checks.check_handler(paths)
    assert (check.level, check.hint) == (Level.PROBLEM, "crashctl install")


def test_check_handler_symlink_is_a_problem(paths: Paths, tmp_path: Path) -> None:
    paths.handler.rename(tmp_path / "elsewhere")
    paths.handler.symlink_to(tmp_path / "elsewhere")
    assert checks.check_handler(paths).level is Level.PROBLEM


def test_check_handler_not_executable_is_a_problem(paths: Paths) -> None:
    paths.handler.chmod(0o644)
    assert "not executable" in checks.check_handler(paths).text


def test_check_handler_of_another_version_is_a_warning(paths: Paths) -> None:
    paths.handler.write_bytes(paths.handler.read_bytes() + b"#\n")
    check = checks.check_handler(paths)
    assert (check.level, "another version" in check.text) == (Level.WARNING, True)


def test_check_handler_that_others_can_write_is_a_problem(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = paths.handler.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    paths.handler.chmod(0o777)
    check = checks.check_handler(paths)
    expected = "can be written by others" if owner == 0 else "belongs to uid"
    assert (check.level, expected in check.text) == (Level.PROBLEM, True)


@pytest.mark.parametrize("first", [b"#!/nonexistent/python3 -IS\n", b"#!\n", b"\x7fELF", b""])
def test_check_interpreter_missing_is_a_problem(paths: Paths, first: bytes) -> None:
    paths.handler.write_bytes(first + b"pass\n")
    assert checks.check_interpreter(paths).level is Level.PROBLEM


@pytest.mark.parametrize(("value", "level"), [("0", "problem"), ("16", "ok"), ("x", "problem")])
def test_check_pipe_limit_needs_to_be_above_zero(proc: Path, value: str, level: str) -> None:
    set_sysctl(proc, "kernel/core_pipe_limit", value)
    assert checks.check_pipe_limit(proc).level == level


@pytest.mark.parametrize(("value", "level"), [("0", "warning"), ("1", "problem"), ("2", "ok")])
def test_check_suid_dumpable_is_safe_as_two_only(proc: Path, value: str, level: str) -> None:
    set_sysctl(proc, "fs/suid_dumpable", value)
    assert checks.check_suid_dumpable(proc).level == level


@pytest.mark.parametrize(
    ("modes", "level"), [("file\npipe\nsocket", "ok"), ("file", "problem"), (None, "ok")]
)
def test_check_core_modes_needs_the_pipe(proc: Path, modes: str | None, level: str) -> None:
    if modes:
        set_sysctl(proc, "kernel/core_modes", modes)
    assert checks.check_core_modes(proc).level == level


def test_check_daemon_away_is_a_problem() -> None:
    def away() -> dict[str, Any]:
        raise UnavailableError("no crashd answers")

    assert checks.check_daemon(away).level is Level.PROBLEM
    assert checks.check_daemon(lambda: {"ready": False}).level is Level.PROBLEM
    assert checks.check_daemon(ready).level is Level.OK


def test_check_configuration_wrong_is_a_problem(paths: Paths) -> None:
    assert checks.check_configuration(paths).level is Level.OK
    paths.config_file.parent.mkdir(parents=True)
    paths.config_file.write_text("[nonsense]\n")
    paths.config_file.chmod(0o644)
    check = checks.check_configuration(paths)
    assert check.level is Level.PROBLEM
    assert "nonsense" in check.text


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701])
def test_check_state_dir_open_to_others_is_a_problem(paths: Paths, mode: int) -> None:
    paths.state_dir.chmod(mode)
    check = checks.check_state_dir(paths)
    assert (check.level, f"{mode:04o}" in check.text) == (Level.PROBLEM, True)


def test_check_state_dir_missing_or_no_directory_is_a_problem(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    assert checks.check_state_dir(paths).level is Level.PROBLEM
    paths.state_dir.parent.mkdir(parents=True)
    paths.state_dir.touch()
    assert checks.check_state_dir(paths).level is Level.PROBLEM


@pytest.mark.parametrize(
    ("available", "inodes", "level"),
    [(50 << 8, 9, "ok"), (3 << 8, 9, "warning"), (10, 9, "problem"), (50 << 8, 0, "problem")],
)
def test_check_free_space_tells_when_it_gets_low(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, available: int, inodes: int, level: str
) -> None:
    # 100 GiB in blocks of 4 MiB
    answer = os.statvfs_result(
        (4 << 20, 4 << 20, 100 << 8, available, available, 9, 9, inodes, 0, 255)
    )
    monkeypatch.setattr(os, "statvfs", lambda _: answer)
    assert checks.check_free_space(paths).level == level


def test_check_spool_with_crashes_is_a_warning(paths: Paths) -> None:
    assert checks.check_spool(paths, 0).level is Level.OK
    (paths.spool / "1795410129123456789-77-0123abcd").mkdir()
    check = checks.check_spool(paths, 1795410130 * 10**9)
    assert (check.level, check.text) == (Level.WARNING, "1 crashes wait to be taken in")


def test_check_spool_with_what_was_not_understood_is_a_warning(paths: Paths) -> None:
    (paths.spool / "1795410129123456789-77-0123abcd.bad").mkdir()
    assert "could not be understood" in checks.check_spool(paths, 0).text


def test_check_index_damaged_or_missing_is_a_problem(paths: Paths) -> None:
    assert checks.check_index(paths).text == "0 crashes"
    paths.index.write_bytes(b"garbage" * 1000)
    assert checks.check_index(paths).hint == "crashctl reindex"
    paths.index.unlink()
    assert checks.check_index(paths).level is Level.PROBLEM


def put_setting(root: Path, file: str, text: str) -> None:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_find_boot_setting_the_last_name_wins(tmp_path: Path) -> None:
    assert checks.find_boot_setting(tmp_path) is None
    put_setting(tmp_path, "usr/lib/sysctl.d/50-coredump.conf", f"kernel.core_pattern={SYSTEMD}")
    put_setting(tmp_path, "etc/sysctl.d/40-x.conf", "# x\n-kernel/core_pattern = core\n")
    found = checks.find_boot_setting(tmp_path)
    assert found == (tmp_path / "usr/lib/sysctl.d/50-coredump.conf", SYSTEMD)


def test_find_boot_setting_a_link_to_null_hides_its_namesake(tmp_path: Path) -> None:
    put_setting(tmp_path, "usr/lib/sysctl.d/50-coredump.conf", f"kernel.core_pattern={SYSTEMD}")
    (tmp_path / "etc/sysctl.d").mkdir(parents=True)
    (tmp_path / "etc/sysctl.d/50-coredump.conf").symlink_to("/dev/null")
    assert checks.find_boot_setting(tmp_path) is None


def test_check_boot_settings_of_others_are_a_warning(paths: Paths) -> None:
    file = "usr/lib/sysctl.d/50-coredump.conf"
    put_setting(paths.root, file, f"kernel.core_pattern={SYSTEMD}\n")
    check = checks.check_boot_settings(paths)
    assert check.level is Level.WARNING
    assert "systemd-coredump" in check.text
    pattern = build_pattern(str(paths.handler))
    put_setting(paths.root, "etc/sysctl.d/60-crashd.conf", f"kernel.core_pattern={pattern}\n")
    assert checks.check_boot_settings(paths).level is Level.OK


@pytest.mark.parametrize(
    ("default", "level"), [("enabled=1\n", "warning"), ("enabled=0\n", "ok"), (None, "warning")]
)
def test_check_boot_settings_apport_enabled_is_a_warning(
    paths: Paths, default: str | None, level: str
) -> None:
    put_setting(paths.root, "usr/share/apport/apport", "")
    if default:
        put_setting(paths.root, "etc/default/apport", default)
    assert checks.check_boot_settings(paths).level == level


@pytest.mark.parametrize(
    ("soft", "level", "text"),
    [
        (resource.RLIM_INFINITY, "ok", "unlimited"),
        (0, "warning", "no core"),
        (1 << 20, "warning", "1.0M"),
    ],
)
def test_check_core_limit_tells_what_is_cut(soft: int, level: str, text: str) -> None:
    check = checks.check_core_limit((soft, resource.RLIM_INFINITY))
    assert (check.level, text in check.text) == (level, True)
