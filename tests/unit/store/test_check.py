"""`verify --strict` on stores that were damaged, one way at a time."""

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crashd.corehandler import pack
from crashd.domain.crash.model import Capture, Core, Crash, Kind, State
from crashd.domain.elf.zstdframes import FrameSize, build_seek_table
from crashd.store import check, checkfiles, spool
from crashd.store import entry as entries
from crashd.store.check import Finding, verify_strictly
from crashd.store.corefile import CoreWriter
from crashd.store.index import Index
from crashd.store.paths import Paths
from crashd.store.statefile import write_state
from tests.builders.crashes import build_crash

CORE = b"core" * 25_000
SPOOLED = "1790000000000000000-4194304-0123abcd"
"""Of a pid that there cannot be (PID_MAX_LIMIT)."""


class Store:
    """A store with one whole crash in it, and what a test does to it."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root)
        entries.prepare(self.paths)
        self.index = Index.open(self.paths.index)
        self.crash = self.keep(1)

    @property
    def where(self) -> Path:
        """The entry's directory."""
        return self.paths.crashes / self.crash.id

    def keep(self, number: int, **more: Any) -> Crash:
        """Store a crash with a real core, as the daemon does."""
        crash = build_crash(number, **more)
        with entries.create(self.paths, crash) as entry:
            if crash.core.path:
                fd = entry.create_core()
                writer = CoreWriter(fd, level=1, threads=0)
                writer.write(memoryview(CORE))
                writer.finish()
                os.close(fd)
                entry.commit_core()
                size = len(CORE)
                crash = replace(
                    crash, core=Core("core.zst", size, writer.stored_bytes, size, size, True)
                )
            entry.write(crash, sync=False)
        self.index.put([crash])
        return crash

    def change(self, **more: Any) -> None:
        """Give the crash another record, in store and index."""
        self.crash = replace(self.crash, **more)
        with entries.open_entry(self.paths, self.crash.id) as entry:
            entry.write(self.crash, sync=False)
        self.index.put([self.crash])

    def execute(self, sql: str) -> None:
        """Change the index behind crashd's back."""
        db = sqlite3.connect(self.paths.index, isolation_level=None)
        db.execute(sql)
        db.close()

    def spool(self, name: str = SPOOLED) -> Path:
        """Put a crash into the spool as the handler does."""
        directory = self.paths.spool / name
        directory.mkdir(mode=0o700)
        (directory / "meta").write_bytes(pack({"token": b"a-1-b"}))
        return directory

    def findings(self, *, live: bool = False, pause: Callable[[float], None] | None = None) -> Any:
        """Look at it as crashctl does."""
        return verify_strictly(
            self.paths, self.index, is_live=lambda: live, pause=pause or (lambda seconds: None)
        )

    def kinds(self, *, live: bool = False) -> list[str]:
        """Name what is found."""
        return sorted(finding.kind for finding in self.findings(live=live))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path)
    yield made
    made.index.close()


def put_private(path: Path, data: bytes = b"") -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def lie_in_the_seek_table(where: Path) -> None:
    raw = (where / "core.zst").read_bytes()
    true = build_seek_table([FrameSize(len(raw) - 25, len(CORE))])
    assert raw.endswith(true)
    lie = build_seek_table([FrameSize(len(raw) - 25, len(CORE) - 1)])
    (where / "core.zst").write_bytes(raw.removesuffix(true) + lie)


def link_elsewhere(store: Store) -> None:
    analysed(store)
    where = store.where
    os.rename(where / "analysis.json", where.parents[1] / "limiter.json")
    os.symlink(where.parents[1] / "limiter.json", where / "analysis.json")


def analysed(store: Store, text: bytes = b'{"state": "done"}') -> None:
    put_private(store.where / "analysis.json", text)
    store.change(analysis={"state": "done"})


