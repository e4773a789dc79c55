import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from crashd.domain.keep.believed import EARLIEST_NS, SKEW_NS
from crashd.domain.keep.process import (
    Deletion,
    Limit,
    Policy,
    StoredCrash,
    Usage,
    plan,
    room,
)
from crashd.domain.units import Amount
from tests.yardstick import slowness

DAY_NS = 86400 * 10**9
HOUR_NS = 3600 * 10**9
START_NS = 1_790_000_000 * 10**9
NOW_NS = START_NS + 1000 * DAY_NS
PLENTY = Usage(total_bytes=1 << 50, free_bytes=1 << 49)
EMPTY = Amount(size_bytes=0)
MIB = 1 << 20


def crash(number: int, **more: object) -> StoredCrash:
    """Build the crash of one day: 10 bytes and 2 inodes, one of them the core's, unless told."""
    made = StoredCrash(
        id=f"c{number}",
        sequence=number,
        time_ns=START_NS + number * DAY_NS,
        stored_bytes=10,
        inodes=2,
        owner="a.service",
        signature_key="s",
        metadata_bytes=0,
        metadata_inodes=1,
    )
    return replace(made, **more)  # type: ignore[arg-type]


def tombstone(number: int, **more: object) -> StoredCrash:
    """Build what is left of a crash: 10 bytes, an inode."""
    return crash(number, has_core=False, inodes=1, metadata_bytes=10, **more)


def cores(count: int, **more: object) -> list[StoredCrash]:
    """Build so many crashes of one signature."""
    return [crash(number, **more) for number in range(count)]


def size(size_bytes: int) -> Amount:
    """Build an amount of bytes."""
    return Amount(size_bytes=size_bytes)


def ids(deletions: Iterable[Deletion]) -> list[str]:
    """List what is deleted, in order."""
    return [deletion.id for deletion in deletions]


def apply(
    crashes: Iterable[StoredCrash], usage: Usage, deletions: Iterable[Deletion]
) -> tuple[list[StoredCrash], Usage]:
    """Carry a plan out."""
    left = {crash.id: crash for crash in crashes}
    free_bytes, free_inodes = usage.free_bytes, usage.free_inodes
    for deletion in deletions:
        before = left.pop(deletion.id)
        after = replace(
            before,
            has_core=False,
            stored_bytes=min(before.metadata_bytes, before.stored_bytes),
            inodes=min(before.metadata_inodes, before.inodes),
        )
        if deletion.whole:
            after = replace(after, stored_bytes=0, inodes=0)
        else:
            assert before.has_core
            left[after.id] = after
        assert deletion.frees_bytes == before.stored_bytes - after.stored_bytes
        free_bytes += deletion.frees_bytes
        free_inodes += before.inodes - after.inodes
    return list(left.values()), replace(usage, free_bytes=free_bytes, free_inodes=free_inodes)


def is_core(crash: StoredCrash) -> bool:
    """Tell whether there is a finished core."""
    return crash.has_core and not crash.in_flight


def list_protected(crashes: Iterable[StoredCrash]) -> set[str]:
    """List what no plan may touch: pins, captures in flight, the newest core of all, unless a
    newer one is being captured.
    """
    known = list(crashes)
    newest = max(filter(is_core, known), key=lambda c: (c.sequence, c.id), default=None)
    fixed = {c.id for c in known if c.pinned or c.in_flight}
    coming = any(c.in_flight and not c.has_core for c in known)
    return fixed if newest is None or coming else {*fixed, newest.id}


# ---- each reason ----


def test_plan_without_limits_is_empty() -> None:
    assert plan(cores(5), PLENTY, Policy(), NOW_NS) == ()
    assert plan([], PLENTY, Policy(size(0), size(1 << 50), 0, 0, 0, 0), NOW_NS) == ()


def test_plan_max_use_takes_the_midst_from_the_oldest_on() -> None:
    found = plan(cores(6), PLENTY, Policy(max_use=size(35)), NOW_NS)
    assert found == tuple(Deletion(f"c{n}", Limit.MAX_USE, 10, False) for n in (1, 2, 3))


def test_plan_max_use_is_met_exactly_and_takes_nothing() -> None:
    assert plan(cores(6), PLENTY, Policy(max_use=size(60)), NOW_NS) == ()


def test_plan_max_use_in_percent_is_a_share_of_the_file_system() -> None:
    policy = Policy(max_use=Amount(thousandths=10_000))
    assert len(plan(cores(6), Usage(400, 100), policy, NOW_NS)) == 2
    assert plan(cores(6), Usage(600, 100), policy, NOW_NS) == ()


def test_plan_file_system_that_tells_no_size_has_no_shares() -> None:
    policy = Policy(Amount(thousandths=10_000), Amount(thousandths=10_000))
    assert plan(cores(6), Usage(0, 0), policy, NOW_NS) == ()
    assert plan(cores(6), Usage(0, 0), Policy(keep_free=size(1)), NOW_NS) == ()


def test_plan_max_use_counts_what_is_not_listed() -> None:
    usage = replace(PLENTY, unlisted_bytes=10)
    assert ids(plan(cores(6), usage, Policy(max_use=size(60)), NOW_NS)) == ["c1"]


def test_plan_keep_free_makes_up_for_what_others_took() -> None:
    found = plan(cores(6), Usage(1000, 85), Policy(keep_free=size(100)), NOW_NS)
    assert found == tuple(Deletion(f"c{n}", Limit.KEEP_FREE, 10, False) for n in (1, 2))


def test_plan_keep_free_counts_what_captures_in_flight_may_write() -> None:
    crashes = [*cores(6), crash(6, stored_bytes=50, in_flight=True, has_core=False)]
    usage = Usage(1000, 125, reserved_bytes=40)
    assert ids(plan(crashes, usage, Policy(keep_free=size(100)), NOW_NS)) == ["c1", "c2"]


def test_plan_keep_free_that_cannot_be_met_takes_cores_and_no_metadata() -> None:
    crashes = [*(tombstone(n) for n in range(3)), *(crash(n) for n in range(3, 6))]
    found = plan(crashes, Usage(1000, 0), Policy(keep_free=size(500)), NOW_NS)
    assert ids(found) == ["c4", "c3"]
    assert not any(deletion.whole for deletion in found)


