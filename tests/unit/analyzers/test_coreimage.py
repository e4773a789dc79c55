"""Memory of a core, with files standing for what it leaves out."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashd.analyzers.coreimage import CoreImage, FilePart
from crashd.errors import FormatError
from crashd.store.coreread import read_head
from tests.builders.coreimage import store_core
from tests.builders.elfcore import CoreFormat, CoreSegment, CoreThread, build_core, build_notes

TEXT, DATA, GUARD, STACK = 0x40_0000, 0x60_0000, 0x6F_F000, 0x70_0000
FILE = bytes(range(256)) * 64


@pytest.fixture
def image(tmp_path: Path) -> Iterator[CoreImage]:
    notes = build_notes(
        CoreFormat(),
        threads=[CoreThread(7, pc=TEXT, sp=STACK + 64)],
        files=[(TEXT, TEXT + 0x2000, 1, b"/bin/prog")],
    )
    core = build_core(
        notes=notes,
        segments=[
            CoreSegment(TEXT, b"", 0x2000, flags=5),
            CoreSegment(DATA, b"data" * 1024, 0x2000),
            CoreSegment(GUARD, b"", 0x1000, flags=0),
            CoreSegment(STACK, b"stack\0" + bytes(4090)),
        ],
    )
    stored = store_core(tmp_path / "core", core)
    found = CoreImage(stored, read_head(stored)[1])
    (tmp_path / "prog").write_bytes(FILE)
    fd = os.open(tmp_path / "prog", os.O_RDONLY)
    found.add_files([FilePart(TEXT, TEXT + 0x2000, 0x1000, fd)])
    yield found
    os.close(fd)


def test_read_takes_memory_from_the_core_and_text_from_the_file(image: CoreImage) -> None:
    assert image.read(DATA + 4, 6) == b"datada"
    assert image.read(TEXT + 8, 4) == FILE[0x1008:0x100C]
    assert image.string(STACK) == b"stack"
    assert image.word(DATA) == int.from_bytes(b"datadata", "little")


@pytest.mark.parametrize("address", [0, DATA - 1, DATA + 0x1000, GUARD, (1 << 64) - 4, 1 << 63])
def test_read_where_nothing_is_gives_nothing(image: CoreImage, address: int) -> None:
    assert image.read(address, 8) == b""
    assert image.word(address) is None


def test_read_over_an_end_is_short(image: CoreImage) -> None:
    assert len(image.read(DATA, 1 << 20)) == 4096
    assert len(image.read(TEXT, 1 << 40)) == 0x2000


@pytest.mark.parametrize(
    ("address", "kind", "perms", "name"),
    [
        (TEXT, "file", "r-x", "/bin/prog"),
        (DATA, "anonymous", "rw-", ""),
        (GUARD, "guard", "---", ""),
        (STACK, "stack", "rw-", ""),
        (0, "none", "", ""),
    ],
)
def test_describe_tells_what_is_mapped(
    image: CoreImage, address: int, kind: str, perms: str, name: str
) -> None:
    found = image.describe(address)
    assert (found["kind"], found["perms"], found["name"]) == (kind, perms, name)


def test_describe_tells_how_far_the_next_mapping_is(image: CoreImage) -> None:
    found = image.describe(GUARD + 0xF00)
    assert (found["gap_bytes"], found["above"]) == (0x100, "stack")
    assert "gap_bytes" not in image.describe(STACK)


@pytest.mark.parametrize("core", [b"", b"\x7fELF", bytes(4096), b"text" * 99])
def test_read_head_of_no_core_is_told(tmp_path: Path, core: bytes) -> None:
    with pytest.raises(FormatError):
        read_head(store_core(tmp_path / "core", core))


def test_is_code_is_what_may_be_executed(image: CoreImage) -> None:
    assert image.is_code(TEXT)
    assert image.is_code(TEXT + 0x1FFF)
    for address in (0, TEXT - 1, TEXT + 0x2000, DATA, GUARD, STACK, 1 << 47, (1 << 64) - 1):
        assert not image.is_code(address)
