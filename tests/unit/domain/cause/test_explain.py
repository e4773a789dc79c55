"""Causes out of last words and of who sent the signal."""

import re
from dataclasses import replace
from typing import Any

import pytest

from crashd.domain.cause.analysis import Frame, Handled, Instruction, ModuleInfo
from crashd.domain.cause.explain import ProcessContext, explain
from crashd.domain.cause.signature import build_title
from tests.builders.facts import build_access, build_facts, build_frame

SELF = ProcessContext(frozenset({42}))


@pytest.mark.parametrize(
    ("messages", "kind", "text"),
    [
        (
            {"abort": "prog: /src/a/file.c:12: int run(int): Assertion `x > 0' failed."},
            "assertion",
            "assertion `x > 0' failed in run() at file.c:12",
        ),
        (
            {"abort": "prog: /src/a.c:12: run: Unexpected error: Input/output error."},
            "assertion",
            "an unexpected error in run() at a.c:12: Input/output error",
        ),
        ({"abort": "*** stack smashing detected ***: terminated"}, "stack-smashing", "smashing"),
        ({"abort": "*** buffer overflow detected ***: terminated"}, "buffer-overflow", "buffer"),
        ({"abort": "free(): double free detected in tcache 2"}, "double-free", "freed twice"),
        ({"abort": "double free or corruption (!prev)"}, "double-free", "freed twice"),
        ({"abort": "corrupted size vs. prev_size"}, "heap-corruption", "heap corruption"),
        ({"abort": "malloc(): invalid size (unsorted)"}, "heap-corruption", "heap corruption"),
        ({"abort": "free(): invalid pointer"}, "heap-corruption", "invalid pointer"),
        ({"abort": "Fatal glibc error: something"}, "abort-message", "Fatal glibc error"),
        (
            {"glib": "app:ERROR:../src/main.c:5:run: assertion failed (a == b): (3 == 4)"},
            "assertion",
            "assertion failed (a == b): (3 == 4), in run() at main.c:5",
        ),
        ({"glib": "cannot open the display"}, "abort-message", "cannot open the display"),
        (
            {"cxx_type": "std::runtime_error", "cxx_what": "no disk"},
            "cxx-exception",
            "uncaught C++ exception std::runtime_error: no disk",
        ),
        ({"cxx_terminate": "true"}, "cxx-terminate", "std::terminate()"),
        (
            {"rust_panic": "no shard", "rust_location": "src/a.rs:3:4"},
            "rust-panic",
            "Rust panic at src/a.rs:3:4: no shard",
        ),
        ({"go_panic": "closed"}, "go-panic", "Go panic: closed"),
        ({"go_fatal": "deadlock"}, "go-fatal", "fatal error: deadlock"),
    ],
)
def test_explain_last_words_count_first(messages: dict[str, str], kind: str, text: str) -> None:
    facts = build_facts("run", signal=6, code=-6, sender_pid=42, messages=messages)
    cause = explain(facts, SELF)
    assert cause.kind == kind
    assert text in cause.text
    assert "\n" not in cause.text + cause.short


def test_explain_old_abort_message_does_not_explain_a_segfault() -> None:
    facts = build_facts("f", address=0, messages={"abort": "free(): invalid pointer"})
    assert explain(facts, SELF).kind == "null-pointer"


def test_explain_message_without_end_is_cut() -> None:
    facts = build_facts("f", signal=6, code=-6, messages={"abort": "x\n" * 5000})
    cause = explain(facts, SELF)
    assert len(cause.text) < 600
    assert len(cause.short) <= 120
    assert "\n" not in cause.text