def test_plan_keep_free_met_by_metadata_takes_it_last() -> None:
    crashes = [tombstone(0), tombstone(1), *(crash(n, stored_bytes=30) for n in range(2, 5))]
    found = plan(crashes, Usage(1000, 0), Policy(keep_free=size(65)), NOW_NS)
    assert ids(found) == ["c3", "c2", "c0"]
    assert [deletion.whole for deletion in found] == [False, False, True]


def test_plan_metadata_that_is_more_than_half_goes_before_cores() -> None:
    crashes = [*(tombstone(n) for n in range(8)), *(crash(n) for n in range(8, 12))]
    found = plan(crashes, PLENTY, Policy(max_use=size(95)), NOW_NS)
    assert ids(found) == ["c0", "c1", "c2"]


def test_plan_max_use_first_and_then_keep_free_gives_each_its_reason() -> None:
    policy = Policy(max_use=size(50), keep_free=size(100))
    found = plan(cores(6), Usage(1000, 80), policy, NOW_NS)
    assert [deletion.reason for deletion in found] == [Limit.MAX_USE, Limit.KEEP_FREE]


def test_plan_max_count_takes_from_whoever_has_most_cores() -> None:
    rare = [crash(n, owner="b.service", signature_key="r", stored_bytes=999) for n in range(3)]
    found = plan([*rare, *(crash(n) for n in range(3, 9))], PLENTY, Policy(max_count=6), NOW_NS)
    assert found == tuple(Deletion(f"c{n}", Limit.MAX_COUNT, 10, False) for n in (4, 5, 6))


def test_plan_max_count_counts_captures_in_flight() -> None:
    crashes = [*cores(4), crash(4, in_flight=True, has_core=False)]
    assert ids(plan(crashes, PLENTY, Policy(max_count=4), NOW_NS)) == ["c1"]


def test_plan_max_count_zero_leaves_the_newest() -> None:
    assert ids(plan(cores(4), PLENTY, Policy(max_count=0), NOW_NS)) == ["c1", "c2", "c0"]


def test_plan_max_age_takes_cores_and_leaves_tombstones() -> None:
    found = plan(cores(6), PLENTY, Policy(max_age_ns=2 * DAY_NS), START_NS + 5 * DAY_NS)
    assert found == tuple(Deletion(f"c{n}", Limit.MAX_AGE, 10, False) for n in (0, 1, 2))


def test_plan_max_age_leaves_the_newest_core() -> None:
    assert ids(plan(cores(3), PLENTY, Policy(max_age_ns=0), NOW_NS)) == ["c0", "c1"]


def test_plan_max_age_and_metadata_max_age_at_once_takes_it_whole() -> None:
    crashes = [crash(n, metadata_bytes=4) for n in range(2)]
    found = plan(crashes, PLENTY, Policy(max_age_ns=0, metadata_max_age_ns=0), NOW_NS)
    assert found == (Deletion("c0", Limit.MAX_AGE, 10, True),)


@pytest.mark.parametrize(
    ("maximum", "left"),
    [(0, [5]), (1, [5]), (2, [0, 5]), (3, [0, 4, 5]), (4, [0, 3, 4, 5]), (6, [*range(6)])],
)
def test_plan_max_per_signature_keeps_first_and_newest(maximum: int, left: list[int]) -> None:
    found = plan(cores(6), PLENTY, Policy(max_per_signature=maximum), NOW_NS)
    assert {d.reason for d in found} <= {Limit.MAX_PER_SIGNATURE}
    assert {f"c{n}" for n in left} == {f"c{n}" for n in range(6)} - {*ids(found)}


def test_plan_max_per_signature_takes_from_whoever_has_most_of_it() -> None:
    """Who crashes the program of another user as often as he likes does not push its core out."""
    crashes = [
        crash(0, owner="1000"),
        crash(1, owner="nginx.service"),
        *(crash(n, owner="1000") for n in range(2, 10)),
    ]
    found = plan(crashes, PLENTY, Policy(max_per_signature=3), NOW_NS)
    assert ids(found) == [f"c{n}" for n in range(2, 9)]


def test_plan_metadata_max_age_takes_tombstones_and_no_cores() -> None:
    crashes = [tombstone(0), crash(1), tombstone(2, pinned=True), tombstone(3), crash(4)]
    policy = Policy(metadata_max_age_ns=DAY_NS)
    found = plan(crashes, PLENTY, policy, START_NS + 4 * DAY_NS)
    assert found == (Deletion("c0", Limit.METADATA_MAX_AGE, 10, True),)


def test_plan_evicted_core_older_than_metadata_may_be_goes_whole() -> None:
    crashes = [crash(n, metadata_bytes=4) for n in range(3)]
    policy = Policy(max_use=size(20), metadata_max_age_ns=DAY_NS)
    assert plan(crashes, PLENTY, policy, NOW_NS) == (Deletion("c1", Limit.MAX_USE, 10, True),)


def test_plan_inodes_takes_metadata_before_cores() -> None:
    crashes = [tombstone(0), tombstone(1), *(crash(n) for n in range(2, 6))]
    policy = Policy(keep_free=Amount(thousandths=10_000))
    found = plan(crashes, Usage(1000, 900, 97, 1000), policy, NOW_NS)
    assert [(d.id, d.reason, d.whole) for d in found] == [
        ("c0", Limit.INODES, True),
        ("c1", Limit.INODES, True),
        ("c3", Limit.INODES, False),
    ]


def test_plan_inodes_of_keep_free_in_bytes_are_the_same_share() -> None:
    usage = Usage(1000, 900, 99, 1000)
    assert ids(plan(cores(3), usage, Policy(keep_free=size(100)), NOW_NS)) == ["c1"]
    assert plan(cores(3), usage, Policy(keep_free=size(99)), NOW_NS) == ()


def test_plan_inodes_that_cannot_be_had_take_nothing() -> None:
    policy = Policy(keep_free=Amount(thousandths=10_000))
    assert plan(cores(6), Usage(1000, 900, 10, 1000), policy, NOW_NS) == ()


