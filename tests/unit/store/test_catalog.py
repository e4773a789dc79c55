"""Store and index together: who sees what, what verify finds, and the rebuilt index."""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.domain.crash.model import Core, Crash, State
from crashd.domain.crash.query import Query
from crashd.domain.crash.viewer import Viewer
from crashd.domain.elf.zstdframes import SEEK_FOOTER_SIZE, seek_table_size
from crashd.errors import CrashdError, NotFoundError, UnavailableError
from crashd.store import entry as entries
from crashd.store.catalog import Catalog, reindex
from crashd.store.check import verify
from crashd.store.corefile import CoreWriter
from crashd.store.index import Index
from crashd.store.paths import Paths
from tests.builders.crashes import build_crash

USER = Viewer(1000, 0)
CORE = b"core" * 25_000


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path)
    entries.prepare(found)
    return found


@pytest.fixture
def index(paths: Paths) -> Iterator[Index]:
    with Index.open(paths.index) as opened:
        yield opened


@pytest.fixture
def catalog(paths: Paths, index: Index) -> Catalog:
    return Catalog(paths, index)


@pytest.fixture
def keep(paths: Paths, index: Index) -> Callable[..., Crash]:
    """Store a crash with a real core, and index it."""

    def put(number: int, **more: object) -> Crash:
        crash = build_crash(number, **more)
        with entries.create(paths, crash) as entry:
            if crash.core.path:
                fd = entry.create_core()
                writer = CoreWriter(fd, level=1, threads=0)
                writer.write(memoryview(CORE))
                writer.finish()
                os.close(fd)
                entry.commit_core()
                core = Core("core.zst", len(CORE), writer.stored_bytes, len(CORE), len(CORE), True)
                crash = replace(crash, core=core)
            entry.write(crash, sync=False)
        index.put([crash])
        return crash

    return put


@pytest.fixture
def kinds(paths: Paths, index: Index) -> Callable[..., list[str]]:
    """Verify, and name what is found."""

    def find(*, deep: bool = False) -> list[str]:
        return sorted(finding.kind for finding in verify(paths, index, deep=deep))

    return find


def test_info_is_the_record_and_the_count(catalog: Catalog, keep: Callable[..., Crash]) -> None:
    crash = keep(1, signature="s", environ=(b"A=b",))
    keep(2, signature="s")
    info = catalog.info(crash.id, None)
    assert info["environ"] == ["A=b"]
    assert info["count_of_signature"] == 2


def test_count_of_a_signature_is_of_what_the_viewer_may_see(
    catalog: Catalog, keep: Callable[..., Crash]
) -> None:
    crash = keep(1, signature="s", owner_uid=1000)
    keep(2, signature="s", owner_uid=1000)
    keep(3, signature="s")
    assert catalog.info(crash.id, USER)["count_of_signature"] == 2
    assert [row["count_of_signature"] for row in catalog.select(Query(), USER)] == [2, 2]
    assert [row["count_of_signature"] for row in catalog.select(Query(), None)] == [3, 3, 3]


def test_viewer_may_have_only_his_own(catalog: Catalog, keep: Callable[..., Crash]) -> None:
    mine, roots = keep(1, owner_uid=1000), keep(2)
    assert catalog.info(mine.id, USER)["id"] == mine.id
    os.close(catalog.open_core(mine.id, USER))
    of_a_group = keep(4, owner_uid=1000, gid=7)
    assert [row["id"] for row in catalog.select(Query(), USER)] == [mine.id]
    messages = []
    for crash_id in (roots.id, build_crash(3).id, of_a_group.id):
        for ask in (catalog.info, catalog.open_core):
            with pytest.raises(NotFoundError) as error:
                ask(crash_id, USER)
            messages.append(str(error.value).replace(crash_id, "ID"))
    assert set(messages) == {"no crash ID"}, "what is another's looks as what is not there"


def test_row_that_claims_an_owner_does_not_open_what_the_record_denies(
    catalog: Catalog, index: Index, keep: Callable[..., Crash]
) -> None:
    crash = keep(1)
    index.put([replace(crash, owner_uid=1000)])
    for ask in (catalog.info, catalog.open_core):
        with pytest.raises(NotFoundError):
            ask(crash.id, USER)


@pytest.mark.parametrize("crash_id", ["", "../../etc/passwd", "%2e%2e", "a\0", "id\n", "\ud800"])
def test_ids_that_are_none_are_not_found(catalog: Catalog, crash_id: str) -> None:
    for ask in (catalog.info, catalog.open_core):
        with pytest.raises(NotFoundError):
            ask(crash_id, None)
    with pytest.raises(NotFoundError):
        catalog.set_pinned([crash_id], True)


def test_info_without_the_record_says_so(
    catalog: Catalog, paths: Paths, keep: Callable[..., Crash]
) -> None:
    crash = keep(1)
    (paths.crashes / crash.id / "crash.json").unlink()
    assert "only the index knows" in catalog.info(crash.id, None)["warnings"][0]


