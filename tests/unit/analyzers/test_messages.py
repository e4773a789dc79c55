"""Last words out of memory that is built byte by byte."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from struct import pack

import pytest

from crashd.analyzers import messages
from crashd.analyzers.coreimage import CoreImage
from tests.builders.coreimage import open_image
from tests.builders.elfcore import (
    CoreFormat,
    CoreSegment,
    CoreThread,
    build_core,
    build_notes,
)

STACK, HEAP = 0x7000_0000, 0x5000_0000
SIZE = 8192


@dataclass
class Memory:
    """A stack and a heap to write into."""

    stack: bytearray = field(default_factory=lambda: bytearray(SIZE))
    heap: bytearray = field(default_factory=lambda: bytearray(SIZE))
    used: int = 64

    def put(self, data: bytes) -> int:
        """Put bytes on the heap; give their address."""
        at = self.used
        self.heap[at : at + len(data)] = data
        self.used = (at + len(data) + 31) & -16
        return HEAP + at

    def push(self, at: int, *words: int) -> None:
        """Put words on the stack."""
        self.stack[at : at + 8 * len(words)] = pack(f"<{len(words)}Q", *words)


@pytest.fixture
def load(tmp_path: Path) -> Callable[[Memory], CoreImage]:
    """Make the core of an abort() with a memory, and open it."""

    def make(memory: Memory) -> CoreImage:
        form = CoreFormat()
        info = form.siginfo(6, -6, pack("<iI", 7, 0))
        notes = build_notes(form, threads=[CoreThread(7, 6, pc=1, sp=STACK)], siginfo=info)
        core = build_core(
            notes=notes,
            segments=[
                CoreSegment(HEAP, bytes(memory.heap)),
                CoreSegment(STACK, bytes(memory.stack)),
            ],
        )
        return open_image(tmp_path / "core", core)

    return make


def collect(image: CoreImage, *functions: str | None, **symbols: int) -> dict[str, str]:
    frames = [{"function": name, "sp": STACK, "start": 0x1000} for name in functions]
    return messages.collect(image, symbols.get, lambda name: f"<{name}>", frames, None)


def test_collect_abort_message(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    text = memory.put(pack("<I", 30) + b"free(): invalid pointer\n\0")
    pointer = memory.put(pack("<Q", text))
    assert collect(load(memory), __abort_msg=pointer) == {"abort": "free(): invalid pointer"}


@pytest.mark.parametrize("pointer", [0, 1, HEAP + SIZE - 2, (1 << 64) - 1, 0xDEAD])
def test_collect_abort_message_pointing_nowhere_is_none(
    load: Callable[[Memory], CoreImage], pointer: int
) -> None:
    memory = Memory()
    at = memory.put(pack("<Q", pointer))
    assert collect(load(memory), __abort_msg=at) == {}


def thrown(
    memory: Memory, name: bytes, value: bytes, base: int = 0, mark: bytes = b"GNUCC++\0"
) -> None:
    """Throw an exception: type_info, __cxa_exception, object."""
    info = memory.put(pack("<QQQ", 0, memory.put(name + b"\0"), base))
    header = pack("<Q", info) + bytes(72) + mark[::-1] + bytes(24)
    memory.push(512, memory.put(header + value) + 80)


def test_collect_exception_behind_a_dependent_one_that_is_gone(
    load: Callable[[Memory], CoreImage],
) -> None:
    memory = Memory()
    thrown(memory, b"i", pack("<i", 7))
    mark = bytes(80) + b"GNUCC++\x01"[::-1] + bytes(24)
    memory.push(256, memory.put(mark) + 80)
    assert collect(load(memory), "std::terminate()") == {"cxx_type": "<i>", "cxx_what": "7"}


def test_collect_uncaught_exception(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    base = memory.put(pack("<QQQ", 0, memory.put(b"St13runtime_error\0"), 0))
    thrown(memory, b"N3app5ErrorE", pack("<QQ", 0, memory.put(b"no disk\0")), base)
    found = collect(load(memory), "abort", "std::terminate()")
    assert found == {"cxx_type": "<N3app5ErrorE>", "cxx_what": "no disk"}


def test_collect_exception_of_an_unknown_type_has_no_message(
    load: Callable[[Memory], CoreImage],
) -> None:
    memory = Memory()
    thrown(memory, b"3Odd", pack("<QQ", 0, memory.put(b"secret\0")))
    assert collect(load(memory), "__cxa_throw") == {"cxx_type": "<3Odd>"}


def test_collect_bases_in_a_circle_end(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    name = memory.put(b"4Loop\0")
    circle = memory.put(bytes(24))
    memory.heap[circle - HEAP : circle - HEAP + 24] = pack("<QQQ", 0, name, circle)
    thrown(memory, b"4Loop", bytes(16), circle)
    assert collect(load(memory), "__cxa_throw") == {"cxx_type": "<4Loop>"}


@pytest.mark.parametrize("before", [0, 1, STACK])
@pytest.mark.parametrize("apart", [0, 8, 16])
def test_collect_exception_that_was_thrown_again_by_its_pointer(
    load: Callable[[Memory], CoreImage], before: int, apart: int
) -> None:
    """std::rethrow_exception() throws an exception that only points to the first one. What lies
    before it in the heap may be anything.
    """
    memory = Memory()
    info = memory.put(pack("<QQQ", 0, memory.put(b"3Err\0"), 0))
    first = memory.put(pack("<Q", info) + bytes(72) + b"GNUCC++\0"[::-1] + bytes(24) + bytes(16))
    words = [*[before] * (4 - apart // 8), first + 112, *[before] * (apart // 8)]
    again = memory.put(pack("<5Q", *words).ljust(112, b"\0") + b"\x01++CCUNG")
    memory.push(512, again + 112)
    assert collect(load(memory), "std::terminate()") == {"cxx_type": "<3Err>"}


def test_collect_terminate_without_exception(load: Callable[[Memory], CoreImage]) -> None:
    assert collect(load(Memory()), "std::terminate()") == {"cxx_terminate": "true"}


def test_collect_rust_panic(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    name = memory.put(b"src/store.rs")
    location = memory.put(pack("<QQII", name, 12, 33, 9))
    text = memory.put(b"shard 17 is lostNEXT")
    memory.push(128, location, 5, text, 16)
    found = collect(load(memory), "core::panicking::panic_fmt")
    assert found == {"rust_location": "src/store.rs:33:9", "rust_panic": "shard 17 is lost"}


def test_collect_rust_tagged_length_is_not_read_past_the_text(
    load: Callable[[Memory], CoreImage],
) -> None:
    memory = Memory()
    text = memory.put(b"shard 17 is lostNEXT LITERAL OF ANOTHER")
    memory.push(128, text, 16, 0, text, 33)
    assert collect(load(memory), "rust_panic")["rust_panic"] == "shard 17 is lost"


@pytest.mark.parametrize("index", [0, 3, 511])
def test_collect_go_fatal_error_reads_the_ring(
    load: Callable[[Memory], CoreImage], index: int
) -> None:
    memory = Memory()
    text = b"fatal error: all asleep\n".rjust(512, b"\0")
    ring = text[-index:] + text[:-index] if index else text
    symbols = {
        "runtime.printBacklog": memory.put(ring),
        "runtime.printBacklogIndex": memory.put(pack("<Q", index)),
    }
    assert collect(load(memory), "runtime.fatal", **symbols) == {"go_fatal": "all asleep"}


def test_collect_go_index_beyond_the_ring_is_none(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    symbols = {
        "runtime.printBacklog": memory.put(b"fatal error: x\n"),
        "runtime.printBacklogIndex": memory.put(pack("<Q", 1 << 62)),
    }
    assert collect(load(memory), "runtime.fatal", **symbols) == {}


def go_panic(image: CoreImage, kind: int, data: int, **symbols: int) -> str:
    frames = [{"function": "runtime.gopanic", "sp": STACK}]
    return messages.collect(image, symbols.get, str, frames, (kind, data))["go_panic"]


def go_type(memory: Memory, kind: int, name_at: int = 0, flags: int = 0, pointers: int = 0) -> int:
    head = pack("<QQI", 24, pointers, 0) + bytes([flags, 0, 0, kind]) + bytes(16)
    return memory.put(head + pack("<I", name_at))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "index out of range [9] with length 3"),
        (2, "slice bounds out of range [:9] with capacity 3"),
        (3, "slice bounds out of range [9:3]"),
        (7, "slice bounds out of range [9:3:]"),
        (8, "cannot convert slice with length 3 to array or pointer to array with length 9"),
        (99, "panic"),
    ],
)
def test_collect_go_bounds_say_which(
    load: Callable[[Memory], CoreImage], code: int, text: str
) -> None:
    memory = Memory()
    kind = go_type(memory, 25)
    data = memory.put(pack("<qqBB", 9, 3, 1, code))
    assert go_panic(load(memory), kind, data) == text


def test_collect_go_struct_with_a_pointer_is_no_bounds_error(
    load: Callable[[Memory], CoreImage],
) -> None:
    memory = Memory()
    kind = go_type(memory, 25, pointers=16)
    data = memory.put(pack("<qqBB", 3, 0x4DFC93, 1, 0))
    assert go_panic(load(memory), kind, data) == "panic"


def test_collect_go_value_without_a_message_has_its_type(
    load: Callable[[Memory], CoreImage],
) -> None:
    memory = Memory()
    types = memory.put(b"\0" * 16 + b"\0\x0c**main.MyErr" + b"\0\x03int")
    kind = go_type(memory, 22, 16, flags=2)
    image = load(memory)
    symbols = {"runtime.types": types}
    assert go_panic(image, kind, HEAP + 4096, **symbols) == "a value of type *main.MyErr"
    assert go_panic(image, kind, HEAP + 4096) == "panic"


def test_collect_go_struct_with_a_text_has_its_type(load: Callable[[Memory], CoreImage]) -> None:
    """Only of known types the first member is the whole message."""
    memory = Memory()
    names = b"\0" * 16 + b"\0\x07*main.E" + b"\0" * 7 + b"\0\x13*errors.errorString"
    types = memory.put(names)
    own, known = go_type(memory, 25, 16, flags=2), go_type(memory, 22, 32)
    text = memory.put(b"disk is full")
    data = memory.put(pack("<QQ", text, 12))
    image = load(memory)
    symbols = {"runtime.types": types}
    assert go_panic(image, own, data, **symbols) == "main.E: disk is full"
    assert go_panic(image, known, data, **symbols) == "disk is full"
    assert go_panic(image, own, data) == "disk is full"
    assert go_panic(image, 0, data) == "nil"


@pytest.mark.parametrize(
    ("argp", "name", "text"),
    [
        (STACK + 64, b"string", "*main.E: open db: no such file"),
        (0, b"string", "*main.E: open db: no such file"),
        (HEAP, b"string", "a value of type *main.E"),
        (STACK + 64, b"main.S", "a value of type *main.E"),
    ],
)
def test_collect_go_error_says_what_its_method_returned(
    load: Callable[[Memory], CoreImage], argp: int, name: bytes, text: str
) -> None:
    """The runtime puts that in the place of the argument, which gopanic() has on its stack."""
    memory = Memory()
    types = memory.put(b"\0" * 16 + b"\0\x07*main.E" + b"\0" * 7 + b"\0\x06" + name)
    own, string = go_type(memory, 22, 16), go_type(memory, 24, 32)
    said = memory.put(b"open db: no such file")
    memory.push(200, argp, string, memory.put(pack("<QQ", said, 21)))
    image = load(memory)
    frames = [{"function": "runtime.gopanic", "sp": STACK}, {"function": "f", "sp": STACK + 400}]
    symbols = {"runtime.types": types}
    found = messages.collect(image, symbols.get, str, frames, (own, HEAP + 4096))
    assert found["go_panic"] == text


def test_collect_go_type_assertion_names_both_types(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    names = {"*runtime.TypeAssertionError": 0, "interface {}": 0, "string": 0, "int": 0}
    raw = b""
    for name in names:
        names[name] = len(raw)
        raw += bytes([0, len(name)]) + name.encode()
    types = memory.put(raw)
    known = {name: go_type(memory, 22, at) for name, at in names.items()}
    _, interface, has, wanted = known.values()
    data = memory.put(pack("<QQQ", interface, has, wanted))
    text = go_panic(
        load(memory), known["*runtime.TypeAssertionError"], data, **{"runtime.types": types}
    )
    assert text == "interface conversion: interface {} is string, not int"


def test_collect_go_fault_has_its_address(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    text = b"unexpected fault address 0x12345000\nfatal error: fault\n"
    symbols = {
        "runtime.printBacklog": memory.put(text.rjust(512, b"\0")),
        "runtime.printBacklogIndex": memory.put(pack("<Q", 0)),
    }
    found = collect(load(memory), "runtime.throw", **symbols)
    assert found == {"go_fatal": "fault: unexpected fault address 0x12345000"}


@pytest.mark.parametrize("handlers", [0, 1, -1, 1 << 30])
def test_collect_caught_exception_is_found_where_nothing_points_to_it(
    load: Callable[[Memory], CoreImage], handlers: int
) -> None:
    memory = Memory()
    info = memory.put(pack("<QQQ", 0, memory.put(b"3Err\0"), 0))
    header = pack("<Q", info) + bytes(32) + pack("<i", handlers) + bytes(36)
    memory.put(header + b"GNUCC++\0"[::-1] + bytes(24) + bytes(16))
    found = collect(load(memory), "std::terminate()")
    assert found == ({"cxx_type": "<3Err>"} if handlers == 1 else {"cxx_terminate": "true"})


def test_collect_sanitizers_report(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    memory.put(b"==7==ERROR: AddressSanitizer: heap-use-after-free on address 0x1 at\nREAD")
    found = collect(load(memory), "__asan::ReportGenericError()")
    assert found == {"sanitizer": "AddressSanitizer: heap-use-after-free on address 0x1 at"}
    assert collect(load(memory), "read_record") == {}


def test_collect_js_exception_is_the_string_that_v8_printed(
    load: Callable[[Memory], CoreImage],
) -> None:
    """The length precedes the text; other texts with the same beginning are not strings of V8."""
    memory, said = Memory(), b"Uncaught TypeError: o is null"
    memory.put(b"\x07\0\0\0Uncaught is a word of this script")
    memory.put(bytes(4) + len(said).to_bytes(4, "little") + said + b"!!!")
    thrower = "v8::internal::Isolate::CreateMessageOrAbort(int)"
    assert collect(load(memory), thrower) == {"js_exception": "TypeError: o is null"}
    assert collect(load(memory), "v8::base::OS::Abort()") == {}
    memory.put(b"\x0c\0\0\0Uncaught two")
    assert collect(load(memory), thrower) == {}


def test_collect_assertion_of_the_library_out_of_the_used_stack(
    load: Callable[[Memory], CoreImage],
) -> None:
    memory = Memory()
    text = b"a.h:10: Assertion 'n < size()' failed.\n"
    memory.stack[1000 : 1000 + len(text)] = text
    found = collect(load(memory), "std::__glibcxx_assert_fail(char const*)")
    assert found == {"assertion": "Assertion 'n < size()' failed"}


def test_collect_rust_message_is_not_the_callers_longer_text(
    load: Callable[[Memory], CoreImage],
) -> None:
    memory = Memory()
    message, argument = memory.put(b"first"), memory.put(b"a long argument of main")
    memory.push(128, message, 5)
    memory.push(1024, argument, 23)
    frames: list[dict[str, object]] = [
        {"function": "core::panicking::panic_fmt", "sp": STACK},
        {"function": "app::run", "sp": STACK + 512},
        {"function": "app::main", "sp": STACK + 768},
    ]
    found = messages.collect(load(memory), lambda _: None, str, frames, None)
    assert found["rust_panic"] == "first"
    memory.push(128, 0, 0)
    found = messages.collect(load(memory), lambda _: None, str, frames, None)
    assert found["rust_panic"] == "panic"


def test_collect_rust_message_is_not_an_argument_of_the_program(
    load: Callable[[Memory], CoreImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A register that was saved in the panic's frames may point to one."""
    memory = Memory()
    memory.push(128, memory.put(b"--serve"), 7)
    frames: list[dict[str, object]] = [
        {"function": "core::panicking::panic_fmt", "sp": STACK},
        {"function": "app::run", "sp": STACK + 512},
    ]
    image = load(memory)
    found = messages.collect(image, lambda _: None, str, frames, None)
    assert found["rust_panic"] == "--serve"
    monkeypatch.setattr(image, "head", replace(image.head, psargs=b"app --serve 80"))
    found = messages.collect(image, lambda _: None, str, frames, None)
    assert found["rust_panic"] == "panic"


