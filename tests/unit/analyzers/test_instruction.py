"""Instructions, and the memory that they touch."""

from pathlib import Path

import pytest

from crashd.analyzers.instruction import decode
from crashd.domain.elf.elfnotes import EM_386, EM_AARCH64, EM_RISCV, EM_X86_64

REGISTERS = {"rax": 0x1000, "rdi": 0, "rcx": 4, "rsp": 0x7000, "fs_base": 0x50000}


@pytest.mark.parametrize(
    ("code", "mnemonic", "access"),
    [
        ("c7072a000000", "mov", [("write", 0)]),
        ("8b4718", "mov", [("read", 0x18)]),
        ("48833800", "cmp", [("read", 0x1000)]),
        ("830001", "add", [("read-write", 0x1000)]),
        ("8b0488", "mov", [("read", 0x1010)]),
        ("ff10", "call", [("read", 0x1000), ("write", 0x6FF8)]),
        ("55", "push", [("write", 0x6FF8)]),
        ("c3", "ret", [("read", 0x7000)]),
        ("488d4718", "lea", []),
        ("0f0b", "ud2", []),
        ("64488b042528000000", "mov", [("read", 0x50028)]),
        ("8b05f6ffffff", "mov", [("read", 0x3FFFFC)]),
        ("488b00", "mov", [("read", 0x1000)]),
    ],
)
def test_decode_x86_64_tells_what_is_touched(
    code: str, mnemonic: str, access: list[tuple[str, int]]
) -> None:
    found = decode(EM_X86_64, bytes.fromhex(code) + b"\x90" * 8, 0x400000, REGISTERS, 64)
    assert found is not None
    assert found["mnemonic"] == mnemonic
    assert [(a["mode"], a["address"]) for a in found["access"]] == access


DATA = Path(__file__).parents[2] / "data" / "instructions"
AT = 0x10000000


def read_forms(name: str) -> list[tuple[str, str, str]]:
    rows = (line.split(" | ") for line in (DATA / name).read_text().splitlines())
    return [(row[0], row[1], row[2]) for row in rows if not row[0].startswith("#")]


def first_mode(machine: int, code: str, registers: dict[str, int]) -> str | None:
    """How memory near AT is accessed first: what a processor faults for."""
    found = decode(machine, bytes.fromhex(code) + b"\x90" * 4, 0x1000, registers, 64)
    assert found is not None
    modes = (a["mode"] for a in found["access"] if abs((a["address"] or 0) - AT) <= 512)
    return {"read-write": "write"}.get(mode := next(modes, ""), mode)


@pytest.mark.parametrize(("text", "code", "mode"), read_forms("x86_64.txt"))
def test_decode_x86_64_reads_and_writes_as_the_processor_does(
    text: str, code: str, mode: str
) -> None:
    names = ["rdi", "rsi", "rbx"]
    if text.split()[0] in ("call", "push", "pop", "ret", "leave", "enter") and "(" not in text:
        names = ["rsp", "rbp"]
    registers = dict.fromkeys(names, AT) | {"rax": 3, "rcx": 3, "rdx": 3}
    assert first_mode(EM_X86_64, code, registers) == mode


@pytest.mark.parametrize(("text", "code", "mode"), read_forms("aarch64.txt"))
def test_decode_aarch64_reads_and_writes_as_the_manual_says(
    text: str, code: str, mode: str
) -> None:
    del text
    assert first_mode(EM_AARCH64, code, {"x1": AT, "x2": 0x20}) == mode


def test_forms_are_enough_and_of_both_kinds() -> None:
    rows = read_forms("x86_64.txt")
    assert len(rows) >= 128
    assert min(sum(row[2] == mode for row in rows) for mode in ("read", "write")) > 60


def test_decode_unknown_register_has_no_address() -> None:
    found = decode(EM_X86_64, bytes.fromhex("8b03"), 0, {}, 64)
    assert found is not None
    assert found["access"][0]["address"] is None


def test_decode_other_machines() -> None:
    load = decode(EM_AARCH64, bytes.fromhex("000840f9"), 0, {"x0": 0}, 64)
    assert load is not None
    assert load["access"][0]["address"] == 16
    assert decode(EM_386, bytes.fromhex("8b00"), 0, {"eax": 4}, 32) is not None
    assert decode(EM_RISCV, b"\0" * 8, 0, {}, 64) is None
    assert decode(EM_X86_64, b"", 0, {}, 64) is None


@pytest.mark.parametrize(
    ("code", "whole"),
    [
        ("670fb9401690", "670fb94016"),
        ("670fb9000f1f00", "670fb900"),
        ("0fb9c0", "0fb9c0"),
        ("670fb9", "670fb9"),
    ],
)
def test_decode_ud1_with_the_number_of_the_check(code: str, whole: str) -> None:
    found = decode(EM_X86_64, bytes.fromhex(code), 0, {}, 64)
    assert found is not None
    assert found["bytes"] == whole


@pytest.mark.parametrize("seed", range(64))
def test_decode_noise_never_raises(seed: int) -> None:
    import random

    dice = random.Random(seed)
    for _ in range(50):
        code = dice.randbytes(16)
        for machine, bits in ((EM_X86_64, 64), (EM_386, 32), (EM_AARCH64, 64)):
            found = decode(machine, code, dice.randrange(1 << bits), REGISTERS, bits)
            assert found is None or len(found["access"]) <= 4


def test_decode_adds_the_base_of_a_segment() -> None:
    """drgn names it fs.base."""
    code = bytes.fromhex("648b042510000000")
    for name in ("fs.base", "fs_base"):
        decoded = decode(EM_X86_64, code, 0, {name: 0x7F00_0000}, 64)
        assert decoded is not None
        assert decoded["access"][0]["address"] == 0x7F00_0010