@pytest.mark.parametrize(
    ("signal", "pid", "uid", "unit", "kind", "text"),
    [
        (6, 42, 0, None, "abort", "called abort()"),
        (3, 42, 0, None, "raised", "sent SIGQUIT to itself"),
        (11, 77, 1000, None, "sent", "SIGSEGV was sent by pid 77 (uid 1000)"),
        (11, 0, 0, None, "sent", "outside of its pid namespace"),
        (11, None, None, None, "sent", "SIGSEGV was sent by another process"),
        (6, 1, 0, "web.service", "watchdog", "likely the watchdog of web.service was not fed"),
        (6, 1, 0, None, "watchdog", "the watchdog was not fed"),
        (6, 1, 1000, None, "sent", "pid 1"),
        (11, 1, 0, "web.service", "sent", "pid 1"),
    ],
)
def test_explain_sent_signal_names_its_sender(
    signal: int, pid: int | None, uid: int | None, unit: str | None, kind: str, text: str
) -> None:
    code = -6 if pid == 42 else 0
    facts = build_facts("loop", signal=signal, code=code, sender_pid=pid, sender_uid=uid)
    cause = explain(facts, ProcessContext(frozenset({42}), unit))
    assert cause.kind == kind
    assert text in cause.text
    assert str(77) not in cause.short


def test_explain_signal_from_a_thread_of_its_own_is_not_another_process() -> None:
    facts = build_facts("loop", signal=6, code=0, sender_pid=100, sender_uid=0)
    assert explain(facts, SELF).kind == "raised"


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"syscall": 83, "syscall_name": "mkdir"}, "mkdir() is forbidden"),
        ({"syscall": 9999}, "system call 9999 is forbidden"),
        ({}, "a system call is forbidden"),
    ],
)
def test_explain_seccomp_names_the_call(more: dict[str, Any], text: str) -> None:
    cause = explain(build_facts("run", signal=31, address=PC, **more), SELF)
    assert cause.kind == "seccomp"
    assert text in cause.text


PC = 0x401000


def test_explain_rusts_own_overflow_handler_is_a_stack_overflow() -> None:
    facts = build_facts(
        "abort",
        "std::sys::pal::unix::stack_overflow::imp::signal_handler",
        *["app::walk"] * 5,
        signal=6,
        code=-6,
        sender_pid=42,
    )
    assert explain(facts, SELF).kind == "stack-overflow"


def test_explain_short_has_no_numbers_of_one_run() -> None:
    messages = {"go_fatal": "out of memory at 0xc000 (4194304 bytes)"}
    cause = explain(build_facts("f", signal=6, code=-6, messages=messages), SELF)
    assert cause.short == "Go: out of memory at N (N bytes)"
    assert "4194304" in cause.text


def test_explain_names_the_place_once() -> None:
    facts = build_facts(
        build_frame("third(int*)", file="/src/a.c", line=7), "main", address=0, signal=11
    )
    text = explain(facts, SELF).text
    assert text.endswith(", in third() at a.c:7")
    assert text.count("third()") == 1


def test_explain_without_siginfo_says_that_it_does_not_know() -> None:
    facts = replace(build_facts("f"), siginfo=None)
    assert explain(facts, SELF).kind == "unknown"
    odd = build_facts("f", signal=3, code=128)
    assert explain(odd, SELF).kind == "unknown"
    assert explain(replace(odd, threads=(), regions={}, instruction=None), SELF).text


@pytest.mark.parametrize(
    ("handled", "text"),
    [
        (Handled(6, -6, 2, again=False), "its handler for SIGSEGV then aborted the process"),
        (Handled(11, -6, 0, again=True), "a handler caught SIGSEGV and raised it again"),
        (Handled(11, 1, 2, again=False), "its handler for SIGSEGV then crashed itself (SIGSEGV)"),
        (Handled(11, -6, 2, again=False), "a handler caught SIGSEGV and raised it again"),
        (Handled(5, -6, 2, again=False), "then ended the process by SIGTRAP"),
    ],
)
def test_explain_handled_signal_is_the_cause_and_its_end_a_consequence(
    handled: Handled, text: str
) -> None:
    frames = ["decode"] if handled.again else ["abort", "report", "decode"]
    facts = build_facts(*frames, address=0x28, access=(build_access("read", 0x28),))
    facts = replace(facts, handled=handled)
    cause = explain(facts, ProcessContext(frozenset({100})))
    assert cause.kind == "null-pointer"
    assert cause.text.startswith("NULL pointer: read at address 0x28")
    assert cause.text.endswith(text)
    assert ", in decode()" in cause.text
    assert build_title("p", facts.signal, facts, cause).endswith(", decode(): NULL pointer read")
    assert facts.signal == handled.signal