def test_open_record_when_the_index_fails_leaves_no_descriptor(
    catalog: Catalog, keep: Callable[..., Crash], monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = keep(1, signature="p2-0123456789abcdef")

    def fail(*_: object) -> None:
        raise UnavailableError("the index cannot be read")

    monkeypatch.setattr("crashd.store.catalog.signatures.span", fail)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UnavailableError):
        catalog.open_record(crash.id, None)
    assert len(os.listdir("/proc/self/fd")) == before


def test_delete_frees_and_forgets(
    catalog: Catalog, paths: Paths, keep: Callable[..., Crash]
) -> None:
    crash = keep(1)
    assert catalog.delete([crash.id]) > 0
    assert not (paths.crashes / crash.id).exists()
    assert catalog.select(Query(), None) == []
    with pytest.raises(NotFoundError):
        catalog.delete([crash.id])


def test_delete_and_pin_while_captured_are_refused(
    catalog: Catalog, kinds: Callable[..., list[str]], paths: Paths, keep: Callable[..., Crash]
) -> None:
    crash = keep(1)
    with entries.open_entry(paths, crash.id) as writer:
        assert writer.try_lock()
        with pytest.raises(UnavailableError):
            catalog.delete([crash.id])
        with pytest.raises(CrashdError, match="still being captured"):
            catalog.set_pinned([crash.id], True)
    assert kinds() == []


def test_set_pinned_is_in_record_and_row(
    catalog: Catalog, kinds: Callable[..., list[str]], keep: Callable[..., Crash]
) -> None:
    crash = keep(1)
    catalog.set_pinned([crash.id], True)
    assert catalog.info(crash.id, None)["pinned"] is True
    assert catalog.select(Query(("pinned=true",)), None)[0]["id"] == crash.id
    catalog.set_pinned([crash.id], False)
    assert kinds() == []


def test_verify_sound_store_has_no_findings(
    kinds: Callable[..., list[str]], keep: Callable[..., Crash]
) -> None:
    keep(1)
    keep(2, core=Core(), state=State.METADATA_ONLY)
    assert kinds(deep=True) == []


def break_core_size(where: Path) -> None:
    with (where / "core.zst").open("ab") as file:
        file.write(b"x")


def break_core_content(where: Path) -> None:
    raw = bytearray((where / "core.zst").read_bytes())
    table = seek_table_size(bytes(raw[-SEEK_FOOTER_SIZE:]))
    assert table is not None
    raw[-table - 3] ^= 1
    (where / "core.zst").write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda where: (where / "core.zst").unlink(), ["no-core"]),
        (break_core_size, ["core-size"]),
        (break_core_content, ["core-damaged"]),
        (lambda where: (where / "crash.json").write_bytes(b"{}"), ["bad-record"]),
        (lambda where: (where / "crash.json").unlink(), ["bad-record"]),
        (lambda where: (where / "core.zst.partial").touch(), ["leftover"]),
        (lambda where: (where / "crash.json.new").touch(), ["leftover"]),
        (lambda where: where.chmod(0o755), ["not-private"]),
        (lambda where: (where.parent / "lost+found").mkdir(), ["foreign"]),
        (lambda where: where.parent.chmod(0o755), ["not-private"]),
    ],
)
def test_verify_finds_each_damage_on_disk(
    kinds: Callable[..., list[str]],
    paths: Paths,
    keep: Callable[..., Crash],
    damage: Callable[[Path], object],
    expected: list[str],
) -> None:
    keep(2)
    damage(paths.crashes / keep(1).id)
    assert kinds(deep=True) == expected


def test_verify_finds_each_difference_of_the_index(
    paths: Paths, index: Index, keep: Callable[..., Crash], kinds: Callable[..., list[str]]
) -> None:
    first, second = keep(1), keep(2)
    index.remove([first.id])
    index.put([replace(second, title="another"), build_crash(3)])
    assert kinds() == ["no-entry", "no-row", "row-differs"]
    told = next(f.text for f in verify(paths, index) if f.kind == "row-differs")
    assert told == "the index and crash.json say different things of title, doc"


def test_verify_finds_what_was_never_finished(
    kinds: Callable[..., list[str]], paths: Paths, keep: Callable[..., Crash]
) -> None:
    crash = keep(1, state=State.CAPTURING, core=Core())
    assert kinds() == ["unfinished"]
    with entries.open_entry(paths, crash.id) as writer:
        assert writer.try_lock()
        assert kinds() == [], "one that is being captured is not unfinished"


def test_verify_finds_a_core_nobody_knows_of(
    kinds: Callable[..., list[str]], paths: Paths, keep: Callable[..., Crash]
) -> None:
    crash = keep(1, core=Core(), state=State.METADATA_ONLY)
    (paths.crashes / crash.id / "core.zst").touch()
    assert kinds() == ["extra-core"]


