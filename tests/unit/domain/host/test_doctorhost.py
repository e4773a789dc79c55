from dataclasses import replace

import pytest

from crashd.domain.crash.corepattern import build_pattern
from crashd.domain.crash.procfs import RLIM_INFINITY
from crashd.domain.host import doctorhost
from crashd.domain.host.doctor import PATTERN, PIPE_LIMIT, SUID_DUMPABLE, WHY, Check, Level
from crashd.domain.host.doctorhost import (
    Cleaner,
    Clock,
    Features,
    Journal,
    RunningUnit,
    Surroundings,
)
from crashd.domain.host.sysctld import BootSetting
from crashd.domain.host.unittimes import UnitTimes
from crashd.domain.kdump.conf import ConfFinding, Severity
from crashd.domain.kdump.ready import Readiness

HANDLER = "/usr/libexec/crashd-core"
SYSTEMD = "|/lib/systemd/systemd-coredump %P %u %g %s %t 9223372036854775808 %h"
MODES = ("file", "pipe", "socket")
SECOND = 10**9
SOUND = RunningUnit(
    "web.service", False, 77, 3, RLIM_INFINITY, 0x33, 1 << 30, UnitTimes(watchdog_ns=SECOND)
)
AROUND = Surroundings(
    Features(MODES),
    Journal(systemd=True),
    Clock(1000 * SECOND, 999 * SECOND, "the newest crash", True),
    RLIM_INFINITY,
    services=(SOUND,),
)


def expect(found: Check, level: str, text: str, hint: str = "") -> None:
    assert found.level == level, found
    assert text in found.text
    assert hint in (found.hint or "")
    assert (found.hint is not None) == (found.level is not Level.OK)


def test_check_around_a_sound_host_is_ok() -> None:
    found = list(doctorhost.check_around(AROUND, HANDLER, "auto"))
    assert [check for check in found if check.level is not Level.OK] == []
    assert {check.name for check in found} <= set(WHY)


def test_check_around_ignored_limits_are_no_fault() -> None:
    around = replace(AROUND, shell_limit=0, services=(replace(SOUND, core_limit=0),))
    found = list(doctorhost.check_around(around, HANDLER, "auto", honours_limits=False))
    assert [check for check in found if check.level is not Level.OK] == []
    assert not any("restart" in (check.hint or "") for check in found)
    honoured = list(doctorhost.check_around(around, HANDLER, "auto"))
    assert [c.name for c in honoured if c.level is not Level.OK] == ["core limits", "ulimit -c"]


def test_check_ignored_limits_names_units_that_the_kernel_leaves_out() -> None:
    found = doctorhost.check_ignored_limits([SOUND, replace(SOUND, unit="b.service", core_limit=1)])
    expect(found, "warning", "no crash of b.service", "LimitCORE=infinity")


@pytest.mark.parametrize(
    ("features", "mode", "level", "text"),
    [
        (Features(MODES), "socket", "ok", "PAGEMAP_SCAN, core socket"),
        (Features(), "auto", "ok", "pidfd"),
        (Features(("file",)), "auto", "problem", "lack pipe"),
        (Features(("file", "pipe")), "socket", "problem", "Linux 6.17"),
        (Features(("file", "pipe")), "auto", "ok", "pidfd"),
        (Features(MODES, pidfd=False), "auto", "warning", "no pidfd"),
        (Features(MODES, pagemap_scan=False), "auto", "ok", "no PAGEMAP_SCAN"),
    ],
)
def test_check_features_tells_what_the_kernel_lacks(
    features: Features, mode: str, level: str, text: str
) -> None:
    expect(doctorhost.check_features(features, mode), level, text)


@pytest.mark.parametrize(
    ("boot", "collectors", "level", "text", "hint"),
    [
        ("", (), "ok", "none", ""),
        (build_pattern(HANDLER), (), "ok", "none", ""),
        (SYSTEMD, (), "warning", "systemd-coredump", "ln -s /dev/null /etc/sysctl.d/50-x.conf"),
        ("core", (), "warning", "'core'", "ln -s"),
        ("", ("apport",), "warning", "apport", "disable --now apport"),
        ("", ("abrt",), "warning", "abrt", "disable --now abrt-ccpp"),
    ],
)
def test_check_other_handlers_names_who_takes_crashes_away(
    boot: str, collectors: tuple[str, ...], level: str, text: str, hint: str
) -> None:
    settings = {PATTERN: BootSetting("/usr/lib/sysctl.d/50-x.conf", boot)} if boot else {}
    around = replace(AROUND, boot=settings, collectors=collectors)
    expect(doctorhost.check_other_handlers(around, HANDLER), level, text, hint)


