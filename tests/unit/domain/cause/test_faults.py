"""Causes out of the instruction, its pointer and the mappings."""

from dataclasses import replace
from typing import Any

import pytest

from crashd.domain.cause.analysis import Access, Facts, Handled, Instruction, Region
from crashd.domain.cause.faults import explain_abort, explain_fault
from tests.builders.facts import PC, SP, build_access, build_facts, build_region

DATA = 0x601000
ASCII = int.from_bytes(b"/etc/con", "little")


def fault(address: int, kind: str = "none", **more: Any) -> dict[str, Any]:
    return {"address": address, "regions": {"fault": build_region(address, kind, **more)}}


def at(*accesses: Access, **more: Any) -> Facts:
    return build_facts("f", access=accesses, **more)


def returned(address: int, kind: str = "none") -> Facts:
    region = build_region(address, kind)
    return replace(at(address=address, regions={"pc": region, "fault": region}), returned=True)


def jumped(address: int, sp: int) -> Facts:
    places = {"pc": build_region(address), "sp": build_region(sp)}
    return at(address=address, regions=places)


CASES: list[tuple[Facts, str, str]] = [
    (at(build_access("write", 0), **fault(0)), "null-pointer", "write at address 0x0"),
    (
        at(build_access("read", 24, base_value=0, displacement=24), **fault(24)),
        "null-pointer",
        "likely the member at offset 24",
    ),
    (at(build_access("read", 8, base_value=8), **fault(8)), "null-pointer", "8 bytes into a NULL"),
    # the register shows NULL, however far the member is
    (
        at(build_access("read", 0x20000, base_value=0, displacement=0x20000), **fault(0x20000)),
        "null-pointer",
        "likely the member at offset 131072",
    ),
    (
        at(build_access("read", (1 << 64) - 4, base_value=0, displacement=-4),
           **fault((1 << 64) - 4)),
        "null-pointer",
        "likely 4 bytes before a NULL",
    ),
    (
        at(build_access("write", 0x20000, base=None, base_value=None, displacement=0x20000),
           **fault(0x20000)),
        "null-pointer",
        "131072 bytes into a NULL",
    ),
    (
        at(build_access("read", 0x20000, base_value=0, index="rcx"), **fault(0x20000)),
        "wild-pointer",
        "nothing is mapped",
    ),
    (
        at(build_access("read", 0x20000, base_value=0x20000), **fault(0x20000)),
        "wild-pointer",
        "nothing is mapped",
    ),
    (at(**fault(0)), "null-pointer", "NULL pointer: access"),
    (at(build_access("write", 0x5000_0000), **fault(0x5000_0000)), "wild-pointer", "nothing is"),
    (
        at(build_access("read", 0x5000, base_value=0x4000, size=64), **fault(0x50000 + 0)),
        "wild-pointer",
        "access at 0x50000",
    ),
    (
        at(regions={"pc": build_region(0), "fault": build_region(0)}, address=0),
        "null-call",
        "NULL function pointer",
    ),
    (
        at(regions={"pc": build_region(0x9000000), "fault": build_region(0x9000000)},
           address=0x9000000),
        "wild-call",
        "where nothing is mapped",
    ),
    (
        at(
            regions={"pc": build_region(PC), "fault": build_region(PC, "anonymous", perms="rw-")},
            address=PC,
            code=2,
        ),
        "execute-data",
        "data or heap and not code",
    ),
    (
        at(build_access("write", DATA), **fault(DATA, "file", perms="r--", name="/bin/p"), code=2),
        "read-only",
        "which is read-only: /bin/p",
    ),
    # only a write can fail on a page that may be read, whatever the instruction looks like
    (
        at(build_access("read", DATA), **fault(DATA, "file", perms="r--", name="/bin/p"), code=2),
        "read-only",
        "write at 0x601000, which is read-only: /bin/p",
    ),
    (at(**fault(DATA, "file", perms="r-x", name="/bin/p"), code=2), "read-only", "write at"),
    (at(build_access("read", 8), error_code=6, **fault(8)), "null-pointer", "write at address 0x8"),
    (at(build_access("write", 8), error_code=4, **fault(8)), "null-pointer", "read at address 0x8"),
    (
        at(build_access("read", DATA, size=8), build_access("write", DATA + 64, size=8),
           **fault(DATA + 64)),
        "wild-pointer",
        "write at 0x601040",
    ),
    (
        at(build_access("read", DATA), **fault(DATA, "guard", perms="---"), code=2),
        "guard",
        "PROT_NONE",
    ),
    (
        at(build_access("read", DATA), **fault(DATA, "anonymous", perms="-w-"), code=2),
        "no-permission",
        "(-w-)",
    ),
    (
        at(build_access("write", SP - 600, base="rbp"),
           address=SP - 600,
           regions={"fault": build_region(SP - 600, gap_bytes=700, above="anonymous"),
                    "sp": build_region(SP - 500)}),
        "stack-overflow",
        "a frame larger than what is left",
    ),
    (
        build_facts(*["walk"] * 9, access=(build_access("write", SP - 8, base="rsp"),),
                    address=SP - 8,
                    regions={"fault": build_region(SP - 8, "guard", gap_bytes=8, above="stack")}),
        "stack-overflow",
        "recursion of walk()",
    ),
    (
        build_facts("array", access=(build_access("write", SP - 8, base="rsp"),), address=SP - 8,
                    regions={"fault": build_region(SP - 8, gap_bytes=9 << 20, above="guard"),
                             "sp": build_region(SP, gap_bytes=9 << 20, above="guard")}),
        "stack-overflow",
        "a frame larger than what is left",
    ),
    (
        build_facts("patch", access=(build_access("write", PC, base="rip"),), address=PC,
                    regions={"fault": build_region(PC, "file", perms="r-x", name="/bin/p"),
                             "pc": build_region(PC, "file", perms="r-x", name="/bin/p")}),
        "read-only",
        "write at 0x401000, which is read-only: /bin/p",
    ),
    (
        at(build_access("read", 0x5A5A5A5A5A5A5A72), code=128),
        "poisoned-memory",
        "filled with 0x5a",
    ),
    (at(build_access("read", 0x4141414141414141), code=128), "overwritten-pointer", "AAAAAAAA"),
    (at(build_access("read", 0x9191919191919191), code=128), "poisoned-memory", "with 0x91"),
    (returned(0x1234), "return-address", "a return to 0x1234, which is not an address"),
    (returned(0x7F001234), "return-address", "nothing is mapped: the stack was overwritten, or"),
    (returned(SP, "stack"), "return-address", "which is a stack and not code"),
    (at(signal=7, code=1), "unaligned", "unaligned access"),
    (replace(at(signal=4, code=2), instruction=Instruction("670fb94014", "ud1", "ud1", ())),
     "trap", "shift out of bounds (clang's -fsanitize-trap)"),
    (replace(at(signal=4, code=2), instruction=Instruction("670fb900", "ud1", "ud1", ())),
     "trap", "integer overflow in an addition (clang's -fsanitize-trap)"),
    (replace(at(signal=4, code=2), instruction=Instruction("670fb940ff", "ud1", "ud1", ())),
     "trap", "`ud1`"),
    (
        replace(
            build_facts("____longjmp_chk", code=128),
            instruction=Instruction("ffe2", "jmp rdx", "jmp", (), target=0x924E4C52109AF1E0),
        ),
        "wild-target",
        "longjmp through an overwritten jmp_buf",
    ),
    (at(build_access("write", 0xDEADBEEF), **fault(0xDEADBEEF)), "poisoned-memory", "0xdeadbeef"),
    (at(build_access("read", ASCII), code=128), "overwritten-pointer", '"/etc/con"'),
    (
        at(
            build_access("write", 0x55C7FA896, base_value=0x55C7FA87E, displacement=24),
            address=0x55C7FA896,
            regions={
                "fault": build_region(0x55C7FA896),
                "link": build_region(0x55C7FA87E << 12, "anonymous", perms="rw-"),
            },
        ),
        "freed-memory",
        "use after free",
    ),
    (
        at(build_access("read", 0xDEAD00000000BEEF), code=128),
        "non-canonical",
        "0xdead00000000beef, which can be no address",
    ),
    (
        at(build_access("write", 0x563C99A61161), code=128, mnemonic="movaps"),
        "unaligned",
        "not aligned to 16",
    ),
    (at(code=128, mnemonic="hlt"), "general-protection", "`hlt`"),
    (at(code=4, address=PC), "protection-key", "protection key"),
    (at(code=10, address=PC), "control-flow", "control protection"),
    (
        at(build_access("write", PC), signal=7, code=2,
           **fault(PC, "file", name="/tmp/data (deleted)")),
        "past-end-of-file",
        "/tmp/data has become shorter",
    ),
    (at(signal=7, code=2, address=PC), "bus-error", "could not be read"),
    (at(signal=7, code=1, address=PC), "unaligned", "unaligned access at"),
    (at(signal=7, code=4, address=PC), "hardware-memory", "the machine's memory failed"),
    (at(signal=8, mnemonic="idiv", text="idiv ecx", registers={"rcx": 1 << 32}),
     "division-by-zero", "division by zero"),
    (at(signal=8, mnemonic="idiv", text="idiv ecx", registers={"rcx": 0xFFFFFFFF}),
     "integer-overflow", "too large"),
    (at(signal=8, mnemonic="div", text="div dword ptr [rax]", target=0), "division-by-zero",
     "division by zero"),
    (at(signal=8, mnemonic="idiv", text="idiv dword ptr [rax]", target=0xFFFFFFFF),
     "integer-overflow", "too large"),
    (at(signal=8, mnemonic="div", text="div dword ptr [rax]"), "division-by-zero",
     "by zero, or the least number by -1"),
    (at(signal=8, mnemonic=None), "division-by-zero", "by zero, or the least number by -1"),
    (replace(at(signal=4, code=2), instruction=None), "illegal-instruction", "is not known"),
    (jumped(0, 0), "wild-target", "the stack pointer is NULL, too"),
    (jumped(0, 1 << 40), "null-call", "NULL function pointer"),
    (at(signal=8, code=3), "arithmetic", "floating-point division by zero"),
    (at(signal=4, code=2, mnemonic="ud2"), "trap", "ud2"),
    (at(signal=4, code=1, mnemonic="vaddps", text="vaddps zmm0"), "illegal-instruction", "vaddps"),
    (at(signal=5, code=128), "breakpoint", "breakpoint"),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "kind", "text"), CASES, ids=[case[1] for case in CASES])