def test_reindex_makes_the_very_same_rows(
    paths: Paths, index: Index, keep: Callable[..., Crash]
) -> None:
    for number in range(20):
        keep(
            number,
            comm=b"\xff%d" % number,
            owner_uid=number % 3 or None,
            signature=f"s{number % 4}",
            pinned=number == 7,
            state=State.TRUNCATED if number % 2 else State.COMPLETE,
        )
    before, usage = [index.row(crash_id) for crash_id in index.ids()], index.usage()
    assert reindex(paths) == 20
    assert [index.row(crash_id) for crash_id in index.ids()] == before
    assert index.usage() == usage
    index.remove([index.ids()[0]])
    assert reindex(paths) == 20
    assert [index.row(crash_id) for crash_id in index.ids()] == before


@pytest.mark.parametrize("content", [b"", b"garbage" * 2000, None])
def test_reindex_replaces_what_cannot_be_read(
    paths: Paths, keep: Callable[..., Crash], index: Index, content: bytes | None
) -> None:
    crash = keep(1)
    index.close()
    paths.index.unlink()
    for suffix in ("-wal", "-shm"):
        paths.index.with_name(paths.index.name + suffix).unlink(missing_ok=True)
    if content is not None:
        paths.index.write_bytes(content)
    assert reindex(paths) == 1
    with Index.open(paths.index) as fresh:
        assert fresh.ids() == [crash.id]
        assert verify(paths, fresh, deep=True) == []


def test_reindex_of_an_older_version_rebuilds_it_and_leaves_nothing_of_it(
    paths: Paths, index: Index, keep: Callable[..., Crash]
) -> None:
    crash = keep(1)
    index.close()
    db = sqlite3.connect(paths.index)
    db.execute("DROP TABLE signature_count")
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()
    assert reindex(paths) == 1
    assert [p.name for p in paths.state_dir.glob("*corrupt*")] == []
    with Index.open(paths.index) as fresh:
        assert fresh.row(crash.id) == Index.row_of(crash)
        assert verify(paths, fresh, deep=True) == []


def test_reindex_lists_what_is_known_of_entries_that_cannot_be_read(
    paths: Paths, index: Index, keep: Callable[..., Crash]
) -> None:
    bad, good = keep(1), keep(2)
    (paths.crashes / bad.id / "crash.json").write_bytes(b"[]")
    (paths.crashes / bad.id / "core.zst").write_bytes(b"core")
    assert reindex(paths) == 2
    assert index.ids() == sorted([bad.id, good.id])
    row = index.get(bad.id)
    assert row is not None
    assert (row["pid"], row["state"], row["core"]["stored_bytes"]) == (bad.pid, "truncated", 4)
    assert "cannot be read" in row["capture"]["reason"]


def test_verify_asks_again_for_what_the_daemon_was_about_to_put(
    paths: Paths, index: Index, keep: Callable[..., Crash]
) -> None:
    late, gone = keep(1), keep(2)
    index.remove([late.id])

    class Daemon(Index):
        """An index into which a daemon writes behind our back."""

        def row(self, crash_id: str) -> tuple[object, ...] | None:
            found = super().row(crash_id)
            index.put([late])
            return found

        def ids(self) -> list[str]:
            found = super().ids()
            entries.remove(paths, gone.id)
            index.remove([gone.id])
            return found

    with Daemon.open(paths.index) as watched:
        assert verify(paths, watched) == []


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_verify_finds_an_index_that_others_may_read(
    kinds: Callable[..., list[str]], paths: Paths, keep: Callable[..., Crash], suffix: str
) -> None:
    keep(1)
    paths.index.with_name(paths.index.name + suffix).chmod(0o644)
    assert kinds() == ["not-private"]


def test_reindex_keeps_up_with_what_happens_meanwhile(
    paths: Paths, index: Index, keep: Callable[..., Crash], monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted, changed, untouched = keep(1), keep(2), keep(3)
    replace_all = Index.replace_all

    def meanwhile(self: Index, crashes: Iterable[Crash]) -> int:
        found = list(crashes)
        entries.remove(paths, deleted.id)
        with entries.open_entry(paths, changed.id) as entry:
            entry.write(replace(changed, title="now with a stack"), sync=False)
        keep(4)
        return replace_all(self, found)

    monkeypatch.setattr(Index, "replace_all", meanwhile)
    assert reindex(paths) == 3
    assert index.ids() == sorted([changed.id, untouched.id, build_crash(4).id])
    assert verify(paths, index) == []


def test_reindex_mends_a_row_that_is_not_ours(
    paths: Paths, index: Index, keep: Callable[..., Crash]
) -> None:
    crash = keep(1)
    db = sqlite3.connect(paths.index, isolation_level=None)
    db.execute("UPDATE crash SET doc = CAST(x'ff' AS TEXT), comm = 5, signature = 'other'")
    db.close()
    assert reindex(paths) == 1
    assert index.row(crash.id) == Index.row_of(crash)
    assert verify(paths, index, deep=True) == []
