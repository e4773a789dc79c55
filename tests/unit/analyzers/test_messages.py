"""Last words out of memory that is built byte by byte."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from struct import pack

import pytest

from crashd.analyzers import messages
from crashd.analyzers.coreimage import CoreImage
from crashd.store.corefile import CoreWriter
from crashd.store.coreread import StoredCore, read_head
from tests.builders.elfcore import (
    CoreFormat,
    CoreSegment,
    CoreThread,
    build_core,
    build_notes,
)

STACK, HEAP = 0x7000_0000, 0x5000_0000
SIZE = 8192


@dataclass
class Memory:
    """A stack and a heap to write into."""

    stack: bytearray = field(default_factory=lambda: bytearray(SIZE))
    heap: bytearray = field(default_factory=lambda: bytearray(SIZE))
    used: int = 64

    def put(self, data: bytes) -> int:
        """Put bytes on the heap; give their address."""
        at = self.used
        self.heap[at : at + len(data)] = data
        self.used = (at + len(data) + 31) & -16
        return HEAP + at

    def push(self, at: int, *words: int) -> None:
        """Put words on the stack."""
        self.stack[at : at + 8 * len(words)] = pack(f"<{len(words)}Q", *words)


@pytest.fixture
def load(tmp_path: Path) -> Callable[[Memory], CoreImage]:
    """Make a core of a memory, and open it."""

    def make(memory: Memory) -> CoreImage:
        notes = build_notes(CoreFormat(), threads=[CoreThread(7, pc=1, sp=STACK)])
        core = build_core(
            notes=notes,
            segments=[
                CoreSegment(HEAP, bytes(memory.heap)),
                CoreSegment(STACK, bytes(memory.stack)),
            ],
        )
        fd = os.open(tmp_path / "core", os.O_RDWR | os.O_CREAT, 0o600)
        writer = CoreWriter(fd, level=1, threads=0)
        writer.write(memoryview(core))
        writer.finish()
        stored = StoredCore(fd)
        return CoreImage(stored, read_head(stored)[1])

    return make


def collect(image: CoreImage, *functions: str, **symbols: int) -> dict[str, str]:
    frames = [{"function": name, "sp": STACK} for name in functions]
    return messages.collect(image, symbols.get, lambda name: f"<{name}>", frames, None)


def test_collect_abort_message(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    text = memory.put(pack("<I", 30) + b"free(): invalid pointer\n\0")
    pointer = memory.put(pack("<Q", text))
    assert collect(load(memory), __abort_msg=pointer) == {"abort": "free(): invalid pointer"}


@pytest.mark.parametrize("pointer", [0, 1, HEAP + SIZE - 2, (1 << 64) - 1, 0xDEAD])
def test_collect_abort_message_pointing_nowhere_is_none(
    load: Callable[[Memory], CoreImage], pointer: int
) -> None:
    memory = Memory()
    at = memory.put(pack("<Q", pointer))
    assert collect(load(memory), __abort_msg=at) == {}


def thrown(memory: Memory, name: bytes, value: bytes, base: int = 0) -> None:
    """Throw an exception: type_info, __cxa_exception, object."""
    info = memory.put(pack("<QQQ", 0, memory.put(name + b"\0"), base))
    header = pack("<Q", info) + bytes(72) + b"GNUCC++\0"[::-1] + bytes(24)
    memory.push(512, memory.put(header + value) + 80)


def test_collect_uncaught_exception(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    base = memory.put(pack("<QQQ", 0, memory.put(b"St13runtime_error\0"), 0))
    thrown(memory, b"N3app5ErrorE", pack("<QQ", 0, memory.put(b"no disk\0")), base)
    found = collect(load(memory), "abort", "std::terminate()")
    assert found == {"cxx_type": "<N3app5ErrorE>", "cxx_what": "no disk"}


def test_collect_exception_of_an_unknown_type_has_no_message(
    load: Callable[[Memory], CoreImage],
) -> None:
    memory = Memory()
    thrown(memory, b"3Odd", pack("<QQ", 0, memory.put(b"secret\0")))
    assert collect(load(memory), "__cxa_throw") == {"cxx_type": "<3Odd>"}


def test_collect_bases_in_a_circle_end(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    name = memory.put(b"4Loop\0")
    circle = memory.put(bytes(24))
    memory.heap[circle - HEAP : circle - HEAP + 24] = pack("<QQQ", 0, name, circle)
    thrown(memory, b"4Loop", bytes(16), circle)
    assert collect(load(memory), "__cxa_throw") == {"cxx_type": "<4Loop>"}


def test_collect_terminate_without_exception(load: Callable[[Memory], CoreImage]) -> None:
    assert collect(load(Memory()), "std::terminate()") == {"cxx_terminate": "true"}


def test_collect_rust_panic(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    name = memory.put(b"src/store.rs")
    location = memory.put(pack("<QQII", name, 12, 33, 9))
    text = memory.put(b"shard 17 is lostNEXT")
    memory.push(128, location, 5, text, 16)
    found = collect(load(memory), "core::panicking::panic_fmt")
    assert found == {"rust_location": "src/store.rs:33:9", "rust_panic": "shard 17 is lost"}


def test_collect_rust_tagged_length_is_not_read_past_the_text(
    load: Callable[[Memory], CoreImage],
) -> None:
    memory = Memory()
    text = memory.put(b"shard 17 is lostNEXT LITERAL OF ANOTHER")
    memory.push(128, text, 16, 0, text, 33)
    assert collect(load(memory), "rust_panic")["rust_panic"] == "shard 17 is lost"


@pytest.mark.parametrize("index", [0, 3, 511])
def test_collect_go_fatal_error_reads_the_ring(
    load: Callable[[Memory], CoreImage], index: int
) -> None:
    memory = Memory()
    text = b"fatal error: all asleep\n".rjust(512, b"\0")
    ring = text[-index:] + text[:-index] if index else text
    symbols = {
        "runtime.printBacklog": memory.put(ring),
        "runtime.printBacklogIndex": memory.put(pack("<Q", index)),
    }
    assert collect(load(memory), "runtime.fatal", **symbols) == {"go_fatal": "all asleep"}


def test_collect_go_index_beyond_the_ring_is_none(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    symbols = {
        "runtime.printBacklog": memory.put(b"fatal error: x\n"),
        "runtime.printBacklogIndex": memory.put(pack("<Q", 1 << 62)),
    }
    assert collect(load(memory), "runtime.fatal", **symbols) == {}
