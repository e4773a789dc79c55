from dataclasses import replace

import pytest

from crashd.domain.crash.corepattern import build_pattern
from crashd.domain.host import doctor
from crashd.domain.host.doctor import (
    WHY,
    Check,
    DaemonFacts,
    HandlerFacts,
    Level,
    Setting,
    StoreFacts,
    check_own,
)

HANDLER = "/usr/libexec/crashd-core"
SYSTEMD = "|/lib/systemd/systemd-coredump %P %u %g %s %t 9223372036854775808 %h"
APPORT = "|/usr/share/apport/apport -p%p -s%s -c%c -d%d -P%P -u%u -g%g -- %E"
SETTINGS = {
    doctor.PATTERN: Setting(build_pattern(HANDLER)),
    doctor.PIPE_LIMIT: Setting("64"),
    doctor.SUID_DUMPABLE: Setting("2"),
}
SOUND_HANDLER = HandlerFacts(HANDLER)
SOUND_DAEMON = DaemonFacts({"ready": True, "version": "1", "pid": 5})
SOUND_STORE = StoreFacts(
    "/var/lib/crashd", free_bytes=50 << 30, total_bytes=100 << 30, free_inodes=10**6
)


def test_check_own_all_in_place_is_ok() -> None:
    found = list(check_own(SETTINGS, SOUND_HANDLER, SOUND_DAEMON, SOUND_STORE))
    assert [check for check in found if check.level is not Level.OK] == []
    assert found[0].name == "core_pattern"
    assert {check.name for check in found} <= set(WHY)


def test_to_json_has_all_that_is_told() -> None:
    assert Check("spool", Level.WARNING, "text", "hint").to_json() == {
        "name": "spool",
        "level": "warning",
        "text": "text",
        "why": WHY["spool"],
        "hint": "hint",
    }


def expect(found: Check, level: str, text: str, hint: str = "") -> None:
    assert found.level == level, found
    assert text in found.text
    assert hint in (found.hint or "")
    assert (found.hint is not None) == (found.level is not Level.OK)


def test_checks_in_a_container_send_to_the_host() -> None:
    for check in (
        doctor.check_core_pattern(Setting("core", is_fixed=True), HANDLER),
        doctor.check_pipe_limit(Setting("0", is_fixed=True)),
        doctor.check_suid_dumpable(Setting("0", is_fixed=True)),
    ):
        assert (check.hint or "").endswith("on the host: this container cannot")


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (Setting(SYSTEMD), "crashes go to /lib/systemd/systemd-coredump"),
        (Setting(APPORT), "crashes go to /usr/share/apport/apport"),
        (Setting("core"), "'core' is not crashd's"),
        (Setting(error="cannot read it"), "cannot read it"),
    ],
)
def test_check_core_pattern_of_others_is_a_problem(setting: Setting, text: str) -> None:
    expect(doctor.check_core_pattern(setting, HANDLER), "problem", text)


@pytest.mark.parametrize(
    ("facts", "level", "text", "hint"),
    [
        (HandlerFacts(HANDLER, error="gone"), "problem", "gone", "crashctl install"),
        (HandlerFacts(HANDLER, regular=False), "problem", "not a regular file", "rm "),
        (HandlerFacts(HANDLER, distrust="x can be written"), "problem", "x can", "chmod go-w"),
        (HandlerFacts(HANDLER, noexec="/usr"), "problem", "noexec", "mount -o remount,exec /usr"),
        (HandlerFacts(HANDLER, executable=False), "problem", "not executable", "install"),
        (HandlerFacts(HANDLER, current=False), "warning", "another version", "restart"),
        (SOUND_HANDLER, "ok", HANDLER, ""),
    ],
)
def test_check_handler_has_to_be_there_and_safe(
    facts: HandlerFacts, level: str, text: str, hint: str
) -> None:
    expect(doctor.check_handler(facts), level, text, hint)


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (HandlerFacts(HANDLER, error="gone"), "no handler"),
        (HandlerFacts(HANDLER, interpreter=None), "names no interpreter"),
        (HandlerFacts(HANDLER, interpreter_runs=False), "/usr/bin/python3 does not exist"),
    ],
)
def test_check_interpreter_missing_is_a_problem(facts: HandlerFacts, text: str) -> None:
    expect(doctor.check_interpreter(facts), "problem", text)