def test_plan_inodes_where_they_are_not_counted_takes_nothing() -> None:
    policy = Policy(keep_free=Amount(thousandths=10_000))
    assert plan(cores(6), Usage(1000, 900, 0, 0), policy, NOW_NS) == ()


# ---- fairness ----


def test_plan_one_looping_service_pays_for_itself() -> None:
    rare = [crash(n, owner="b.service", signature_key=f"r{n}") for n in range(5)]
    loop = [crash(n) for n in range(5, 50)]
    found = plan([*rare, *loop], PLENTY, Policy(max_use=size(100)), NOW_NS)
    assert set(ids(found)).isdisjoint(c.id for c in rare)
    assert len(found) == 40


def test_plan_last_core_of_a_signature_outlives_any_second_one() -> None:
    heavy = [crash(n, signature_key=f"h{n}", stored_bytes=100) for n in range(5)]
    light = [crash(n, owner="b.service", signature_key="l", stored_bytes=1) for n in range(5, 8)]
    found = plan([*heavy, *light], PLENTY, Policy(max_use=size(450)), NOW_NS)
    assert ids(found) == ["c6", "c5", "c0"]


def test_plan_pin_does_not_count_against_its_owner() -> None:
    crashes = [
        crash(0, stored_bytes=1000, pinned=True),
        *(crash(n) for n in range(1, 4)),
        *(crash(n, owner="b.service", signature_key="l") for n in range(4, 8)),
    ]
    assert ids(plan(crashes, PLENTY, Policy(max_use=size(1060)), NOW_NS)) == ["c5"]


def test_plan_metadata_of_a_core_that_went_for_another_limit_helps_the_first() -> None:
    """The core itself has no bytes, and goes for its inode; then `max_use` is in reach."""
    crashes = [crash(0, stored_bytes=4, metadata_bytes=4), crash(1, stored_bytes=1)]
    policy = Policy(max_use=size(2), keep_free=size(100))
    found = plan(crashes, Usage(1000, 900, 99, 1000), policy, NOW_NS)
    assert found == (Deletion("c0", Limit.INODES, 4, True),)


def test_plan_core_that_frees_nothing_stays() -> None:
    crashes = [crash(n, stored_bytes=4, metadata_bytes=4) for n in range(3)]
    assert plan(crashes, PLENTY, Policy(max_use=size(8)), NOW_NS) == ()
    assert plan(crashes, Usage(1000, 0), Policy(keep_free=size(500)), NOW_NS) == ()


# ---- the clock ----


def stamped(*times_ns: int) -> list[StoredCrash]:
    """Build crashes with these stamps, in this order, and one more core, of now."""
    return [
        *(crash(n, time_ns=time_ns) for n, time_ns in enumerate(times_ns)),
        crash(len(times_ns), time_ns=NOW_NS),
    ]


YEAR = Policy(max_age_ns=365 * DAY_NS)


@pytest.mark.parametrize("now_ns", [None, 0, EARLIEST_NS - 1])
def test_plan_without_a_sane_clock_expires_nothing(now_ns: int | None) -> None:
    policy = Policy(max_age_ns=0, metadata_max_age_ns=0)
    assert plan([tombstone(0), *stamped(1, START_NS)], PLENTY, policy, now_ns) == ()


def test_plan_crash_from_the_future_has_the_time_of_the_next() -> None:
    future = NOW_NS + DAY_NS
    assert plan(stamped(future, future), PLENTY, YEAR, NOW_NS) == ()
    assert ids(plan(stamped(future, START_NS), PLENTY, YEAR, NOW_NS)) == ["c0", "c1"]


def test_plan_crash_from_before_crashd_has_the_time_of_the_next() -> None:
    assert plan(stamped(0, EARLIEST_NS - 1), PLENTY, YEAR, NOW_NS) == ()
    assert ids(plan(stamped(0, EARLIEST_NS), PLENTY, YEAR, NOW_NS)) == ["c0", "c1"]


def test_plan_stamp_behind_a_crash_before_it_has_the_time_of_the_next() -> None:
    recent = NOW_NS - DAY_NS
    assert plan(stamped(recent, START_NS), PLENTY, YEAR, NOW_NS) == ()
    assert (
        ids(plan(stamped(recent, recent - SKEW_NS - 1), PLENTY, Policy(max_age_ns=DAY_NS), NOW_NS))
        == []
    )
    assert ids(
        plan(stamped(recent, recent - SKEW_NS), PLENTY, Policy(max_age_ns=DAY_NS), NOW_NS)
    ) == ["c1"]


def test_plan_tombstone_that_contradicts_a_stamp_stays_as_long_as_it() -> None:
    week = [START_NS + n * DAY_NS for n in range(8)]
    crashes = [
        tombstone(0, time_ns=week[0]),
        tombstone(1, time_ns=week[3]),
        crash(2, time_ns=week[1]),
        crash(3, time_ns=week[7]),
    ]
    policy = Policy(max_age_ns=2 * DAY_NS, metadata_max_age_ns=2 * DAY_NS)
    assert ids(plan(crashes, PLENTY, policy, week[7])) == ["c0"]
    later = plan(crashes, PLENTY, policy, week[7] + 3 * DAY_NS)
    assert sorted(ids(later)) == ["c0", "c1", "c2"]


def test_plan_tombstone_goes_with_the_last_core_that_it_contradicts() -> None:
    crashes = [
        tombstone(0, time_ns=START_NS + 3 * DAY_NS),
        crash(1, time_ns=START_NS, metadata_bytes=4),
        crash(4),
    ]
    policy = Policy(max_count=1, metadata_max_age_ns=DAY_NS)
    assert plan(crashes, PLENTY, policy, NOW_NS) == (
        Deletion("c1", Limit.MAX_COUNT, 10, True),
        Deletion("c0", Limit.METADATA_MAX_AGE, 10, True),
    )