@pytest.mark.parametrize(
    ("name", "value", "level"),
    [
        (PIPE_LIMIT, "0", "warning"),
        (PIPE_LIMIT, "16", "ok"),
        (SUID_DUMPABLE, "0", "warning"),
        (SUID_DUMPABLE, "1", "warning"),
        (SUID_DUMPABLE, "2", "ok"),
    ],
)
def test_check_boot_settings_against_ours_are_a_warning(name: str, value: str, level: str) -> None:
    boot = {name: BootSetting("/etc/sysctl.d/a b.conf", value)}
    found = doctorhost.check_boot_settings(boot)
    expect(found, level, "/etc/sysctl.d/a b.conf" if level == "warning" else "none")


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        ("/usr/lib/tmpfiles.d/crash.conf", "ln -s /dev/null /etc/tmpfiles.d/crash.conf"),
        ("/etc/cron.daily/apport", "chmod -x /etc/cron.daily/apport"),
    ],
)
def test_check_cleaners_are_a_warning(file: str, hint: str) -> None:
    found = doctorhost.check_cleaners([Cleaner(file, "/var/crash", "7d")])
    expect(found, "warning", "deletes /var/crash after 7d", hint)


@pytest.mark.parametrize(
    ("changes", "level", "text", "hint"),
    [
        ({"core_limit": 0}, "warning", "1 of 1 units leave no core: web.service", "LimitCORE"),
        ({"core_limit": 1}, "warning", "leave no core", "systemctl restart web.service"),
        ({"core_limit": 1 << 20}, "warning", "1.0G of 1.0M", "LimitCORE=infinity"),
        ({"core_limit": 0, "unit": "session-2.scope"}, "warning", "session-2", "limits.d"),
        ({"core_limit": 0, "in_container": True}, "warning", "leave", "--ulimit core=-1"),
        ({"core_limit": 0, "unit": "crashd.service"}, "ok", "0 units", ""),
        ({"core_limit": None}, "ok", "0 units", ""),
        ({"core_limit": 2 << 30}, "ok", "1 units", ""),
    ],
)
def test_check_core_limits_names_units_without_cores(
    changes: dict[str, object], level: str, text: str, hint: str
) -> None:
    service = replace(SOUND, **changes)  # type: ignore[arg-type]
    expect(doctorhost.check_core_limits([service]), level, text, hint)


def test_check_core_limits_of_many_units_names_the_first() -> None:
    services = [replace(SOUND, unit=f"u{n}.service", core_limit=0) for n in range(300)]
    found = doctorhost.check_core_limits(services)
    expect(found, "warning", "300 of 300 units leave no core: u0.service, u1.service")
    assert found.text.endswith("u4.service and 295 more")


def test_check_core_limits_quotes_units_for_the_shell() -> None:
    service = replace(SOUND, unit=r"disk@a\x2db.service", core_limit=0)
    hint = doctorhost.check_core_limits([service]).hint or ""
    assert r"'/etc/systemd/system/disk@a\x2db.service.d'/crashd.conf" in hint
    assert hint.endswith(r"systemctl restart 'disk@a\x2db.service'")


def test_check_core_limits_tells_what_was_not_looked_at() -> None:
    assert "7 processes were not examined" in doctorhost.check_core_limits([SOUND], 7).text


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        ({"core_filter": 0x33}, "ok", "1 units"),
        ({"core_filter": 0x11}, "ok", "1 units"),
        ({"core_filter": 0x32}, "warning", "stacks and heap"),
        ({"core_filter": 0x0}, "warning", "stacks and heap"),
        ({"core_filter": 0x23}, "warning", "build-ids"),
        ({"core_filter": 0, "unit": "crashd.service"}, "ok", "0 units"),
        ({"core_filter": None}, "ok", "0 units"),
    ],
)
def test_check_core_filters_tells_what_is_left_out(
    changes: dict[str, object], level: str, text: str
) -> None:
    service = replace(SOUND, **changes)  # type: ignore[arg-type]
    hint = "echo 0x33 > /proc/77/coredump_filter" if level == "warning" else ""
    expect(doctorhost.check_core_filters([service]), level, text, hint)


