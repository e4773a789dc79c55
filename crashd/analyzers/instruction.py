"""The instruction that a thread crashed at: what it is, and which memory it was to touch. Only
importer of capstone.
"""

from collections.abc import Mapping
from typing import Any

import capstone

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
    """Decode one instruction; None where there is none, or for a machine not known here.

    `access` lists the memory it touches: `mode` (read, write, read-write), `address`, `size`,
    `displacement`, and the base register with its value.
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
    access = [
        found
        for operand in instruction.operands
        if (found := _memory(instruction, operand, registers, mask)) is not None
    ]
    access += _implicit(instruction.mnemonic.split(" ")[-1], registers, mask, bits // 8)
    return {
        "bytes": bytes(instruction.bytes).hex(),
        "text": f"{instruction.mnemonic} {instruction.op_str}".strip()[:120],
        "mnemonic": instruction.mnemonic[:24],
        "access": access[:4],
    }


def _memory(
    instruction: "capstone.CsInsn",
    operand: Any,
    registers: Mapping[str, int],
    mask: int,
) -> dict[str, Any] | None:
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
        start = registers.get(f"{segment}_base", registers.get(f"{segment}base"))
        address = None if start is None or address is None else address + start
    return {
        "mode": {1: "read", 2: "write", 3: "read-write"}.get(operand.access, "read"),
        "address": None if address is None else address & mask,
        "size": getattr(operand, "size", 0) or 0,
        "displacement": memory.disp,
        "base": base,
        "base_value": None if base is None else _register(base, registers),
        "index": index,
    }


def _register(name: str, registers: Mapping[str, int]) -> int | None:
    if name in registers:
        return registers[name]
    if len(name) > 1 and name[0] in "ew" and (wide := "rx"[name[0] == "w"] + name[1:]) in registers:
        return registers[wide] & 0xFFFFFFFF
    return None


def _implicit(
    mnemonic: str, registers: Mapping[str, int], mask: int, word: int
) -> list[dict[str, Any]]:
    stack = registers.get("rsp", registers.get("esp"))
    if stack is None:
        return []
    for names, mode, address in (
        (_STACK_WRITES, "write", stack - word),
        (_STACK_READS, "read", stack),
    ):
        if mnemonic in names:
            return [
                {
                    "mode": mode,
                    "address": address & mask,
                    "size": word,
                    "displacement": 0,
                    "base": "rsp" if word == 8 else "esp",
                    "base_value": stack,
                    "index": None,
                }
            ]
    return []