def test_explain_fault_known_facts_give_the_cause(facts: Facts, kind: str, text: str) -> None:
    cause = explain_fault(facts)
    assert cause is not None
    assert cause.kind == kind
    assert text in cause.text
    assert "0x" not in cause.short


def test_explain_unaligned_exchange_of_sixteen_bytes() -> None:
    facts = at(build_access("read-write", 0x601004), code=128, mnemonic="lock cmpxchg16b")
    cause = explain_fault(facts)
    assert cause is not None
    assert (cause.kind, "not aligned to 16 bytes" in cause.text) == ("unaligned", True)


@pytest.mark.parametrize(
    ("far", "handled", "kind"),
    [
        (-600, Handled(6, -6, 2, again=False), "stack-overflow"),
        (-600, None, "no-permission"),
        (4 << 20, Handled(6, -6, 2, again=False), "no-permission"),
    ],
)
def test_explain_guard_page_that_the_handler_opened(
    far: int, handled: Handled | None, kind: str
) -> None:
    """The JVM makes the end of a stack accessible before its handler reports."""
    regions = {
        "sp": build_region(SP, "stack", perms="rw-"),
        "fault": build_region(SP + far, "stack", perms="rw-"),
    }
    facts = at(build_access("write", SP + far), address=SP + far, code=2, regions=regions)
    cause = explain_fault(replace(facts, handled=handled))
    assert cause is not None
    assert cause.kind == kind