def test_collect_message_of_several_lines_is_one_line(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    text = b"assertion `left == right` failed: sizes \n  left: 5\n right: 6"
    memory.push(128, memory.put(text), len(text))
    found = collect(load(memory), "core::panicking::panic_fmt")
    assert found["rust_panic"] == "assertion `left == right` failed: sizes; left: 5; right: 6"
    text = b"failed:\n\n why"
    memory.push(128, memory.put(text), len(text))
    assert collect(load(memory), "core::panicking::panic_fmt")["rust_panic"] == "failed: why"


def test_collect_rust_message_that_is_long_is_cut(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    memory.push(128, memory.put(b"y" * 3000), 3000)
    memory.push(256, memory.put(b"other"), 5)
    found = collect(load(memory), "core::panicking::panic_fmt")
    assert found["rust_panic"] == "y" * 1000


@pytest.mark.parametrize(
    ("flags", "at", "has"), [(2, 8, True), (0x1002, 24, True), (0x1002, 8, False), (3, 8, False)]
)
def test_collect_exception_of_several_bases_has_the_message_of_that_which_has_one(
    load: Callable[[Memory], CoreImage], flags: int, at: int, has: bool
) -> None:
    """The distance of a base is above eight flags, of which the lowest says that it is virtual."""
    memory = Memory()
    base = memory.put(pack("<QQQ", 0, memory.put(b"St13runtime_error\0"), 0))
    other = memory.put(pack("<QQQ", 0, memory.put(b"5Other\0"), 0))
    name = memory.put(b"6Nested\0")
    info = memory.put(pack("<QQIIQQQQ", 0, name, 0, 2, other, 0x2002, base, flags))
    header = pack("<Q", info) + bytes(72) + b"GNUCC++\0"[::-1] + bytes(24)
    value = bytes(at) + pack("<Q", memory.put(b"startup failed\0")) + bytes(64)
    memory.push(512, memory.put(header + value) + 80)
    found = collect(load(memory), "std::terminate()")
    assert found.get("cxx_what") == ("startup failed" if has else None)


def test_collect_exception_whose_bases_never_end_is_soon_read(
    load: Callable[[Memory], CoreImage],
) -> None:
    memory = Memory()
    info = HEAP + memory.used
    name = info + 1024
    own = pack("<QQII", 0, name, 0, 16) + pack("<QQ", info, 2) * 16
    memory.put(own.ljust(1024, b"\0") + b"4Loop\0")
    header = pack("<Q", info) + bytes(72) + b"GNUCC++\0"[::-1] + bytes(24)
    memory.push(512, memory.put(header + bytes(64)) + 80)
    assert collect(load(memory), "std::terminate()") == {"cxx_type": "<4Loop>"}


LIBRARY = 0x2000
"""Where the C++ library starts, whose own functions have no names."""


def collect_ended(image: CoreImage, handler: str | None) -> dict[str, str]:
    """Collect what is said where a handler of terminate() has called abort()."""
    frames: list[dict[str, object]] = [
        {"function": "abort", "sp": STACK, "start": 0x1000},
        {"function": handler, "sp": STACK + 128, "start": LIBRARY},
        {"function": "std::terminate()", "sp": STACK + 192, "start": LIBRARY},
    ]
    return messages.collect(image, lambda _: None, str, frames, None)


def end_by(
    memory: Memory, load: Callable[[Memory], CoreImage], handler: str | None, base: bytes
) -> dict[str, str]:
    """Let an exception with its own words end a process, by a handler of terminate()."""
    parent = memory.put(pack("<QQQ", 0, memory.put(base + b"\0"), 0))
    info = memory.put(pack("<QQQ", 0, memory.put(b"3Own\0"), parent))
    header = pack("<Q", info) + bytes(72) + b"GNUCC++\0"[::-1] + bytes(24)
    said, other = memory.put(b"it is full\0"), memory.put(b"/var/spool\0")
    before = 128 - len(header)  # what __cxa_allocate_exception() and malloc() put before it
    memory.used += 8
    place = memory.put(pack("<Q", 8 + 128 + 32 | 1) + bytes(before) + header + bytes(32))
    thrown = place + 8 + 128
    at = thrown - HEAP
    memory.heap[at : at + 32] = pack("<QQQQ", 0, said, 10, other)
    memory.push(256, thrown - 32)
    memory.push(32, said)
    return collect_ended(load(memory), handler)


OWN_WORDS = {"cxx_type": "3Own", "cxx_what": "it is full"}


@pytest.mark.parametrize("handler", [None, "__gnu_cxx::__verbose_terminate_handler()", "app::end"])
def test_collect_words_that_an_exception_has_and_the_stack_points_to(
    load: Callable[[Memory], CoreImage], handler: str | None
) -> None:
    assert end_by(Memory(), load, handler, b"St9exception") == OWN_WORDS
    assert end_by(Memory(), load, handler, b"5Other") == {"cxx_type": "3Own"}, "it has no what()"


def test_collect_one_of_two_words_of_an_exception_is_not_guessed(
    load: Callable[[Memory], CoreImage],
) -> None:
    memory = Memory()
    assert end_by(memory, load, None, b"St9exception") == OWN_WORDS
    pointers = [HEAP + at for at in range(64, SIZE, 16) if memory.heap[at : at + 4] == b"/var"]
    memory.push(64, *pointers)
    image = load(memory)
    frames = [{"function": "std::terminate()", "sp": STACK + 192, "start": LIBRARY}]
    assert messages.collect(image, lambda _: None, str, frames, None) == {"cxx_type": "3Own"}


@pytest.mark.parametrize(
    ("handler", "text", "said"),
    [
        (None, b"a constant", "a constant"),
        ("app::end", b"a constant", None),
        (None, b"std::exception", None),
        (None, b"\xb0\x9cUUUU", None),
        (None, "größer".encode(), "größer"),
    ],
)
def test_collect_words_that_the_librarys_handler_printed(
    load: Callable[[Memory], CoreImage], handler: str | None, text: bytes, said: str | None
) -> None:
    memory = Memory()
    address = memory.put(text + b"\0")
    memory.push(64, address, 0, address)
    end_by(memory, load, handler, b"St9exception")
    memory.push(32, 0)  # and none of its own
    found = collect_ended(load(memory), handler)
    assert found.get("cxx_what") == said


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (b"i", pack("<i", -42), "-42"),
        (b"m", pack("<Q", 1 << 63), "9223372036854775808"),
        (b"d", pack("<d", 2.5), "2.5"),
        (b"t", pack("<H", 65535), "65535"),
    ],
)
def test_collect_exception_that_is_a_number(
    load: Callable[[Memory], CoreImage], name: bytes, value: bytes, said: str
) -> None:
    memory = Memory()
    thrown(memory, name, value)
    found = collect(load(memory), "abort", "std::terminate()")
    assert found == {"cxx_type": f"<{name.decode()}>", "cxx_what": said}


