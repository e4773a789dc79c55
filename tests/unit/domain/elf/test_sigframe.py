"""Signal frames: what the kernel left on the stack."""

from struct import pack

import pytest

from crashd.domain.elf.elfnotes import EM_386, EM_AARCH64, EM_MIPS, EM_X86_64
from crashd.domain.elf.sigframe import (
    FRAME_MAX,
    SignalFrame,
    caught_signal,
    frame_address,
    is_restorer,
    parse_frame,
    saved_patterns,
)
from tests.builders.sigframe import (
    build_386_frame,
    build_arm64_frame,
    build_siginfo,
    build_x86_frame,
)

X86 = {"rip": 0x401000, "rsp": 0x7FFD0000, "rdi": 5, "rbx": 7}
I386 = {"eip": 0x8049000, "esp": 0xFFF01000, "eax": 5, "edi": 7}
INFO_386 = pack("<iiiI", 11, 0, 1, 0x28).ljust(128, b"\0")
ARM64 = {"pc": 0x401000, "sp": 0x7FFD0000, "x1": 5}


def test_parse_frame_x86_64_has_signal_and_registers() -> None:
    raw = build_x86_frame(1, X86, build_siginfo(11, 1, 0x28), error=6, cr2=0x28)
    frame = parse_frame(raw, EM_X86_64)
    assert frame is not None
    assert frame.info is not None
    assert (frame.info.signal, frame.info.code, frame.info.address) == (11, 1, 0x28)
    assert (frame.pc, frame.sp, frame.registers["rdi"]) == (0x401000, 0x7FFD0000, 5)
    assert (frame.trap, frame.error_code, frame.fault_address) == (14, 6, 0x28)


def test_parse_frame_aarch64_has_signal_and_registers() -> None:
    raw = build_arm64_frame(ARM64, build_siginfo(11, 1, 0x28), fault=0x28)
    frame = parse_frame(raw, EM_AARCH64)
    assert frame is not None
    assert frame.info is not None
    assert frame.info.address == 0x28
    assert (frame.pc, frame.sp, frame.registers["x1"]) == (0x401000, 0x7FFD0000, 5)
    assert frame.fault_address == 0x28


@pytest.mark.parametrize("info", [INFO_386, None])
def test_parse_frame_i386_of_both_forms_has_the_registers(info: bytes | None) -> None:
    frame = parse_frame(build_386_frame(11, I386, info, cr2=0x28), EM_386)
    assert frame is not None
    assert (frame.info is None) == (info is None)
    assert frame.info is None or (frame.info.signal, frame.info.address) == (11, 0x28)
    assert (frame.pc, frame.sp, frame.fault_address) == (0x8049000, 0xFFF01000, 0x28)
    assert (frame.registers["eax"], frame.registers["edi"], frame.trap) == (5, 7, 14)
    assert frame.error_code == 6
    assert parse_frame(build_386_frame(0, I386, info), EM_386) is None
    assert parse_frame(build_386_frame(11, I386, info, cs=0x60), EM_386) is None
    assert parse_frame(build_386_frame(11, I386 | {"esp": 2}, info), EM_386) is None
    assert parse_frame(build_386_frame(11, I386, info)[:200], EM_386) is None


NOBODY = (-330209328).to_bytes(4, "little", signed=True)
LEFT_OVER = b"\x01" + bytes(15) + NOBODY + bytes(108)
"""What dlopen() left on the stack: SIGHUP, as it seems, from a process whose id none can have."""

PARTLY_LEFT = build_siginfo(11, 1, 0x28)[:100] + b"\x01" + bytes(27)
OVERRUN = build_siginfo(6, -6, 7)[:48] + b"\xff" * 80
"""Like a siginfo at first; but the kernel clears what it does not use."""


@pytest.mark.parametrize(
    "info",
    [bytes(128), build_siginfo(99, 1), build_siginfo(11, 4711), LEFT_OVER, PARTLY_LEFT, OVERRUN],
)
def test_parse_frame_without_a_siginfo_has_the_registers(info: bytes) -> None:
    frame = parse_frame(build_x86_frame(1, X86, info), EM_X86_64)
    assert frame is not None
    assert frame.info is None
    assert frame.pc == 0x401000