STACK = {"start": SP - 0x3000, "end": SP + (8 << 20)}


@pytest.mark.parametrize(
    ("sp", "mnemonic", "kind"),
    [
        # no room for a handler's frame: at the lower end of a stack
        (build_region(SP, "stack", perms="rw-", **STACK), "mov", "stack-overflow"),
        (build_region(SP, "stack", perms="rw-", **STACK), "hlt", "general-protection"),
        (build_region(SP, gap_bytes=4096, above="stack"), "mov", "stack-overflow"),
        (build_region(SP, gap_bytes=4096, above="file"), "mov", "general-protection"),
        # the stack pointer has left a thread's stack that nothing marks as one
        (build_region(SP, "guard", gap_bytes=48, above="anonymous"), "mov", "stack-overflow"),
        (build_region(SP, gap_bytes=1 << 20, above="anonymous"), "mov", "general-protection"),
        (
            build_region(SP, "stack", start=SP - (1 << 20), end=SP + (8 << 20)),
            "mov",
            "general-protection",
        ),
        (build_region(SP, "stack", start=SP - 4096, end=SP + 8192), "mov", "general-protection"),
    ],
)
def test_explain_fault_without_room_for_a_handler(sp: Region, mnemonic: str, kind: str) -> None:
    cause = explain_fault(at(code=128, mnemonic=mnemonic, regions={"sp": sp}))
    assert cause is not None
    assert cause.kind == kind


