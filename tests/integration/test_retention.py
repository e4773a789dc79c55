"""Retention of process crashes on a real store: the daemon's, crashctl's, that of a day."""

import errno
import json
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crashd.domain.crash.model import Core, Crash, State
from crashd.domain.keep.process import Deletion, Limit, Policy, plan
from crashd.domain.units import Amount
from crashd.errors import UnavailableError
from crashd.store import entry as entries
from crashd.store import pending
from crashd.store.catalog import reindex
from crashd.store.entry import open_entry
from crashd.store.index import Index
from crashd.store.paths import Paths
from crashd.store.pending import open_pending
from crashd.store.retention import (
    Outcome,
    Removed,
    RowWriter,
    Told,
    carry_out_all,
    finish_all,
    read_stored,
    read_usage,
)
from tests.builders.crashes import build_crash
from tests.day import CRASHES, Day, report
from tests.integration.test_daemon import metric
from tests.running import DEFAULT_CONFIG, Daemon, crashctl, wait_until

CORE = b"\x28\xb5\x2f\xfd" + b"core" * 1000
DELETED = 'crashd_retention_deleted_total{kind="process",reason="max_per_signature"}'
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
        wait_until(lambda: len(cores(paths)) == 5, 30, "three cores are deleted")
        wait_until(
            lambda: [c["state"] for c in daemon.seen()].count("evicted") == 3, 30, "and shown"
        )
        assert cores(paths) == sorted(crash.id for crash in crashes[3:])
        evicted = json.loads(daemon.crashctl("info", "--json", crashes[0].id).stdout)
        assert evicted["state"] == "evicted"
        assert evicted["evicted"]["reason"] == "max_count"
        assert evicted["evicted"]["time"].endswith("Z")
        assert evicted["capture"]["reason"] is None
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
        wait_until(lambda: len(cores(paths)) == 2, 30, "four are deleted")
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
    assert "would delete 3 and free" in dry.stderr
    assert len(cores(paths)) == 5
    rows = json.loads(crashctl(paths.root, "vacuum", "--json").stdout)
    assert [row["reason"] for row in rows] == ["max_per_signature"] * 3
    left = cores(paths)
    assert len(left) == 2
    assert crashctl(paths.root, "vacuum").stdout == ""
    assert cores(paths) == left
    assert crashctl(paths.root, "verify").stdout == ""


def test_vacuum_is_the_daemons_where_one_runs(paths: Paths, index: Index) -> None:
    crashes = [add(paths, index, number, signature="p1-aa") for number in range(5)]
    index.close()
    with start(paths, "max_per_signature = 5") as daemon:
        wait_until(lambda: paths.pending_deletions.exists(), 30, "the first look")
        assert daemon.crashctl("vacuum").stderr == "crashctl: nothing to delete\n"
        text = paths.config_file.read_text().replace("signature = 5", "signature = 2")
        paths.config_file.write_text(text)
        assert daemon.crashctl("vacuum", "--dry-run").stdout == ""  # the limits are the daemon's
        with open_entry(paths, crashes[1].id) as read:
            reader = read.open_core()
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: len(cores(paths)) == 3, 30, "two cores are deleted")
        done = daemon.crashctl("vacuum", check=False)
        assert (done.returncode, len(done.stdout.splitlines())) == (1, 1)
        assert f"{crashes[1].id} was not deleted: it is pinned, in use" in done.stderr
        os.close(reader)
        rows = json.loads(daemon.crashctl("vacuum", "--json").stdout)
        assert [row["id"] for row in rows] == [crashes[1].id]
        assert cores(paths) == [crashes[0].id, crashes[4].id]
        assert metric(daemon, DELETED) == 3
        info = daemon.crashctl("info", crashes[1].id).stdout
        assert "by retention (max_per_signature)" in info
        assert "evicted (max_per_signature)" in daemon.crashctl("list").stdout
        assert "deleted by retention (max_per_signature)" in (
            daemon.crashctl("dump", "-o", "/dev/null", crashes[1].id, check=False).stderr
        )
        assert daemon.crashctl("verify").stdout == ""


def carry_out(paths: Paths, index: Index, deletions: Sequence[Deletion]) -> Outcome:
    """Do as crashctl does, and let nothing fail."""
    rows = RowWriter(index)

    def failed(crash_id: str, error: Exception) -> None:
        raise AssertionError(crash_id) from error

    return carry_out_all(paths, deletions, Told(rows.add, failed, rows.write))


