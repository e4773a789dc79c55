from crashd.domain.keep.fairqueue import HALF_LIFE_SECONDS, FairQueue


def take_all(queue: "FairQueue[str]", seconds: float = 0.0) -> list[str]:
    """Take all, each of which takes so long."""
    found, now = [], 1000.0
    while (taken := queue.take(now)) is not None:
        owner, item = taken
        found.append(item)
        now += seconds
        queue.charge(owner, seconds, now)
    return found


def test_take_serves_owners_in_turn_and_each_in_order() -> None:
    queue: FairQueue[str] = FairQueue(100)
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        assert queue.put(item[0], item) == []
    assert take_all(queue) == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert len(queue) == 0


def test_take_prefers_who_used_least_lately() -> None:
    queue: FairQueue[str] = FairQueue(100)
    queue.charge("a", 60, 1000)
    queue.charge("b", 1, 1000)
    for item in ("a1", "a2", "b1", "b2", "c1"):
        queue.put(item[0], item)
    assert take_all(queue, 1.0) == ["c1", "b1", "b2", "a1", "a2"]


def test_take_forgets_what_was_used_long_ago() -> None:
    queue: FairQueue[str] = FairQueue(100)
    queue.charge("a", 60, 0)
    queue.charge("b", 1, 100 * HALF_LIFE_SECONDS)
    queue.put("b", "b1")
    queue.put("a", "a1")
    assert queue.take(100 * HALF_LIFE_SECONDS) == ("a", "a1")


def test_put_drops_the_newest_of_whoever_has_most() -> None:
    queue: FairQueue[str] = FairQueue(4)
    for item in ("a1", "a2", "a3", "a4"):
        assert queue.put("a", item) == []
    assert queue.put("a", "a5") == ["a5"], "one's own flood costs oneself"
    assert queue.put("b", "b1") == ["a4"]
    assert queue.put("c", "c1") == ["a3"]
    assert queue.put("b", "b2") == ["b2"], "two each: who comes now has one more"
    assert sorted(queue) == ["a1", "a2", "b1", "c1"]


def test_take_late_items_come_after_the_owners_others_and_are_dropped_first() -> None:
    queue: FairQueue[str] = FairQueue(4)
    queue.put("a", "a1")
    for item in ("a2", "a3"):
        assert queue.put("a", item, late=True) == []
    assert queue.put("a", "a4") == []
    assert list(queue) == ["a1", "a4", "a2", "a3"]
    assert queue.put("b", "b1", late=True) == ["a3"]
    assert queue.put("b", "b2") == ["a2"]
    assert take_all(queue) == ["a1", "b2", "a4", "b1"]


def test_take_more_takes_the_oldest_that_fit_and_leaves_the_others_in_order() -> None:
    queue: FairQueue[str] = FairQueue(9)
    for item in ("x1", "y1", "x2", "y2", "x3"):
        queue.put("a", item, late=item > "x1")
    queue.put("b", "x9")
    assert queue.take_more("a", lambda item: item.startswith("x"), 2) == ["x1", "x2"]
    assert list(queue) == ["y1", "y2", "x3", "x9"]
    assert queue.take_more("a", lambda _: True, 9) == ["y1", "y2", "x3"]
    assert queue.take_more("a", lambda _: True, 9) == []
    assert list(queue) == ["x9"]
