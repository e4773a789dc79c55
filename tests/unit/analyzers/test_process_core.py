"""What the native facts say where a core says less than usual."""

from pathlib import Path
from typing import Any

import pytest

from crashd.analyzers import process_core
from crashd.analyzers.coreimage import CoreImage
from tests.builders.coreimage import open_image
from tests.builders.elfcore import CoreFormat, CoreSegment, CoreThread, build_core, build_notes

TEXT, STACK = 0x40_0000, 0x7000_0000


def load(path: Path, *, signal: int, pc: int) -> CoreImage:
    notes = build_notes(CoreFormat(), threads=[CoreThread(7, signal, pc=pc, sp=STACK)])
    segments = [CoreSegment(TEXT, bytes(4096), flags=5), CoreSegment(STACK, bytes(4096))]
    return open_image(path / "core", build_core(notes=notes, segments=segments))


@pytest.mark.parametrize(
    ("signal", "pc", "touched", "address"),
    [
        (11, TEXT, (0x18,), 0x18),
        (11, TEXT, (STACK, None, 0x28), 0x28),
        (11, 0, (), 0),
        (11, TEXT, (STACK,), None),
        (11, TEXT, None, None),
        (6, 0, (), None),
    ],
)
def test_fault_of_a_core_without_siginfo_is_what_is_not_mapped(
    tmp_path: Path,
    signal: int,
    pc: int,
    touched: tuple[int | None, ...] | None,
    address: int | None,
) -> None:
    """QEMU's cores have no siginfo."""
    image = load(tmp_path, signal=signal, pc=pc)
    decoded: dict[str, Any] | None = None
    if touched is not None:
        decoded = {"access": [{"address": at} for at in touched]}
    info = process_core._missing_siginfo(image, image.head.threads[0], decoded)
    assert (None if info is None else info.address) == address


@pytest.mark.parametrize(
    ("code", "returned"),
    [(b"\x90" * 4096, True), (b"\xff\xd0".rjust(9, b"\x90").ljust(4096), False), (b"", False)],
)
def test_is_returned_is_not_said_where_the_code_is_missing(
    tmp_path: Path, code: bytes, *, returned: bool
) -> None:
    """The program's file is gone: there may be a call before the return address."""
    notes = build_notes(CoreFormat(), threads=[CoreThread(7, 11, pc=0, sp=STACK + 8)])
    stack = bytes(8) + (TEXT + 9).to_bytes(8, "little")
    segments = [CoreSegment(TEXT, code, 4096, flags=5), CoreSegment(STACK, stack.ljust(4096))]
    image = open_image(tmp_path / "core", build_core(notes=notes, segments=segments))
    assert process_core._is_returned(image) == returned


def test_operand_is_what_the_instruction_read(tmp_path: Path) -> None:
    image = load(tmp_path, signal=8, pc=TEXT)
    assert process_core._operand(image, {"address": STACK, "size": 4}) == 0
    assert process_core._operand(image, {"address": STACK + 4094, "size": 4}) is None
    assert process_core._operand(image, {"address": None, "size": 4}) is None
    assert process_core._operand(image, {"address": STACK, "size": 10}) is None