@pytest.mark.parametrize(
    ("above", "gap", "offset", "kind"),
    [
        ("stack", 64 << 20, 0, "stack-overflow"),
        ("stack", 64 << 20, 100, "stack-overflow"),
        ("stack", 2 << 30, 0, "wild-pointer"),
        ("file", 64 << 20, 0, "wild-pointer"),
        ("stack", 64 << 20, 128 << 20, "wild-pointer"),
    ],
)
def test_explain_fault_of_a_frame_larger_than_the_stack(
    above: str, gap: int, offset: int, kind: str
) -> None:
    where: dict[str, Any] = {"gap_bytes": gap, "above": above}
    regions = {"sp": build_region(SP, **where), "fault": build_region(SP + offset, **where)}
    facts = at(build_access("write", SP + offset, base="rsp"), address=SP + offset, regions=regions)
    cause = explain_fault(facts)
    assert cause is not None
    assert cause.kind == kind


def test_explain_fault_of_no_fault_is_none() -> None:
    assert explain_fault(at(signal=24)) is None


def test_explain_fault_far_below_the_stack_is_no_overflow() -> None:
    region = build_region(SP - (8 << 20), gap_bytes=8 << 20, above="stack")
    facts = at(
        build_access("read", region.address), address=region.address, regions={"fault": region}
    )
    cause = explain_fault(facts)
    assert cause is not None
    assert cause.kind == "wild-pointer"


@pytest.mark.parametrize(
    ("stack", "address", "kind", "short"),
    [
        (("free", "f"), 0x22, "invalid-free", "bad pointer passed to free()"),
        (("__libc_free", "f"), 0x123456788FF8, "invalid-free", "bad pointer passed to free()"),
        (("get_meta", "__libc_free", "f"), 0x10, "invalid-free", "bad pointer passed to free()"),
        (("free", "operator delete(void*)", "f"), 8, "invalid-free",
         "bad pointer passed to operator delete"),
        (("tc_cfree", "f"), 0x22, "invalid-free", "bad pointer passed to free()"),
        (("realloc", "f"), 0x22, "invalid-free", "bad pointer passed to realloc()"),
        (("unlink_chunk", "_int_free", "free", "f"), 0x5555_0000_0000, "heap-corruption",
         "heap corruption: free() faulted"),
        (("_int_malloc", "malloc", "f"), 0x5555_0000_0000, "heap-corruption",
         "heap corruption: malloc() faulted"),
        (("f", "main"), 0x22, "null-pointer", "NULL pointer read"),
    ],
)  # fmt: skip
def test_explain_fault_in_an_allocator(
    stack: tuple[str, ...], address: int, kind: str, short: str
) -> None:
    facts = build_facts(*stack, access=(build_access("read", address),), **fault(address))
    cause = explain_fault(facts)
    assert cause is not None
    assert (cause.kind, cause.short) == (kind, short)


