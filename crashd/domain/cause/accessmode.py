"""Whether an instruction reads or writes its memory operand, by its mnemonic. Pure.

A disassembler's own answer is wrong for a third of the stores (capstone 5 calls movups, vmovdqu,
cmpxchg, fst and many others reads), so this module has its own table.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2 (in the operand
encoding of each instruction, "ModRM:r/m (r)", "(w)" or "(r, w)"); Arm Architecture Reference Manual
for A-profile, C3.2 "Loads and stores", C5.3.26 "DC ZVA". tests/unit/analyzers/test_instruction.py
compares more than 128 forms with the error code that a processor gave for each.
"""

import re
from typing import Literal

Mode = Literal["read", "write", "read-write"]

# x86: the destination is the first operand, so a memory operand that comes later is a source. The
# first operand is written, except for these two sets.
_X86_FIRST_READ = re.compile(
    r"""
    cmp[bwdq]?|test|bt|push[fwdq]*|l?call[qw]?|l?jmp[qw]?|i?mul|i?div
    |f(i?(add|sub|subr|mul|div|divr|com|comp|ld)|bld|ucom\w*|ldcw|ldenv|rstor)
    |fxrstor(64)?|xrstors?(64)?|v?ldmxcsr|l[gi]dt|lldt|ltr|lmsw|ver[rw]
    |prefetch\w*|nop|clflush(opt)?|clwb|cldemote|invlpg|vmptrld|vmxon|ptwrite|ldtilecfg|rstorssp
    |clrssbsy|v(gather|scatter)pf\w*|bound|(out|lod|sca)s[bwdq]?|cmps[bwdq]
    """,
    re.VERBOSE,
)
_X86_FIRST_CHANGED = re.compile(
    r"""
    add|sub|adc|sbb|and|or|xor|inc|dec|neg|not|sh[lr]d?|sa[lr]|ro[lr]|rc[lr]|bt[src]
    |xadd|xchg|cmpxchg(8b|16b)?|a(add|and|or|xor)|cmp\w+xadd
    """,
    re.VERBOSE,
)
_X86_LATER_CHANGED = re.compile(r"xchg")
"""Disassemblers print the two operands of xchg in either order."""

X86_IMPLICIT: dict[str, tuple[Mode, str]] = {
    "maskmovq": ("write", "rdi"),
    "maskmovdqu": ("write", "rdi"),
    "vmaskmovdqu": ("write", "rdi"),
    "clzero": ("write", "rax"),
    "xlat": ("read", "rbx"),
    "xlatb": ("read", "rbx"),
}
"""Memory that an instruction touches without an operand for it: the mode, and the register that
holds the address.
"""

# aarch64: the mnemonic alone decides, because only the copying instructions (CPY*), which are not
# in this table, have both a source and a destination in memory. Cache maintenance counts as a read,
# as in the kernel (is_write_abort() of arch/arm64/mm/fault.c), but DC ZVA and its variants store.
_ARM64_CHANGED = re.compile(r"(cas|rcw|swp|ld(add|clr|eor|set|[su]max|[su]min))[a-z0-9]*")
_ARM64_ZEROES = re.compile(r"dc +(zva|gva|gzva), *(x\d+)", re.IGNORECASE)
_ARM_WRITES = re.compile(r"v?(st|push)\w*")
_ARM_CHANGED = re.compile(r"swpb?\w*")


def x86_mode(mnemonic: str, *, first: bool) -> Mode:
    """Return what an x86 instruction does to an explicit memory operand.

    `mnemonic` has no prefix; `first` says whether the operand comes first in Intel's order.
    """
    if not first:
        return "read-write" if _X86_LATER_CHANGED.fullmatch(mnemonic) else "read"
    if _X86_FIRST_READ.fullmatch(mnemonic):
        return "read"
    return "read-write" if _X86_FIRST_CHANGED.fullmatch(mnemonic) else "write"


def arm64_mode(mnemonic: str) -> Mode:
    """Return what an aarch64 instruction does to its memory operand."""
    if mnemonic.startswith("st"):
        return "write"
    return "read-write" if _ARM64_CHANGED.fullmatch(mnemonic) else "read"


def arm64_zeroed(text: str) -> str | None:
    """Return the register that holds the address to which a DC ZVA or a variant stores."""
    found = _ARM64_ZEROES.match(text)
    return None if found is None else found[2].lower()


def arm_mode(mnemonic: str) -> Mode:
    """Return what a 32-bit arm instruction does to its memory operand."""
    if _ARM_CHANGED.fullmatch(mnemonic):
        return "read-write"
    return "write" if _ARM_WRITES.fullmatch(mnemonic) else "read"
