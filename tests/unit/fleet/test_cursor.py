"""Which objects are new, when clocks are wrong, listings late and objects many."""

from datetime import UTC, datetime, timedelta

import pytest

from crashd.domain.fleet.keys import records_key
from crashd.edge.fleet.bucket import Found
from crashd.fleet.cursor import FEW, LATE_EVERY, RECENT_MAX, SETTLING, Cursor, Look

HOST = "ab" * 16
NOW = datetime(2026, 11, 28, 12, 30, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def make(number: int, at: datetime, *, clock: timedelta = timedelta()) -> Found:
    """Make an object that the store got `at`, from a host whose clock is off by `clock`."""
    return Found(records_key(HOST, int((at + clock).timestamp()) * 10**9, "0" * 32, number), 9, at)


def pass_over(cursor: Cursor, stored: list[Found], now: datetime) -> tuple[Cursor, list[Found]]:
    """List as the indexer does; return what it takes."""
    start = cursor.start(now)
    look = Look(cursor, everything=start is None)
    listed = sorted((one for one in stored if one.key > (start or "")), key=lambda one: one.key)
    taken = [one for one in listed if look.takes(one)]
    return look.end(now, poll=5, idle=60), taken


def busy(cursor: Cursor) -> Cursor:
    """Make it a cursor of a host with more objects than one request lists."""
    return Cursor(
        cursor.host, FEW + 1, cursor.mark, cursor.late_mark, cursor.late_looked, cursor.recent
    )


def test_pass_takes_each_object_once_whatever_the_clocks() -> None:
    stored: list[Found] = []
    cursor, count = Cursor(HOST), 0
    for minute in range(0, 240, 7):
        now = NOW + timedelta(minutes=minute)
        for clock in (timedelta(), DAY, -DAY, -3 * HOUR, 400 * DAY):
            stored.append(make(len(stored), now, clock=clock))
        cursor, taken = pass_over(cursor, stored, now)
        count += len(taken)
        assert taken == sorted(stored[-5:], key=lambda one: one.key)
    assert count == len(stored)


def test_pass_over_host_with_many_objects_finds_late_ones_in_time() -> None:
    cursor, _ = pass_over(Cursor(HOST), [make(0, NOW)], NOW)
    cursor = busy(cursor)
    late = make(1, NOW + HOUR, clock=-DAY)
    punctual = make(2, NOW + HOUR)
    soon = NOW + timedelta(minutes=1)
    cursor, taken = pass_over(cursor, [make(0, NOW), late, punctual], soon)
    assert taken == [punctual]
    cursor = busy(cursor)
    cursor, taken = pass_over(cursor, [make(0, NOW), late, punctual], soon + LATE_EVERY)
    assert taken == [late]
    cursor, taken = pass_over(busy(cursor), [make(0, NOW), late, punctual], soon + 3 * LATE_EVERY)
    assert taken == []


def test_pass_takes_object_that_store_lists_late() -> None:
    first, hidden = make(1, NOW), make(2, NOW - SETTLING / 2)
    cursor, _ = pass_over(Cursor(HOST), [first], NOW)
    cursor, taken = pass_over(cursor, [first, hidden], NOW)
    assert taken == [hidden]


def test_start_after_many_objects_is_hours_before_the_newest() -> None:
    cursor = Cursor(HOST, FEW + 1, mark=NOW, late_mark=NOW, late_looked=NOW)
    assert cursor.start(NOW) == f"records/v1/{HOST}/2026-11-28/10"
    assert cursor.start(NOW + LATE_EVERY) is None


def test_end_remembers_a_bounded_number_of_names() -> None:
    moment = timedelta(milliseconds=1)
    stored = [make(number, NOW + number * moment) for number in range(RECENT_MAX * 3)]
    cursor, taken = pass_over(Cursor(HOST), stored, NOW)
    assert len(taken) == len(stored)
    assert len(cursor.recent) == RECENT_MAX


@pytest.mark.parametrize("each", [timedelta(), timedelta(milliseconds=10)])
@pytest.mark.parametrize("clock", [timedelta(), -DAY])
def test_pass_after_more_objects_than_names_are_remembered_takes_only_new_ones(
    each: timedelta, clock: timedelta
) -> None:
    stored = [make(number, NOW + number * each, clock=clock) for number in range(RECENT_MAX * 2)]
    cursor, taken = pass_over(Cursor(HOST), stored, NOW)
    assert len(taken) == len(stored)
    for seconds in range(1, 4):
        stored.append(make(len(stored), NOW + timedelta(minutes=2, seconds=seconds), clock=clock))
        cursor, taken = pass_over(cursor, stored, NOW + seconds * LATE_EVERY)
        assert taken == stored[-1:]
        assert len(cursor.recent) <= RECENT_MAX


def test_end_of_long_look_leaves_open_what_came_meanwhile() -> None:
    look = Look(Cursor(HOST), everything=True, began=NOW)
    seen, missed = make(2, NOW + HOUR / 2), make(1, NOW + timedelta(minutes=5))
    assert look.takes(seen)
    cursor = look.end(NOW + HOUR / 2, poll=5, idle=60)
    _, taken = pass_over(cursor, [missed, seen], NOW + HOUR)
    assert taken == [missed]


def test_look_at_strange_name_takes_it_once() -> None:
    strange = Found(f"records/v1/{HOST}/x.txt", 9, NOW)
    cursor, taken = pass_over(Cursor(HOST), [strange], NOW)
    assert taken == [strange]
    assert pass_over(cursor, [strange], NOW)[1] == []


def test_end_without_new_objects_waits_longer_up_to_a_limit() -> None:
    cursor, _ = pass_over(Cursor(HOST), [make(0, NOW)], NOW)
    assert cursor.idle_seconds == 0
    waits = []
    for _ in range(8):
        cursor, _ = pass_over(cursor, [make(0, NOW)], NOW)
        waits.append(int(cursor.idle_seconds))
    assert waits == [5, 7, 11, 16, 25, 37, 56, 60]
