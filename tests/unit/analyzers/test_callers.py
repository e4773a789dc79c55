"""Callers of functions without unwind information: only calls that lead there count."""

from collections.abc import Callable
from pathlib import Path
from struct import pack

import pytest

from crashd.analyzers.callers import (
    Caller,
    call_target,
    call_targets,
    find_caller,
    find_goroutine,
    find_jumper,
    follows_call,
    grows_stack,
    is_outermost,
    jumps_away,
    starts_stack,
)
from crashd.analyzers.coreimage import CoreImage
from tests.builders.coreimage import open_image
from tests.builders.elfcore import CoreFormat, CoreSegment, CoreThread, build_core, build_notes

TEXT, DATA, STACK = 0x40_0000, 0x60_0000, 0x70_0000
CALLEE = TEXT + 0x800
Load = Callable[[dict[int, bytes], list[int]], CoreImage]


def call(at: int, target: int) -> bytes:
    return b"\xe8" + pack("<i", target - (at + 5))


def jump(at: int, target: int) -> bytes:
    return b"\xe9" + pack("<i", target - (at + 5))


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Make an image of code, a slot at DATA that points to CALLEE, and a stack."""

    def make(code: dict[int, bytes], stack: list[int]) -> CoreImage:
        text = bytearray(b"\x90" * 4096)
        for at, raw in code.items():
            text[at - TEXT : at - TEXT + len(raw)] = raw
        segments = [
            CoreSegment(TEXT, bytes(text), flags=5),
            CoreSegment(DATA, pack("<Q", CALLEE).ljust(4096, b"\0")),
            CoreSegment(STACK, pack(f"<{len(stack)}Q", *stack).ljust(4096, b"\0")),
        ]
        notes = build_notes(CoreFormat(), threads=[CoreThread(1, pc=CALLEE + 9, sp=STACK)])
        return open_image(tmp_path / "core", build_core(notes=notes, segments=segments))

    return make


CALL = TEXT + 0x100
STUB = TEXT + 0x400
FORMS = {
    "direct": {CALL: call(CALL, CALLEE)},
    "stub": {CALL: call(CALL, STUB), STUB: b"\xff\x25" + pack("<i", DATA - (STUB + 6))},
    "guarded stub": {
        CALL: call(CALL, STUB),
        STUB: b"\xf3\x0f\x1e\xfa\xf2\xff\x25" + pack("<i", DATA - (STUB + 11)),
    },
    "passed on": {CALL: call(CALL, STUB), STUB: jump(STUB, CALLEE)},
    "through memory": {CALL - 1: b"\xff\x15" + pack("<i", DATA - (CALL + 5))},
}


@pytest.mark.parametrize("form", FORMS)
def test_find_caller_follows_the_call(load: Load, form: str) -> None:
    image = load(FORMS[form], [1, TEXT + 0x20, CALL + 5, 7])
    assert call_target(image, CALL + 5) == CALLEE
    assert find_caller(image, CALLEE + 9, STACK, CALLEE) == Caller(CALL + 5, STACK + 24)
    assert follows_call(image, CALL + 5)


def test_find_caller_of_another_function_is_none(load: Load) -> None:
    image = load({CALL: call(CALL, TEXT + 0x600)}, [CALL + 5])
    assert find_caller(image, CALLEE + 9, STACK, CALLEE) is None
    # without the function's start, a call to what lies right before counts
    assert find_caller(image, TEXT + 0x640, STACK, None) == Caller(CALL + 5, STACK + 8)
    assert find_caller(image, TEXT + 0x500, STACK, None) is None


def test_find_caller_through_a_register_only_without_a_frame(load: Load) -> None:
    code = {CALL: b"\xff\xd0"}
    outside = DATA + 0x10
    assert find_caller(load(code, [CALL + 2]), outside, STACK, None) == Caller(CALL + 2, STACK + 8)
    assert find_caller(load(code, [0, CALL + 2]), outside, STACK, None) is None
    assert find_caller(load({}, [CALL + 2]), outside, STACK, None) is None


def test_find_jumper_is_the_highest_call_on_the_stack(load: Load) -> None:
    """The ones below are left from earlier calls."""
    image = load(FORMS["stub"], [CALL + 5, 3, CALL + 5, TEXT + 0x20, 7])
    assert find_jumper(image, CALLEE, (STACK, STACK + 40)) == Caller(CALL + 5, STACK + 24)
    assert find_jumper(image, CALLEE, (STACK, STACK + 16)) == Caller(CALL + 5, STACK + 8)
    assert find_jumper(image, CALLEE + 1, (STACK, STACK + 40)) is None
    assert find_jumper(image, CALLEE, (STACK, STACK)) is None


def test_jumps_away_knows_the_names_of_longjmp() -> None:
    names = ("longjmp", "_longjmp", "siglongjmp", "____longjmp_chk", "__longjmp_chk", "__longjmp")
    assert all(jumps_away(name) for name in names)
    assert not any(jumps_away(name) for name in ("setjmp", "longjmp_target", None))


def test_find_caller_jumps_in_a_circle_end(load: Load) -> None:
    image = load({CALL: call(CALL, STUB), STUB: jump(STUB, STUB)}, [CALL + 5])
    assert find_caller(image, CALLEE, STACK, CALLEE) is None


@pytest.mark.parametrize(
    ("function", "outermost", "starts"),
    [
        ("_start", True, False),
        ("__clone3", True, False),
        ("runtime.goexit.abi0", True, False),
        ("runtime.rt0_go.abi0", True, False),
        ("runtime.mcall", False, True),
        ("runtime.mcall.abi0", False, True),
        ("runtime.mcallers", False, False),
        ("main.start", False, False),
        (None, False, False),
    ],
)
def test_ends_of_a_stack(function: str | None, outermost: bool, starts: bool) -> None:
    assert (is_outermost(function), starts_stack(function)) == (outermost, starts)


G, M, G0 = STACK + 0x200, STACK + 0x400, STACK + 0x600
LOW, HIGH, AT = STACK, STACK + 0x180, STACK + 0x80


def go_words(**changed: int) -> list[int]:
    """Words of STACK: struct g of a goroutine, struct m, and its own struct g, as of Go 1.19."""
    words = {
        G: LOW, G + 8: HIGH, G + 0x30: M, G + 0x38: AT, G + 0x40: CALL, G + 0x68: AT + 0x40,
        M: G0, M + 0x18: 0, M + 0xC0: G,
        G0 + 0x30: M,
    }  # fmt: skip
    words |= {globals()[name[0]] + int(name[2:], 16): value for name, value in changed.items()}
    return [words.get(STACK + 8 * n, 0) for n in range(512)]


def test_goroutine_with_a_full_stack_is_found(load: Load) -> None:
    image = load({}, go_words())
    found = {"rip": CALL, "rsp": AT, "rbp": AT + 0x40}
    assert find_goroutine(image, {"r14": G0}) == found
    image = load({}, go_words(G_0=LOW, G_68=7, G_60=AT + 8))  # without gobuf.ret
    assert find_goroutine(image, {"r14": G0})["rbp"] == AT + 8  # type: ignore[index]
    slot = load({}, [*go_words()[:-1], G0])
    assert find_goroutine(slot, {"r14": 0, "fs.base": STACK + 4096}) == found


@pytest.mark.parametrize(
    "changed",
    [{"G_30": 0}, {"G_38": HIGH}, {"G_38": 8}, {"G_40": DATA}, {"M_c0": 0}, {"M_0": 0}, {"G_8": 0}],
)
def test_goroutine_that_nothing_confirms_is_none(load: Load, changed: dict[str, int]) -> None:
    image = load({}, go_words(**changed))
    assert find_goroutine(image, {"r14": G0}) is None
    assert find_goroutine(image, {}) is None


def test_functions_that_grow_a_stack() -> None:
    assert grows_stack("runtime.morestack.abi0")
    assert grows_stack("runtime.morestack")
    assert not grows_stack("runtime.morestack_noctxt.abi0")
    assert not grows_stack(None)


def test_call_targets_are_the_names_on_the_way(load: Load) -> None:
    """The caller calls a stub, which leads to an exported function that jumps to the one that runs
    (free() of musl).
    """
    runs = CALLEE + 0x40
    image = load({**FORMS["stub"], CALLEE: jump(CALLEE, runs)}, [])
    assert call_targets(image, CALL + 5) == [STUB, CALLEE, runs]
    assert call_target(image, CALL + 5) == runs
    assert call_targets(image, CALL + 6) == []
