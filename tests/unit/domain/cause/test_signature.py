"""Signatures: the same for the same bug, another for another one."""

import re
from dataclasses import replace

import pytest

from crashd.domain.cause.analysis import Cause, Facts, Frame
from crashd.domain.cause.names import plain_name
from crashd.domain.cause.signature import (
    build_signature,
    build_title,
    frame_key,
    notable,
    significant,
)
from tests.builders.facts import build_facts, build_frame

NULL = Cause("null-pointer", "NULL pointer write", "…")
OVERFLOW = Cause("stack-overflow", "stack overflow", "…")
ABORT = Cause("abort", "abort()", "…")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("main", "main"),
        ("app::Store<int>::at(unsigned long) const", "app::Store::at"),
        ("app::Store<std::pair<int, A<B> > >::at()", "app::Store::at"),
        ("void app::fill<int>(std::vector<int>&)", "app::fill"),
        ("work(int) [.cold]", "work"),
        ("msort_with_tmp.part.0", "msort_with_tmp"),
        ("parse.constprop.0.isra.0", "parse"),
        ("runtime.raise.abi0", "runtime.raise"),
        ("code.1", "code"),
        ("std::rt::lang_start::{closure#0}", "std::rt::lang_start::{closure}"),
        ("app::run()::{lambda(int)#2}::operator()", "app::run::{lambda}::operator()"),
        ("app::run(int*) const::{lambda(int)}::operator()(int)", "app::run::{lambda}::operator()"),
        ("app::run()::$_0::operator()(int) const", "app::run::{lambda}::operator()"),
        ("call_operator()", "call_operator"),
        ("app::operator_of(int)", "app::operator_of"),
        ("Matrix::operator()(int, int)", "Matrix::operator()"),
        ("operator<<(std::ostream&, A const&)", "operator<<"),
        ("(anonymous namespace)::run(int)", "(anonymous namespace)::run"),
        ("<app::A as core::fmt::Debug>::fmt", "<app::A as core::fmt::Debug>::fmt"),
        ("()", "()"),
        ("", ""),
        (")", ")"),
        ("<", "<"),
        (">>>", ">>>"),
        ("main.generic[go.shape.string_0]", "main.generic"),
        ("main.generic[...]", "main.generic"),
        ("main.Tree[go.shape.int].Put", "main.Tree.Put"),
    ],
)
def test_plain_name_drops_what_changes(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_signature_has_version_and_sixteen_digits() -> None:
    assert re.fullmatch(r"p8-[0-9a-f]{16}", build_signature("prog", build_facts("f"), NULL))


def test_signature_never_changes_by_accident() -> None:
    """If this fails, every host's counts begin anew: raise VERSION."""
    facts = build_facts("third", "second", "first", "main")
    assert build_signature("prog", facts, NULL) == "p8-e76da1712e1df530"


def test_signature_ignores_what_another_run_has_otherwise() -> None:
    facts = build_facts("third", "second", "main", address=8)
    moved = build_facts(
        *(
            build_frame(f"{name}(int)", pc=0x7F1000 + n, offset=77 + n, build_id=None, line=n)
            for n, name in enumerate(("third", "second", "main"))
        ),
        address=0x5555,
        registers={"rax": 7},
    )
    assert build_signature("prog", facts, NULL) == build_signature("prog", moved, NULL)


@pytest.mark.parametrize(
    "other",
    [
        build_signature("prog2", build_facts("third", "main"), NULL),
        build_signature("prog", build_facts("fourth", "main"), NULL),
        build_signature("prog", build_facts("third", "second", "main"), NULL),
        build_signature("prog", build_facts("third", "main"), ABORT),
        build_signature("prog", build_facts("thirdmain"), NULL),
    ],
)
def test_signature_of_another_bug_differs(other: str) -> None:
    assert build_signature("prog", build_facts("third", "main"), NULL) != other


def test_signature_of_another_exception_of_one_function_differs() -> None:
    facts = build_facts("parse", "main")
    one, other = (
        Cause("cxx-exception", f"uncaught {name}", f"uncaught C++ exception {name}: {text}")
        for name, text in (("app::Missing", "no file"), ("app::Broken", "line 7"))
    )
    assert build_signature("p", facts, one) != build_signature("p", facts, other)
    again = replace(one, text="uncaught C++ exception app::Missing: no other file")
    assert build_signature("p", facts, one) == build_signature("p", facts, again)


def test_signature_of_one_bad_pointer_is_the_same_whatever_it_pointed_to() -> None:
    facts = build_facts("use", "main")
    kinds = ("null-pointer", "wild-pointer", "freed-memory", "poisoned-memory", "non-canonical")
    assert len({build_signature("p", facts, replace(NULL, kind=kind)) for kind in kinds}) == 1


@pytest.mark.parametrize(
    "stack",
    [
        ["ping", "pong"] * 40,
        ["pong", "ping"] * 40,
        ["pong", *["ping", "pong"] * 9],
        ["leaf", *["ping", "pong"] * 9],
    ],
)
def test_signature_of_an_overflow_is_that_of_its_circle(stack: list[str]) -> None:
    expected = build_signature("p", build_facts(*["ping", "pong"] * 4), OVERFLOW)
    assert build_signature("p", build_facts(*stack), OVERFLOW) == expected


def test_signature_of_a_recursion_does_not_tell_its_depth() -> None:
    deep = build_facts(*["walk"] * 30, "start", "main")
    flat = build_facts("walk", "start", "main")
    assert build_signature("p", deep, NULL) == build_signature("p", flat, NULL)


def library(function: str | None, name: str = "libc.so.6") -> Frame:
    return build_frame(function, module=f"/usr/lib/x86_64-linux-gnu/{name}")


def test_significant_leaves_out_libraries_and_startup() -> None:
    facts = build_facts(
        library("__pthread_kill_implementation"),
        library("raise"),
        library("abort"),
        library(None, "libstdc++.so.6.0.30"),
        library("__cxa_throw", "libstdc++.so.6.0.30"),
        library(None, "libgcc_s.so.1"),
        build_frame("std::vector<int>::at", inline=True, file="/usr/include/c++/12/vector"),
        "app::run()",
        "main",
        library("__libc_start_main"),
        "_start",
    )
    assert [f.function for f in significant(facts, ABORT)] == ["app::run()", "main"]


@pytest.mark.parametrize(
    "name",
    [
        *("abort", "raise", "gsignal", "__assert_fail", "__assert_fail_base.cold", "malloc"),
        *("free", "_int_free", "malloc_printerr", "__libc_message", "__stack_chk_fail", "_start"),
        *("__cxa_throw", "std::terminate()", "operator new(unsigned long)", "__restore_rt"),
        *("__asan_report_load4", "__interceptor_free", "start_thread", "__clone3"),
        *("core::panicking::panic_fmt", "std::panicking::panic_with_hook", "__rustc::rust_panic"),
        "panic_abort::__rust_start_panic::abort",
        *("runtime.gopanic", "runtime.sigpanic", "runtime.goexit.abi0", "g_assertion_message_expr"),
        "<core::option::Option<T> as core::fmt::Debug>::fmt",
    ],
)
def test_significant_leaves_out_wrappers_that_are_linked_in(name: str) -> None:
    assert [f.function for f in significant(build_facts(name, "bug"), ABORT)] == ["bug"]


@pytest.mark.parametrize(
    "name",
    ["abort_job", "free_list", "malloc_stats_of_app", "raiser", "main.main", "mainLoop", "freeze"],
)
def test_significant_keeps_functions_that_are_only_named_alike(name: str) -> None:
    assert [f.function for f in significant(build_facts(name), ABORT)] == [name]


def test_significant_prefers_the_interpreters_frames() -> None:
    script = Frame("innermost", None, None, None, None, file="/srv/job.py", line=4, kind="python")
    stdlib = replace(script, function="string_at", file="/usr/lib/python3.11/ctypes/__init__.py")
    site = replace(script, function="f", file="/usr/lib/python3.11/site-packages/lib.py")
    module = build_frame("array_new", module="/usr/lib/python3.11/lib-dynload/array.so")
    facts = build_facts("strlen", module, "PyObject_Call", python=(stdlib, site, script))
    assert [f.function for f in significant(facts, ABORT)] == ["f", "innermost"]
    assert frame_key(script) == "python:job.py:innermost"
    assert significant(build_facts("PyObject_Str", python=(stdlib,)), ABORT) == [stdlib]


def test_significant_begins_with_an_extension_modules_own_functions() -> None:
    """Two bugs of one module, called from one line, are two."""
    script = Frame("load", None, None, None, None, file="/srv/job.py", line=4, kind="python")
    module = "/srv/venv/lib/python3.11/site-packages/fast.so"
    interpreter = build_frame("cfunction_vectorcall_NOARGS", module="/usr/bin/python3.11")
    found = []
    for name in ("decode", "encode"):
        facts = build_facts(build_frame(name, module=module), interpreter, python=(script,))
        assert [f.function for f in significant(facts, NULL)] == [name, "load"]
        found.append(build_signature("python3.11", facts, NULL))
    assert found[0] != found[1]
    nameless = build_facts(build_frame(None, module=module), interpreter, python=(script,))
    assert [f.function for f in significant(nameless, NULL)] == ["load"]


@pytest.mark.parametrize(
    ("kind", "library", "own", "extension"),
    [
        ("php", None, "/usr/bin/php8.2", "/usr/lib/php/20220829/memcached.so"),
        ("php", None, "/usr/lib/apache2/modules/libphp8.2.so", "/usr/lib/php/20220829/imagick.so"),
        (
            "ruby",
            "/usr/lib/ruby/3.1.0/fiddle/import.rb",
            "/usr/lib/x86_64-linux-gnu/ruby/3.1.0/fiddle.so",
            "/var/lib/gems/3.1.0/gems/pg-1.5/lib/pg_ext.so",
        ),
        (
            "perl",
            "/usr/share/perl/5.36/Carp.pm",
            "/usr/lib/x86_64-linux-gnu/perl-base/5.36/auto/List/Util/Util.so",
            "/usr/lib/x86_64-linux-gnu/perl5/5.36/auto/DBI/DBI.so",
        ),
    ],
)
def test_significant_tells_an_interpreters_own_modules_and_library(
    kind: str, library: str | None, own: str, extension: str
) -> None:
    script = Frame("job", None, None, None, None, file="/srv/job", line=4, kind=kind)
    above = [replace(script, function="f", file=library)] if library else []
    for module, expected in ((own, ["job"]), (extension, ["bug", "job"])):
        facts = build_facts(build_frame("bug", module=module), python=(*above, script))
        assert [f.function for f in significant(facts, NULL)] == expected


def test_significant_of_a_language_that_is_not_known_is_all() -> None:
    script = Frame("job", None, None, None, None, file="/srv/job", line=4, kind="x")
    facts = build_facts(build_frame("bug", module="/usr/bin/x"), python=(script,))
    assert [f.function for f in significant(facts, NULL)] == ["bug", "job"]


def test_signature_without_any_place_is_what_happened() -> None:
    nowhere = Frame(None, None, None, None, pc=0x7F00_1234)
    overwritten = Cause("return-address", "return address overwritten", "")
    unloaded = Cause("return-address", "return to unmapped memory", "")
    facts = build_facts(nowhere)
    assert build_signature("p", facts, overwritten) != build_signature("p", facts, unloaded)


def test_signature_of_two_assertions_in_one_function_differ() -> None:
    facts = build_facts("abort", "check", "main")
    first, second = (Cause("assertion", f"assertion `{what}' failed", "") for what in ("a", "b"))
    assert build_signature("p", facts, first) != build_signature("p", facts, second)


def test_notable_without_significant_frames_is_the_whole_stack_but_for_go() -> None:
    facts = build_facts("raise", "abort")
    assert len(notable(facts, ABORT)) == 2
    assert notable(facts, replace(ABORT, kind="go-fatal")) == []


@pytest.mark.parametrize(
    ("frame", "key"),
    [
        (build_frame("f(int)"), "f"),
        (build_frame(None, offset=0x1234), "prog+0x1234"),
        (Frame(None, None, None, None, 0), "NULL"),
        (Frame(None, None, None, None, 0x7F00), "?"),
    ],
)
def test_frame_key_names_what_is_known(frame: Frame, key: str) -> None:
    assert frame_key(frame) == key


def test_build_title_has_no_address() -> None:
    title = build_title("prog", 11, build_facts("app::run(int)", address=24), NULL)
    assert title == "SIGSEGV in prog, app::run(): NULL pointer write"
    nameless = build_facts(build_frame(None, offset=0x12))
    assert build_title("", None, nameless, NULL) == "crash in ?, prog+0x12: NULL pointer write"
    assert build_title("p", 6, build_facts(), ABORT) == "SIGABRT in p: abort()"


@pytest.mark.parametrize(
    "failure",
    [
        *("abort", "__assert_fail", "__stack_chk_fail", "std::terminate()", "__cxa_throw"),
        *("core::panicking::panic_fmt", "g_log", "QMessageLogger::fatal(char const*, ...) const"),
        *("node::Abort()", "V8_Fatal(char const*, ...)", "__asan::ReportGenericError()"),
        *("os::abort(bool, void*, void const*)", "Py_FatalError", "debug.panicImpl"),
        *("__libc_message.constprop.0", "__assert_fail_base.cold", "malloc_printerr.part.0"),
        *("node::OnFatalError(char const*, char const*)", "rb_bug", "_serverPanic"),
    ],
)
def test_notable_leaves_out_whatever_lies_above_a_failure(failure: str) -> None:
    facts = build_facts("report_to_server", "format", failure, "bug", "main", signal=6, code=-6)
    assert [f.function for f in notable(facts, ABORT)][:1] == ["bug"]
    # a fault is not what the function above it made
    assert [f.function for f in notable(facts, NULL)][:1] == ["report_to_server"]


@pytest.mark.parametrize(
    "helper",
    [
        build_frame("snprintf", inline=True, file="/usr/include/x86_64-linux-gnu/bits/stdio2.h"),
        build_frame("memcpy", inline=True, file="/usr/include/bits/string_fortified.h"),
        build_frame("_mm_load_ps", inline=True, file="/usr/lib/gcc/x86_64/12/include/x.h"),
        *(
            build_frame(name)
            for name in (
                "__strlen_avx2", "__memmove_avx512_unaligned_erms", "__memcpy_chk",
                "__vfprintf_internal", "_IO_new_fclose", "pthread_kill_implementation.constprop.0",
                "_int_free", "__libc_free", "sync.(*Mutex).Unlock", "tcache_put.part.0",
            )
        ),
        build_frame("f", module="/usr/lib/x86_64-linux-gnu/libffi.so.8.1.2"),
        build_frame("gconv", module="/usr/lib/x86_64-linux-gnu/gconv/UTF-16.so"),
        build_frame("f", module="/usr/lib/x86_64-linux-gnu/libnss_files.so.2"),
        build_frame("strings.Repeat", file="/usr/lib/go-1.19/src/strings/strings.go"),
        build_frame("reflect.Value.Elem", file="/usr/local/go/src/reflect/value.go"),
        build_frame("encoding/json.(*decodeState).object", file="encoding/json/decode.go"),
        build_frame("g_free", module="/usr/lib/x86_64-linux-gnu/libglib-2.0.so.0"),
    ],
)  # fmt: skip
def test_notable_leaves_out_helpers(helper: Frame) -> None:
    facts = build_facts(helper, "bug", "main")
    assert [f.function for f in notable(facts, NULL)][:1] == ["bug"]


@pytest.mark.parametrize(
    "name", ["strip_header", "memory_free", "tcache_df", "freeze", "abort_job", "raised"]
)
def test_notable_names_the_programs_own_functions(name: str) -> None:
    assert [f.function for f in notable(build_facts(name, "main"), NULL)][:1] == [name]


def test_notable_of_an_overflow_is_the_recursion_and_not_its_leaf() -> None:
    facts = build_facts("format", *["walk", "visit"] * 9, "main")
    assert [f.function for f in notable(facts, OVERFLOW)][:2] == ["walk", "visit"]


def test_notable_without_any_name_of_its_own_is_below_the_failure() -> None:
    facts = build_facts("raise", "abort", "core::panicking::panic_fmt", "std::thread::start")
    assert [f.function for f in notable(facts, ABORT)] == ["std::thread::start"]


def test_signature_of_nameless_aborts_tells_their_callers_apart() -> None:
    def stack(*offsets: int) -> list[Frame]:
        return [build_frame(None, offset=offset) for offset in offsets]

    one, two = build_facts(*stack(1, 2, 3, 4, 50)), build_facts(*stack(1, 2, 3, 4, 60))
    assert build_signature("p", one, ABORT) != build_signature("p", two, ABORT)
    assert build_signature("p", one, NULL) == build_signature("p", two, NULL)
    named = [build_facts("f", "g", "h", *stack(n)) for n in (1, 2)]
    assert len({build_signature("p", facts, ABORT) for facts in named}) == 1


@pytest.mark.parametrize(
    ("stack", "blamed"),
    [
        # interceptors and thread starters are below the bug, too
        (["abort", "__asan::ReportGenericError()", "bug", "__interceptor_qsort", "main"], "bug"),
        (["__tsan::ReportRace()", "bug", "__tsan_thread_start_func", "start_thread"], "bug"),
        (["abort", "__interceptor_abort", "bug", "main"], "bug"),
        (["__sanitizer::Die()", "handleShiftOutOfBoundsImpl(int)",
          "__ubsan_handle_shift_out_of_bounds_abort", "bug", "main"], "bug"),
        (["abort", "__addvsi3", "bug", "main"], "bug"),
        (["abort", "std::terminate()", "__clang_call_terminate", "bug", "main"], "bug"),
        # a return type in front of a name hides a helper, or makes one
        (["abort", "void std::__throw_with<int>(int)", "bug", "main"], "bug"),
        (["abort", "std::string app::get<int>(int)", "main"], "std::string app::get<int>(int)"),
    ],
)  # fmt: skip
def test_notable_blames_the_program(stack: list[str], blamed: str) -> None:
    facts = build_facts(*stack, signal=6, code=-6)
    assert notable(facts, ABORT)[0].function == blamed


PANIC = Cause("rust-panic", "Rust panic", "Rust panic")


def nameless_panic(location: str, offset: int) -> Facts:
    frames = [build_frame(None, offset=offset + n) for n in range(12)]
    said = {"rust_panic": "bad", "rust_location": location}
    return build_facts(*frames, signal=6, code=-6, messages=said)


def test_panic_without_names_has_its_location() -> None:
    """Two builds have other offsets, but the same source."""
    first, second = (nameless_panic("src/net/io.rs:7:12", at) for at in (0x1000, 0x9900))
    assert build_title("prog", 6, first, PANIC) == "SIGABRT in prog, src/net/io.rs:7: Rust panic"
    assert build_signature("prog", first, PANIC) == build_signature("prog", second, PANIC)
    other = nameless_panic("src/net/io.rs:70:12", 0x1000)
    assert build_signature("prog", other, PANIC) != build_signature("prog", first, PANIC)


@pytest.mark.parametrize("home", ["/root/.cargo", "/home/u/.cargo", "/build/cargo-home"])
def test_panic_in_a_dependency_is_the_same_on_any_builder(home: str) -> None:
    place = f"{home}/registry/src/index.crates.io-6f17d22bba15001f/bytes-1.5.0/src/buf.rs:9:1"
    title = build_title("prog", 6, nameless_panic(place, 0x1000), PANIC)
    assert title == "SIGABRT in prog, bytes-1.5.0/src/buf.rs:9: Rust panic"


def test_panic_inlined_into_the_standard_library_has_its_location() -> None:
    """Such closures are those of threads: all would have one function."""
    places = ("src/a.rs:1:1", "src/b.rs:5:1")
    stack = ["abort", "core::panicking::panic_fmt", "std::thread::start", "start_thread"]
    first, second = (
        build_facts(*stack, signal=6, code=-6, messages={"rust_location": place})
        for place in places
    )
    assert build_title("prog", 6, first, PANIC) == "SIGABRT in prog, src/a.rs:1: Rust panic"
    assert build_signature("prog", first, PANIC) != build_signature("prog", second, PANIC)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("strings.own", "/root/go/src/example.org/strings/own.go"),
        ("log.write", "/srv/app/log/write.go"),
        ("time.tick", "/usr/src/time.cc"),
        ("main.run", "/usr/lib/go-1.19/src/main/run.go"),
        ("strings.Repeat", None),
    ],
)
def test_notable_keeps_what_is_only_named_like_gos_library(name: str, file: str | None) -> None:
    facts = build_facts(build_frame(name, file=file), "main.main")
    assert notable(facts, NULL)[0].function == name


