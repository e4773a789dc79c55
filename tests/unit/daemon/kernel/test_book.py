"""What the book keeps of dumps: real records in a store, and an indexer that only queues."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.daemon.after.analysis import AnalysisOptions
from crashd.daemon.indexer import Indexer
from crashd.daemon.kernel import symbolwork
from crashd.daemon.kernel.book import DumpBook, Known
from crashd.daemon.kernel.settings import DumpSettings
from crashd.daemon.kernel.symbolwork import SymbolWork
from crashd.domain.crash.model import Crash, State
from crashd.domain.kdump.record import Look
from crashd.edge.web.exporter import Exporter
from crashd.errors import CrashdError
from crashd.store import entry as entries
from crashd.store.index import Index
from crashd.store.kerneldumps import DumpRoot
from crashd.store.paths import Paths
from tests.builders.kdumps import save

NAME = "202601010101"


class Scene:
    """A book of one directory, in which there is one dump."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root)
        entries.prepare(self.paths)
        self.directory = root / "var/crash"
        self.directory.mkdir(parents=True)
        save(self.directory, NAME)
        exporter = Exporter("0")
        self.indexer = Indexer(self.paths, exporter)
        self.symbols = SymbolWork(self.paths, self.indexer, exporter)
        self.book = DumpBook(self.paths, b"host", self.indexer, self.symbols)

    def meet(self, *, growing: bool = False, log_pending: bool = False) -> Known:
        """Look at the dump, and write down what is there."""
        with DumpRoot(self.directory) as root:
            (seen,) = root.list()
            told = root.classify(seen)
            assert told is not None
            known = self.book.find((str(self.directory), NAME.encode()))
            known = known or self.book.begin(root, seen, told)
            look = Look(str(self.directory), told, seen.inode, None, b"", "file", None, growing)
            self.book.record(known, replace(look, log_pending=log_pending))
        return known

    def read(self, known: Known) -> Crash:
        """Read the record."""
        assert known.crash_id is not None
        crash = self.book.read(known.crash_id)
        assert crash is not None
        return crash


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    yield Scene(tmp_path)


def test_dump_is_recorded_once_and_counted_by_its_state(scene: Scene) -> None:
    known = scene.meet(growing=True)
    assert scene.read(known).state is State.CAPTURING
    assert scene.book.count()[State.CAPTURING] == 1
    first = known.crash_id
    scene.meet()
    assert known.crash_id == first
    assert scene.read(known).state is State.INCOMPLETE, "it has no memory image that was read"
    assert scene.book.count()[State.CAPTURING] == 0
    assert scene.book.count()[State.INCOMPLETE] == 1


def test_dump_that_is_gone_is_missing_and_the_same_crash_when_it_comes_back(scene: Scene) -> None:
    known = scene.meet()
    root = str(scene.directory)
    scene.book.keep_present(root, [NAME.encode()])
    assert scene.read(known).state is State.INCOMPLETE
    scene.book.keep_present("/elsewhere", [])
    assert scene.read(known).state is State.INCOMPLETE, "another directory says nothing of it"
    scene.book.keep_present(root, [])
    assert scene.read(known).state is State.MISSING
    assert scene.read(known).core.stored_bytes == 0
    assert scene.book.list_of(root) == []
    again = scene.meet()
    assert again is not known
    assert again.crash_id == known.crash_id
    assert scene.read(again).state is State.INCOMPLETE


def test_record_of_a_daemon_before_is_taken_up(scene: Scene) -> None:
    known = scene.meet()
    with Index.open(scene.paths.index) as index:
        index.put([scene.read(known)])
    later = Scene.__new__(Scene)
    later.paths, later.directory = scene.paths, scene.directory
    later.book = DumpBook(scene.paths, b"host", scene.indexer, scene.symbols)
    later.book.load()
    assert later.meet().crash_id == known.crash_id


def test_pinned_record_is_not_evicted(scene: Scene) -> None:
    known = scene.meet()
    assert known.crash_id is not None
    assert not scene.book.is_pinned(known.crash_id)
    entries.change(
        scene.paths, known.crash_id, lambda c: replace(c or scene.read(known), pinned=True)
    )
    assert scene.book.is_pinned(known.crash_id)
    with pytest.raises(CrashdError, match="was pinned"):
        scene.book.write_state(known.crash_id, State.EVICTED, "age")
    assert scene.read(known).state is State.INCOMPLETE


def test_directory_that_is_not_trusted_any_more_is_unknown(scene: Scene) -> None:
    known = scene.meet()
    scene.book.drop(known.key)
    assert scene.book.find(known.key) is None
    assert scene.read(known).state is State.INCOMPLETE, "its record stays"


def test_dump_that_changed_since_the_last_look_is_not_read_before_the_next(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.symbols.begin_scan(DumpSettings(analysis=AnalysisOptions()))
    known = scene.meet()
    known.growing = False
    (scene.directory / NAME / f"dump.{NAME}").unlink()
    assert known.crash_id is not None
    scene.symbols.ask(known.crash_id)
    assert scene.symbols.pending
    scene.symbols.next(scene.book)
    assert scene.symbols.waiting
    assert not scene.symbols.pending, "the thread would never sleep"
    with DumpRoot(scene.directory) as root:
        known.seen = root.look(NAME.encode())
    scene.symbols.next(scene.book)
    assert not scene.symbols.waiting

    known.growing = True
    scene.symbols.ask(known.crash_id)
    scene.symbols.next(scene.book)
    assert scene.symbols.waiting
    monkeypatch.setattr(symbolwork, "ASKED_WAIT_NS", 0)
    scene.symbols.next(scene.book)
    assert not scene.symbols.waiting, "it gets an answer, even if it keeps changing"

    scene.symbols.ask(known.crash_id)
    scene.symbols.begin_scan(DumpSettings())
    scene.symbols.next(scene.book)
    assert not scene.symbols.pending, "analysis was turned off"


def test_hooks_are_told_once_and_not_before_the_log_was_read(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the log says is in the title; a hook that was told before would never hear of it."""
    told: list[str] = []
    monkeypatch.setattr(scene.indexer, "finished", told.append)
    scene.meet(growing=True)
    known = scene.meet(log_pending=True)
    assert told == []
    scene.meet()
    assert told == [known.crash_id]
    scene.meet()
    assert told == [known.crash_id]