def test_plan_for_space_leaves_the_tombstone_that_contradicts_a_stamp() -> None:
    crashes = [
        tombstone(0, time_ns=NOW_NS - DAY_NS),
        crash(1, time_ns=NOW_NS - 20 * DAY_NS, stored_bytes=4),
        tombstone(2, time_ns=NOW_NS),
        crash(3, time_ns=NOW_NS, stored_bytes=4),
    ]
    policy = Policy(max_use=size(20), max_age_ns=10 * DAY_NS)
    assert ids(plan(crashes, PLENTY, policy, NOW_NS)) == ["c2"]
    assert ids(plan(crashes, PLENTY, Policy(max_use=size(20)), NOW_NS)) == ["c0"]


def test_plan_for_space_takes_that_tombstone_once_the_other_is_gone() -> None:
    """For inodes the other goes, and only then can `max_use` be met."""
    crashes = [
        tombstone(0, time_ns=NOW_NS - DAY_NS),
        tombstone(1, time_ns=NOW_NS - 20 * DAY_NS),
        crash(2, time_ns=NOW_NS, stored_bytes=1),
    ]
    policy = Policy(size(5), size(100), metadata_max_age_ns=100 * DAY_NS)
    found = plan(crashes, Usage(1000, 900, 99, 1000), policy, NOW_NS)
    assert [(d.id, d.reason) for d in found] == [("c1", Limit.INODES), ("c0", Limit.MAX_USE)]


# ---- whatever there is ----

OWNERS = ("a", "b", "c")
USERS = ("", "v")
_AMOUNTS = st.one_of(
    st.none(),
    st.builds(size, st.integers(0, 400)),
    st.builds(lambda share: Amount(thousandths=share), st.integers(0, 100_000)),
)
_TIMES = st.one_of(
    st.none(),
    st.integers(-30, 3).map(lambda days: NOW_NS + days * DAY_NS),
    st.just(0),
    st.just(NOW_NS - DAY_NS // 48),
)
_LIMIT_NS = st.one_of(st.none(), st.integers(0, 30).map(lambda days: days * DAY_NS))


@st.composite
def draw_crashes(
    draw: st.DrawFn,
    *,
    simple: bool = False,
    right_clock: bool = False,
    private_signatures: bool = False,
    users: Sequence[str] = ("",),
) -> list[StoredCrash]:
    """Draw a store; `simple`: evicting a core leaves nothing, and the clock was always right."""
    right_clock |= simple
    crashes = []
    for number in range(draw(st.integers(0, 14))):
        stored = draw(st.integers(0, 60))
        has_core = simple or draw(st.integers(0, 3)) > 0
        owner, key = draw(st.sampled_from(OWNERS)), draw(st.sampled_from("xyz"))
        stamp = None if right_clock else draw(_TIMES)
        crashes.append(
            StoredCrash(
                id=f"c{number}",
                sequence=number // 2 if not right_clock and draw(st.booleans()) else number,
                time_ns=NOW_NS + (number - 20) * DAY_NS if stamp is None else stamp,
                stored_bytes=stored,
                inodes=3 if has_core else 2,
                owner=owner,
                signature_key=owner + key if private_signatures else key,
                pinned=draw(st.integers(0, 7)) == 0,
                has_core=has_core,
                in_flight=draw(st.integers(0, 9)) == 0,
                metadata_bytes=0 if simple else draw(st.integers(0, 20)),
                metadata_inodes=0 if simple else 2,
                user=draw(st.sampled_from(users)),
            )
        )
    return draw(st.permutations(crashes))


_USAGES = st.builds(
    Usage,
    total_bytes=st.sampled_from((0, 1000)),
    free_bytes=st.integers(0, 600),
    free_inodes=st.integers(0, 30),
    total_inodes=st.sampled_from((0, 100)),
    reserved_bytes=st.integers(0, 50),
    unlisted_bytes=st.sampled_from((0, 0, 30)),
)
_COUNTS = st.one_of(st.none(), st.integers(0, 8))
_POLICIES = st.builds(Policy, _AMOUNTS, _AMOUNTS, _COUNTS, _LIMIT_NS, _COUNTS, _LIMIT_NS)
_NOWS = st.sampled_from((NOW_NS, NOW_NS, NOW_NS, None))
MANY = settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)


@MANY
@given(draw_crashes(users=USERS), _USAGES, _POLICIES, _NOWS)
def test_plan_never_touches_what_is_protected(
    crashes: list[StoredCrash], usage: Usage, policy: Policy, now_ns: int | None
) -> None:
    found = ids(plan(crashes, usage, policy, now_ns))
    assert set(found).isdisjoint(list_protected(crashes))
    assert len(found) == len(set(found))


@MANY
@given(draw_crashes(users=USERS), _USAGES, _POLICIES, _NOWS)
def test_plan_after_it_is_carried_out_is_empty(
    crashes: list[StoredCrash], usage: Usage, policy: Policy, now_ns: int | None
) -> None:
    left, usage = apply(crashes, usage, plan(crashes, usage, policy, now_ns))
    assert plan(left, usage, policy, now_ns) == ()


@given(draw_crashes(users=USERS), _USAGES, _POLICIES, st.randoms(use_true_random=False))
def test_plan_does_not_depend_on_the_order_it_is_told(
    crashes: list[StoredCrash], usage: Usage, policy: Policy, dice: random.Random
) -> None:
    shuffled = crashes.copy()
    dice.shuffle(shuffled)
    assert plan(shuffled, usage, policy, NOW_NS) == plan(iter(crashes), usage, policy, NOW_NS)


def shortages(crashes: Sequence[StoredCrash], usage: Usage, policy: Policy) -> tuple[int, int, int]:
    """Work out what is missing: bytes by max_use, bytes by keep_free, inodes."""
    use = free = inodes = 0
    total = usage.total_bytes
    if policy.max_use is not None and (total or policy.max_use.thousandths is None):
        stored = sum(crash.stored_bytes for crash in crashes)
        use = stored + usage.unlisted_bytes - policy.max_use.of(total)
    if policy.keep_free is not None and total:
        keep = policy.keep_free.of(total)
        free = keep - usage.free_bytes + usage.reserved_bytes
        if usage.total_inodes:
            inodes = keep * usage.total_inodes // total - usage.free_inodes
    return use, free, inodes


