"""Exported symbols, of built images and of a real library."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from crashd.domain.elf.dynsym import find_symbol
from crashd.domain.elf.headers import PT_LOAD, find_phdrs, parse_header
from tests.builders.dynsym import START, build_exports

SYMBOLS = {b"executor_globals": 0x4000, b"a": 0x5000, b"PL_curinterp": 0x6000}


def find(image: bytes, name: bytes) -> int | None:
    def read(address: int, size: int) -> bytes:
        return image[address - START : address - START + size] if address >= START else b""

    return find_symbol(read, START, name)


@pytest.mark.parametrize("relocated", [True, False])
def test_find_symbol(relocated: bool) -> None:
    image = build_exports(SYMBOLS, relocated=relocated)
    assert {name: find(image, name) for name in SYMBOLS} == {
        name: START + value for name, value in SYMBOLS.items()
    }
    assert find(image, b"executor_global") is None
    assert find(build_exports({}), b"a") is None


@pytest.mark.parametrize("more", [{"kind": 6}, {"section": 0}])
def test_find_symbol_that_is_thread_local_or_not_defined_is_none(more: dict[str, int]) -> None:
    assert find(build_exports(SYMBOLS, **more), b"a") is None  # type: ignore[arg-type]


def test_find_symbol_in_a_truncated_image_is_none_or_right() -> None:
    image = build_exports(SYMBOLS)
    for size in range(len(image)):
        assert find(image[:size], b"a") in (None, START + 0x5000)


def test_find_symbol_in_a_chain_without_end_ends() -> None:
    image = build_exports({b"x%d" % number: 8 for number in range(2000)})
    assert find(image, b"y") is None


@pytest.mark.parametrize("value", [b"\0\0\0\0", b"\xff\xff\xff\xff"])
def test_find_symbol_with_damaged_words_does_not_fail(value: bytes) -> None:
    image = build_exports(SYMBOLS)
    for at in range(0, len(image) - 4, 4):
        find(image[:at] + value + image[at + 4 :], b"a")


def test_find_symbol_of_a_real_library() -> None:
    spec = find_spec("zstandard.backend_c")
    assert spec is not None and spec.origin is not None
    raw = Path(spec.origin).read_bytes()
    header = parse_header(raw)
    assert header is not None
    memory = bytearray()
    for kind, _, offset, vaddr, _, filesz, *_ in find_phdrs(raw, header, header.phnum):
        if kind == PT_LOAD:
            memory += bytes(max(0, vaddr - len(memory)))
            memory[vaddr : vaddr + filesz] = raw[offset : offset + filesz]
    found = find(bytes(memory), b"PyInit_backend_c")
    assert found is not None and START < found < START + len(memory)
    assert find(bytes(memory), b"PyInit_backend_d") is None
