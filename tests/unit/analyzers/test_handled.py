"""The signal that came first, out of memory that is built byte by byte."""

from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from crashd.analyzers import handled
from crashd.analyzers.coreimage import CoreImage
from crashd.analyzers.handled import Handled, find_first, find_handled
from crashd.domain.elf.elfnotes import EM_386
from tests.builders.coreimage import open_image
from tests.builders.elfcore import CoreFormat, CoreSegment, CoreThread, build_core, build_notes
from tests.builders.sigframe import build_386_frame, build_siginfo, build_x86_frame

TEXT, DATA, STACK = 0x40_0000, 0x5000_0000, 0x7000_0000
SIZE = 64 << 10
STORE, RESTORER, SYSCALL, DIVIDE = TEXT, TEXT + 0x100, TEXT + 0x202, TEXT + 0x300
SP = STACK + 0x8000
"""Of the interrupted code."""
NOW = STACK + 0x1000
"""Of the thread as it died."""
REGISTERS = {"rip": STORE, "rsp": SP, "rax": 0x28}
FAULT = build_siginfo(11, 1, 0x28)
ABORT = build_siginfo(6, -6, 100)

Load = Callable[..., CoreImage]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Make a core with bytes at places on its stack or in its data, and open it."""

    def make(
        places: dict[int, bytes],
        *,
        pc: int = SYSCALL,
        sp: int = NOW,
        info: bytes = ABORT,
        blocked: int = 0,
    ) -> CoreImage:
        text, data, stack = bytearray(0x1000), bytearray(SIZE), bytearray(SIZE)
        text[:2] = bytes.fromhex("8808")  # mov %cl,(%rax)
        text[0x100:0x109] = bytes.fromhex("48c7c00f0000000f05")
        text[0x200:0x202] = bytes.fromhex("0f05")
        text[0x300:0x302] = bytes.fromhex("f7f9")  # idiv %ecx
        text[0x3FB] = 0xE8  # call
        for at, raw in places.items():
            memory, start = (stack, STACK) if at >= STACK else (data, DATA)
            memory[at - start : at - start + len(raw)] = raw
        thread = CoreThread(7, pc=pc, sp=sp, blocked=blocked)
        notes = build_notes(CoreFormat(), threads=[thread], siginfo=info)
        segments = [
            CoreSegment(TEXT, bytes(text), flags=5),
            CoreSegment(DATA, bytes(data)),
            CoreSegment(STACK, bytes(stack)),
        ]
        return open_image(tmp_path / "core", build_core(notes=notes, segments=segments))

    return make


def frame(
    pc: int, sp: int | None, *, interrupted: bool = False, function: str | None = None
) -> dict[str, Any]:
    return {"pc": pc, "sp": sp, "interrupted": interrupted, "function": function}


def walk(at: int, pc: int = STORE) -> list[dict[str, Any]]:
    """A walk through a handler whose frame is at an address."""
    top = [frame(SYSCALL, NOW, interrupted=True), frame(RESTORER, at + 8)]
    return [*top, frame(pc, SP, interrupted=True), frame(TEXT + 0x800, SP + 64)]


def find(image: CoreImage, frames: list[dict[str, Any]]) -> Handled:
    found = find_handled(image, frames)
    assert found is not None
    return found


def test_find_handled_walked_frame_gives_the_first_signal(load: Load) -> None:
    at = STACK + 0x2000
    image = load({at: build_x86_frame(RESTORER, REGISTERS, FAULT, error=6, cr2=0x28)})
    found = find(image, walk(at))
    assert (found.info.signal, found.info.address, found.error_code) == (11, 0x28, 6)
    assert (found.index, found.again) == (2, False)


def test_find_handled_other_registers_than_the_walk_is_none(load: Load) -> None:
    at = STACK + 0x2000
    raw = build_x86_frame(RESTORER, REGISTERS | {"rip": TEXT + 0x900}, FAULT)
    assert find_handled(load({at: raw}), walk(at)) is None


@pytest.mark.parametrize("garbage", [bytes(128), b"\xa5" * 128, build_siginfo(1, -1, 77)])
def test_find_handled_without_siginfo_takes_the_processors_word(load: Load, garbage: bytes) -> None:
    at = STACK + 0x2000
    image = load({at: build_x86_frame(RESTORER, REGISTERS, garbage, error=6, cr2=0x28)})
    found = find(image, walk(at))
    assert (found.info.signal, found.info.code, found.info.address) == (11, 1, 0x28)
    divide = REGISTERS | {"rip": DIVIDE}
    image = load({at: build_x86_frame(RESTORER, divide, garbage, trap=0)})
    assert find(image, walk(at, DIVIDE)).info.signal == 8


def test_find_handled_stale_exception_is_not_the_signal(load: Load) -> None:
    """The processor's word is of an older fault: this handler is one for a timer."""
    at = STACK + 0x2000
    image = load({at: build_x86_frame(RESTORER, REGISTERS, bytes(128), cr2=0x9000)})
    assert find_handled(image, walk(at)) is None