def test_fault_22_crash_that_was_pinned_or_is_written_to_or_read_after_the_plan_stays(
    paths: Paths, index: Index
) -> None:
    crashes = [add(paths, index, number, signature="p1-aa") for number in range(6)]
    deletions = plan(read_stored(index), read_usage(paths), Policy(max_count=1), None)
    assert len(deletions) == 5
    with open_entry(paths, crashes[0].id) as entry:
        entry.write(replace(crashes[0], pinned=True), sync=False)
    with open_entry(paths, crashes[2].id) as read:
        reader = os.dup(core := read.open_core())  # passed on: the lock is the open file's
        os.close(core)
    with open_entry(paths, crashes[1].id) as busy:
        assert busy.try_lock()
        outcome = carry_out(paths, index, deletions)
    assert outcome.kept == {crashes[0].id, crashes[1].id, crashes[2].id}
    assert cores(paths) == sorted(crashes[i].id for i in (0, 1, 2, 5))
    os.close(reader)
    again = carry_out(paths, index, [d for d in deletions if d.id == crashes[2].id])
    assert (again.count, again.kept) == (1, set())


def test_pinned_crash_is_not_deleted_altogether_either(paths: Paths, index: Index) -> None:
    crash = add(paths, index, 1)
    with open_entry(paths, crash.id) as entry:
        entry.write(replace(crash, pinned=True), sync=False)
    outcome = carry_out(paths, index, [Deletion(crash.id, Limit.METADATA_MAX_AGE, 1, True)])
    assert outcome.kept == {crash.id}
    assert os.listdir(paths.crashes / crash.id) != []