@MANY
@given(draw_crashes(right_clock=True), _USAGES, _POLICIES, _NOWS)
def test_plan_ends_within_limits_or_with_nothing_left_that_would_help(
    crashes: list[StoredCrash], usage: Usage, policy: Policy, now_ns: int | None
) -> None:
    protected = list_protected(crashes)
    left, usage = apply(crashes, usage, plan(crashes, usage, policy, now_ns))
    loose = [crash for crash in left if crash.id not in protected]
    use, free, inodes = shortages(left, usage, policy)
    newest = newest_that_stays(left)
    for short in (use, free):
        if short <= 0 or busy_bytes(left):
            continue
        gaining = [c for c in loose if is_core(c) and c.stored_bytes > c.metadata_bytes]
        if newest is not None and short <= newest.stored_bytes:
            uses = Counter[str]()
            for c in left:
                uses[c.owner] += 0 if c.pinned else c.stored_bytes
            for c in gaining:
                assert c.owner != newest.owner
                assert uses[c.owner] <= newest.stored_bytes
        else:
            assert not gaining
        assert sum(c.stored_bytes for c in loose if not is_core(c)) < short
    if inodes > 0:
        assert sum(c.inodes for c in loose) < inodes
    if policy.max_count is not None and any(map(is_core, loose)):
        assert sum(c.has_core or c.in_flight for c in left) <= policy.max_count
    if policy.max_per_signature is not None:
        groups: dict[str, list[StoredCrash]] = {}
        for c in sorted(filter(is_core, left), key=lambda c: (c.sequence, c.id)):
            groups.setdefault(c.signature_key, []).append(c)
        for group in groups.values():
            kept = {group[-1].id} if policy.max_per_signature else set()
            kept |= {group[0].id} if policy.max_per_signature > 1 else set()
            if len(group) > policy.max_per_signature:
                assert {c.id for c in group} <= protected | kept


def newest_that_stays(crashes: Iterable[StoredCrash]) -> StoredCrash | None:
    """Tell which one stays for it is the newest, and for nothing else."""
    crashes = list(crashes)
    if any(c.in_flight and not c.has_core for c in crashes):
        return None
    cores = sorted(filter(is_core, crashes), key=lambda c: (c.sequence, c.id))
    return cores[-1] if cores and not cores[-1].pinned else None


def busy_bytes(crashes: Iterable[StoredCrash]) -> Counter[str]:
    """Add up by owner what may not go now: captured, read or locked."""
    found: Counter[str] = Counter()
    for c in crashes:
        if c.in_flight and not c.pinned:
            found[c.owner] += c.stored_bytes
    return found


@MANY
@given(draw_crashes(simple=True), _USAGES, _AMOUNTS, _AMOUNTS)
def test_plan_takes_no_last_core_for_a_capture_of_somebody_who_has_more(
    crashes: list[StoredCrash], usage: Usage, max_use: Amount | None, keep_free: Amount | None
) -> None:
    crashes = [*crashes, crash(99, stored_bytes=9, owner="a", in_flight=True, has_core=False)]
    busy = busy_bytes(crashes)
    policy, usage = Policy(max_use, keep_free), replace(usage, total_inodes=0)
    uses: Counter[str] = Counter()
    for c in crashes:
        uses[c.owner] += 0 if c.pinned else c.stored_bytes
    left = {c.id: c for c in crashes}
    for deletion in plan(crashes, usage, policy, NOW_NS):
        gone = left.pop(deletion.id)
        last = is_core(gone) and gone.signature_key not in {
            c.signature_key for c in left.values() if is_core(c)
        }
        if last and gone.owner not in busy:
            assert uses[gone.owner] > max(busy.values())
        uses[gone.owner] -= deletion.frees_bytes


def test_plan_flood_of_large_captures_costs_nobody_else_his_only_core() -> None:
    small = [crash(i, owner=owner, signature_key=owner) for i, owner in enumerate("abc")]
    done = [crash(i, owner="b", signature_key=f"b{i}", stored_bytes=80) for i in (3, 4)]
    flood = [replace(c, in_flight=True, has_core=False) for c in done]
    policy, usage = Policy(keep_free=size(90)), Usage(1000, 0)
    assert ids(plan([*small, *flood], usage, policy, NOW_NS)) == ["c1"]
    assert ids(plan([*small, *done], usage, policy, NOW_NS)) == ["c1", "c3"]


@pytest.mark.parametrize("limit", ["max_use", "keep_free"])
def test_plan_newest_core_that_is_too_much_itself_costs_nobody_else_his_only_core(
    limit: str,
) -> None:
    """It stays, and what could be had from the others is not what is too much."""
    small = [crash(i, owner=owner, signature_key=owner) for i, owner in enumerate("abc")]
    flood = [crash(i, owner="b", signature_key=f"b{i}", stored_bytes=80) for i in (3, 4)]
    policy = Policy(max_use=size(90)) if limit == "max_use" else Policy(keep_free=size(90))

    def at_rest(elsewhere: int) -> list[str]:
        crashes = [*small, *flood]
        used = sum(c.stored_bytes for c in crashes)
        usage = Usage(1000, 180 - used - elsewhere)
        if limit == "max_use":
            usage = Usage(1000, 1000, unlisted_bytes=elsewhere)
        return ids(plan(crashes, usage, policy, NOW_NS))

    assert at_rest(0) == ["c1", "c3"], "the owner's own"
    assert at_rest(70) == ["c1", "c3"], "without the newest all would be well"
    assert at_rest(71) == ["c1", "c3", "c0"], "and here it would not"
    assert at_rest(500) == ["c1", "c3", "c0", "c2"]


@MANY
@given(draw_crashes(simple=True), _USAGES, _AMOUNTS, _AMOUNTS, _COUNTS)
def test_plan_takes_no_more_than_is_needed(
    crashes: list[StoredCrash],
    usage: Usage,
    max_use: Amount | None,
    keep_free: Amount | None,
    max_count: int | None,
) -> None:
    policy = Policy(max_use, keep_free, max_count)
    found = plan(crashes, usage, policy, NOW_NS)
    assume(found)
    left, usage = apply(crashes, usage, found[:-1])
    count = sum(c.has_core or c.in_flight for c in left)
    assert max(shortages(left, usage, policy)) > 0 or count > (max_count or 0)


