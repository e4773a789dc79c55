"""The instruction at which a thread crashed, and the memory that it accesses. Only importer of
capstone, whose answer for reads and writes is not used (crashd.domain.cause.accessmode).
"""

from collections.abc import Mapping
from typing import Any

import capstone

from crashd.domain.cause.accessmode import (
    X86_IMPLICIT,
    Mode,
    arm64_mode,
    arm64_zeroed,
    arm_mode,
    x86_mode,
)
from crashd.domain.elf.elfnotes import EM_386, EM_AARCH64, EM_ARM, EM_X86_64

INSTRUCTION_MAX = 16
_MACHINES = {
    EM_X86_64: (capstone.CS_ARCH_X86, capstone.CS_MODE_64),
    EM_386: (capstone.CS_ARCH_X86, capstone.CS_MODE_32),
    EM_AARCH64: (capstone.CS_ARCH_ARM64, capstone.CS_MODE_LITTLE_ENDIAN),
    EM_ARM: (capstone.CS_ARCH_ARM, capstone.CS_MODE_ARM),
}
_STACK_WRITES = frozenset({"push", "call", "lcall", "enter", "pushf", "pushfq", "pushal"})
_STACK_READS = frozenset({"pop", "ret", "retf", "leave", "popf", "popfq", "iretq"})


def decode(
    machine: int, code: bytes, pc: int, registers: Mapping[str, int], bits: int
) -> dict[str, Any] | None:
    """Decode one instruction; None without code, or for an unknown machine.

    `access` lists the memory that it touches, in the order of access: `mode` (read, write,
    read-write), `address`, `size`, `displacement`, and the base register with its value.
    """
    known = _MACHINES.get(machine)
    if known is None or not code:
        return None
    engine = capstone.Cs(*known)
    engine.detail = True
    instruction = next(engine.disasm(code[:INSTRUCTION_MAX], pc, 1), None)
    if instruction is None:
        return {"bytes": code[:INSTRUCTION_MAX].hex(), "text": None, "mnemonic": None, "access": []}
    mask = (1 << bits) - 1
    word = instruction.mnemonic.split(" ")[-1]  # without `lock`, `rep`, `notrack`
    access = [
        found
        for index, operand in enumerate(instruction.operands)
        if (found := _memory(instruction, operand, _mode(machine, word, index), registers, mask))
    ]
    access += _unnamed(instruction, word, registers, mask)
    access += _implicit(word, registers, mask, bits // 8)
    # reads come first, so they fault first: movs, push and call with an operand in memory
    access.sort(key=lambda one: one["mode"] != "read")
    return {
        "bytes": _whole(instruction, word, code).hex(),
        "text": f"{instruction.mnemonic} {instruction.op_str}".strip()[:120],
        "mnemonic": instruction.mnemonic[:24],
        "access": access[:4],
        **_target(instruction, word, access, registers),
    }


def _whole(instruction: "capstone.CsInsn", mnemonic: str, code: bytes) -> bytes:
    """Return the instruction's bytes; capstone leaves out the operand of ud1, which is a check's
    number.
    """
    size = int(instruction.size)
    if mnemonic == "ud1" and size < len(code):
        size += 2 if code[size] >> 6 == 1 else 1  # ModRM, and a displacement of 8 bits
    return code[:size]


def _target(
    instruction: "capstone.CsInsn",
    mnemonic: str,
    access: list[dict[str, Any]],
    registers: Mapping[str, int],
) -> dict[str, int]:
    """Return the target of a call, jump or return: `target`, or the address `target_at` of it."""
    if mnemonic not in ("call", "jmp", "ret"):
        return {}
    read = next((a["address"] for a in access if a["mode"] == "read"), None)
    if read is not None:
        return {"target_at": read}
    if mnemonic != "ret" and instruction.op_str in registers:
        return {"target": registers[instruction.op_str]}
    return {}


def _mode(machine: int, mnemonic: str, index: int) -> Mode:
    if machine in (EM_X86_64, EM_386):
        return x86_mode(mnemonic, first=index == 0)
    return arm64_mode(mnemonic) if machine == EM_AARCH64 else arm_mode(mnemonic)


def _memory(
    instruction: "capstone.CsInsn",
    operand: Any,
    mode: Mode,
    registers: Mapping[str, int],
    mask: int,
) -> dict[str, Any] | None:
    """Describe an operand's memory access; None if it is not in memory, or not accessed.

    The address is None if it depends on a register whose value is unknown.
    """
    if operand.type != capstone.CS_OP_MEM:
        return None
    memory = operand.mem
    base = instruction.reg_name(memory.base) if memory.base else None
    index = instruction.reg_name(memory.index) if memory.index else None
    if instruction.mnemonic in ("lea", "nop"):
        return None
    address: int | None = memory.disp
    for name, scale in ((base, 1), (index, getattr(memory, "scale", 1))):
        if name is None or address is None:
            continue
        value = _register(name, registers)
        if name in ("rip", "eip"):
            value = instruction.address + instruction.size
        address = None if value is None else address + value * scale
    segment = instruction.reg_name(memory.segment) if getattr(memory, "segment", 0) else None
    if segment in ("fs", "gs"):
        start = next((registers[n] for n in _bases(segment) if n in registers), None)
        address = None if start is None or address is None else address + start
    return {
        "mode": mode,
        "address": None if address is None else address & mask,
        "size": getattr(operand, "size", 0) or 0,
        "displacement": memory.disp,
        "base": base,
        "base_value": None if base is None else _register(base, registers),
        "index": index,
    }


def _bases(segment: str) -> tuple[str, ...]:
    """Return the names of a segment's base: drgn's, and those of other readers."""
    return f"{segment}.base", f"{segment}_base", f"{segment}base"


def _register(name: str, registers: Mapping[str, int]) -> int | None:
    if name in registers:
        return registers[name]
    if len(name) > 1 and name[0] in "ew" and (wide := "rx"[name[0] == "w"] + name[1:]) in registers:
        return registers[wide] & 0xFFFFFFFF
    return None


def _unnamed(
    instruction: "capstone.CsInsn", mnemonic: str, registers: Mapping[str, int], mask: int
) -> list[dict[str, Any]]:
    """Return memory that an instruction touches without an operand for it, except the stack."""
    known = X86_IMPLICIT.get(mnemonic)
    if known is not None:
        mode, base = known
    elif zeroed := arm64_zeroed(f"{instruction.mnemonic} {instruction.op_str}"):
        mode, base = "write", zeroed
    else:
        return []
    value = registers.get(base)
    if value is not None and mnemonic.startswith("xlat"):
        value += registers.get("rax", 0) & 0xFF
    return [_plain(mode, None if value is None else value & mask, 16, base, value)]


def _implicit(
    mnemonic: str, registers: Mapping[str, int], mask: int, word: int
) -> list[dict[str, Any]]:
    stack = registers.get("rsp", registers.get("esp"))
    if stack is None:
        return []
    if mnemonic == "leave":  # the stack pointer becomes the frame pointer first
        stack = registers.get("rbp", registers.get("ebp", stack))
    base = "rsp" if word == 8 else "esp"
    if mnemonic in _STACK_WRITES:
        return [_plain("write", (stack - word) & mask, word, base, stack)]
    if mnemonic in _STACK_READS:
        return [_plain("read", stack & mask, word, base, stack)]
    return []


def _plain(
    mode: Mode, address: int | None, size: int, base: str, value: int | None
) -> dict[str, Any]:
    return {
        "mode": mode,
        "address": address,
        "size": size,
        "displacement": 0,
        "base": base,
        "base_value": value,
        "index": None,
    }
