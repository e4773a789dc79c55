"""What the index notes for the outbox, by whichever writer."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.domain.crash.model import State
from crashd.store import changes
from crashd.store.changes import Gone
from crashd.store.index import Index
from tests.builders.crashes import build_crash


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.open(tmp_path / "index.sqlite") as opened:
        yield opened


def noted(index: Index) -> dict[str, Gone]:
    return {change.id: change.gone for change in changes.read_changes(index)}


def test_watch_begins_with_every_finished_crash(index: Index) -> None:
    whole, begun = build_crash(1), build_crash(2, state=State.CAPTURING)
    index.put([whole, begun])
    assert not changes.is_watched(index)
    changes.watch(index)
    assert noted(index) == {whole.id: Gone.NO}


def test_every_write_is_noted_but_that_of_a_capture(index: Index) -> None:
    changes.watch(index)
    first, second = build_crash(1), build_crash(2)
    index.put([first, replace(second, state=State.CAPTURING)])
    assert noted(index) == {first.id: Gone.NO}
    index.put([second])
    assert noted(index) == {first.id: Gone.NO, second.id: Gone.NO}


def test_change_made_while_another_is_taken_stays(index: Index) -> None:
    changes.watch(index)
    crash = build_crash(1)
    index.put([crash])
    taken = changes.read_changes(index)
    index.put([replace(crash, pinned=True)])
    changes.drop_changes(index, taken)
    assert noted(index) == {crash.id: Gone.NO}
    changes.drop_changes(index, changes.read_changes(index))
    assert noted(index) == {}


@pytest.mark.parametrize("gone", [Gone.DELETED, Gone.WANTED])
def test_removal_says_on_whose_behalf(index: Index, gone: Gone) -> None:
    changes.watch(index)
    old, unwanted = build_crash(1), build_crash(2)
    index.put([old, unwanted])
    index.remove([old.id])
    changes.remove_for_good(index, unwanted.id, gone)
    assert noted(index) == {old.id: Gone.AGED, unwanted.id: gone}


def test_replace_all_notes_every_crash_once(index: Index) -> None:
    changes.watch(index)
    stays, goes = build_crash(1), build_crash(2)
    index.put([stays, goes])
    changes.drop_changes(index, changes.read_changes(index))
    index.replace_all([stays])
    assert noted(index) == {stays.id: Gone.NO, goes.id: Gone.AGED}


def test_unwatched_index_is_as_it_was(index: Index) -> None:
    before = index.fetch("SELECT name FROM sqlite_master ORDER BY name")
    changes.watch(index)
    changes.unwatch(index)
    left = index.fetch(
        "SELECT name FROM sqlite_master WHERE name != 'sqlite_sequence' ORDER BY name"
    )
    assert left == before
    changes.remove_for_good(index, "x")  # nobody to tell
