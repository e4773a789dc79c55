from pathlib import Path

import pytest

from crashd.domain.crash.procfs import RLIM_INFINITY
from crashd.domain.host.doctorhost import Cleaner, Journal
from crashd.domain.host.sysctld import BootSetting
from crashd.domain.host.unittimes import UnitTimes
from crashd.edge.host import hostfacts

KEY = "kernel.core_pattern"
S = 10**9


def put(root: Path, file: str, text: str) -> Path:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_read_boot_settings_the_last_name_wins(tmp_path: Path) -> None:
    assert hostfacts.read_boot_settings(tmp_path, [KEY]) == {}
    winner = put(tmp_path, "usr/lib/sysctl.d/50-coredump.conf", f"{KEY}=|/x")
    put(tmp_path, "etc/sysctl.d/40-x.conf", "# x\n-kernel/core_pattern = core\n")
    found = hostfacts.read_boot_settings(tmp_path, [KEY, "fs.suid_dumpable"])
    assert found == {KEY: BootSetting(str(winner), "|/x")}


def test_read_boot_settings_a_link_to_null_hides_its_namesake(tmp_path: Path) -> None:
    put(tmp_path, "usr/lib/sysctl.d/50-coredump.conf", f"{KEY}=|/x")
    (tmp_path / "etc/sysctl.d").mkdir(parents=True)
    (tmp_path / "etc/sysctl.d/50-coredump.conf").symlink_to("/dev/null")
    assert hostfacts.read_boot_settings(tmp_path, [KEY]) == {}


@pytest.mark.parametrize(
    ("default", "found"), [("enabled=1\n", ("apport",)), ("enabled=0\n", ()), (None, ("apport",))]
)
def test_read_collectors_finds_apport_unless_turned_off(
    tmp_path: Path, default: str | None, found: tuple[str, ...]
) -> None:
    assert hostfacts.read_collectors(tmp_path) == ()
    put(tmp_path, "usr/share/apport/apport", "")
    if default:
        put(tmp_path, "etc/default/apport", default)
    assert hostfacts.read_collectors(tmp_path) == found


def test_read_collectors_finds_abrt_that_is_enabled(tmp_path: Path) -> None:
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "abrt-ccpp.service").symlink_to("/nonexistent/abrt-ccpp.service")
    assert hostfacts.read_collectors(tmp_path) == ("abrt",)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("d /var/crash 0755 root root 7d", True),
        ("d /var/crash 0755 root root -", False),
        ("d /var/crash", False),
        ("e /var/lib/crashd/crashes - - - 30d", True),
        ("e /var/lib/crashd/crashes/* - - - 30d", True),
        ("D /var 0755 root root 1d", True),
        ("d /var/tmp 1777 root root 30d", False),
        ("# d /var/crash 0755 root root 7d", False),
        ("d /var/crashes-other 0755 root root 7d", False),
    ],
)
def test_read_cleaners_finds_ages_on_what_is_kept(tmp_path: Path, line: str, found: bool) -> None:
    file = put(tmp_path, "usr/lib/tmpfiles.d/x.conf", f"d /tmp 1777 root root 10d\n{line}\n")
    watched = [tmp_path / "var/lib/crashd", tmp_path / "var/crash"]
    cleaners = hostfacts.read_cleaners(tmp_path, watched)
    assert [cleaner.file for cleaner in cleaners] == ([str(file)] if found else [])


def test_read_cleaners_finds_the_daily_job_of_apport(tmp_path: Path) -> None:
    job = put(tmp_path, "etc/cron.daily/apport", "#!/bin/sh\n")
    job.chmod(0o644)
    assert hostfacts.read_cleaners(tmp_path, []) == ()
    job.chmod(0o755)
    assert hostfacts.read_cleaners(tmp_path, []) == (Cleaner(str(job), "/var/crash/*", "7d"),)