def test_explain_fault_of_a_stack_that_ended_in_an_allocator_is_an_overflow() -> None:
    where: dict[str, Any] = {"gap_bytes": 64, "above": "stack"}
    regions = {"fault": build_region(SP - 64, "guard", **where)}
    facts = build_facts("_int_malloc", "malloc", *["walk"] * 5, address=SP - 64, regions=regions)
    cause = explain_fault(facts)
    assert cause is not None
    assert cause.kind == "stack-overflow"


@pytest.mark.parametrize(("displacement", "address"), [(0, (1 << 64) - 1), (16, 15)])
def test_explain_fault_through_a_failed_mmap_is_no_null_pointer(
    displacement: int, address: int
) -> None:
    access = build_access("read", address, base_value=(1 << 64) - 1, displacement=displacement)
    cause = explain_fault(at(access, **fault(address)))
    assert cause is not None
    assert cause.short == "read through the pointer -1"


def test_explain_fault_without_a_huge_page() -> None:
    region = fault(0x7F00_0000_0000, "file", name="/anon_hugepage (deleted)")
    cause = explain_fault(at(build_access("write", 0x7F00_0000_0000), signal=7, code=2, **region))
    assert cause is not None
    assert cause.short == "no huge page left"


def test_explain_fault_of_a_frame_that_reaches_over_the_guard_page() -> None:
    """Below a thread's small stack a library may be mapped."""
    regions = {
        "sp": build_region(SP, "file", perms="r-x", name="/lib/libc.so.6"),
        "fault": build_region(SP + 4096, "file", perms="r--", name="/lib/libc.so.6"),
    }
    facts = at(build_access("write", SP + 4096, base="rsp"), address=SP + 4096, code=2,
               regions=regions)  # fmt: skip
    cause = explain_fault(facts)
    assert cause is not None
    assert cause.kind == "stack-overflow"


def test_explain_fault_through_an_unknown_pointer_that_is_no_address() -> None:
    """Of a signal whose registers are lost."""
    access = build_access("write", None, base_value=None)
    cause = explain_fault(at(access, code=128))
    assert cause is not None
    assert (cause.kind, cause.short) == (
        "non-canonical",
        "write through a non-canonical pointer",
    )


def test_explain_fault_of_a_stack_segment_is_judged_by_its_pointer() -> None:
    """With rbp or rsp as the pointer, x86 reports #SS, for which the kernel sends SIGBUS."""
    access = build_access("read", ASCII, base="rbp", base_value=ASCII)
    cause = explain_fault(at(access, signal=7, code=128))
    assert cause is not None
    assert cause.kind == "overwritten-pointer"


@pytest.mark.parametrize(
    ("stack", "short"),
    [
        (("raise", "abort", "tcmalloc::Log(int)", "tc_cfree", "f"), "heap check failed in free()"),
        (("abort", "operator delete(void*)", "f"), "heap check failed in operator delete"),
        (("abort", "malloc", "f"), "heap check failed in malloc()"),
        (("abort", "f", "main"), None),
        (("abort", "handler", "operator new(unsigned long)", "f"), None),
        (("malloc", "f"), None),
    ],
)
def test_explain_abort_of_an_allocator(stack: tuple[str, ...], short: str | None) -> None:
    cause = explain_abort(build_facts(*stack, signal=6, code=-6, sender_pid=100))
    assert (cause and cause.short) == short


@pytest.mark.parametrize(
    ("code", "short"),
    [(1, "breakpoint"), (128, "breakpoint"), (2, "single step"), (4, "hardware breakpoint")],
)
def test_explain_fault_of_a_trap_says_which(code: int, short: str) -> None:
    cause = explain_fault(at(signal=5, code=code))
    assert cause is not None
    assert (cause.kind, cause.short) == ("breakpoint", short)