def test_collect_exception_that_is_a_string_view(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    value = pack("<QQ", 6, memory.put(b"a view of a text"))
    thrown(memory, b"St17basic_string_viewIcSt11char_traitsIcEE", value)
    assert collect(load(memory), "abort", "std::terminate()")["cxx_what"] == "a view"


LONG = b"a message that does not fit into the object"


@pytest.mark.parametrize("text", [b"short", LONG])
def test_collect_exception_of_libcxx(load: Callable[[Memory], CoreImage], text: bytes) -> None:
    memory = Memory()
    value = bytes((len(text) << 1,)) + text.ljust(23, b"\0")
    if text == LONG:
        value = pack("<QQQ", 49, len(text), memory.put(text))
    name = b"NSt3__112basic_stringIcNS_11char_traitsIcEENS_9allocatorIcEEEE"
    thrown(memory, name, value, mark=b"CLNGC++\0")
    found = collect(load(memory), "abort", "std::terminate()")
    assert found["cxx_what"] == text.decode()
    assert "cxx_terminate" not in found


def test_collect_message_of_glib(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    key, text = memory.put(b"MESSAGE\0"), memory.put(b"cannot open the display\0")
    other = memory.put(b"GLIB_DOMAIN\0")
    memory.push(256, other, text + 5, (1 << 64) - 1, key, text, (1 << 64) - 1)
    assert collect(load(memory), "g_logv", "g_log")["glib"] == "cannot open the display"
    assert "glib" not in collect(load(memory), "abort")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("__ubsan_handle_shift_out_of_bounds_abort",
         "UndefinedBehaviorSanitizer: shift out of bounds"),
        ("__ubsan_handle_type_mismatch_v1_abort",
         "UndefinedBehaviorSanitizer: null, misaligned or too small object"),
        ("__ubsan_handle_add_overflow_minimal_abort", "UndefinedBehaviorSanitizer: add overflow"),
        ("__msan_warning_with_origin_noreturn", "MemorySanitizer: use-of-uninitialized-value"),
        ("__tsan::ReportRace(int)", "ThreadSanitizer: data race"),
    ],
)  # fmt: skip
def test_collect_sanitizers_check_by_its_function(
    load: Callable[[Memory], CoreImage], name: str, said: str
) -> None:
    assert collect(load(Memory()), "abort", name, "main")["sanitizer"] == said


