from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashd.domain.keep.kernel import (
    DumpDeletion,
    DumpLimit,
    KernelDump,
    KernelPolicy,
    plan_retention,
)

DAY = 86_400 * 10**9
NOW = 1_800_000_000 * 10**9
GIB = 2**30


def dump(key: str, days: float = 0, *, complete: bool = True, size: int = GIB) -> KernelDump:
    time = NOW - int(days * DAY)
    return KernelDump(key, time, time + 60 * 10**9, size, complete)


def planned(
    dumps: list[KernelDump], policy: KernelPolicy, free: int = 100 * GIB
) -> list[tuple[str, str]]:
    return [(d.key, d.reason) for d in plan_retention(dumps, free, policy, NOW)]


FIVE = [dump(name, days) for name, days in zip("abcde", (50, 40, 30, 20, 10), strict=True)]


def test_plan_no_limits_keeps_all() -> None:
    assert planned(FIVE, KernelPolicy(), free=0) == []


@pytest.mark.parametrize(("count", "gone"), [(0, ""), (1, "abcd"), (2, "abc"), (5, ""), (9, "")])
def test_plan_count_keeps_the_newest(count: int, gone: str) -> None:
    expected = [(key, "max_count") for key in gone]
    assert planned(FIVE, KernelPolicy(max_count=count)) == expected
    assert planned(FIVE[::-1], KernelPolicy(max_count=count)) == expected


def test_plan_incomplete_never_push_out_complete() -> None:
    newer = [dump(f"x{i}", i / 10, complete=False) for i in range(50)]
    gone = planned([*FIVE, *newer], KernelPolicy(max_count=2))
    assert [key for key, _ in gone if not key.startswith("x")] == ["a", "b", "c"]
    assert len([key for key, _ in gone if key.startswith("x")]) == 48
    assert "x0" not in dict(gone)


def test_plan_what_may_be_cut_pushes_out_nothing() -> None:
    unsure = [
        replace(dump(f"m{i}", i / 10, complete=False), maybe=True) for i in range(4)
    ]  # m0 is the newest
    one = KernelPolicy(max_count=1)
    assert planned([dump("a", 50), *unsure], one) == []
    assert planned(unsure, one) == []
    # what is surely whole and came later does push out
    assert planned([*unsure, dump("w", 0.15)], one) == [("m3", "max_count"), ("m2", "max_count")]
    # nor is it pushed out by what is known to be cut
    cut = [dump(f"x{i}", -i, complete=False) for i in range(3)]
    assert planned([*unsure, *cut], one) == [("x0", "max_count"), ("x1", "max_count")]


def test_plan_where_space_is_short_the_cut_go_first_and_the_newest_of_each_kind_stay() -> None:
    unsure = [replace(dump(f"m{i}", 60 + i, complete=False), maybe=True) for i in range(2)]
    dumps = [*FIVE, *unsure, dump("x", 1, complete=False)]
    gone = [key for key, _ in planned(dumps, KernelPolicy(keep_free_bytes=10**18), free=0)]
    assert gone == ["x", "m1", "a", "b", "c", "d"]


def test_plan_planted_are_neither_counted_nor_deleted() -> None:
    planted = [replace(dump(f"p{i}", -1 - i), trusted=False) for i in range(50)]
    policy = KernelPolicy(max_count=2, max_use_bytes=GIB, keep_free_bytes=10**18, max_age_ns=1)
    with_planted = planned([*FIVE, *planted], policy, free=0)
    assert with_planted == planned(FIVE, policy, free=0)
    assert planned(planted, policy, free=0) == []


def test_plan_newest_complete_stays_whatever_is_asked() -> None:
    policy = KernelPolicy(max_count=1, max_use_bytes=1, keep_free_bytes=10**18, max_age_ns=1)
    only = [dump("a", 99), dump("b", 98, complete=False)]
    assert planned(only, policy, free=0) == [("b", "max_age")]


def test_plan_pinned_and_capturing_stay_but_pins_have_a_rank() -> None:
    dumps = [replace(FIVE[0], pinned=True), *FIVE[1:4], replace(FIVE[4], pinned=True)]
    writing = replace(dump("w", 0, complete=False), capturing=True)
    assert planned([*dumps, writing], KernelPolicy(max_count=2)) == [
        ("b", "max_count"),
        ("c", "max_count"),
    ]


def test_plan_age_counts_from_the_crash() -> None:
    assert planned(FIVE, KernelPolicy(max_age_ns=30 * DAY)) == [("a", "max_age"), ("b", "max_age")]
    (first, *_) = plan_retention(FIVE, 0, KernelPolicy(max_age_ns=30 * DAY), NOW)
    assert first == DumpDeletion("a", DumpLimit.AGE, "50 days old, more than the 30 allowed", GIB)