@pytest.mark.parametrize(
    ("times", "size_gib", "level", "text", "hint"),
    [
        (UnitTimes(), 8, "ok", "1 services", ""),
        (UnitTimes(), 16, "warning", "TimeoutStopSec=1min 30s for 16G", "TimeoutStopSec=328"),
        (UnitTimes(stop_ns=5 * SECOND), 1, "warning", "TimeoutStopSec=5s", "TimeoutStopSec=90"),
        (
            UnitTimes(abort_ns=5 * SECOND, watchdog_ns=SECOND),
            1,
            "warning",
            "TimeoutAbortSec=5s for 1.0G",
            "TimeoutAbortSec=90",
        ),
        (UnitTimes(abort_ns=5 * SECOND), 1, "ok", "", ""),  # no watchdog, no SIGABRT
        (UnitTimes(abort_ns=600 * SECOND, stop_ns=1, watchdog_ns=1), 1, "warning", "Stop", "Stop"),
        (None, 500, "ok", "0 services", ""),
    ],
)
def test_check_timeouts_compares_them_with_the_size(
    times: UnitTimes | None, size_gib: int, level: str, text: str, hint: str
) -> None:
    service = replace(SOUND, times=times, size_bytes=size_gib << 30)
    expect(doctorhost.check_timeouts([service]), level, text, hint)


@pytest.mark.parametrize(
    ("soft", "level", "text"),
    [
        (RLIM_INFINITY, "ok", "unlimited"),
        (0, "warning", "no core"),
        (1 << 20, "warning", "1.0M"),
    ],
)
def test_check_shell_limit_tells_what_is_cut(soft: int, level: str, text: str) -> None:
    expect(doctorhost.check_shell_limit(soft), level, text)


@pytest.mark.parametrize(
    ("journal", "level", "text"),
    [
        (Journal(systemd=False), "ok", "no systemd"),
        (Journal(systemd=True), "ok", "persistent"),
        (Journal(systemd=True, socket=False), "problem", "does not listen"),
        (Journal(systemd=True, persistent=False), "warning", "volatile"),
    ],
)
def test_check_journal_should_outlive_a_boot(journal: Journal, level: str, text: str) -> None:
    expect(doctorhost.check_journal(journal), level, text)


@pytest.mark.parametrize(
    ("ahead_s", "synchronized", "level", "text"),
    [
        (0, True, "ok", "synchronised"),
        (0, None, "ok", "plausible"),
        (59, True, "ok", ""),
        (3600, True, "problem", "1h behind the newest crash"),
        (0, False, "warning", "not synchronised"),
    ],
)
def test_check_clock_behind_a_crash_is_a_problem(
    ahead_s: int, synchronized: bool | None, level: str, text: str
) -> None:
    clock = Clock(SECOND, (1 + ahead_s) * SECOND, "the newest crash", synchronized)
    expect(doctorhost.check_clock(clock), level, text)


def test_check_kernel_dumps_points_to_its_own_command() -> None:
    notice = ConfFinding("a", Severity.NOTICE, "a trifle")
    fault = ConfFinding("b", Severity.FAULT, "nothing is reserved")
    warning = ConfFinding("c", Severity.WARNING, "little space")
    ready = Readiness(True, (notice,), 1, 1)
    expect(doctorhost.check_kernel_dumps(ready), "ok", "kdump is ready")
    bad = Readiness(False, (fault, warning, notice), 0, 1)
    found = doctorhost.check_kernel_dumps(bad)
    expect(found, "warning", "nothing is reserved (and 1 more)", "crashctl kdump")


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        # Debian's link: to mask it would undo the whole of sysctl.conf
        (
            BootSetting("/etc/sysctl.d/99-sysctl.conf", "core", 12, "/etc/sysctl.conf"),
            "sed -i '12s/^/#/' /etc/sysctl.conf; crashctl install",
        ),
        (
            BootSetting("/etc/sysctl.d/local.conf", "core", 3),
            "sed -i '3s/^/#/' /etc/sysctl.d/local.conf; crashctl install",
        ),
        (
            BootSetting("/usr/lib/sysctl.d/50-x.conf", "core", 3),
            "ln -s /dev/null /etc/sysctl.d/50-x.conf; crashctl install",
        ),
    ],
)
def test_line_that_gives_crashes_away_is_named_where_the_file_has_more(
    setting: BootSetting, hint: str
) -> None:
    check = doctorhost.check_other_handlers(replace(AROUND, boot={PATTERN: setting}), HANDLER)
    assert check.hint == hint
    assert (f":{setting.line} gives" in check.text) is hint.startswith("sed")


def test_check_analysis_without_drgn_says_where_it_comes_from() -> None:
    assert doctorhost.check_analysis([]).level is Level.OK
    found = doctorhost.check_analysis(["drgn"])
    assert (found.level, found.text) == (
        Level.WARNING,
        "not installed: drgn: crashes are kept, but not explained",
    )
    assert found.hint and "python3-drgn" in found.hint
    assert doctorhost.check_analysis(["capstone"]).hint is None