def test_panic_with_names_has_its_function() -> None:
    facts = build_facts("app::run", signal=6, messages={"rust_location": "src/a.rs:1:1"})
    assert build_title("prog", 6, facts, PANIC) == "SIGABRT in prog, app::run(): Rust panic"


def test_signature_of_two_messages_in_one_function_differ_but_for_names_and_numbers() -> None:
    facts = build_facts("g_log", "load", "main")

    def signature(message: str) -> str:
        return build_signature("p", facts, Cause("abort-message", message, ""))

    assert signature("cannot open the display") != signature("no theme is installed")
    assert signature("no row N in 'users'") == signature("no row 7 in 'shops'")
    assert signature("cannot read /etc/a.conf") == signature("cannot read /srv/b.conf")
    assert signature('no key "a" (0x7f01)') == signature('no key "bc" (0x55)')


def test_title_of_an_inlined_fault_in_rust_is_its_line() -> None:
    thread = "std::sys::backtrace::__rust_begin_short_backtrace"
    facts = build_facts(
        build_frame(thread, file="/build/shop/src/worker.rs", line=31),
        build_frame("core::ops::function::FnOnce::call_once", file="library/core/src/ops.rs"),
    )
    assert build_title("shop", 11, facts, NULL) == (
        "SIGSEGV in shop, src/worker.rs:31: NULL pointer write"
    )
    moved = build_facts(build_frame(thread, file="/other/shop/src/worker.rs", line=32))
    assert build_signature("shop", facts, NULL) != build_signature("shop", moved, NULL)


