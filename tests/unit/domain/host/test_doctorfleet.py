"""What doctor says of sending crashes to the fleet."""

from typing import Any

from crashd.domain.host.doctor import WHY, Check, DaemonFacts, Level
from crashd.domain.host.doctorfleet import LATE_NS, check_fleet

NOW_NS = 1_790_000_000 * 10**9


def judge(**told: Any) -> Check:
    sound = {"url": "s3://b", "waiting": 2, "oldest_ns": NOW_NS - 10**9, "failure": None}
    facts = DaemonFacts({"fleet": {**sound, "failure_text": "", "lost": {}, **told}})
    (check,) = check_fleet(facts, NOW_NS)
    assert check.name in WHY
    return check


def test_host_that_sends_nothing_has_no_check() -> None:
    for status in (None, {}, {"fleet": None}):
        assert list(check_fleet(DaemonFacts(status), NOW_NS)) == []


def test_sending_is_ok_as_long_as_nothing_is_late() -> None:
    assert judge().level is Level.OK
    late = judge(oldest_ns=NOW_NS - 2 * LATE_NS)
    assert late.level is Level.WARNING and "2h" in late.text


def test_failure_is_a_warning_and_a_problem_once_records_are_late() -> None:
    failing = {"failure": "credentials", "failure_text": "s3://b: no access"}
    early, late = judge(**failing), judge(**failing, oldest_ns=NOW_NS - 2 * LATE_NS)
    assert (early.level, late.level) == (Level.WARNING, Level.PROBLEM)
    assert "no access" in early.text and early.hint is not None and "crashd-ship(8)" in early.hint


def test_losses_are_told_by_reason() -> None:
    check = judge(lost={"retention": 3})
    assert check.level is Level.WARNING and "3 retention" in check.text
