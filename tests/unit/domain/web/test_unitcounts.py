import pytest

from crashd.domain.web.unitcounts import (
    CANDIDATES_MAX,
    CHANGE_SECONDS,
    UNITS_MAX,
    UnitCounts,
    fold_unit,
)

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("unit", "name"),
    [
        ("ssh.service", "ssh.service"),
        ("init.scope", "init.scope"),
        ("user-1000.slice", "user-1000.slice"),
        ("getty@tty1.service", "getty@*.service"),
        ("user@1000.service", "user@*.service"),
        ("session-12.scope", "session-*.scope"),
        ("session-c3.scope", "session-*.scope"),
        (f"docker-{HEX}.scope", "docker-*.scope"),
        (f"libpod-{HEX}.scope", "libpod-*.scope"),
        (f"x:cri-containerd-{HEX}.scope", "x:cri-containerd-*.scope"),
        ("run-u12.service", "run-*.service"),
        ("run-p123-i456.service", "run-*.service"),
        (f"run-r{HEX[:32]}.scope", "run-*.scope"),
        ("run-docker.service", "run-docker.service"),
        ("app-gnome-firefox-1234.scope", "app-gnome-firefox-*.scope"),
        ("tmux-spawn-9d1e4f2a-81b3-4b4e-b1c5-0d9c4f8e7a6b.scope", "tmux-spawn-*.scope"),
        (None, "other"),
        ("", "other"),
        ("no-type", "other"),
        ('x"} 1.service', "other"),
        ("a\nb.service", "other"),
        ("u" * 200 + ".service", "other"),
        ("a*.service", "other"),
    ],
)
def test_fold_unit_leaves_what_units_of_a_kind_share(unit: str | None, name: str) -> None:
    assert fold_unit(unit) == name


def full() -> UnitCounts:
    """Counts with all places taken by units that crashed once, a day ago."""
    counts = UnitCounts()
    for number in range(UNITS_MAX):
        counts.add(f"u{number}.service", 0)
    return counts


def test_add_unit_in_a_loop_takes_the_place_of_a_light_one() -> None:
    counts, now = full(), 86400.0
    counts.add("u0.service", now)  # the only one that crashed recently
    for _ in range(8):
        counts.add("web.service", now)
    found = dict(counts.items())
    assert len(found) == UNITS_MAX + 1
    assert found["web.service"] == 8
    assert found["other"] == 2  # before it had its place
    assert "u0.service" in found


def test_add_rare_units_take_no_place() -> None:
    counts = full()
    for day in range(1, 10):
        counts.add("rare.service", day * 86400)
    found = dict(counts.items())
    assert "rare.service" not in found
    assert found["other"] == 9


def test_add_units_take_places_slowly_whoever_crashes() -> None:
    counts = full()
    for second in range(600):
        for _ in range(4):
            counts.add(f"new{second}.service", 86400 + second)
    named = {name for name, _ in counts.items() if name.startswith("new")}
    assert 2 <= len(named) <= 600 / CHANGE_SECONDS + 1


def test_add_unit_in_a_loop_gets_a_place_among_many_that_crash_once() -> None:
    counts = full()
    for number in range(4 * CANDIDATES_MAX):
        counts.add(f"once{number}.service", 86400 + number / 10)
        if number % 100 == 99:
            counts.add("web.service", 86400 + number / 10)
    assert dict(counts.items())["web.service"] == 9  # 1 of 10 faded
    assert len(counts._candidates) <= CANDIDATES_MAX


def test_add_totals_only_grow_while_names_stay() -> None:
    counts = full()
    before = dict(counts.items())
    for second in range(100):
        counts.add(f"new{second % 7}.service", 86400 + 30 * second)
        found = dict(counts.items())
        assert all(found[name] >= before[name] for name in found.keys() & before.keys())
        before = found


def test_seed_folds_before_it_chooses() -> None:
    counts = UnitCounts()
    sessions: dict[str | None, int] = {f"session-{n}.scope": 1 for n in range(100)}
    counts.seed({"ssh.service": 2, None: 5, **sessions})
    assert dict(counts.items()) == {"session-*.scope": 100, "other": 5, "ssh.service": 2}


def test_seed_others_beyond_the_places_are_other() -> None:
    counts = UnitCounts()
    counts.seed({f"u{n}.service": n + 1 for n in range(UNITS_MAX + 2)})
    found = dict(counts.items())
    assert len(found) == UNITS_MAX + 1
    assert found["other"] == 1 + 2
    counts.add("u0.service", 0)
    assert dict(counts.items())["other"] == 1 + 2 + 1