def test_title_of_a_fault_inlined_into_the_cxx_library_is_its_line() -> None:
    proxy = "void* std::__thread_proxy<std::tuple<work()::$_0> >(void*)"
    facts = build_facts(build_frame(proxy, file="/build/shop/src/pool.cc", line=64))
    assert build_title("shop", 11, facts, NULL).startswith("SIGSEGV in shop, src/pool.cc:64: ")
    own = build_facts(build_frame(proxy, file="/usr/include/c++/12/thread", line=64), "work")
    assert build_title("shop", 11, own, NULL).startswith("SIGSEGV in shop, work(): ")
    lib = build_frame("std::f()", module="/lib/libstdc++.so.6", file="src/c++11/thread.cc", line=3)
    assert "thread.cc" not in build_title("shop", 11, build_facts(lib), NULL)


def test_title_of_a_crash_that_only_libraries_are_in_names_none_of_them() -> None:
    stack = ["raise", "abort", "malloc_printerr", "munmap_chunk", "free", "_dl_fini"]
    said = Cause("heap-corruption", "munmap_chunk(): invalid pointer", "")
    facts = build_facts(*stack)
    assert build_title("p", 6, facts, said) == "SIGABRT in p: munmap_chunk(): invalid pointer"
    waits = build_facts("runtime.futex", "runtime.mcall")
    quit_itself = Cause("raised", "raised SIGQUIT itself", "")
    assert build_title("p", 6, waits, quit_itself) == "SIGABRT in p: raised SIGQUIT itself"