def test_explain_abort_that_a_handler_saw_is_no_consequence() -> None:
    """abort() raises SIGABRT again after its handler."""
    facts = build_facts("abort", "report", "abort", "job", signal=6, code=-6, sender_pid=100)
    facts = replace(facts, handled=Handled(6, -6, 2, again=False))
    cause = explain(facts, ProcessContext(frozenset({100})))
    assert cause.text == "the program called abort(), in job()"


def test_explain_terminate_handler_that_raised_a_signal_is_the_exception() -> None:
    said = {"cxx_type": "app::Error", "cxx_what": "no such row"}
    stack = ["raise", "std::terminate()", "__cxa_throw", "work"]
    facts = build_facts(*stack, signal=11, code=-6, sender_pid=100, messages=said)
    cause = explain(facts, ProcessContext(frozenset({100})))
    assert cause.text == "uncaught C++ exception app::Error: no such row, in work()"
    old = build_facts("raise", "work", signal=11, code=-6, sender_pid=100, messages=said)
    assert explain(old, ProcessContext(frozenset({100}))).kind == "raised"


def test_explain_handled_signal_of_another_process_is_not_an_abort() -> None:
    facts = build_facts("abort", "report", "work", code=0, sender_pid=77, sender_uid=0)
    facts = replace(facts, handled=Handled(6, -6, 2, again=False))
    cause = explain(facts, ProcessContext(frozenset({100})))
    assert cause.short == "SIGSEGV sent by another process"


@pytest.mark.parametrize(
    ("mnemonic", "target", "short"),
    [
        ("call", int.from_bytes(b"BBBBAAAA", "little"), "call through a pointer overwritten by"),
        ("jmp", 0xDEAD00000000BEEF, "call through a wild pointer"),
        ("ret", int.from_bytes(b" a buffe", "little"), "return address overwritten"),
    ],
)
def test_explain_call_to_what_is_not_an_address(mnemonic: str, target: int, short: str) -> None:
    facts = build_facts("f", code=128, mnemonic=mnemonic)
    instruction = Instruction("ff", None, mnemonic, (), target)
    cause = explain(replace(facts, instruction=instruction), ProcessContext(frozenset()))
    assert cause.short.startswith(short)


@pytest.mark.parametrize(
    ("signal", "stack", "kind", "text"),
    [
        (
            11,
            ["main"],
            "unknown",
            r"SIGSEGV without a known cause \(the core has no siginfo\)",
        ),
        (6, ["raise", "abort", "main"], "abort", r"the program called abort\(\), in main\(\)"),
        (6, ["pthread_kill", "main"], "unknown", r"SIGABRT without"),
        (0, ["main"], "snapshot", r"the process did not crash: a debugger \(gcore\)"),
        (19, ["main"], "snapshot", r"the process did not crash"),
    ],
)
def test_explain_core_without_siginfo_has_the_threads_signal(
    signal: int, stack: list[str], kind: str, text: str
) -> None:
    facts = replace(build_facts(*stack), siginfo=None, thread_signal=signal, instruction=None)
    cause = explain(facts, SELF)
    assert cause.kind == kind
    assert re.match(text, cause.text)


def test_explain_gcore_of_a_running_process_is_no_crash() -> None:
    cause = explain(build_facts("pause", "main", signal=19, code=0x80), SELF)
    assert (cause.kind, cause.short) == ("snapshot", "taken while it ran")


@pytest.mark.parametrize(
    ("signal", "code", "pid", "kind"),
    [
        (24, 128, None, "limit"),  # by the kernel
        (25, 0, 42, "limit"),  # SEND_SIG_NOINFO: as if from the process itself
        (25, -6, 42, "raised"),
        (25, 0, 77, "sent"),
        (24, 0, 77, "sent"),
    ],
)
def test_explain_limits(signal: int, code: int, pid: int | None, kind: str) -> None:
    assert explain(build_facts("f", signal=signal, code=code, sender_pid=pid), SELF).kind == kind


def test_explain_signal_of_a_timer_is_not_another_process() -> None:
    cause = explain(build_facts("f", signal=6, code=-2), SELF)
    assert "timer" in cause.text
    assert cause.short == "SIGABRT sent by the kernel"