@MANY
@given(draw_crashes(simple=True), _USAGES, st.sampled_from(("use", "free", "count")), _COUNTS)
def test_plan_takes_from_whoever_uses_most_and_no_last_core_while_there_is_a_second(
    crashes: list[StoredCrash], usage: Usage, limit: str, count: int | None
) -> None:
    number = (count or 0) * 20
    policy = {
        "use": Policy(max_use=size(number)),
        "free": Policy(keep_free=size(300 + number)),
        "count": Policy(max_count=count),
    }[limit]
    protected = list_protected(crashes)
    left = {c.id: c for c in crashes}
    for deletion in plan(crashes, replace(usage, total_inodes=0), policy, NOW_NS):
        uses: Counter[str] = Counter()
        for c in left.values():
            uses[c.owner] += 0 if c.pinned else (1 if limit == "count" else c.stored_bytes)
        several = Counter(c.signature_key for c in left.values() if is_core(c))
        loose = [c for c in left.values() if c.id not in protected]
        if limit != "count":
            loose = [c for c in loose if c.stored_bytes]
        seconds = [c for c in loose if several[c.signature_key] > 1]
        busy = busy_bytes(left.values())
        victim = left.pop(deletion.id)
        candidates = seconds or loose
        assert victim in candidates
        if victim.owner not in busy or seconds or limit == "count":  # else it pays for itself
            assert uses[victim.owner] == max(uses[c.owner] for c in candidates)


@dataclass(frozen=True)
class Witnessed:
    """A crash, and when it really happened."""

    crash: StoredCrash
    true_ns: int


@st.composite
def draw_history(draw: st.DrawFn) -> list[Witnessed]:
    """Draw crashes stamped right, too late, from before crashd, or behind the first one."""
    true_ns = START_NS
    history = []
    for number in range(draw(st.integers(1, 12))):
        true_ns += draw(st.integers(1, 20)) * DAY_NS
        choices = [st.just(true_ns)]
        if number:
            late = st.integers(1, 1000).map(lambda days, t=true_ns: t + days * DAY_NS)  # type: ignore[misc]
            lost = st.integers(1, 100).map(lambda days: START_NS - days * DAY_NS)
            choices += [late, lost, st.just(0)]
        stamp = draw(st.one_of(choices))
        has_core = number == 0 or draw(st.booleans())
        history.append(Witnessed(crash(number, time_ns=stamp, has_core=has_core), true_ns))
    return history


@MANY
@given(draw_history(), st.integers(0, 120), st.integers(0, 120), st.lists(st.integers(0, 60)))
def test_plan_over_jumps_of_the_clock_deletes_nothing_early(
    history: list[Witnessed], max_age: int, metadata_max_age: int, waits: list[int]
) -> None:
    """And not when what is old has gone, plan after plan."""
    policy = Policy(max_age_ns=max_age * DAY_NS, metadata_max_age_ns=metadata_max_age * DAY_NS)
    truth = {witnessed.crash.id: witnessed.true_ns for witnessed in history}
    left = [witnessed.crash for witnessed in history]
    now_ns, usage = history[-1].true_ns, PLENTY
    for wait in [0, *waits]:
        now_ns += wait * DAY_NS
        found = plan(left, usage, policy, now_ns)
        for deletion in found:
            age_ns = now_ns - truth[deletion.id]
            assert deletion.reason is Limit.METADATA_MAX_AGE or age_ns > max_age * DAY_NS
            assert not deletion.whole or age_ns > metadata_max_age * DAY_NS
        left, usage = apply(left, usage, found)


# ---- room ----


def test_room_of_an_empty_store_is_what_the_limits_leave() -> None:
    usage = Usage(1000, 600, reserved_bytes=100)
    assert room([], usage, Policy(), "a") == 500
    assert room([], usage, Policy(max_use=size(300)), "a") == 300
    assert room([], usage, Policy(size(300), size(250)), "a") == 250
    assert room([], usage, Policy(keep_free=size(501)), "a") == 0


def test_room_in_a_full_store_is_what_one_can_do_without() -> None:
    policy = Policy(max_use=size(60))
    assert room(cores(6), PLENTY, policy, "b.service") == 50
    assert room(cores(6), PLENTY, policy, "a.service") == 60, "the newest too: a newer one comes"
    assert room([tombstone(n) for n in range(6)], PLENTY, policy, "a.service") == 0


def test_room_does_not_cost_the_last_cores_of_who_uses_less() -> None:
    crashes = [
        *(crash(n, owner="b.service", signature_key=f"b{n}") for n in range(2)),
        *(crash(n, owner="c.service", signature_key=f"c{n}") for n in range(2, 10)),
        crash(10, owner="d.service", signature_key="d"),
    ]
    policy = Policy(max_use=size(110))
    assert room(crashes, PLENTY, policy, "e.service") == 40  # both have 40 then
    assert room(crashes, PLENTY, policy, "c.service") == 80
    assert room(crashes, PLENTY, policy, "b.service") == 50


@MANY
@given(draw_crashes(private_signatures=True), _USAGES, _AMOUNTS, _AMOUNTS, st.sampled_from(OWNERS))
def test_room_is_there_once_planned_for_and_nobody_poorer_paid(
    crashes: list[StoredCrash],
    usage: Usage,
    max_use: Amount | None,
    keep_free: Amount | None,
    owner: str,
) -> None:
    policy = Policy(max_use, keep_free)
    usage = replace(usage, total_inodes=0)
    size_bytes = room(crashes, usage, policy, owner)
    assume(size_bytes > 0)
    new = crash(999, id="new", stored_bytes=size_bytes, owner=owner, in_flight=True, has_core=False)
    usage = replace(usage, reserved_bytes=usage.reserved_bytes + size_bytes)
    found = plan([*crashes, new], usage, policy, None)
    left, usage = apply([*crashes, new], usage, found)
    assert max(shortages(left, usage, policy)) <= 0
    before = {c.id: c for c in crashes}
    uses = Counter[str]()
    several = Counter(c.signature_key for c in left if is_core(c))
    for c in left:
        uses[c.owner] += 0 if c.pinned else c.stored_bytes
    later = Counter[str]()  # what went in two steps is told of as one, at the first
    for deletion in found:
        if deletion.whole and deletion.id != "new" and before[deletion.id].has_core:
            later[before[deletion.id].owner] += before[deletion.id].metadata_bytes
    for deletion in reversed(found):
        victim = before[deletion.id]
        uses[victim.owner] += deletion.frees_bytes
        if victim.has_core:
            several[victim.signature_key] += 1
            last = several[victim.signature_key] == 1
            victims_bytes = uses[victim.owner] + later[victim.owner]
            assert not last or victim.owner == owner or victims_bytes >= uses[owner]


