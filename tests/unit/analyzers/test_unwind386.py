"""Stacks of i386 programs, where there is no unwind information and where it lies."""

from collections.abc import Callable
from pathlib import Path
from struct import pack

import pytest

from crashd.analyzers.coreimage import CoreImage
from crashd.analyzers.unwind386 import Step, Unwinder, read_registers
from crashd.domain.elf.ehframe import UnwindTable
from crashd.store.coreread import read_head
from tests.builders.coreimage import open_image
from tests.builders.elfcore import CoreFormat, CoreSegment, CoreThread, build_core, build_notes
from tests.unit.domain.elf.test_cfi import AT, CODE, EPILOGUE, PROLOGUE, build

I386 = CoreFormat(machine=3, bits=32)
STACK = 0xFFF0_0000
RETURNS = [CODE + 0x200, CODE + 0x300]
TEXT = bytearray(b"\x90" * 4096)
for returns in RETURNS:
    TEXT[returns - 5 - CODE] = 0xE8  # call
Load = Callable[..., CoreImage]


def table(code: bytes) -> bytes:
    """Build .eh_frame_hdr after the entries of `build`, which begin at AT."""
    raw, entry = build(code)
    here = AT + len(raw)
    head = pack("<4siI", bytes((1, 0x1B, 3, 0x3B)), 0, 1)
    return raw + head + pack("<ii", CODE - here, entry - here)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def make(stack: list[int], code: bytes = PROLOGUE + EPILOGUE) -> CoreImage:
        segments = [
            CoreSegment(AT, table(code).ljust(4096, b"\0"), flags=4),
            CoreSegment(CODE, bytes(TEXT), flags=5),
            CoreSegment(STACK, pack(f"<{len(stack)}I", *stack).ljust(4096, b"\0")),
        ]
        notes = build_notes(I386, threads=[CoreThread(7, pc=CODE, sp=STACK)])
        return open_image(tmp_path / "core", build_core(form=I386, notes=notes, segments=segments))

    return make


def steps(image: CoreImage, pc: int, ebp: int = 0, *, tables: bool = False) -> list[int]:
    found = UnwindTable(image.read, AT + len(build(PROLOGUE + EPILOGUE)[0])) if tables else None
    walk = Unwinder(image, lambda _: found).walk({"eip": pc, "esp": STACK, "ebp": ebp}, 20)
    assert [step.interrupted for step in walk.steps] == [True] + [False] * (len(walk.steps) - 1)
    return [step.pc for step in walk.steps]


def test_registers_are_those_of_each_thread(load: Load) -> None:
    image = load([0])
    raw, _ = read_head(image.core)
    registers = read_registers(raw, image)[7]
    assert (registers["eip"], registers["esp"]) == (CODE, STACK)


def test_frame_pointers_lead_to_calls_only(load: Load) -> None:
    frames = [9, STACK + 16, RETURNS[0], 9, STACK + 28, RETURNS[1], 9, 0, CODE + 0x400]
    image = load(frames)
    assert steps(image, CODE + 0x800, STACK + 4) == [CODE + 0x800, *RETURNS]
    assert steps(image, CODE + 0x800, STACK + 7) == [CODE + 0x800]


def test_frame_pointer_that_leads_to_itself_ends(load: Load) -> None:
    assert steps(load([STACK, RETURNS[0]]), CODE + 0x800, STACK) == [CODE + 0x800, RETURNS[0]]


def test_unwind_information_of_a_function_at_its_start(load: Load) -> None:
    image = load([RETURNS[0], 5])
    assert steps(image, CODE, tables=True) == [CODE, RETURNS[0]]
    saved = load([STACK + 8, RETURNS[0], 9])
    assert steps(saved, CODE + 1, tables=True)[:2] == [CODE + 1, RETURNS[0]]


@pytest.mark.parametrize(
    "code", [b"\x07\x04", b"\x84\x7f", b"\x09\x04\x07"], ids=["undefined", "not there", "unknown"]
)
def test_unwind_information_that_loses_the_stack_pointer_ends_the_walk(
    load: Load, code: bytes
) -> None:
    image = load([RETURNS[0], 5], code)
    found = UnwindTable(image.read, AT + len(build(code)[0]))
    walk = Unwinder(image, lambda _: found).walk({"eip": CODE, "esp": STACK, "ebp": 0}, 20)
    assert [step.pc for step in walk.steps] == [CODE]
    assert walk.end == "the unwind information does not say where the caller's frame is"


def test_call_of_what_is_not_code_has_its_caller(load: Load) -> None:
    assert steps(load([RETURNS[0]]), 0) == [0, RETURNS[0]]
    assert steps(load([3]), 0) == [0]


def test_walk_is_bounded_and_says_why_it_ends(load: Load) -> None:
    image = load([RETURNS[0]] * 900)
    walk = Unwinder(image, lambda _: None).walk({"eip": CODE, "esp": STACK}, 3)
    assert walk.steps[0] == Step(CODE, STACK, interrupted=True)
    assert walk.end == "a function without unwind information"
    walk = Unwinder(image, lambda _: None).walk({"eip": CODE, "esp": STACK, "ebp": 0}, 3)
    assert (len(walk.steps), walk.end) == (3, "more frames than are shown")
    assert Unwinder(image, lambda _: None).walk({}, 3).steps == []