def test_find_handled_signal_that_dumps_no_core_is_none(load: Load) -> None:
    at = STACK + 0x2000
    raw = build_x86_frame(RESTORER, REGISTERS, build_siginfo(14, 0x80), trap=0)
    assert find_handled(load({at: raw}), walk(at)) is None


def test_find_handled_abort_whose_handler_crashed_is_the_abort(load: Load) -> None:
    """A handler without SA_SIGINFO: the place that it interrupted tells which signal it was."""
    at = STACK + 0x2000
    raw = build_x86_frame(RESTORER, REGISTERS | {"rip": SYSCALL}, bytes(128), trap=0)
    image = load({at: raw}, pc=STORE, info=FAULT)
    frames = [*walk(at, SYSCALL), frame(TEXT, SP + 80, function="abort")]
    found = find(image, frames)
    assert (found.info.signal, found.info.code, found.info.sender_pid) == (6, -6, 7)
    assert found.index == 2
    assert find_handled(image, [*frames[:-1], frame(TEXT, SP + 80, function="work")]) is None


@pytest.mark.parametrize("left", [FAULT, build_siginfo(3, -6, 7)])
def test_find_handled_siginfo_of_an_earlier_signal_is_not_this_ones(
    load: Load, left: bytes
) -> None:
    """On an alternate stack each frame lies where the one before lay; without SA_SIGINFO the
    siginfo of that one stays. What the handler blocks is its own signal.
    """
    at = STACK + 0x2000
    registers = REGISTERS | {"rip": SYSCALL}
    raw = build_x86_frame(RESTORER, registers, left, trap=0, blocked=1 << 9)
    timer = load({at: raw}, blocked=1 << 9 | 1 << 13)  # SIGUSR1 before, SIGALRM too in the handler
    assert find_handled(timer, walk(at, SYSCALL)) is None
    # musl's abort() blocks all; but a system call does not fault
    blocking = load({at: raw}, blocked=(1 << 31) - 1)
    assert (find_handled(blocking, walk(at, SYSCALL)) is None) == (left == FAULT)
    aborted = load({at: raw}, blocked=1 << 9 | 1 << 5, pc=STORE, info=FAULT)
    frames = [*walk(at, SYSCALL), frame(TEXT, SP + 80, function="abort")]
    assert find(aborted, frames).info.signal == 6


def test_find_handled_inner_handler_blocks_what_the_outer_one_left(load: Load) -> None:
    """What a handler blocks is compared with the frame of the next inner one."""
    inner, outer = STACK + 0x2000, STACK + 0x4000
    image = load(
        {
            inner: build_x86_frame(
                RESTORER, REGISTERS | {"rip": SYSCALL}, ABORT, trap=0, blocked=1 << 13
            ),
            outer: build_x86_frame(RESTORER, REGISTERS | {"rip": SYSCALL}, FAULT, trap=0),
        },
        blocked=1 << 13 | 1 << 5,
    )
    frames = [
        *walk(inner, SYSCALL)[:3],
        *(frame(RESTORER, outer + 8), frame(SYSCALL, SP, interrupted=True), frame(TEXT, SP + 8)),
    ]
    assert find(image, frames).index == 2


@pytest.mark.parametrize(
    ("signal", "code", "pc", "found"),
    [
        (11, 0, SYSCALL, True),
        (11, -6, SYSCALL, True),
        # a timer's handler that gives up, and a fault, of which the frame says nothing
        (6, -6, SYSCALL, False),
        (11, 0, STORE, False),
    ],
)
def test_find_handled_signal_of_a_fault_amid_a_system_call_was_sent(
    load: Load, signal: int, code: int, pc: int, found: bool
) -> None:
    at = STACK + 0x2000
    raw = build_x86_frame(RESTORER, REGISTERS | {"rip": pc}, bytes(128), trap=0)
    image = load({at: raw}, info=build_siginfo(signal, code, 7))
    handled = find_handled(image, walk(at, pc))
    assert (handled is not None) == found
    if handled is not None:
        assert (handled.info.code, handled.info.sender_pid) == (0, None)


