"""Retention of process crashes on a real store: the daemon's, crashctl's, that of a day."""

import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crashd.domain.model import Core, Crash, State
from crashd.domain.retention import Policy, plan
from crashd.domain.units import Amount
from crashd.store import entry as entries
from crashd.store.entry import open_entry
from crashd.store.expiry import carry_out_all, finish_evictions, read_stored, read_usage
from crashd.store.index import Index
from crashd.store.paths import Paths
from tests.builders.crashes import build_crash
from tests.integration.test_daemon import metric
from tests.running import DEFAULT_CONFIG, Daemon, crashctl, wait_until

CORE = b"\x28\xb5\x2f\xfd" + b"core" * 1000
START_NS = 1_795_000_000 * 10**9


@pytest.fixture
def paths(short_tmp: Path) -> Paths:
    found = Paths(short_tmp)
    entries.prepare(found)
    return found


def add(paths: Paths, index: Index, number: int, **more: Any) -> Crash:
    """Put a crash with a core into the store and the index."""
    more.setdefault("time_ns", START_NS + number * 10**9)
    core = Core("core.zst", len(CORE), len(CORE), len(CORE), len(CORE), True)
    crash = replace(build_crash(number, **more), state=State.COMPLETE, core=core)
    with entries.create(paths, crash) as entry:
        fd = entry.create_core()
        os.write(fd, CORE)
        os.close(fd)
        entry.commit_core()
        entry.write(crash, sync=False)
    index.put([crash])
    return crash


@pytest.fixture
def index(paths: Paths) -> Iterator[Index]:
    with Index.open(paths.index) as opened:
        yield opened


def cores(paths: Paths) -> list[str]:
    return sorted(path.parent.name for path in paths.crashes.glob("*/core.zst"))


def start(paths: Paths, limits: str) -> Daemon:
    config = DEFAULT_CONFIG + f"[retention.process]\nkeep_free = 0\n{limits}\n"
    return Daemon(paths.root, "--no-register", config=config)


def test_daemon_meets_its_limits_at_start_and_leaves_tombstones(paths: Paths, index: Index) -> None:
    crashes = [add(paths, index, number, signature=f"p1-{number:016x}") for number in range(8)]
    index.close()
    with start(paths, "max_count = 5") as daemon:
        wait_until(lambda: len(cores(paths)) == 5, 10, "three cores are deleted")
        wait_until(
            lambda: [c["state"] for c in daemon.crashes()].count("evicted") == 3, 5, "and told of"
        )
        assert cores(paths) == sorted(crash.id for crash in crashes[3:])
        evicted = json.loads(daemon.crashctl("info", "--json", crashes[0].id).stdout)
        assert evicted["state"] == "evicted"
        assert evicted["capture"]["reason"] == "deleted by retention: retention.process.max_count"
        assert evicted["core"]["path"] is None
        labels = '{kind="process",reason="max_count"}'
        assert metric(daemon, f"crashd_retention_deleted_total{labels}") == 3
        freed = metric(daemon, 'crashd_retention_freed_bytes_total{kind="process"}')
        assert freed == 3 * len(CORE)
        assert daemon.crashctl("verify").stdout == ""


def test_daemon_told_of_narrower_limits_meets_them(paths: Paths, index: Index) -> None:
    for number in range(6):
        add(paths, index, number, signature=f"p1-{number:016x}", pinned=number == 0)
    index.close()
    with start(paths, "max_count = 100") as daemon:
        time.sleep(1.5)
        assert len(cores(paths)) == 6
        text = daemon.paths.config_file.read_text().replace("= 100", "= 2")
        daemon.paths.config_file.write_text(text)
        os.kill(daemon.pid, 1)
        wait_until(lambda: len(cores(paths)) == 2, 10, "four are deleted")
        pinned = daemon.crashes()[0]
        assert pinned["pinned"] and pinned["id"] in cores(paths)