def test_plan_use_and_free_take_incomplete_first_and_no_more_than_needed() -> None:
    dumps = [*FIVE, dump("x", 1, complete=False, size=GIB // 2), dump("e0", 5, size=0)]
    assert planned(dumps, KernelPolicy(max_use_bytes=5 * GIB)) == [("x", "max_use")]
    assert planned(dumps, KernelPolicy(max_use_bytes=4 * GIB)) == [
        ("x", "max_use"),
        ("a", "max_use"),
    ]
    free = KernelPolicy(keep_free_bytes=2 * GIB)
    assert planned(dumps, free, free=GIB) == [("x", "keep_free"), ("a", "keep_free")]
    assert planned(dumps, free, free=2 * GIB) == []


def test_plan_what_age_frees_counts_for_use() -> None:
    policy = KernelPolicy(max_age_ns=35 * DAY, max_use_bytes=3 * GIB)
    assert planned(FIVE, policy) == [("a", "max_age"), ("b", "max_age")]


@pytest.mark.parametrize("wrong_ns", [0, 10**9, -(10**9), 4_000_000_000 * 10**9, 2**63 - 1])
def test_plan_clock_of_1970_or_2099_dates_by_when_it_was_seen(wrong_ns: int) -> None:
    odd = KernelDump("odd", wrong_ns, NOW - 25 * DAY, GIB, True)
    assert planned([*FIVE, odd], KernelPolicy(max_count=3)) == [
        ("a", "max_count"),
        ("b", "max_count"),
        ("c", "max_count"),
    ]
    assert planned([odd, dump("new")], KernelPolicy(max_age_ns=26 * DAY)) == []


DUMPS = st.lists(
    st.builds(
        KernelDump,
        st.text("abcdef", min_size=8, max_size=8),
        st.integers(-(2**63), 2**63),
        st.integers(10**18, NOW + DAY),
        st.integers(0, 10 * GIB),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    max_size=12,
    unique_by=lambda d: d.key,
)
SIZES = st.one_of(st.just(0), st.integers(0, 40 * GIB))
POLICIES = st.builds(
    KernelPolicy, st.integers(0, 6), SIZES, SIZES, st.one_of(st.just(0), st.integers(1, 2**62))
)


@settings(max_examples=500, deadline=None)
@given(DUMPS, SIZES, POLICIES)
def test_plan_whatever_comes_keeps_what_must_stay(
    dumps: list[KernelDump], free: int, policy: KernelPolicy
) -> None:
    plan = plan_retention(dumps, free, policy, NOW)
    by_key = {d.key: d for d in dumps}
    gone = [by_key[d.key] for d in plan]
    assert len({d.key for d in gone}) == len(plan)
    assert not any(d.pinned or d.capturing or not d.trusted for d in gone)
    left = [d for d in dumps if d not in gone]
    had = [d for d in dumps if d.complete and d.trusted and not d.capturing]
    if had:
        assert max(had, key=lambda d: (d.dated_ns, d.key)) in left
    has = [d for d in had if d in left]
    aged_out = {d.key for d in plan if d.reason != DumpLimit.COUNT}
    if policy.max_count and not aged_out:
        unpinned_old = len([d for d in has if not d.pinned])
        assert unpinned_old <= policy.max_count
        assert len(has) >= min(policy.max_count, len(had))


@settings(max_examples=300, deadline=None)
@given(DUMPS, SIZES, POLICIES)
def test_plan_carried_out_has_nothing_left_to_do(
    dumps: list[KernelDump], free: int, policy: KernelPolicy
) -> None:
    plan = plan_retention(dumps, free, policy, NOW)
    gone = {d.key for d in plan}
    freed = sum(d.size_bytes for d in plan)
    left = [d for d in dumps if d.key not in gone]
    assert plan_retention(left, free + freed, policy, NOW) == ()


@settings(max_examples=300, deadline=None)
@given(DUMPS, SIZES, SIZES)
def test_plan_space_takes_no_complete_dump_while_an_incomplete_one_is_left(
    dumps: list[KernelDump], free: int, keep: int
) -> None:
    by_key = {d.key: d for d in dumps}
    plan = plan_retention(dumps, free, KernelPolicy(keep_free_bytes=keep), NOW)
    order = [by_key[d.key].complete for d in plan]
    assert order == sorted(order)
    freed = [0, *(sum(d.size_bytes for d in plan[: i + 1]) for i in range(len(plan)))]
    assert all(free + before < keep for before in freed[:-1])