def test_find_handled_sent_signal_that_was_raised_again(load: Load) -> None:
    """Its handler returned: the process died in the call that the first signal interrupted."""
    raw = build_x86_frame(RESTORER, REGISTERS | {"rip": SYSCALL}, bytes(128), trap=0)
    image = load({SP - 1000: raw}, pc=SYSCALL, sp=SP, info=build_siginfo(11, 0, 7))
    found = find(image, [frame(SYSCALL, SP, interrupted=True)])
    assert (found.info.signal, found.info.code, found.info.sender_pid) == (11, 0, None)
    assert found.again
    itself = load({}, pc=SYSCALL, sp=SP, info=build_siginfo(11, 0, 7))
    assert find_handled(itself, [frame(SYSCALL, SP, interrupted=True)]) is None


def test_find_handled_siginfo_that_was_sent_again_is_no_second_fault(load: Load) -> None:
    """rt_tgsigqueueinfo() with the siginfo of the fault."""
    at = STACK + 0x2000
    places = {at: build_x86_frame(RESTORER, REGISTERS, FAULT, cr2=0x28)}
    assert find(load(places, pc=SYSCALL, info=FAULT), walk(at)).again
    other = build_siginfo(11, 1, 0x30)
    assert not find(load(places, pc=SYSCALL, info=other), walk(at)).again


def test_find_handled_nested_handlers_give_the_outermost(load: Load) -> None:
    inner, outer = STACK + 0x2000, STACK + 0x4000
    image = load(
        {
            inner: build_x86_frame(RESTORER, REGISTERS | {"rip": SYSCALL}, ABORT, trap=0),
            outer: build_x86_frame(RESTORER, REGISTERS, FAULT, cr2=0x28),
        }
    )
    frames = [
        *walk(inner, SYSCALL)[:3],
        *(frame(RESTORER, outer + 8), frame(STORE, SP, interrupted=True), frame(TEXT, SP + 8)),
    ]
    found = find(image, frames)
    assert (found.info.signal, found.index) == (11, 4)


def test_find_handled_where_the_walk_broke_is_scanned(load: Load) -> None:
    at = STACK + 0x2000
    image = load({at: build_x86_frame(RESTORER, REGISTERS, FAULT, cr2=0x28)})
    found = find(image, [frame(SYSCALL, NOW, interrupted=True)])
    assert (found.info.signal, found.index) == (11, None)
    # a walk that came to its end has passed no handler: what lies there is old
    whole = [frame(SYSCALL, NOW, interrupted=True), frame(TEXT, SP, function="_start")]
    assert find_handled(image, whole) is None
    assert find_handled(load({at: bytes(640)}), [frame(SYSCALL, NOW, interrupted=True)]) is None


def test_find_handled_of_a_call_through_null_where_the_walk_ended(load: Load) -> None:
    """Nothing is at address 0, so the walk ends with what the handler returns to."""
    at = STACK + 0x2000
    called = build_x86_frame(RESTORER, {**REGISTERS, "rip": 0}, build_siginfo(11, 1, 0))
    frames = [frame(SYSCALL, NOW), frame(RESTORER, at + 8, function="__restore_rt")]
    found = find(load({at: called}), frames)
    assert (found.index, found.frame.pc, found.frame.sp, found.info.address) == (None, 0, SP, 0)


@pytest.mark.parametrize("at", [SP - 1000, SP - 12000, DATA + 0x4000])
def test_find_handled_raised_again_is_found_below_or_elsewhere(load: Load, at: int) -> None:
    """Its handler has returned: the frame is below the stack, or on an alternate one."""
    raw = build_x86_frame(RESTORER, REGISTERS, FAULT, cr2=0x28)
    again = build_siginfo(11, -6, 100)
    image = load({at: raw}, pc=STORE, sp=SP, info=again)
    found = find(image, [frame(STORE, SP, interrupted=True)])
    assert (found.info.code, found.info.address, found.again) == (1, 0x28, True)
    # in a system call, or with other registers, it is a signal of its own
    assert find_handled(load({at: raw}, sp=SP, info=again), [frame(SYSCALL, SP)]) is None
    assert find_handled(load({at: raw}, pc=STORE, sp=SP + 8, info=again), [frame(1, SP)]) is None


