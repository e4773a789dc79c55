import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashd.cli.check import doctor, doctorfacts
from crashd.domain.crash.corepattern import build_pattern
from crashd.domain.host.doctor import Check, Level, check_handler, check_own, failed
from crashd.domain.kdump.conf import parse_kdump_tools
from crashd.domain.kdump.ready import KdumpFacts as KdumpFacts
from crashd.domain.kdump.ready import Target
from crashd.edge.host import clock, kdumpfacts
from crashd.errors import UnavailableError
from crashd.store.handlerfile import install_handler
from crashd.store.index import Index
from crashd.store.paths import Paths
from tests.builders.crashes import build_crash

READY_FOR_KDUMP = KdumpFacts(
    loaded=True,
    reserved_bytes=512 << 20,
    cmdline=b"crashkernel=512M",
    ram_bytes=8 << 30,
    sysctls={"panic": 10, "panic_on_oops": 1},
    installed=("kdump-tools",),
    tools=parse_kdump_tools(b"USE_KDUMP=1\nKDUMP_NUM_DUMPS=5\n"),
    targets=(Target("/var/crash", True, 40 << 30, 80 << 30),),
    pstore="efi",
)


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


def judge(paths: Paths, proc: Path, ask: Callable[[], dict[str, Any]] = ready) -> dict[str, Check]:
    """Judge crashd's own part of the facts, by the names of the checks."""
    checks = check_own(
        doctorfacts.read_settings(proc),
        doctorfacts.read_handler(paths),
        doctorfacts.read_daemon(paths, ask),
        doctorfacts.read_store(paths, 0),
    )
    return {check.name: check for check in checks}


def test_run_checks_all_in_place_finds_no_problem(
    paths: Paths, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    monkeypatch.setattr(clock, "read_synchronized", lambda: True)
    monkeypatch.setattr(kdumpfacts, "read_facts", lambda _: READY_FOR_KDUMP)
    found = list(doctor.run_checks(paths, proc, ready))
    assert [(check.name, check.text) for check in found if check.level is not Level.OK] == []
    assert len({check.name for check in found}) == len(found) == 23
    assert all(check.why for check in found)


def test_read_settings_unreadable_is_a_problem_of_each(paths: Paths, tmp_path: Path) -> None:
    settings = doctorfacts.read_settings(tmp_path / "none")
    assert all(setting.error and setting.value is None for setting in settings.values())
    found = judge(paths, tmp_path / "none")
    for name in ("core_pattern", "core_pipe_limit", "suid_dumpable"):
        assert found[name].level is Level.PROBLEM


def test_read_handler_missing_is_told(paths: Paths) -> None:
    paths.handler.unlink()
    facts = doctorfacts.read_handler(paths)
    assert check_handler(facts) == failed(
        "handler", f"{paths.handler}: No such file or directory", "crashctl install"
    )


def test_read_handler_symlink_is_not_regular(paths: Paths, tmp_path: Path) -> None:
    paths.handler.rename(tmp_path / "elsewhere")
    paths.handler.symlink_to(tmp_path / "elsewhere")
    assert not doctorfacts.read_handler(paths).regular


def test_read_handler_tells_mode_and_version(paths: Paths) -> None:
    facts = doctorfacts.read_handler(paths)
    assert (facts.regular, facts.executable, facts.current) == (True, True, True)
    assert (facts.interpreter, facts.interpreter_runs) == ("/usr/bin/python3", True)
    paths.handler.write_bytes(paths.handler.read_bytes() + b"#\n")
    paths.handler.chmod(0o644)
    facts = doctorfacts.read_handler(paths)
    assert (facts.executable, facts.current) == (False, False)


def test_read_handler_that_others_can_write_is_distrusted(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = paths.handler.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    paths.handler.chmod(0o777)
    expected = "can be written by others" if owner == 0 else "belongs to uid"
    assert expected in (doctorfacts.read_handler(paths).distrust or "")


@pytest.mark.parametrize("first", [b"#!/nonexistent/python3 -IS\n", b"#!\n", b"\x7fELF", b""])
def test_read_handler_without_an_interpreter_is_a_problem(
    paths: Paths, proc: Path, first: bytes
) -> None:
    paths.handler.write_bytes(first + b"pass\n")
    paths.handler_fallback.unlink(missing_ok=True)
    assert judge(paths, proc)["interpreter"].level is Level.PROBLEM


def test_read_daemon_away_is_a_problem(paths: Paths, proc: Path) -> None:
    def away() -> dict[str, Any]:
        raise UnavailableError("no crashd answers")

    assert judge(paths, proc, away)["daemon"] == failed(
        "daemon", "no crashd answers", "systemctl start crashd"
    )


def test_read_daemon_configuration_wrong_is_a_problem(paths: Paths, proc: Path) -> None:
    assert judge(paths, proc)["configuration"].level is Level.OK
    paths.config_file.parent.mkdir(parents=True)
    paths.config_file.write_text("[nonsense]\n")
    paths.config_file.chmod(0o644)
    found = judge(paths, proc)["configuration"]
    assert (found.level, "nonsense" in found.text) == (Level.PROBLEM, True)


def test_read_store_missing_or_no_directory_is_told(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    assert doctorfacts.read_store(paths, 0).error == "No such file or directory"
    paths.state_dir.parent.mkdir(parents=True)
    paths.state_dir.touch()
    assert not doctorfacts.read_store(paths, 0).is_directory


def test_read_store_tells_modes_and_room(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = os.statvfs_result((4096, 4096, 1000, 200, 100, 9, 9, 7, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: answer)
    paths.state_dir.chmod(0o751)
    store = doctorfacts.read_store(paths, 0)
    assert store.mode == 0o751
    assert (store.free_bytes, store.total_bytes) == (100 * 4096, 1000 * 4096)
    assert store.free_inodes == 7


def test_read_store_counts_what_is_in_the_spool(paths: Paths) -> None:
    (paths.spool / "1795410129123456789-77-0123abcd").mkdir()
    (paths.spool / "1795410129123456789-78-0123abcd.bad").mkdir()
    store = doctorfacts.read_store(paths, 1795410130 * 10**9)
    assert (store.spool_waiting, store.spool_bad, store.spool_error) == (1, 1, None)


def test_read_store_index_damaged_or_missing_is_a_problem(paths: Paths, proc: Path) -> None:
    assert judge(paths, proc)["index"].text == "0 crashes"
    paths.index.write_bytes(b"garbage" * 1000)
    assert judge(paths, proc)["index"].hint == "crashctl reindex"
    paths.index.unlink()
    assert judge(paths, proc)["index"].level is Level.PROBLEM


def test_read_surroundings_a_crash_from_the_future_is_behind_the_clock(
    paths: Paths, proc: Path
) -> None:
    now_ns = 1_900_000_000 * 10**9
    with Index.open(paths.index) as index:
        index.put([build_crash(time_ns=now_ns + 3600 * 10**9)])
    clock = doctorfacts.read_surroundings(paths, proc, now_ns).clock
    assert (clock.newest_ns - now_ns, clock.newest) == (3600 * 10**9, "the newest crash")
