import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.store import entry as entries
from crashd.store.entry import Entry
from crashd.store.keptfiles import (
    NoRoomError,
    Room,
    is_file_name,
    keep_file,
    make_room,
    read_kept,
    remove_unneeded,
)
from crashd.store.paths import Paths
from tests.builders.crashes import build_crash

NAME = "file-" + "ab" * 20
ROOM = Room(64 << 20, 0)
CONTENT = os.urandom(3 << 20)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path)
    entries.prepare(found)
    return found


@pytest.fixture
def made(paths: Paths) -> Iterator[list[Entry]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(entries.create(paths, build_crash(number))) for number in range(4)
        ]


def keep(entry: Entry, content: bytes = CONTENT, name: str = NAME, room: Room = ROOM) -> None:
    def read(at: int) -> bytes:
        return content[at : at + (1 << 20)]

    keep_file(entry, name, read, len(content), room)


def names(paths: Paths) -> list[str]:
    return sorted(path.name for path in paths.kept_files.glob("*"))


def test_keep_file_one_content_is_stored_once_and_goes_with_the_last_crash(
    paths: Paths, made: list[Entry]
) -> None:
    keep(made[0])
    keep(made[1])
    (name,) = names(paths)
    assert is_file_name(name)
    assert made[1].read_file(NAME, 8 << 20) == CONTENT
    assert os.stat(NAME, dir_fd=made[0].fd).st_nlink == 3
    assert 3 << 20 <= read_kept(paths.kept_files).size_bytes < 4 << 20
    made[0].drop_core()
    remove_unneeded(paths)
    assert names(paths) == [name]
    assert NAME not in made[0].file_names()
    made[1].drop_core()
    remove_unneeded(paths)
    assert names(paths) == []


def test_keep_file_another_content_with_the_same_build_id_is_another_file(
    paths: Paths, made: list[Entry]
) -> None:
    false = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    keep(made[0], false)
    keep(made[1])
    assert len(names(paths)) == 2
    assert made[0].read_file(NAME, 8 << 20) == false
    assert made[1].read_file(NAME, 8 << 20) == CONTENT


def test_keep_file_takes_half_of_what_is_left_at_most(paths: Paths, made: list[Entry]) -> None:
    with pytest.raises(NoRoomError, match=r"it has 3145728 bytes, and capture.keep_files leaves"):
        keep(made[0], room=Room(5 << 20, 0))
    with pytest.raises(NoRoomError):
        keep(made[0], room=Room(64 << 20, 1 << 62))
    assert names(paths) == []
    assert NAME not in made[0].file_names()


def test_keep_file_that_grows_meanwhile_is_cut(paths: Paths, made: list[Entry]) -> None:
    keep_file(made[0], NAME, lambda at: b"x" * (1 << 20), 5000, ROOM)
    assert made[0].read_file(NAME, 8 << 20) == b"x" * 5000


def test_make_room_takes_from_the_oldest_that_are_not_pinned(
    paths: Paths, made: list[Entry]
) -> None:
    for number, entry in enumerate(made):
        keep(entry, bytes([number]) * (1 << 20), "file-" + f"{number:02x}" * 20)
    made[0].write(replace(made[0].read(), pinned=True), sync=False)
    for entry in made:
        entry.close()  # and its lock
    assert make_room(paths, 6 << 20) == 0
    assert make_room(paths, 5 << 20) == 2
    assert [name[:2] for name in names(paths)] == ["00", "03"]


def test_remove_unneeded_leaves_other_names_alone(paths: Paths) -> None:
    paths.kept_files.mkdir(0o700)
    (paths.kept_files / "notes").write_text("the administrator's")
    remove_unneeded(paths)
    assert names(paths) == ["notes"]


def test_entry_that_is_removed_takes_its_names_along(paths: Paths, made: list[Entry]) -> None:
    keep(made[0])
    keep(made[1])
    made[0].close()
    entries.remove(paths, made[0].id)
    remove_unneeded(paths)
    assert len(names(paths)) == 1
    assert paths.kept_files.name not in entries.foreign_names(paths)