@pytest.mark.parametrize("info", [pack("<iiiI", 11, 0, 1, 0x28).ljust(128, b"\0"), None])
@pytest.mark.parametrize("at", [SP - 1000, DATA + 0x4000])
def test_find_handled_raised_again_by_an_i386_program(
    tmp_path: Path, info: bytes | None, at: int
) -> None:
    registers = {"eip": STORE, "esp": SP, "eax": 0x28}
    data, stack = bytearray(SIZE), bytearray(SIZE)
    memory, start = (stack, STACK) if at >= STACK else (data, DATA)
    raw = build_386_frame(11, registers, info, cr2=0x28)
    memory[at - start : at - start + len(raw)] = raw
    segments = [
        CoreSegment(TEXT, bytes.fromhex("8808").ljust(0x1000, b"\x90"), flags=5),
        CoreSegment(DATA, bytes(data)),
        CoreSegment(STACK, bytes(stack)),
    ]
    form, sent = CoreFormat(machine=EM_386, bits=32), pack("<5i", 11, 0, -6, 7, 0)
    for sp, is_found in ((SP, True), (SP + 8, False)):
        threads = [CoreThread(7, pc=STORE, sp=sp)]
        notes = build_notes(form, threads=threads, siginfo=sent.ljust(128, b"\0"))
        core = build_core(form=form, notes=notes, segments=segments)
        image = open_image(tmp_path / f"core{sp}", core)
        found = find_handled(image, [frame(STORE, sp, interrupted=True)])
        assert (found is not None) is is_found
        if found is not None:
            assert (found.info.code, found.info.address, found.again) == (1, 0x28, True)


def test_find_handled_fault_that_nobody_handled_is_itself(load: Load) -> None:
    image = load({}, pc=STORE, sp=SP, info=FAULT)
    assert find_handled(image, [frame(STORE, SP, interrupted=True)]) is None


CALL = TEXT + 0x400
"""After a call, as a return address is."""


def redirected(load: Load, *, context: bool, saved: int = STORE) -> CoreImage:
    """Make a core whose handler has moved the interrupted code to a function that aborts."""
    at = SP - 0x400
    copy = [0x28, 0, 0, 0, SP, 0, 0, 7, *range(8), STORE] if context else [0] * 17
    moved = {**REGISTERS, "rip": TEXT + 0x500, "rsp": at, "rdi": at + 64}
    return load({
        DATA + 0x100: build_x86_frame(RESTORER, moved, FAULT, cr2=0x28),
        at: saved.to_bytes(8, "little"),
        at + 64: b"".join(word.to_bytes(8, "little") for word in copy),
        at + 128: CALL.to_bytes(8, "little"),
    })  # fmt: skip


def test_find_handled_behind_a_handler_that_went_on_elsewhere(load: Load) -> None:
    frames = [
        frame(SYSCALL, NOW, interrupted=True),
        frame(CALL, NOW + 64),
        frame(STORE, SP - 0x3F8),
    ]
    found = find(redirected(load, context=True), frames)
    assert (found.info.signal, found.info.address) == (11, 0x28)
    assert (found.frame.pc, found.frame.sp, found.end) == (STORE, SP, 2)
    assert (found.frame.registers["rax"], found.frame.registers["rdi"]) == (0x28, 7)
    found = find(redirected(load, context=False), frames)
    assert (found.frame.pc, found.frame.sp) == (STORE, SP - 0x400 + 128)
    assert "rdi" not in found.frame.registers
    # where another pc was saved, or each frame was called
    assert find_handled(redirected(load, context=True, saved=STORE + 1), frames) is None
    assert find_handled(redirected(load, context=True), frames[:2]) is None


