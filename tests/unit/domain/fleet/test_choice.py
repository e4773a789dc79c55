"""Which cores are sent."""

from dataclasses import replace
from typing import Any

import pytest

from crashd.domain.crash.model import Capture, Core, Disposition, Kind, State
from crashd.domain.fleet.choice import Choice, Cores, choose, is_cut
from crashd.domain.fleet.lines import CoreReason
from tests.builders.crashes import build_crash

RULES = Choice(Cores.FULL, 3, False, True, frozenset({"p2-00000000000000ff"}))
CRASH = build_crash(signature="p2-0000000000000001")
KERNEL = replace(CRASH, kind=Kind.KERNEL, kernel={"path": "/var/crash/x", "dump": "dump.x"})


def chosen(sent: int = 0, *, wanted: bool = False, age_ns: int = 0, **more: Any) -> Any:
    crash = replace(more.pop("crash", CRASH), **more.pop("fields", {}))
    rules = replace(RULES, **more)
    return choose(crash, rules, lambda _: sent, wanted=wanted, now_ns=crash.time_ns + age_ns)


def test_core_is_sent_until_this_host_has_sent_enough() -> None:
    assert chosen(2) is True
    assert chosen(3) is CoreReason.ENOUGH


def test_core_of_a_signature_with_enough_in_the_fleet_stays_until_asked_for() -> None:
    fields = {"signature": "p2-00000000000000ff"}
    assert chosen(fields=fields) is CoreReason.ENOUGH
    assert chosen(9, fields=fields, wanted=True) is True


@pytest.mark.parametrize("state", [State.EVICTED, State.LOST, State.METADATA_ONLY, State.MISSING])
def test_crash_without_core_has_nothing_to_send(state: State) -> None:
    assert chosen(fields={"state": state}, wanted=True) is CoreReason.NO_CORE
    assert chosen(fields={"core": Core()}) is CoreReason.NO_CORE


def test_policy_of_the_host_wins_over_the_fleets() -> None:
    assert chosen(cores=Cores.NONE, wanted=True) is CoreReason.POLICY
    assert chosen(crash=KERNEL, wanted=True) is CoreReason.POLICY
    assert chosen(crash=KERNEL, kernel_dumps=True) is True
    assert chosen(crash=KERNEL, kernel_dumps=True, cores=Cores.NONE) is True


def test_core_waits_for_its_signature_but_not_for_ever() -> None:
    fields = {"signature": None}
    assert chosen(fields=fields) is None
    assert chosen(fields=fields, age_ns=601 * 10**9) is True
    assert chosen(fields=fields, age_ns=-601 * 10**9) is True  # a clock that was set back
    assert chosen(fields=fields, analyses=False) is True
    assert chosen(fields={**fields, "analysis": {"state": "failed"}}) is True


def test_only_whole_cores_of_processes_are_cut() -> None:
    mini = replace(RULES, cores=Cores.MINI)
    assert is_cut(CRASH, mini)
    assert not is_cut(CRASH, RULES)
    assert not is_cut(KERNEL, mini)
    assert not is_cut(replace(CRASH, capture=Capture(disposition=Disposition.MINI)), mini)