def test_full_disk_gives_the_space_for_the_tombstone_from_the_core(
    paths: Paths, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be written before something is deleted: not the tombstone, nor what is under
    way.
    """
    crash = add(paths, index, 0)
    before = entries.Entry.write

    def write(entry: entries.Entry, crash: Crash, *, sync: bool) -> Crash:
        if "core.zst" in entry.file_names():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return before(entry, crash, sync=sync)

    def note(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(entries.Entry, "write", write)
    monkeypatch.setattr(pending.Pending, "note", note)
    outcome = carry_out(paths, index, [Deletion(crash.id, Limit.KEEP_FREE, 1, False)])
    assert (outcome.count, cores(paths)) == (1, [])
    with open_entry(paths, crash.id) as entry:
        assert entry.read().state is State.EVICTED


def test_eviction_told_of_twice_is_counted_once(paths: Paths, index: Index) -> None:
    crash = add(paths, index, 1)
    deletion = Deletion(crash.id, Limit.MAX_USE, 1, False)
    assert carry_out(paths, index, [deletion]).count == 1
    with open_entry(paths, crash.id) as entry:
        first = entry.read().evicted
    assert carry_out(paths, index, [replace(deletion, reason=Limit.MAX_COUNT)]).count == 0
    with open_entry(paths, crash.id) as entry:
        assert entry.read().evicted == first


class KilledError(Exception):
    """In place of SIGKILL: nothing after it runs."""


STEPS = ("note", "record", "core", "row")


@pytest.mark.parametrize("step", STEPS)
def test_eviction_killed_after_any_step_is_finished_by_the_next(
    paths: Paths, index: Index, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = add(paths, index, 1)

    def die(*_: object, **__: object) -> None:
        raise KilledError

    after = {
        "note": (entries.Entry, "try_lock"),
        "record": (entries.Entry, "drop_core"),
        "core": (RowWriter, "write"),
        "row": (pending.Pending, "clear"),
    }[step]
    with monkeypatch.context() as patch:
        patch.setattr(*after, die)
        with pytest.raises(KilledError):
            carry_out(paths, index, [Deletion(crash.id, Limit.MAX_USE, 1, False)])
    with open_pending(paths) as left:
        assert left.ids() == [crash.id]
    rows = RowWriter(index)
    finish_all(paths, Told(rows.add, settled=rows.write))
    row = index.get(crash.id)
    assert row is not None
    if step == "note":  # nothing had happened: the next plan says whether it goes
        assert cores(paths) == [crash.id]
        assert row["state"] == "complete"
    else:
        assert cores(paths) == []
        assert (row["state"], row["evicted"]["reason"]) == ("evicted", "max_use")
    with open_pending(paths) as left:
        assert left.ids() == []
    assert crashctl(paths.root, "verify").stdout == ""


@pytest.mark.parametrize("step", ["record", "directory"])
def test_deletion_killed_midway_is_finished_by_the_next(
    paths: Paths, index: Index, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = add(paths, index, 1)
    unlink = os.unlink

    def die_at(name: Any, *, dir_fd: int | None = None) -> None:
        if step == "record" and name != entries.RECORD:
            raise KilledError
        unlink(name, dir_fd=dir_fd)

    def die(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", die_at)
        if step == "directory":
            patch.setattr(os, "rmdir", die)
        with pytest.raises(KilledError):
            carry_out(paths, index, [Deletion(crash.id, Limit.METADATA_MAX_AGE, 1, True)])
    assert os.listdir(paths.crashes) == [crash.id]
    rows = RowWriter(index)
    finish_all(paths, Told(rows.add, settled=rows.write))
    assert os.listdir(paths.crashes) == []
    assert index.get(crash.id) is None


def test_pending_deletions_that_are_torn_or_nonsense_are_passed_over(paths: Paths) -> None:
    crash = build_crash(1)
    paths.pending_deletions.write_bytes(b"../../etc\n\xff\n" + crash.id.encode() + b"\n2026")
    with open_pending(paths) as left:
        assert left.ids() == [crash.id]
        with pytest.raises(UnavailableError, match="another process"), open_pending(paths):
            pass
    removed: list[Removed] = []
    finish_all(paths, Told(removed.append))
    assert [(r.id, r.tombstone) for r in removed] == [(crash.id, None)]


def test_crash_whose_record_cannot_be_read_goes_altogether(paths: Paths, index: Index) -> None:
    damaged, newer = add(paths, index, 1), add(paths, index, 2)
    (paths.crashes / damaged.id / "crash.json").write_bytes(b"{")
    (paths.crashes / newer.id / "crash.json").write_bytes(b'{"schema":1000}')
    carry_out(paths, index, [Deletion(damaged.id, Limit.MAX_USE, 1, False)])
    assert os.listdir(paths.crashes) == index.ids() == [newer.id]
    with pytest.raises(AssertionError, match=newer.id):
        carry_out(paths, index, [Deletion(newer.id, Limit.MAX_USE, 1, True)])


def test_old_tombstone_goes_altogether(paths: Paths, index: Index) -> None:
    now_ns = START_NS + 400 * 86400 * 10**9
    old = add(paths, index, 1)
    carry_out(paths, index, [Deletion(old.id, Limit.MAX_USE, 1, False)])
    new = add(paths, index, 2, time_ns=now_ns)
    limits = Policy(metadata_max_age_ns=366 * 86400 * 10**9)
    assert plan(read_stored(index), read_usage(paths), limits, None) == ()
    carry_out(paths, index, plan(read_stored(index), read_usage(paths), limits, now_ns))
    assert os.listdir(paths.crashes) == [new.id]
    assert index.ids() == [new.id]


def test_fault_06_order_is_that_of_admission_whatever_the_clock_said(
    paths: Paths, index: Index
) -> None:
    """The clock was a year ahead for the first two crashes, and is right now."""
    year_ns = 366 * 86400 * 10**9
    ahead = [add(paths, index, n, time_ns=START_NS + year_ns + n, sequence=n) for n in (1, 2)]
    right = [add(paths, index, n, time_ns=START_NS + n, sequence=n) for n in (3, 4, 5)]
    replaced = [*index.ids()]
    reindex(paths)
    assert index.ids() == replaced
    deletions = plan(read_stored(index), read_usage(paths), Policy(max_count=3), None)
    assert [deletion.id for deletion in deletions] == [crash.id for crash in ahead]
    limits = Policy(max_age_ns=30 * 86400 * 10**9)
    now_ns = START_NS + 10 * 86400 * 10**9
    assert plan(read_stored(index), read_usage(paths), limits, now_ns) == ()
    assert right[-1].id not in {d.id for d in deletions}


@pytest.mark.parametrize("limit_bytes", [1 << 30, 24 << 20])
def test_day_of_a_crash_loop_keeps_within_limits_and_others_cores(
    paths: Paths, index: Index, limit_bytes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A twentieth of `python -m tests.day`, of 43,200 crashes: with room, and with little."""
    day = Day(paths, index, crashes=CRASHES // 20, limit_bytes=limit_bytes)
    day.run()
    assert report(day, len(index.ids()), 0), capsys.readouterr().out
    assert ("max_use" in day.deleted) == (limit_bytes < 1 << 30)
    assert crashctl(paths.root, "verify").stdout == ""


def test_plan_of_random_stores_always_ends_within_limits_on_disk(
    paths: Paths, index: Index
) -> None:
    generator = random.Random(7)
    for number in range(60):
        signature = f"p1-{generator.randrange(6):016x}"
        add(paths, index, number, signature=signature, unit=f"u{generator.randrange(3)}.service")
    records = index.records_bytes()
    limits = Policy(max_use=Amount(size_bytes=records + 20 * 4096), max_count=25)
    carry_out(paths, index, plan(read_stored(index), read_usage(paths), limits, None))
    assert 0 < len(cores(paths)) <= 20
    assert sum(crash.stored_bytes for crash in read_stored(index)) <= records + 21 * 4096
    on_disk = [*paths.crashes.rglob("*")]
    assert sum(path.stat().st_blocks * 512 for path in on_disk) <= records + 21 * 4096
    assert plan(read_stored(index), read_usage(paths), limits, None) == ()


def test_sec_83_crashes_of_a_container_are_no_signature_of_the_hosts(paths: Paths) -> None:
    """Of uid 0 and in no unit, as LXC has them: one owner, one program."""
    same: dict[str, Any] = {"signature": "p1-aa", "uid": 0, "unit": None}
    with Index.open(paths.index) as index:
        host = {add(paths, index, number, **same).id for number in range(3)}
        for number in range(10, 30):
            add(paths, index, number, container_id="web", **same)
        limits = Policy(max_per_signature=3)
        deletions = plan(read_stored(index), read_usage(paths), limits, None)
    assert len(deletions) == 17
    assert host.isdisjoint(deletion.id for deletion in deletions)