def test_read_unit_times_takes_the_fragment_that_wins_and_drop_ins(tmp_path: Path) -> None:
    put(tmp_path, "usr/lib/systemd/system/a@.service", "[Service]\nTimeoutStopSec=1\n")
    put(tmp_path, "etc/systemd/system/a@.service", "[Service]\nTimeoutStopSec=2\nWatchdogSec=3\n")
    assert hostfacts.read_unit_times(tmp_path, "a@b.service", UnitTimes()) == UnitTimes(
        stop_ns=2 * S, watchdog_ns=3 * S
    )
    put(tmp_path, "usr/lib/systemd/system/a@.service.d/9.conf", "[Service]\nTimeoutStopSec=9\n")
    put(tmp_path, "run/systemd/system/service.d/5.conf", "[Service]\nTimeoutAbortSec=5\n")
    put(tmp_path, "usr/lib/systemd/system/a@b.service.d/5.conf", "[Service]\nTimeoutAbortSec=6\n")
    assert hostfacts.read_unit_times(tmp_path, "a@b.service", UnitTimes()) == UnitTimes(
        9 * S, 6 * S, 3 * S
    )


def test_read_manager_defaults_reads_drop_ins(tmp_path: Path) -> None:
    assert hostfacts.read_manager_defaults(tmp_path) == UnitTimes()
    put(tmp_path, "etc/systemd/system.conf", "[Manager]\nDefaultTimeoutStopSec=30\n")
    put(tmp_path, "usr/lib/systemd/system.conf.d/a.conf", "[Manager]\nDefaultTimeoutStopSec=40\n")
    assert hostfacts.read_manager_defaults(tmp_path) == UnitTimes(stop_ns=40 * S)


def put_process(proc: Path, pid: int, unit: str, core: str, bits: str, pages: int) -> None:
    put(proc, f"{pid}/cgroup", f"0::/system.slice/{unit}\n")
    put(proc, f"{pid}/limits", f"Max core file size        {core}      unlimited   bytes\n")
    put(proc, f"{pid}/coredump_filter", f"{bits}\n")
    put(proc, f"{pid}/statm", f"{pages * 2} {pages} 0 0 0 0 0\n")


def test_read_services_groups_processes_by_unit(tmp_path: Path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "root"
    put(root, "etc/systemd/system/web.service", "[Service]\nTimeoutStopSec=7\n")
    put_process(proc, 10, "web.service", "0", "00000033", 5)
    put_process(proc, 11, "web.service", "unlimited", "00000010", 50)
    put_process(proc, 12, "docker-" + "a" * 64 + ".scope", "0", "00000033", 1)
    put_process(proc, 13, "kernel.service", "0", "00000033", 0)  # without memory
    put(proc, "14/cgroup", "garbage\xff\n")
    put(proc, "self", "")
    services, left = hostfacts.read_services(root, proc)
    docker, web = services
    assert (docker.unit, docker.in_container, docker.times) == ("docker aaaaaaaaaaaa", True, None)
    assert (web.unit, web.count, web.pid) == ("web.service", 2, 11)
    assert (web.core_limit, web.core_filter) == (RLIM_INFINITY, 0x33)
    assert web.times == UnitTimes(stop_ns=7 * S)
    assert left == 0


def test_read_services_of_too_many_processes_counts_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostfacts, "PROCESSES_MAX", 2)
    for pid in range(5):
        put_process(tmp_path, 100 + pid, f"u{pid}.service", "0", "00000033", 5)
    services, left = hostfacts.read_services(tmp_path / "root", tmp_path)
    assert ([service.unit for service in services], left) == (["u0.service", "u1.service"], 3)


def test_read_journal_looks_for_socket_and_directory(tmp_path: Path) -> None:
    assert hostfacts.read_journal(tmp_path) == Journal(False, False, False)
    for directory in ("run/systemd/system", "run/systemd/journal/socket", "var/log/journal"):
        (tmp_path / directory).mkdir(parents=True)
    assert hostfacts.read_journal(tmp_path) == Journal(True, True, True)


def test_read_features_tells_the_modes_of_the_kernel(tmp_path: Path) -> None:
    put(tmp_path, "sys/kernel/core_modes", "file\npipe\nsocket\n")
    features = hostfacts.read_features(tmp_path)
    assert features.core_modes == ("file", "pipe", "socket")
    assert features.pidfd


def test_boot_setting_behind_a_link_names_its_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "etc/sysctl.d").mkdir(parents=True)
    (tmp_path / "etc/sysctl.conf").write_text(f"# mine\nvm.swappiness=1\n{KEY} = core\n")
    (tmp_path / "etc/sysctl.d/99-sysctl.conf").symlink_to("../sysctl.conf")
    setting = hostfacts.read_boot_settings(tmp_path, [KEY])[KEY]
    assert (setting.line, setting.target) == (3, str(tmp_path / "etc/sysctl.conf"))
