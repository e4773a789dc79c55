"""The crash-loop limiter: how many of a loop are kept, and that it costs nobody else anything."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.crash.model import Disposition
from crashd.domain.keep.limiter import BUCKETS_MAX, Limiter, Rate, Scope, keys_of
from crashd.domain.keep.site import Site

HOUR = 3600 * 10**9
NOW = 1_800_000_000 * 10**9
FULL, MINI, METADATA = Disposition.FULL, Disposition.MINI, Disposition.METADATA
RATES = {
    Scope.SITE: Rate(2, 3, HOUR),
    Scope.UNIT: Rate(4, 4, HOUR),
    Scope.UID: Rate(6, 100, HOUR),
}


def site(uid: int | None = 1000, unit: str | None = "a.service", at: int = 0) -> Site:
    return Site(uid, unit, "/bin/x", "x", "ab", 11, f"/bin/x+{at:#x}")


def run(limiter: Limiter, count: int, where: Site, now_ns: int = NOW) -> list[Disposition]:
    return [limiter.decide(keys_of(where), FULL, now_ns).disposition for _ in range(count)]


def test_decide_first_full_then_mini_then_counted() -> None:
    assert run(Limiter(RATES), 7, site()) == [FULL] * 2 + [MINI] * 3 + [METADATA] * 2


def test_decide_tells_scope_and_reason() -> None:
    limiter = Limiter(RATES)
    run(limiter, 2, site())
    verdict = limiter.decide(keys_of(site()), FULL, NOW)
    assert verdict.scope is Scope.SITE
    assert verdict.reason == "limiter.site: more crashes than 2 full and 3 mini cores in 1h"


def test_decide_unit_and_uid_bound_what_many_sites_may() -> None:
    limiter = Limiter(RATES)
    found = [run(limiter, 1, site(at=n))[0] for n in range(10)]
    assert found == [FULL] * 4 + [MINI] * 4 + [METADATA] * 2
    others = [run(limiter, 1, site(unit="b.service", at=n))[0] for n in range(3)]
    assert others == [FULL, FULL, MINI], "6 full of one user, whatever the unit"


def test_decide_another_user_is_not_touched() -> None:
    limiter = Limiter(RATES)
    run(limiter, 500, site(uid=1))
    assert run(limiter, 2, site(uid=2)) == [FULL, FULL]


def test_decide_time_refills() -> None:
    limiter = Limiter(RATES)
    run(limiter, 50, site())
    assert run(limiter, 1, site(), NOW + HOUR // 2) == [FULL]
    assert run(limiter, 6, site(), NOW + 3 * HOUR) == [FULL] * 2 + [MINI] * 3 + [METADATA]


def test_decide_clock_that_goes_back_refills_nothing() -> None:
    limiter = Limiter(RATES)
    run(limiter, 50, site())
    assert run(limiter, 1, site(), NOW - 10 * HOUR) == [METADATA]
    assert run(limiter, 1, site(), NOW - 9 * HOUR) == [FULL], "time goes on from there"


def test_decide_less_is_wanted_than_is_allowed() -> None:
    limiter = Limiter(RATES)
    keys = keys_of(site())
    assert limiter.decide(keys, METADATA, NOW) == (METADATA, None, None)
    assert limiter.decide(keys, MINI, NOW) == (MINI, None, None)
    assert run(limiter, 2, site()) == [FULL, FULL]


def test_decide_unknown_user_has_no_limits() -> None:
    assert run(Limiter(RATES), 50, site(uid=None)) == [FULL] * 50


def test_decide_without_rates_keeps_all() -> None:
    assert run(Limiter({}), 50, site()) == [FULL] * 50


def test_set_rates_counts_for_what_comes() -> None:
    limiter = Limiter(RATES)
    run(limiter, 1, site())
    limiter.set_rates({Scope.SITE: Rate(0, 1, HOUR)})
    assert run(limiter, 2, site()) == [MINI, METADATA]


def test_spent_tells_when_nothing_is_kept() -> None:
    limiter = Limiter({Scope.UID: Rate(1, 0, HOUR)})
    assert limiter.spent(Scope.UID, "1000", NOW) is None
    run(limiter, 1, site())
    assert "limiter.uid" in (limiter.spent(Scope.UID, "1000", NOW) or "")
    assert limiter.spent(Scope.SITE, "x", NOW) is None


def test_buckets_are_bounded_and_the_oldest_goes() -> None:
    limiter = Limiter({Scope.SITE: Rate(1, 0, HOUR)})
    for n in range(BUCKETS_MAX + 5):
        run(limiter, 1, site(at=n))
    assert len(limiter.to_json()["site"]) == BUCKETS_MAX
    assert run(limiter, 1, site(at=BUCKETS_MAX + 4)) == [METADATA]


def test_state_survives_json() -> None:
    limiter, other = Limiter(RATES), Limiter(RATES)
    run(limiter, 4, site())
    assert other.load_json(json.loads(json.dumps(limiter.to_json())))
    assert run(other, 2, site()) == run(limiter, 2, site()) == [MINI, METADATA]


@pytest.mark.parametrize(
    "state",
    [
        None,
        [],
        {},
        {"site": 1, "unit": [], "uid": []},
        {"site": [["a"]], "unit": [], "uid": []},
        {"site": [[1, 2, 3, 4]], "unit": [], "uid": []},
        {"site": [["a", "x", 3, 4]], "unit": [], "uid": []},
        {"site": [["a", 1, 1, 1.5]], "unit": [], "uid": []},
    ],
)
def test_load_json_what_is_no_state_changes_nothing(state: object) -> None:
    limiter = Limiter(RATES)
    run(limiter, 3, site())
    before = limiter.to_json()
    assert not limiter.load_json(state)
    assert limiter.to_json() == before


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, HOUR // 50))))
def test_decide_never_keeps_more_than_the_rates(steps: list[tuple[int, int, int]]) -> None:
    limiter, now_ns = Limiter(RATES), NOW
    full = {uid: 0 for uid in range(3)}
    for uid, at, passed in steps[:50]:  # all within one hour
        now_ns += passed
        verdict = limiter.decide(keys_of(site(uid=uid, at=at)), FULL, now_ns)
        full[uid] += verdict.disposition is FULL
    assert all(count <= 2 * RATES[Scope.UNIT].full for count in full.values())


def test_keys_begin_with_the_user() -> None:
    keys = keys_of(site(uid=7))
    assert keys[Scope.UID] == "7"
    assert all(key.split("/")[0] == "7" for key in keys.values())
    hostile = Site(7, "u" * 5000, "/\udcff\n/x", "", None, None, None)
    assert all(len(key) <= 400 for key in keys_of(hostile).values())


def in_container(place: str, *, uid: int = 0, account: str | None = None) -> Site:
    return replace(site(uid=uid), place=place, account=account or f"{uid}@{place}")


def test_sec_83_crashes_in_a_container_cost_the_host_nothing() -> None:
    limiter = Limiter(RATES)
    run(limiter, 500, in_container("c" * 64))
    assert run(limiter, 2, site(uid=0)) == [FULL, FULL]
    assert run(limiter, 2, in_container("d" * 64)) == [FULL, FULL], "nor another container"


def test_sec_83_crashes_of_the_host_cost_a_container_nothing() -> None:
    limiter = Limiter(RATES)
    run(limiter, 500, site(uid=0))
    assert run(limiter, 2, in_container("c" * 64)) == [FULL, FULL]


def test_sec_83_namespaces_that_a_user_makes_are_no_more_room() -> None:
    limiter = Limiter(RATES)
    found = [
        run(limiter, 1, in_container(f"mnt:{n}", uid=1000, account="1000"))[0] for n in range(200)
    ]
    assert found.count(FULL) == RATES[Scope.UID].full
    assert found.count(MINI) == RATES[Scope.UID].mini
    assert run(limiter, 1, site()) == [METADATA], "it is one user"


def test_sec_83_containers_without_end_are_not_room_without_end() -> None:
    limiter = Limiter({**RATES, Scope.CONTAINERS: Rate(24, 50, HOUR)})
    found = [run(limiter, 1, in_container(f"{n:064x}"))[0] for n in range(200)]
    assert (found.count(FULL), found.count(MINI)) == (24, 50)
    assert run(limiter, 1, site(uid=0)) == [FULL]


def test_load_takes_a_state_from_before_containers_counted() -> None:
    limiter = Limiter(RATES)
    run(limiter, 500, site())
    state = limiter.to_json()
    del state["containers"]
    restored = Limiter(RATES)
    assert restored.load_json(state)
    assert run(restored, 1, site()) == [METADATA]