@pytest.mark.parametrize(
    "raw",
    [
        bytes(FRAME_MAX),
        b"\xff" * FRAME_MAX,
        build_x86_frame(1, X86, build_siginfo(11, 1), cs=0x10),
        build_x86_frame(1, X86 | {"rsp": 0}, build_siginfo(11, 1)),
        build_x86_frame(1, X86 | {"rsp": 0x7FFD0003}, build_siginfo(11, 1)),
    ],
)
def test_parse_frame_of_something_else_is_none(raw: bytes) -> None:
    assert parse_frame(raw, EM_X86_64) is None


@pytest.mark.parametrize("machine", [EM_X86_64, EM_AARCH64, EM_386])
def test_parse_frame_cut_anywhere_is_none(machine: int) -> None:
    raw = build_x86_frame(1, X86, build_siginfo(11, 1))
    if machine == EM_AARCH64:
        raw = build_arm64_frame(ARM64, build_siginfo(11, 1))[:-64]
    whole = parse_frame(raw, machine)
    assert (whole is None) == (machine == EM_386)
    for size in range(len(raw)):
        assert parse_frame(raw[:size], machine) is None


@pytest.mark.parametrize(
    ("machine", "raw", "pc", "sp"),
    [
        (EM_X86_64, build_x86_frame(1, X86, build_siginfo(11, 1)), 0x401000, 0x7FFD0000),
        (EM_AARCH64, build_arm64_frame(ARM64, build_siginfo(11, 1)), 0x401000, 0x7FFD0000),
        (EM_386, build_386_frame(11, I386, INFO_386), 0x8049000, 0xFFF01000),
        (EM_386, build_386_frame(11, I386, None), 0x8049000, 0xFFF01000),
        (EM_386, build_386_frame(11, I386, None, cs=0x73), 0x8049000, 0xFFF01000),
    ],
)
def test_saved_patterns_are_where_the_registers_are(
    machine: int, raw: bytes, pc: int, sp: int
) -> None:
    found = [place for pattern, place in saved_patterns(machine, pc, sp) if pattern in raw]
    assert raw.find(saved_patterns(machine, pc, sp)[0][0][:4]) in found
    parsed = parse_frame(raw, machine)
    assert parsed is not None
    assert (parsed.pc, parsed.sp) == (pc, sp)
    assert saved_patterns(machine, 1 << 64, 1) == saved_patterns(EM_MIPS, pc, sp) == ()


def test_restorers() -> None:
    code = bytes.fromhex("48c7c00f0000000f05")
    assert is_restorer(code + b"\x90", EM_X86_64)
    assert not is_restorer(code, EM_AARCH64)
    assert not is_restorer(b"", EM_X86_64)
    assert not is_restorer(code, EM_386)
    assert frame_address(EM_X86_64, 0x1008) == 0x1000
    assert frame_address(EM_AARCH64, 0x1000) == 0x1000
    assert is_restorer(bytes.fromhex("58b877000000cd80"), EM_386)
    assert frame_address(EM_386, 0x1004) == 0x1000


HELD = 1 << 14
"""SIGTERM is blocked before and after."""


@pytest.mark.parametrize(
    ("info", "before", "inside", "signal"),
    [
        (None, HELD, HELD | 1 << 10, 11),
        (build_siginfo(11, 1), HELD, HELD | 1 << 13, 14),
        (None, HELD, HELD, None),
        (None, HELD, HELD | 1 << 10 | 1 << 13, None),
        (build_siginfo(11, 1), 1 << 10, 1 << 13, None),
    ],
    ids=["plain", "left over", "SA_NODEFER", "sa_mask", "sigsuspend"],
)
def test_caught_signal_is_what_the_handler_blocks(
    info: bytes | None, before: int, inside: int, signal: int | None
) -> None:
    raw = build_x86_frame(1, X86, info or bytes(128), blocked=before)
    frames = [parse_frame(raw, EM_X86_64)]
    frames.append(parse_frame(build_386_frame(11, I386, None, blocked=before), EM_386))
    frames.append(parse_frame(build_arm64_frame(ARM64, info or bytes(128), blocked=before), 183))
    for frame in frames[:: 2 if info else 1]:
        assert isinstance(frame, SignalFrame)
        assert frame.blocked == before
        assert caught_signal(frame, inside) == signal