def test_vacuum_says_what_it_would_do_and_does_it(paths: Paths, index: Index) -> None:
    for number in range(5):
        add(paths, index, number, signature="p1-00000000000000aa")
    paths.config_file.parent.mkdir(parents=True)
    paths.config_file.write_text("[retention.process]\nmax_per_signature = 2\nkeep_free = 0\n")
    dry = crashctl(paths.root, "vacuum", "--dry-run")
    assert len(dry.stdout.splitlines()) == 3
    assert "max_per_signature" in dry.stdout
    assert "3 would be deleted" in dry.stderr
    assert len(cores(paths)) == 5
    rows = json.loads(crashctl(paths.root, "vacuum", "--json").stdout)
    assert [row["reason"] for row in rows] == ["max_per_signature"] * 3
    left = cores(paths)
    assert len(left) == 2
    assert crashctl(paths.root, "vacuum").stdout == ""
    assert cores(paths) == left
    assert crashctl(paths.root, "verify").stdout == ""


def test_crash_that_was_pinned_or_is_written_to_after_the_plan_stays(
    paths: Paths, index: Index
) -> None:
    crashes = [add(paths, index, number, signature="p1-aa") for number in range(4)]
    limits = Policy(max_count=1)
    deletions = plan(read_stored(index), read_usage(paths), limits, None)
    assert len(deletions) == 3
    with open_entry(paths, crashes[0].id) as entry:
        entry.write(replace(crashes[0], pinned=True), sync=False)
    with open_entry(paths, crashes[1].id) as busy:
        assert busy.try_lock()
        carry_out_all(
            paths, deletions, done=lambda _: None, failed=lambda d, e: pytest.fail(str(e))
        )
    assert cores(paths) == sorted([crashes[0].id, crashes[1].id, crashes[3].id])


def test_eviction_that_was_killed_midway_is_finished(paths: Paths, index: Index) -> None:
    crash = add(paths, index, 1)
    tombstone = replace(crash, state=State.EVICTED, core=Core())
    with open_entry(paths, crash.id) as entry:
        entry.write(tombstone, sync=True)  # and here the daemon died
    index.put([tombstone])
    assert cores(paths) == [crash.id]
    assert finish_evictions(paths, index) == len(CORE)
    assert cores(paths) == []


def test_old_tombstone_goes_altogether(paths: Paths, index: Index) -> None:
    now_ns = START_NS + 400 * 86400 * 10**9
    old = add(paths, index, 1)
    tombstone = replace(old, state=State.EVICTED, core=Core())
    with open_entry(paths, old.id) as entry:
        entry.write(tombstone, sync=True)
        entry.drop_core()
    index.put([tombstone])
    new = add(paths, index, 2, time_ns=now_ns)
    limits = Policy(metadata_max_age_ns=366 * 86400 * 10**9)
    deletions = plan(read_stored(index), read_usage(paths), limits, now_ns)
    carry_out_all(paths, deletions, done=lambda _: None, failed=lambda d, e: pytest.fail(str(e)))
    assert os.listdir(paths.crashes) == [new.id]


def test_day_of_a_crash_loop_keeps_within_limits_and_others_cores(
    paths: Paths, index: Index
) -> None:
    """A tenth of `python -m tests.day`: that has 43,200 crashes."""
    from tests.day import Day

    day = Day(paths, index, crashes=4320, limit_bytes=4 << 20)
    day.run()
    assert day.largest_bytes <= 4 << 20
    assert day.missing_first_or_newest() == []
    assert day.others_left() == day.others
    assert crashctl(paths.root, "list", "-n", "3").returncode == 0


def test_plan_of_random_stores_always_ends_within_limits_on_disk(
    paths: Paths, index: Index
) -> None:
    generator = random.Random(7)
    for number in range(60):
        signature = f"p1-{generator.randrange(6):016x}"
        add(paths, index, number, signature=signature, unit=f"u{generator.randrange(3)}.service")
    limits = Policy(max_use=Amount(size_bytes=60 * 48 * 1024 + 20 * len(CORE)), max_count=25)
    deletions = plan(read_stored(index), read_usage(paths), limits, None)

    def done(removed: Any) -> None:
        if removed.tombstone is None:
            index.remove([removed.deletion.id])
        else:
            index.put([removed.tombstone])

    carry_out_all(paths, deletions, done=done, failed=lambda d, e: pytest.fail(str(e)))
    assert 0 < len(cores(paths)) <= 25
    assert sum(crash.stored_bytes for crash in read_stored(index)) <= 60 * 48 * 1024 + 20 * len(
        CORE
    )
    assert plan(read_stored(index), read_usage(paths), limits, None) == ()