def link_spool(store: Store) -> None:
    store.paths.spool.rmdir()
    store.paths.spool.symlink_to(store.paths.crashes)


def kernel_crash(store: Store, state: State, *, there: bool) -> None:
    dump = store.paths.root / "dump"
    dump.mkdir()
    inode = dump.stat().st_ino
    if not there:
        dump.rmdir()
    gone = state in (State.EVICTED, State.MISSING)
    store.keep(
        7,
        kind=Kind.KERNEL,
        state=state,
        capture=Capture(reason="deleted by retention: max_count"),
        core=Core(stored_bytes=0 if gone else 10, complete=state is State.COMPLETE),
        kernel={"path": str(dump), "inode": inode},
    )


def test_strict_of_a_sound_store_finds_nothing(store: Store) -> None:
    store.keep(2, core=Core(), state=State.METADATA_ONLY, signature="s")
    store.keep(3, signature="s")
    reason = Capture(reason="deleted by retention: max_use")
    store.keep(4, core=Core(size_bytes=5), state=State.EVICTED, capture=reason, signature="s")
    analysed(store)
    kernel_crash(store, State.COMPLETE, there=True)
    for path in (
        store.paths.limiter_state,
        store.paths.kernel_log_state,
        store.paths.pstore_state,
    ):
        write_state(path, {})
    put_private(store.paths.previous_core_pattern)
    put_private(store.paths.pending_deletions)
    spool.write_limits(store.paths, max_core=None, keep_free=1, honour_rlimit=True)
    assert store.findings() == []
    store.index.remove([store.keep(5, signature="gone").id])
    (store.paths.crashes / build_crash(5).id / "crash.json").unlink()
    (store.paths.crashes / build_crash(5).id / "core.zst").unlink()
    (store.paths.crashes / build_crash(5).id).rmdir()
    assert store.findings() == [], "a signature that no crash has any more is not miscounted"