@pytest.mark.parametrize(
    ("stack", "short"),
    [
        (["raise", "abort", "f"], "abort()"),
        (["__pthread_kill_implementation", "raise", "f"], "raised SIGABRT itself"),
        ([build_frame(None), build_frame(None)], "abort()"),  # nothing says otherwise
    ],
)
def test_explain_raise_is_not_abort(stack: list[Any], short: str) -> None:
    facts = build_facts(*stack, signal=6, code=-6, sender_pid=42)
    assert explain(facts, SELF).short == short


FIRST: dict[str, Any] = {"signal": 11, "code": 128, "mnemonic": "hlt"}
"""abort() of the first process of a pid namespace."""


@pytest.mark.parametrize(
    ("messages", "short"),
    [
        ({}, "abort()"),
        ({"abort": "p: a.c:1: f: Assertion `x' failed."}, "assertion `x' failed"),
        ({"cxx_type": "app::Error", "cxx_what": "no"}, "uncaught app::Error"),
        ({"abort": "free(): double free detected in tcache 2"}, "free(): double free detected"),
    ],
)
def test_explain_abort_of_the_first_process_counts_its_evidence(
    messages: dict[str, str], short: str
) -> None:
    facts = build_facts("abort", "f", messages=messages, **FIRST)
    cause = explain(facts, SELF)
    assert cause.short.startswith(short)
    assert build_title("p", 11, facts, cause).startswith("SIGSEGV in p, f(): ")
    # the same instruction elsewhere is what it is
    assert explain(build_facts("f", messages=messages, **FIRST), SELF).kind == "general-protection"


def test_explain_musl_that_found_corruption() -> None:
    frame = build_frame("get_meta", module="/lib/ld-musl-x86_64.so.1")
    assert explain(build_facts(frame, "f", **FIRST), SELF).kind == "heap-corruption"


@pytest.mark.parametrize(
    ("function", "kind", "short"),
    [
        ("__cxa_pure_virtual", "pure-virtual", "pure virtual method called"),
        ("std::__glibcxx_assert_fail(char const*)", "assertion", "libstdc++ assertion failed"),
        ("alloc::alloc::handle_alloc_error", "out-of-memory", "memory allocation failed"),
        ("node::OOMErrorHandler(char const*)", "out-of-memory", "JavaScript heap out of memory"),
        ("report_java_out_of_memory", "out-of-memory", "Java heap out of memory"),
        ("fatal_error_exit", "fatal-error", "Fatal Python error"),
    ],
)
def test_explain_failure_function_says_what_failed(function: str, kind: str, short: str) -> None:
    said = {"cxx_terminate": "true"}
    facts = build_facts(
        "raise", "abort", function, "bug", signal=6, code=-6, sender_pid=42, messages=said
    )
    cause = explain(facts, SELF)
    assert (cause.kind, cause.short) == (kind, short)
    assert build_title("p", 6, facts, cause).startswith("SIGABRT in p, bug(): ")


@pytest.mark.parametrize(
    ("report", "short"),
    [
        ("heap-use-after-free on address 0x602000000013 at pc 0x5", "heap-use-after-free"),
        ("attempting double-free on 0x60200 in thread T0:", "attempting double-free"),
        ("attempting free on address which was not malloc()-ed: 0x7ffe in thread T0",
         "attempting free on address which was not malloc()-ed"),
        ("requested allocation size 0x4000 (0x5000 after adjustments)",
         "requested allocation size"),
        ("data race (pid=77)", "data race"),
    ],
)  # fmt: skip
def test_explain_sanitizers_short_is_what_it_found(report: str, short: str) -> None:
    facts = build_facts("f", signal=6, code=-6, messages={"sanitizer": f"XSanitizer: {report}"})
    assert explain(facts, SELF).short == f"XSanitizer: {short}"


def test_explain_assertion_without_its_text() -> None:
    """musl keeps no copy of what it prints."""
    facts = build_facts("raise", "abort", "__assert_fail", "run", signal=6, code=-6)
    cause = explain(replace(facts, instruction=None), SELF)
    assert (cause.kind, cause.short) == ("assertion", "assertion failed")


