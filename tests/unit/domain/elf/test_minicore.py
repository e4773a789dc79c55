"""Mini cores: sound ELF, the wanted memory in its place, all of the rest named as not saved."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.elf.elfcore import CoreHead, head_size, parse_head
from crashd.domain.elf.minicore import CRASHED_STACK_BYTES, MINI_MAX, STACK_BYTES, plan_mini
from tests.builders.elfcore import CoreFormat, CoreSegment, CoreThread, build_core, build_notes

STACK = 0x7F0000000000
OTHER = 0x7E0000000000
HEAP = 0x10000000
MIB = 1 << 20


def make(
    segments: list[tuple[int, int]], threads: tuple[CoreThread, ...], core_format: CoreFormat
) -> tuple[bytes, bytes, CoreHead]:
    """Build a core of segments (address, size): whole core, its head's bytes, and what they say."""
    notes = build_notes(core_format, threads=threads, siginfo=None, auxv={})
    core = build_core(
        form=core_format,
        notes=notes,
        segments=[
            CoreSegment(address, bytes((address + i) % 251 for i in range(4096)) * (size // 4096))
            for address, size in segments
        ],
    )
    raw = core[:64]
    while len(raw) < head_size(raw):
        raw = core[: head_size(raw)]
    return core, raw, parse_head(raw)


THREADS = (CoreThread(1, 11, pc=0x401000, sp=STACK + 3 * MIB), CoreThread(2, sp=OTHER + 100))
SEGMENTS = [(HEAP, 8 * MIB), (OTHER, MIB), (STACK, 4 * MIB)]


def assemble(core: bytes, raw: bytes, head: CoreHead) -> tuple[bytes, CoreHead]:
    plan = plan_mini(head, raw, None)
    mini = bytearray(plan.head)
    for kept in plan.kept:
        mini = mini.ljust(kept.offset, b"\0")
        mini += core[kept.source : kept.source + kept.size]
    assert len(mini) == plan.size
    return bytes(mini), parse_head(bytes(mini))


def test_plan_mini_keeps_stacks_and_names_the_rest() -> None:
    core, raw, head = make(SEGMENTS, THREADS, CoreFormat())
    mini, found = assemble(core, raw, head)
    assert found.problems == ()
    assert found.expected_size == len(mini)
    assert [(t.tid, t.pc, t.sp) for t in found.threads] == [
        (t.tid, t.pc, t.sp) for t in head.threads
    ]
    assert len(mini) < 2 * MIB
    covered = {(s.vaddr, s.memsz) for s in found.segments}
    assert sum(size for _, size in covered) == sum(size for _, size in SEGMENTS), "none is unnamed"
    for segment in found.segments:
        assert segment.filesz in (0, segment.memsz)
        source = next(s for s in head.segments if s.vaddr <= segment.vaddr < s.vaddr + s.memsz)
        at = source.offset + segment.vaddr - source.vaddr
        there = mini[segment.offset : segment.offset + segment.filesz]
        assert there == core[at : at + segment.filesz]
    kept = [s for s in found.segments if s.filesz]
    assert not any(HEAP <= s.vaddr < HEAP + 8 * MIB for s in kept)
    crashed = next(s for s in kept if s.vaddr <= STACK + 3 * MIB < s.vaddr + s.memsz)
    assert crashed.vaddr + crashed.memsz == STACK + 4 * MIB, "up to its end, a MiB away"
    assert crashed.memsz <= CRASHED_STACK_BYTES + 2 * 4096
    other = [s for s in kept if OTHER <= s.vaddr < OTHER + MIB]
    assert sum(s.memsz for s in other) <= STACK_BYTES + 8 * 4096


def test_plan_mini_stack_pointer_in_the_guard_is_followed_up() -> None:
    threads = (CoreThread(1, 11, sp=STACK - 4096),)
    core, raw, head = make([(STACK, MIB)], threads, CoreFormat())
    _, found = assemble(core, raw, head)
    assert sum(s.filesz for s in found.segments) == MIB


@pytest.mark.parametrize("bits", [32, 64])
def test_plan_mini_32_bits(bits: int) -> None:
    core_format = CoreFormat(3, 32) if bits == 32 else CoreFormat()
    threads = (CoreThread(1, 11, pc=0x8048000, sp=0x40000000 + 8192),)
    core, raw, head = make([(0x40000000, 65536)], threads, core_format)
    mini, found = assemble(core, raw, head)
    assert found.bits == bits
    assert found.problems == ()
    assert found.segments[-1].filesz
    assert struct.unpack_from("<H", mini, 44 if bits == 32 else 56)[0] == 1 + len(found.segments)


def test_plan_mini_is_bounded_whatever_the_threads_ask() -> None:
    segments = tuple((0x100000000 + n * MIB, 512 << 10) for n in range(2 * MINI_MAX // STACK_BYTES))
    threads = tuple(CoreThread(n + 1, 11, sp=address) for n, (address, _) in enumerate(segments))
    _, raw, head = make([], threads, CoreFormat())
    from crashd.domain.elf.elfcore import Segment

    offset, found = len(raw), []
    for address, size in segments:
        found.append(Segment(offset, address, size, size, 6))
        offset += size
    wide = CoreHead(62, 64, "little", tuple(found), offset, threads=head.threads, notes=head.notes)
    plan = plan_mini(wide, raw, None)
    assert sum(kept.size for kept in plan.kept) <= MINI_MAX + CRASHED_STACK_BYTES


@given(
    st.lists(
        st.one_of(st.none(), st.integers(0, 2**64 - 1), st.integers(STACK - MIB, STACK + 5 * MIB)),
        max_size=6,
    )
)
def test_plan_mini_hostile_stack_pointers_do_no_harm(pointers: list[int | None]) -> None:
    threads = tuple(CoreThread(n + 1, 11, sp=sp or 0) for n, sp in enumerate(pointers))
    core, raw, head = make([(HEAP, 8192), (STACK, 16384)], threads, CoreFormat())
    mini, found = assemble(core, raw, head)
    assert found.expected_size <= len(mini) <= len(core) + 3 * 4096