DAMAGES: dict[str, tuple[Callable[[Store], object], list[str]]] = {
    "core's content": (lambda s: flip(s.where / "core.zst", 30), ["core-damaged"]),
    "core's table": (lambda s: lie_in_the_seek_table(s.where), ["seek-table"]),
    "core's size": (lambda s: cut(s.where / "core.zst"), ["core-size", "seek-table"]),
    "core gone": (lambda s: (s.where / "core.zst").unlink(), ["no-core"]),
    "core linked": (lambda s: os.link(s.where / "core.zst", s.paths.root / "x"), ["odd-file"]),
    "core for all": (lambda s: (s.where / "core.zst").chmod(0o644), ["not-private"]),
    "temp in entry": (lambda s: put_private(s.where / "crash.json.new"), ["leftover"]),
    "file in entry": (lambda s: put_private(s.where / "notes"), ["leftover"]),
    "directory in entry": (lambda s: (s.where / "sub").mkdir(0o700), ["leftover", "odd-file"]),
    "record gone": (lambda s: (s.where / "crash.json").unlink(), ["bad-record"]),
    "row gone": (lambda s: s.index.remove([s.crash.id]), ["no-row"]),
    "row without entry": (lambda s: s.index.put([build_crash(9)]), ["no-entry"]),
    "row differs": (lambda s: s.index.put([replace(s.crash, title="x")]), ["row-differs"]),
    "record contradicts": (
        lambda s: s.change(core=replace(s.crash.core, complete=False)),
        ["contradiction"],
    ),
    "tombstone with core": (
        lambda s: s.change(state=State.EVICTED, core=Core(), capture=Capture(reason="deleted")),
        ["extra-core"],
    ),
    "tombstone names core": (
        lambda s: s.change(
            state=State.EVICTED,
            core=replace(s.crash.core, complete=False),
            capture=Capture(reason="deleted"),
        ),
        ["contradiction"],
    ),
    "unfinished": (lambda s: s.change(state=State.CAPTURING), ["unfinished"]),
    "analysis damaged": (lambda s: analysed(s, b"{"), ["bad-analysis"]),
    "analysis no object": (lambda s: analysed(s, b"[]"), ["bad-analysis"]),
    "analysis gone": (lambda s: s.change(analysis={"state": "done"}), ["no-analysis"]),
    "analysis unknown": (
        lambda s: put_private(s.where / "analysis.json", b'{"state": "done"}'),
        ["no-analysis"],
    ),
    "analysis linked": (
        lambda s: link_elsewhere(s),
        ["bad-analysis", "odd-file"],
    ),
    "dump gone": (lambda s: kernel_crash(s, State.COMPLETE, there=False), ["no-dump"]),
    "cut dump gone": (lambda s: kernel_crash(s, State.INCOMPLETE, there=False), ["no-dump"]),
    "dump left": (lambda s: kernel_crash(s, State.EVICTED, there=True), ["dump-left"]),
    "file in state directory": (
        lambda s: put_private(s.paths.state_dir / "core"),
        ["unknown-file"],
    ),
    "temp of a state": (
        lambda s: put_private(s.paths.state_dir / "limiter.json.new"),
        ["leftover"],
    ),
    "temp of the pattern": (
        lambda s: put_private(s.paths.state_dir / ".previous-core-pattern.0123"),
        ["leftover"],
    ),
    "old index": (
        lambda s: put_private(s.paths.state_dir / "index.sqlite.corrupt-1"),
        ["set-aside"],
    ),
    "state for all": (
        lambda s: s.paths.limiter_state.touch(mode=0o644),
        ["not-private"],
    ),
    "state a link": (
        lambda s: s.paths.limiter_state.symlink_to("/etc/passwd"),
        ["odd-file"],
    ),
    "spool for all": (lambda s: s.paths.spool.chmod(0o755), ["not-private"]),
    "no spool but a file": (
        lambda s: link_spool(s),
        ["odd-file", "unknown-file"],
    ),
    "name in the store": (lambda s: (s.paths.crashes / "x").mkdir(0o700), ["foreign"]),
    "name in the spool": (lambda s: (s.paths.spool / "x").mkdir(0o700), ["unknown-file"]),
    "temp in the spool": (lambda s: put_private(s.paths.spool / ".limits.new"), ["leftover"]),
    "spooled": (lambda s: s.spool(), ["spooled"]),
    "spooled, handler died": (lambda s: s.spool(SPOOLED + ".tmp"), ["spooled"]),
    "spooled with more": (
        lambda s: put_private(s.spool() / "more"),
        ["spooled", "unknown-file"],
    ),
    "spooled, no directory": (lambda s: put_private(s.paths.spool / SPOOLED), ["odd-file"]),
    "spooled, not understood": (lambda s: s.spool(SPOOLED + ".tmp.bad"), ["spool-bad"]),
    "usage": (lambda s: s.execute("UPDATE usage SET bytes = bytes + 1"), ["wrong-count"]),
    "usage of nothing": (lambda s: s.execute("DELETE FROM usage"), ["wrong-count"]),
    "usage of records": (
        lambda s: s.execute("UPDATE record_usage SET bytes = bytes + 1"),
        ["wrong-count"],
    ),
    "count of a signature": (
        lambda s: s.execute("INSERT INTO signature_count VALUES ('s', 1)"),
        ["wrong-count"],
    ),
    "recorded twice": (lambda s: s.keep(2, token=s.crash.token), ["twice"]),
}


def flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[-place] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-30] + raw[-25:])


@pytest.mark.parametrize("damage", DAMAGES)
def test_strict_finds_each_damage(store: Store, damage: str) -> None:
    act, expected = DAMAGES[damage]
    assert store.findings() == []
    act(store)
    assert store.kinds() == expected
    found: list[Finding] = store.findings()
    assert all(finding.subject and finding.text for finding in found)