def test_explain_heap_check_of_a_static_musl() -> None:
    facts = build_facts("__libc_free", "run", signal=11, code=0x80, mnemonic="hlt")
    assert explain(facts, SELF).short == "heap corruption found by musl"


def test_explain_sanitizers_report() -> None:
    report = "AddressSanitizer: heap-use-after-free on address 0x60400000001c at pc 0x5"
    facts = build_facts(
        *("raise", "abort", "__sanitizer::Die()", "__asan::ReportGenericError()"),
        *("__asan_report_load4", "read_record", "main"),
        signal=6, code=-6, sender_pid=42, messages={"sanitizer": report},
    )  # fmt: skip
    cause = explain(facts, SELF)
    assert cause.short == "AddressSanitizer: heap-use-after-free"
    assert report in cause.text
    assert "read_record()" in build_title("p", 6, facts, cause)


def test_explain_trap_of_a_failure_function_is_what_it_says() -> None:
    stack = ["v8::base::OS::Abort()", "v8::internal::Isolate::CreateMessageOrAbort()", "Throw"]
    cause = explain(build_facts(*stack, signal=5, code=128, mnemonic="int3"), SELF)
    assert cause.short == "uncaught JavaScript exception"
    for said, short in (
        ("TypeError: o is null", "uncaught JavaScript TypeError"),
        ("ERR_X", "uncaught JavaScript exception"),
    ):
        facts = build_facts(*stack, signal=5, code=128, messages={"js_exception": said})
        assert explain(facts, SELF).short == short
        assert said in explain(facts, SELF).text
    assert explain(build_facts("f", signal=5, code=128), SELF).kind == "breakpoint"


def test_explain_abort_of_a_script_names_no_function_of_its_runtime() -> None:
    """V8's own frames say nothing about which function of the script called process.abort()."""
    runtime = [
        "abort",
        "node::Abort(int)",
        "v8::internal::Builtin_HandleApiCall(int)",
        "Builtins_X",
    ]
    said: dict[str, Any] = {"signal": 6, "code": -6, "sender_pid": 100}
    facts = build_facts(*runtime, "node::Start(int)", "main", **said)
    assert build_title("node", 6, facts, explain(facts, SELF)) == "SIGABRT in node: abort()"
    facts = build_facts(*runtime[:2], "addon::Close()", *runtime[2:], **said)
    expected = "SIGABRT in node, addon::Close(): abort()"
    assert build_title("node", 6, facts, explain(facts, SELF)) == expected
    facts = build_facts("v8::Object::Get()", "Builtins_X", address=8)
    assert "v8::Object::Get()" in build_title("node", 11, facts, explain(facts, SELF))


def test_explain_trap_of_the_check_of_the_stack() -> None:
    """musl ends the process by an instruction that faults."""
    facts = build_facts("__stack_chk_fail", "copies", "main", code=128, mnemonic="hlt")
    cause = explain(facts, SELF)
    assert cause.kind == "stack-smashing"
    assert build_title("p", 11, facts, cause) == "SIGSEGV in p, copies(): stack smashing"
    assert explain(build_facts("copies", code=128, mnemonic="hlt"), SELF).kind != cause.kind


def test_explain_fault_that_go_saw_in_c_code() -> None:
    said = {"go_fatal": "unexpected signal during runtime execution"}
    stack = ["runtime.raise", "runtime.throw", "runtime.sigpanic", "c_parse", "main.work"]
    facts = build_facts(*stack, signal=6, code=-6, sender_pid=100, messages=said)
    title = build_title("p", 6, facts, explain(facts, SELF))
    assert title == "SIGABRT in p, c_parse(): fault outside of Go code"