# ---- users ----


def test_sec_80_no_number_of_names_makes_more_than_one_share() -> None:
    """Sessions, units, signatures: all that a user can make as many of as they like."""
    root = [crash(n, owner="sshd.service", user="0", signature_key="same") for n in (0, 101, 102)]
    names = {"owner": "session-%d.scope", "signature_key": "/tmp/%d SIGSEGV"}
    flood = [
        crash(n, user="1000", **{name: text % n for name, text in names.items()})
        for n in range(1, 101)
    ]
    found = plan([*root, *flood], PLENTY, Policy(max_use=size(60)), NOW_NS)
    assert len(found) == 97
    assert set(ids(found)).isdisjoint(c.id for c in root)
    found = plan([*root, *flood], PLENTY, Policy(max_count=6), NOW_NS)
    assert len(found) == 97
    assert set(ids(found)).isdisjoint(c.id for c in root)
    shared = [replace(c, owner="sshd.service", signature_key="same") for c in flood]
    found = plan([*root, *shared], PLENTY, Policy(max_per_signature=6), NOW_NS)
    assert len(found) == 94
    assert set(ids(found)).isdisjoint(c.id for c in root), "nor does one that others have"


def test_sec_80_units_of_one_user_share_that_users_part() -> None:
    own = [crash(n, owner="a.service", user="0", signature_key=f"a{n}") for n in range(2)]
    loop = [crash(n, owner="b.service", user="0") for n in range(2, 12)]
    other = [crash(n, owner="c", user="7", signature_key=f"c{n}") for n in range(12, 16)]
    found = plan([*own, *loop, *other], PLENTY, Policy(max_use=size(100)), NOW_NS)
    assert set(ids(found)) <= {c.id for c in loop}
    assert len(found) == 6


def test_sec_80_captures_of_one_user_cost_another_nothing_that_uses_less() -> None:
    """Not even the second core of a signature: by how many units the first one crashes."""
    poor = [crash(n, user="0") for n in range(4)]
    flood = [
        crash(n, user="1000", owner=f"{n}", stored_bytes=30, in_flight=True, has_core=False)
        for n in range(4, 8)
    ]
    policy = Policy(keep_free=size(500))
    assert plan([*poor, *flood], Usage(1000, 400), policy, NOW_NS) == ()
    rich = [replace(c, stored_bytes=40) for c in poor]
    assert ids(plan([*rich, *flood], Usage(1000, 400), policy, NOW_NS)) == ["c1"]


@MANY
@given(
    draw_crashes(simple=True, users=USERS),
    _USAGES,
    st.sampled_from(("use", "free", "count")),
    _COUNTS,
)
def test_plan_takes_from_the_user_who_uses_most(
    crashes: list[StoredCrash], usage: Usage, limit: str, count: int | None
) -> None:
    number = (count or 0) * 20
    policy = {
        "use": Policy(max_use=size(number)),
        "free": Policy(keep_free=size(300 + number)),
        "count": Policy(max_count=count),
    }[limit]
    protected = list_protected(crashes)
    left = {c.id: c for c in crashes}
    busy = Counter[str]()
    for c in crashes:
        busy[c.user] += c.stored_bytes if c.in_flight and not c.pinned else 0
    for deletion in plan(crashes, replace(usage, total_inodes=0), policy, NOW_NS):
        uses = Counter[str]()
        for c in left.values():
            uses[c.user] += 0 if c.pinned else (1 if limit == "count" else c.stored_bytes)
        loose = [c for c in left.values() if c.id not in protected and is_core(c)]
        givers = {c.user for c in loose if limit == "count" or c.stored_bytes}
        victim = left.pop(deletion.id)
        if not busy.total() or limit == "count":
            assert uses[victim.user] == max(uses[user] for user in givers)
        elif not busy[victim.user]:
            assert uses[victim.user] > max(busy.values())


@MANY
@given(draw_crashes(users=USERS, private_signatures=True), _USAGES, _AMOUNTS, _AMOUNTS)
def test_room_is_there_once_planned_for_whoever_the_user_is(
    crashes: list[StoredCrash], usage: Usage, max_use: Amount | None, keep_free: Amount | None
) -> None:
    policy = Policy(max_use, keep_free)
    usage = replace(usage, total_inodes=0)
    size_bytes = room(crashes, usage, policy, "a", "v")
    assume(size_bytes > 0)
    new = crash(999, stored_bytes=size_bytes, owner="a", user="v", in_flight=True, has_core=False)
    usage = replace(usage, reserved_bytes=usage.reserved_bytes + size_bytes)
    left, usage = apply([*crashes, new], usage, plan([*crashes, new], usage, policy, None))
    assert max(shortages(left, usage, policy)) <= 0


# ---- how fast ----

PLANNED = 100_000