def test_find_handled_judges_so_many_look_alikes_of_a_fault(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [
        frame(SYSCALL, NOW, interrupted=True),
        frame(CALL, NOW + 64),
        frame(STORE, SP - 0x3F8),
    ]
    image = redirected(load, context=True)
    monkeypatch.setattr(handled, "_CANDIDATES_MAX", 1)
    assert find_handled(image, frames) is not None
    monkeypatch.setattr(handled, "_CANDIDATES_MAX", 0)
    assert find_handled(image, frames) is None


def go_thread(signal_frame: int, last: str = "runtime.sigreturn") -> dict[str, Any]:
    names = ["runtime.usleep", "runtime.sighandler", "runtime.sigtramp", last]
    frames = [frame(SYSCALL, NOW, function=name) for name in names]
    frames[-1]["sp"] = signal_frame + 8
    return {"frames": [*frames, frame(CALL, SP, function="main.work")]}


def test_find_first_is_the_thread_whose_fault_was_passed_on(load: Load) -> None:
    """Emacs sends a fault of any thread to its main thread."""
    at = STACK + 0x2000
    places = {at: build_x86_frame(RESTORER, REGISTERS, FAULT, cr2=0x28)}
    main = {"tid": 7, "frames": [frame(SYSCALL, NOW, interrupted=True)]}
    other = {"tid": 8, "frames": walk(at)}
    found = find_first(load(places, info=build_siginfo(11, -6, 7)), [main, other])
    assert found is not None
    assert (found[0], found[1].info.address, found[1].again) == (1, 0x28, False)
    for info in (build_siginfo(11, 0, 7), build_siginfo(8, -6, 7), ABORT):
        assert find_first(load(places, info=info), [main, other]) is None


def test_find_first_in_go_is_the_thread_that_shows_the_others(load: Load) -> None:
    quit_at, first_at = DATA + 0x100, DATA + 0x1100
    shown = build_x86_frame(RESTORER, REGISTERS, build_siginfo(3, 0, 100))
    image = load({
        quit_at: shown,
        first_at: build_x86_frame(RESTORER, REGISTERS, build_siginfo(11, 0, 100)),
    })  # fmt: skip
    last, first = go_thread(quit_at), go_thread(first_at)
    found = find_first(image, [last, go_thread(quit_at), first])
    assert found is not None
    assert (found[0], found[1].info.signal, found[1].end) == (2, 11, 4)
    cgo = go_thread(quit_at, "__restore_rt"), go_thread(first_at, "__restore_rt")
    again = find_first(image, list(cgo))
    assert again is not None
    assert (again[0], again[1].info.signal) == (1, 11)
    assert find_first(image, [first, last]) is None
    assert find_first(image, [last, last]) is None
    assert find_first(image, []) is None


@pytest.mark.parametrize(
    ("error", "names", "signal"), [(6, b"/srv/ring", 7), (7, b"/srv/ring", 11), (6, b"", 11)]
)
def test_find_handled_page_that_a_file_lacks_is_a_bus_error(
    tmp_path: Path, error: int, names: bytes, signal: int
) -> None:
    """The handler has no SA_SIGINFO. The processor missed a page that may be written to."""
    at = STACK + 0x2000
    stack = bytearray(SIZE)
    registers = REGISTERS | {"rax": DATA + 8}
    raw = build_x86_frame(RESTORER, registers, bytes(128), error=error, cr2=DATA + 8)
    stack[0x2000 : 0x2000 + len(raw)] = raw
    text = bytes.fromhex("8808").ljust(0x1000, b"\x90")
    files = [(DATA, DATA + SIZE, 0, names)] if names else []
    notes = build_notes(
        CoreFormat(), threads=[CoreThread(7, pc=SYSCALL, sp=NOW)], siginfo=ABORT, files=files
    )
    segments = [
        CoreSegment(TEXT, text, flags=5),
        CoreSegment(DATA, bytes(SIZE)),
        CoreSegment(STACK, bytes(stack)),
    ]
    image = open_image(tmp_path / "core", build_core(notes=notes, segments=segments))
    info = find(image, walk(at)).info
    assert (info.signal, info.address) == (signal, DATA + 8)


def test_find_handled_in_go_is_what_the_runtime_threw_for(load: Load) -> None:
    """The handler's frame is gone; another signal's frame is in its place."""
    goroutine = pack("<II3QQQQ", 11, 0, 0, 0, 0, 1, 0x123456000, STORE)
    image = load({DATA + 0x400: goroutine})
    names = ["runtime.raise", "runtime.throw", "runtime.sigpanic", "parse", "main.main"]
    frames = [frame(STORE - n, SP + 8 * n, function=name) for n, name in enumerate(names)]
    frames[3]["pc"] = STORE
    found = find(image, frames)
    assert found.index == 3
    assert (found.info.signal, found.info.address) == (11, 0x123456000)
    assert (found.frame.pc, found.frame.sp) == (STORE, SP + 24)


def test_find_handled_in_go_of_c_code_that_called_null(load: Load) -> None:
    """The runtime shows the caller, and keeps 0 as the place of the fault."""
    goroutine = pack("<II3QQQQ", 11, 0, 0, 0, 0, 1, 0, 0)
    after = TEXT + 0x400  # a call
    called = {SP + 16: pack("<Q", after)}
    names = ["runtime.raise", "runtime.throw", "runtime.sigpanic", "calls", "main.main"]
    frames = [frame(STORE - n, SP + 8 * n, function=name) for n, name in enumerate(names)]
    frames[3]["pc"] = after
    found = find(load({DATA + 0x400: goroutine, **called}), frames)
    assert (found.index, found.end) == (None, 3)
    assert (found.info.signal, found.info.address) == (11, 0)
    assert (found.frame.pc, found.frame.sp) == (0, SP + 16)
    with pytest.raises(AssertionError):  # two goroutines have such a fault
        find(load({DATA + 0x400: goroutine * 2, **called}), frames)
    with pytest.raises(AssertionError):  # the word below the frame is not the return address
        find(load({DATA + 0x400: goroutine}), frames)