@pytest.mark.parametrize(
    ("value", "level"), [("0", "problem"), ("16", "ok"), ("x", "problem"), ("-1", "problem")]
)
def test_check_pipe_limit_needs_to_be_above_zero(value: str, level: str) -> None:
    expect(doctor.check_pipe_limit(Setting(value)), level, "")


@pytest.mark.parametrize(
    ("value", "level"), [("0", "warning"), ("1", "problem"), ("2", "ok"), ("", "problem")]
)
def test_check_suid_dumpable_is_safe_as_two_only(value: str, level: str) -> None:
    expect(doctor.check_suid_dumpable(Setting(value)), level, "")


@pytest.mark.parametrize(
    ("facts", "level", "text"),
    [
        (DaemonFacts(error="no crashd answers"), "problem", "no crashd answers"),
        (DaemonFacts({"ready": False}), "problem", "not ready"),
        (SOUND_DAEMON, "ok", "crashd 1, pid 5"),
    ],
)
def test_check_daemon_has_to_be_ready(facts: DaemonFacts, level: str, text: str) -> None:
    expect(doctor.check_daemon(facts), level, text)


@pytest.mark.parametrize(
    ("facts", "level", "text"),
    [
        (DaemonFacts(config_error="nonsense: no such"), "problem", "nonsense"),
        (DaemonFacts(config_files=("/a", "/b")), "ok", "/a, /b"),
        (DaemonFacts(), "ok", "all defaults"),
    ],
)
def test_check_configuration_has_to_be_taken(facts: DaemonFacts, level: str, text: str) -> None:
    expect(doctor.check_configuration(facts), level, text)


@pytest.mark.parametrize(
    ("changes", "text", "hint"),
    [
        ({"error": "gone"}, "gone", "systemctl start"),
        ({"is_directory": False}, "not a directory", "mv "),
        ({"foreign_owner": 1000}, "belongs to uid 1000", "chown root"),
        ({"mode": 0o755}, "mode 0755", "chmod 0700 /var/lib/crashd"),
        ({"mode": 0o710}, "mode 0710", "chmod 0700 /var/lib/crashd"),
        ({"mode": 0o701}, "mode 0701", "chmod 0700 /var/lib/crashd"),
    ],
)
def test_check_state_dir_open_to_others_is_a_problem(
    changes: dict[str, object], text: str, hint: str
) -> None:
    store = replace(SOUND_STORE, **changes)  # type: ignore[arg-type]
    expect(doctor.check_state_dir(store), "problem", text, hint)


@pytest.mark.parametrize(
    ("free_bytes", "inodes", "level", "text"),
    [
        (50 << 30, None, "ok", "50G of 100G"),
        (50 << 30, 10**6, "ok", "50G of 100G"),
        (3 << 30, 10**6, "warning", "3.0G"),
        (40 << 20, 10**6, "problem", "40M"),
        (50 << 30, 0, "problem", "no inodes"),
        (50 << 30, 999, "warning", "999 inodes"),
    ],
)
def test_check_free_space_tells_when_it_gets_low(
    free_bytes: int, inodes: int | None, level: str, text: str
) -> None:
    store = replace(SOUND_STORE, free_bytes=free_bytes, free_inodes=inodes)
    expect(doctor.check_free_space(store), level, text)


def test_check_free_space_without_a_store_is_a_problem() -> None:
    expect(doctor.check_free_space(StoreFacts("/x", error="gone")), "problem", "gone")


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        ({}, "ok", "empty"),
        ({"spool_error": "denied"}, "warning", "denied"),
        ({"spool_waiting": 3}, "warning", "3 crashes wait"),
        ({"spool_bad": 2}, "warning", "malformed crashes were set aside"),
    ],
)
def test_check_spool_with_crashes_is_a_warning(
    changes: dict[str, object], level: str, text: str
) -> None:
    expect(doctor.check_spool(replace(SOUND_STORE, **changes)), level, text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        ({"index_count": 7}, "ok", "7 crashes"),
        ({"index_wal_bytes": 64 << 20}, "warning", "its WAL has 64M"),
        ({"index_seen": False}, "warning", "cannot be read by this user"),
        ({"index_error": "damaged", "index_hint": "crashctl reindex"}, "problem", "damaged"),
    ],
)
def test_check_index_has_to_be_readable(changes: dict[str, object], level: str, text: str) -> None:
    expect(doctor.check_index(replace(SOUND_STORE, **changes)), level, text)  # type: ignore[arg-type]