def panicked(memory: Memory, times: int) -> None:
    """Leave a Location on the stack so many times, and the message next to it."""
    name, text = memory.put(b"src/store.rs"), memory.put(b"shard 17 is lost")
    location = memory.put(pack("<QQII", name, 12, 33, 9))
    for at in range(times):
        memory.push(1024 + 64 * at, location, text, 16)
    memory.push(3000, memory.put(b"a longer text of the program"), 28)


def test_collect_rust_panic_of_a_stripped_program(load: Callable[[Memory], CoreImage]) -> None:
    memory = Memory()
    panicked(memory, 3)
    frames = [
        {"function": name, "sp": STACK + at, "start": 0x1000}
        for name, at in (("raise", 0), ("abort", 64), (None, 512), (None, 1500), (None, 4000))
    ]
    symbols: dict[str, int] = {}
    found = messages.collect(load(memory), symbols.get, str, frames, None)
    assert found == {"rust_location": "src/store.rs:33:9", "rust_panic": "shard 17 is lost"}


def test_collect_survived_panic_does_not_explain_an_abort(
    load: Callable[[Memory], CoreImage],
) -> None:
    memory = Memory()
    panicked(memory, 1)
    assert collect(load(memory), "raise", "abort", None, None) == {}


@pytest.mark.parametrize(("size", "found"), [(4096, True), (4095, False), (0, False)])
def test_collect_message_that_a_static_program_kept(
    load: Callable[[Memory], CoreImage], size: int, found: bool
) -> None:
    memory = Memory()
    memory.heap[4096:4160] = (pack("<I", size) + b"free(): invalid pointer\n\0").ljust(64, b"\0")
    said = collect(load(memory), None, None, None)
    assert said == ({"abort": "free(): invalid pointer"} if found else {})