@pytest.mark.parametrize(
    ("said", "kind", "short"),
    [
        (
            "a/store.cc:33: Check failed: a == b (1 vs. 2) rows",
            "assertion",
            "check `a == b' failed",
        ),
        ("store.cc:33: Check failed: p != nullptr ", "assertion", "check `p != nullptr' failed"),
        ("store.cc:33: shard 17 is lost", "abort-message", "shard N is lost"),
    ],
)
def test_explain_fatal_line_of_a_log(said: str, kind: str, short: str) -> None:
    facts = build_facts(
        "abort",
        "google::LogMessage::Fail()",
        "work",
        signal=6,
        code=-6,
        sender_pid=100,
        messages={"logged": said},
    )
    cause = explain(facts, SELF)
    assert (cause.kind, cause.short) == (kind, short)
    assert cause.text.endswith("(logged at store.cc:33), in work()")


def test_explain_names_the_entry_of_a_library_without_symbols() -> None:
    """As long as nothing else is between."""
    library = "/usr/lib/libssl.so.3"
    inside = build_frame(None, module=library, offset=0x355FC)
    called = build_frame("SSL_write", module=library)
    facts = build_facts(inside, inside, called, "work", address=8)
    cause = explain(facts, SELF)
    assert cause.text.endswith(", in libssl.so.3+0x355fc, called by SSL_write()")
    assert build_title("p", 11, facts, cause).startswith("SIGSEGV in p, SSL_write(): NULL")
    outside = build_facts(inside, "work", called, address=8)
    assert build_title("p", 11, outside, cause).startswith("SIGSEGV in p, libssl.so.3+0x355fc:")
    program = build_frame(None, module="/usr/bin/p", offset=0x10)
    own = build_facts(program, build_frame("main", module="/usr/bin/p"), address=8)
    assert build_title("p", 11, own, cause).startswith("SIGSEGV in p, p+0x10:")


def library(function: str | None) -> Frame:
    return build_frame(function, module="/usr/lib/libc.so.6")


def test_explain_abort_in_a_handler_says_what_it_interrupted() -> None:
    """A watchdog of the program's own: where it hung counts, too."""
    facts = build_facts(
        "abort",
        "on_alarm",
        library("__restore_rt"),
        library("poll"),
        "serve",
        signal=6,
        code=-6,
        sender_pid=100,
    )
    cause = explain(facts, SELF)
    end = ", in on_alarm(); that was a signal handler, which interrupted serve()"
    assert cause.text.endswith(end)
    assert cause.short == "abort()"


def test_explain_emulator_that_ends_as_its_program_did() -> None:
    """What QEMU did is nobody's bug; its signature is that of the emulated program."""
    qemu = "/usr/bin/qemu-aarch64-static"
    inside = build_frame(None, module=qemu, offset=0x2D674A)
    facts = build_facts(library("raise"), inside, signal=11, code=-6, sender_pid=100)
    modules = tuple(
        ModuleInfo(name, 0, 4096, None, False, None, False, False)
        for name in ("/lib/ld-linux-aarch64.so.1", "/srv/bin/sensor", qemu)
    )
    facts = replace(facts, modules=modules)
    cause = explain(facts, SELF)
    title = build_title("qemu-aarch64", 11, facts, cause)
    assert title == "SIGSEGV in qemu-aarch64: sensor died in the emulator"
    assert cause.text.startswith("sensor died of SIGSEGV, and QEMU, which emulates it, ended")
    unknown = explain(replace(facts, modules=()), SELF)
    assert unknown.short == "the program died in the emulator"
    own = build_facts(inside, address=8, access=(build_access("read", 8),))
    assert build_title("q", 11, own, explain(own, SELF)).startswith("SIGSEGV in q, qemu-aarch64")
    system = replace(inside, module="/usr/bin/qemu-system-x86_64")
    guest = build_facts(library("raise"), system, signal=11, code=-6, sender_pid=100)
    assert explain(guest, SELF).kind == "raised"


def test_explain_fault_in_c_that_go_called_is_that_fault() -> None:
    said = {"go_fatal": "unexpected signal during runtime execution"}
    facts = build_facts("runtime.throw", "runtime.sigpanic", "parse", address=0x10, messages=said)
    assert explain(facts, SELF).short == "fault outside of Go code"
    facts = replace(facts, handled=Handled(6, -6, 2, again=False))
    cause = explain(facts, SELF)
    assert cause.short == "NULL pointer access"
    assert "in parse()" in cause.text
    assert cause.text.endswith("; its handler for SIGSEGV then aborted the process")