def test_plan_of_100000_crashes_is_quick() -> None:
    """Most of them are deleted, by all limits."""
    dice = random.Random(1)
    crashes = [
        crash(
            number,
            time_ns=START_NS + number * 10**9,
            stored_bytes=dice.randrange(1 << 13, 1 << 27),
            owner=f"u{int(dice.expovariate(0.01))}",
            user=f"{dice.randrange(5)}",
            signature_key=f"s{dice.randrange(1000)}",
            pinned=dice.random() < 0.01,
            has_core=dice.random() < 0.9,
            metadata_bytes=1 << 13,
        )
        for number in range(PLANNED)
    ]
    stored = sum(c.stored_bytes for c in crashes)
    usage = Usage(2 * stored, stored, 0, 3 * PLANNED)
    policy = Policy(
        max_use=size(stored // 10),
        keep_free=Amount(thousandths=97_000),
        max_count=PLANNED // 2,
        max_age_ns=PLANNED * 9 * 10**8,
        max_per_signature=12,
        metadata_max_age_ns=PLANNED * 95 * 10**7,
    )
    now_ns = START_NS + PLANNED * 10**9
    start = time.process_time()
    found = plan(crashes, usage, policy, now_ns)
    seconds = time.process_time() - start
    print(f"{PLANNED} crashes, {len(found)} deletions: {seconds:.2f} s")
    assert len(found) > PLANNED / 2
    assert {d.reason for d in found} == {*Limit} - {Limit.INODES}
    assert seconds < 5 * slowness()


# ---- a day of a service that crashes every six seconds ----


CORE_MAX = 80 * MIB
DAY_POLICY = Policy(
    max_use=size(2 << 30),
    keep_free=Amount(thousandths=10_000),
    max_count=60,
    max_per_signature=20,
    metadata_max_age_ns=12 * HOUR_NS,
)


@dataclass
class Store:
    """A simulated store, planned for as the daemon does: cores after each crash, all by the hour.

    The file system has 40 GiB; others use 20 to 35 of them, up and down.
    """

    usage: Usage = field(default_factory=lambda: Usage(40 << 30, 20 << 30, 10**6, 2 * 10**6))
    cores: dict[str, StoredCrash] = field(default_factory=dict)
    tombstones: dict[str, StoredCrash] = field(default_factory=dict)
    reasons: Counter[Limit] = field(default_factory=Counter)

    @property
    def stored_bytes(self) -> int:
        """Of all crashes."""
        return self.usage.unlisted_bytes + sum(c.stored_bytes for c in self.cores.values())

    def capture(self, new: StoredCrash) -> None:
        """Reserve what a core may have at most, and store what it has."""
        reserved = replace(new, stored_bytes=CORE_MAX, has_core=False, in_flight=True)
        self.usage = replace(self.usage, reserved_bytes=CORE_MAX)
        self.carry_out(plan([*self.cores.values(), reserved], self.usage, DAY_POLICY, None))
        self.check(CORE_MAX)
        self.cores[new.id] = new
        self.usage = replace(
            self.usage, reserved_bytes=0, free_bytes=self.usage.free_bytes - new.stored_bytes
        )
        self.check(0)

    def others_use(self, more_bytes: int) -> None:
        """Let somebody else write to the file system, or delete."""
        self.usage = replace(self.usage, free_bytes=self.usage.free_bytes - more_bytes)

    def tidy(self, now_ns: int) -> None:
        """Plan for everything, tombstones included."""
        every = [*self.tombstones.values(), *self.cores.values()]
        usage = replace(self.usage, unlisted_bytes=0)
        found = plan(every, usage, DAY_POLICY, now_ns)
        self.carry_out(found)
        self.check(0)

    def carry_out(self, deletions: Iterable[Deletion]) -> None:
        """Do what was planned."""
        freed = tombstones = 0
        for deletion in deletions:
            self.reasons[deletion.reason] += 1
            freed += deletion.frees_bytes
            if (lost := self.cores.pop(deletion.id, None)) is None:
                tombstones -= self.tombstones.pop(deletion.id).stored_bytes
            elif not deletion.whole:
                left = lost.metadata_bytes
                tombstones += left
                self.tombstones[lost.id] = replace(lost, has_core=False, stored_bytes=left)
        self.usage = replace(
            self.usage,
            free_bytes=self.usage.free_bytes + freed,
            unlisted_bytes=self.usage.unlisted_bytes + tombstones,
        )

    def check(self, reserved_bytes: int) -> None:
        """See that the limits hold."""
        assert self.stored_bytes + reserved_bytes <= 2 << 30
        assert self.usage.free_bytes - reserved_bytes >= 4 << 30
        assert len(self.cores) <= 60


def a_day() -> Iterator[StoredCrash]:
    """Crash `loop.service` every 6 s by one of three bugs, others 40 times in between."""
    dice = random.Random(1)
    times = range(0, 24 * 3600, 6)
    rare = set(dice.sample(times, 40))
    sequence = 0
    for second in times:
        now_ns = START_NS + second * 10**9
        if second in rare:
            service = dice.randrange(12)
            yield crash(
                sequence,
                time_ns=now_ns,
                owner=f"rare{service}.service",
                signature_key=f"rare{service}:{dice.randrange(2)}",
                stored_bytes=dice.randrange(MIB, 8 * MIB),
                metadata_bytes=8192,
            )
            sequence += 1
        bug = dice.choices(("loop:1", "loop:2", "loop:3"), (1000, 100, 1))[0]
        yield crash(
            sequence,
            time_ns=now_ns,
            owner="loop.service",
            signature_key=bug,
            stored_bytes=dice.randrange(CORE_MAX // 2, CORE_MAX),
            metadata_bytes=8192,
        )
        sequence += 1


def test_plan_over_a_day_of_a_crash_loop_keeps_limits_and_the_right_cores() -> None:
    store = Store()
    first: dict[str, str] = {}
    newest: dict[str, str] = {}
    others: set[str] = set()
    hours = 0
    for new in a_day():
        store.capture(new)
        first.setdefault(new.signature_key, new.id)
        newest[new.signature_key] = new.id
        if new.owner != "loop.service":
            others.add(new.id)
        kept = store.cores.keys()
        assert kept >= {*first.values(), *newest.values()} | others
        if new.time_ns - START_NS >= hours * HOUR_NS:
            store.others_use(((-15, 15)[hours % 2] << 30) * (hours > 0))
            store.tidy(new.time_ns)
            hours += 1
    assert (len(others), hours) == (40, 24)
    assert len(store.tombstones) <= 13 * 600
    assert store.reasons.keys() == {
        Limit.MAX_USE,
        Limit.KEEP_FREE,
        Limit.MAX_COUNT,
        Limit.MAX_PER_SIGNATURE,
        Limit.METADATA_MAX_AGE,
    }