@pytest.mark.parametrize(("handlers", "found"), [(1, True), (0, False), (-1, False)])
def test_collect_exception_in_a_static_program_without_names(
    load: Callable[[Memory], CoreImage], handlers: int, found: bool
) -> None:
    """terminate() has caught it; one that the program released is not what ended it."""
    memory = Memory()
    base = memory.put(pack("<QQQ", 0, memory.put(b"St13runtime_error\0"), 0))
    info = memory.put(pack("<QQQ", 0, memory.put(b"N3app5ErrorE\0"), base))
    header = (
        pack("<Q", info) + bytes(32) + pack("<i", handlers) + bytes(36) + b"\0++CCUNG" + bytes(24)
    )
    memory.push(512, memory.put(header + pack("<QQ", 0, memory.put(b"no disk\0"))) + 80)
    said = collect(load(memory), None, "abort", None)
    assert said == ({"cxx_type": "<N3app5ErrorE>", "cxx_what": "no disk"} if found else {})


@pytest.mark.parametrize("logger", ["google::LogMessage::Fail()", "absl::log_internal::X()"])
def test_collect_fatal_line_of_a_log(load: Callable[[Memory], CoreImage], logger: str) -> None:
    memory = Memory()
    memory.put(b"I20261128 10:49:01.123456   77 store.cc:5] opened\n")
    memory.put(b"F20261128 10:49:02.123456   77 store.cc:33] Check failed: a == b (1 vs. 2) rows\n")
    image = load(memory)
    said = "store.cc:33: Check failed: a == b (1 vs. 2) rows"
    assert collect(image, "abort", logger)["logged"] == said
    assert collect(image, "abort", "main") == {}