WAITING = {"spooled", "spooled, handler died"}


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - WAITING))
def test_strict_beside_a_daemon_finds_what_stays(store: Store, damage: str) -> None:
    act, expected = DAMAGES[damage]
    act(store)
    assert store.kinds(live=True) == [kind for kind in expected if kind != "spooled"]


def test_strict_of_an_index_whose_own_index_is_wrong(store: Store) -> None:
    db = sqlite3.connect(store.paths.index, isolation_level=None)
    db.execute("PRAGMA writable_schema = ON")
    db.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, '(token)', '(title)') "
        "WHERE name = 'crash_token'"
    )
    db.close()
    store.index.close()
    store.index = Index.open(store.paths.index)
    assert store.index.check() == [], "a quick check does not see it"
    assert store.kinds() == ["index-damaged"]


@pytest.mark.parametrize("live", [True, False])
def test_strict_leaves_alone_what_is_being_written(store: Store, live: bool) -> None:
    store.change(state=State.CAPTURING)
    put_private(store.where / "core.zst.partial")
    store.index.remove([store.crash.id])
    with entries.open_entry(store.paths, store.crash.id) as writer:
        assert writer.try_lock()
        assert store.kinds(live=live) == []


def test_strict_forgets_what_a_daemon_finishes_meanwhile(store: Store) -> None:
    put_private(store.paths.state_dir / "limiter.json.new")
    put_private(store.paths.state_dir / "stays")
    store.index.remove([store.crash.id])
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            (store.paths.state_dir / "limiter.json.new").unlink()
            store.index.put([store.crash])

    assert [f.subject for f in store.findings(live=True, pause=pause)] == ["stays"]
    assert pauses == [check.LOOK_SECONDS] * (check.LOOKS - 1)


def test_strict_of_a_damaged_core_looks_once(store: Store) -> None:
    flip(store.where / "core.zst", 30)

    def pause(seconds: float) -> None:
        pytest.fail(f"waited {seconds} s for what cannot change")

    assert [f.kind for f in store.findings(live=True, pause=pause)] == ["core-damaged"]


def test_strict_beside_a_daemon_lets_the_spool_wait_for_a_while(store: Store) -> None:
    spooled = store.spool()
    assert store.kinds() == ["spooled"]
    assert store.kinds(live=True) == []
    old_ns = spooled.stat().st_mtime_ns - checkfiles.SPOOL_PATIENCE_NS
    os.utime(spooled, ns=(old_ns, old_ns))
    assert store.kinds(live=True) == ["spooled"]


def test_strict_beside_a_daemon_lets_the_handler_finish(store: Store) -> None:
    store.change(state=State.CAPTURING, core=Core(), token="a-1-b")
    (store.where / "core.zst").unlink()
    assert store.kinds(live=True) == ["unfinished"]
    store.spool()
    assert store.kinds(live=True) == []
    assert store.kinds() == ["spooled", "unfinished"]


def test_strict_reads_cores_without_their_lock(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large core takes longer than the daemon waits to write down what an analysis found."""
    from crashd.store import corefile

    free: list[bool] = []
    read_core = corefile.read_core

    def read(fd: int, size_bytes: int | None = None) -> Iterator[bytes]:
        with entries.open_entry(store.paths, store.crash.id) as daemon:
            free.append(daemon.try_lock())
        return read_core(fd, size_bytes)

    monkeypatch.setattr(corefile, "read_core", read)
    assert store.findings() == []
    assert free == [True]


def test_strict_changes_nothing(store: Store) -> None:
    store.spool()
    put_private(store.where / "crash.json.new")

    def listing() -> str:
        return json.dumps(
            [
                (str(path), path.lstat().st_mtime_ns, path.lstat().st_size)
                for path in sorted(store.paths.state_dir.rglob("*"))
                if not path.name.startswith("index.sqlite-")
            ]
        )

    before = listing()
    store.findings()
    assert listing() == before
