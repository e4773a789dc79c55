"""From the facts of a crash to its cause, in one line that an operator understands. Pure.

The last words of a program or its runtime count first, then the sender of the signal, then what
the instruction accessed, through which pointer, and what is mapped there. If a handler had caught
a signal, the facts describe that signal, and what the handler did is a consequence.

The module is one idea: an ordered list of witnesses, of which the first that speaks is believed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from crashd.domain.cause.analysis import Cause, Facts, Frame
from crashd.domain.cause.faults import explain_abort, explain_fault, stack_overflow
from crashd.domain.cause.helpers import (
    RESTORER,
    emulated_program,
    in_library_source,
    is_emulated,
    is_failure,
    is_helper,
)
from crashd.domain.cause.names import plain_name
from crashd.domain.cause.signature import entry, notable, panic_place
from crashd.domain.signals import (
    SIGABRT,
    SIGILL,
    SIGSEGV,
    SIGSYS,
    SIGTRAP,
    SIGXCPU,
    SIGXFSZ,
    describe,
    signal_name,
)

_NUMBER = re.compile(r"0x[0-9a-f]+|\b\d{2,}\b")
_TEXT_MAX = 400
_SI_KERNEL, _SI_TKILL = 0x80, -6  # asm-generic/siginfo.h
_SIGSTOP = 19
_UNSENT = {
    -2: "a timer of the process's own (timer_create)",
    -3: "a message queue (mq_notify)",
    -4: "an asynchronous operation (aio)",
    -5: "a file descriptor (F_SETSIG)",
}
_LIMITS = {
    SIGXCPU: ("CPU time limit reached", "the process used all of its CPU time (RLIMIT_CPU)"),
    SIGXFSZ: ("file size limit reached", "a file would be larger than RLIMIT_FSIZE permits"),
}
_GIVE_UP = frozenset({"hlt", "ud2", "udf", "brk"})
_MUSL = re.compile(r"/(ld-musl-[^/]*|libc)\.so(\.1)?$")
_MUSLS_HEAP = re.compile(r"(__libc_|__bin_)?(free|malloc(_impl)?|realloc|get_meta|chunk\w*)$")
_SMASHED = re.compile(r"__stack_chk_fail(_local)?$")
_ASSERT_FAIL = re.compile(r"__assert(_fail|_rtn|_func)?$")
_RAISE = frozenset({"raise", "gsignal", "pthread_kill", "tgkill", "kill"})
_LOOKED_AT = 24

_ASSERTION = re.compile(
    r"(?:[^:]*: )?(?P<file>[^:]+):(?P<line>\d+): (?P<function>.*?):? "
    r"Assertion [`'](?P<what>.*)' failed",
    re.DOTALL,
)
_UNEXPECTED = re.compile(
    r"(?:[^:]*: )?(?P<file>[^:]+):(?P<line>\d+): (?P<function>.*?): "
    r"Unexpected error: (?P<what>.*)\.",
    re.DOTALL,
)
_REPORT_DETAILS = re.compile(r":? (on )?(unknown )?(address )?0x| on unknown address| \(")
_CHECK_FAILED = re.compile(r"Check failed: (?P<what>.*?)(?: \(.* vs\. .*\).*)?\s*$")
_JS_ERROR = re.compile(r"([A-Za-z_$][\w$]{0,60}(?:Error|Exception))(?::|$)")
_GLIB = re.compile(r"(?:.*:)?ERROR:(?P<file>[^:]+):(?P<line>\d+):(?P<function>[^:]*): (?P<what>.*)")
_GLIB_VALUES = re.compile(r": \(.*\)$")
_HEAP_DOUBLE_FREE = re.compile(r"double free|fasttop")
_HEAP = re.compile(
    r"corrupted|free\(\)|malloc\(\)|realloc\(\)|calloc\(\)|munmap_chunk|mremap_chunk|tcache|"
    r"invalid (pointer|size|next size|chunk size)|unaligned .*chunk|mismatching"
)


@dataclass(frozen=True, slots=True)
class ProcessContext:
    """What is known about the crash besides its core."""

    own_pids: frozenset[int]
    """The process's ids in its own pid namespace and in the host's."""
    unit: str | None = None


def explain(facts: Facts, context: ProcessContext) -> Cause:
    """Return why the process crashed."""
    info = facts.siginfo
    signal = info.signal if info is not None else facts.thread_signal
    if _is_snapshot(facts):
        return _bounded(_SNAPSHOT, "", "")
    cause = _last_words(facts, signal) or _overflow_handler(facts)
    if cause is None and info is not None:
        if signal == SIGSYS and info.code == 1:
            cause = _seccomp(facts)
        elif signal in _LIMITS and (info.code == _SI_KERNEL or _is_own(facts, context, 0)):
            cause = _limit(signal)
        elif info.code <= 0:
            cause = _sent(facts, context)
        else:
            cause = explain_fault(facts)
    if cause is None and info is None and signal == SIGABRT and _is_abort_on_stack(facts):
        cause = _ABORT
    if cause is None:
        cause = _unknown(facts, signal)
    where = panic_place(facts, cause) or _where(notable(facts, cause))
    if cause.kind == "rust-panic" and panic_place(facts, cause):
        where = ""  # the text has it
    return _bounded(cause, where, "" if cause.kind == "go-fatal" else _consequence(facts))


_SNAPSHOT = Cause(
    "snapshot",
    "taken while it ran",
    "the process did not crash: a debugger (gcore) took this core of it",
)
_ABORT = Cause("abort", "abort()", "the program called abort()")


def _is_snapshot(facts: Facts) -> bool:
    """Return whether a debugger took the core: the kernel dumps for neither of these signals."""
    if facts.siginfo is None:
        return facts.thread_signal in (0, _SIGSTOP)
    return facts.siginfo.signal == _SIGSTOP and facts.handled is None


def _is_abort_on_stack(facts: Facts) -> bool:
    return any(plain_name(f.function) == "abort" for f in facts.blamed[:6] if f.function)


def _unknown(facts: Facts, signal: int | None) -> Cause:
    info = facts.siginfo
    name = signal_name(signal) if signal is not None else "a crash"
    if info is None:
        why = " (the core has no siginfo)" if signal is not None else ""
        return Cause("unknown", "no known cause", f"{name} without a known cause{why}")
    words = describe(info.signal, info.code, info.address, None, None)
    return Cause("unknown", words or name, words or f"{name} without a known cause")


def _consequence(facts: Facts) -> str:
    """Describe what a handler did after it caught the signal, or that the crash was in one of a
    signal that dumps no core; empty if there was no handler.
    """
    if facts.handled is None:
        return _interrupted(facts)
    if facts.siginfo is None:
        return ""
    first, last = signal_name(facts.siginfo.signal), signal_name(facts.handled.signal)
    if facts.handled.again or (first == last and facts.handled.code <= 0 and first != "SIGABRT"):
        return f"; a handler caught {first} and raised it again"
    if facts.siginfo.signal == facts.handled.signal == SIGABRT:
        return ""  # abort() itself raises it again after the handler
    if facts.handled.code > 0:
        return f"; its handler for {first} then crashed itself ({last})"
    if facts.handled.signal == SIGABRT:
        return f"; its handler for {first} then aborted the process"
    return f"; its handler for {first} then ended the process by {last}"


def _interrupted(facts: Facts) -> str:
    """Name the function that a handler interrupted in which the process crashed."""
    names = [frame.function or "" for frame in facts.crashed]
    at = next((n for n, name in enumerate(names) if RESTORER.match(name)), None)
    if at is None or facts.crashed_interpreted:
        return ""
    below = facts.crashed[at + 1 :]
    where = _where([frame for frame in below if not is_helper(frame)] or below)
    return f"; that was a signal handler, which interrupted {where}" if where else ""


def _bounded(cause: Cause, where: str, consequence: str) -> Cause:
    text = cause.text.replace("\n", " ")[:_TEXT_MAX]
    if where and where not in text:
        text += f", in {where}"
    text += consequence
    return Cause(cause.kind, cause.short.replace("\n", " ")[:120], text)


def _where(frames: Sequence[Frame]) -> str:
    """Return the name of the function that matters most, with its line."""
    for frame in frames:
        if frame.function is None and frame.module is None:
            continue
        if frame.function is None:
            text = f"{(frame.module or '').rpartition('/')[2]}+{frame.offset or 0:#x}"
            called = entry(frames)
            return f"{text}, called by {plain_name(called.function or '')}()" if called else text
        text = f"{plain_name(frame.function)[:80]}()"
        if frame.file and frame.line and not in_library_source(frame):
            text += f" at {frame.file.rpartition('/')[2]}:{frame.line}"
        return text
    return ""


# -- last words ------------------------------------------------------------------------------------


def _last_words(facts: Facts, signal: int | None) -> Cause | None:
    """Return the cause that the program or its runtime reported; None if there is no report.

    A message may be left over from an earlier, survived error, so most of them count only if the
    process ended itself. A runtime's own panic comes first, because abort() is its consequence.
    """
    said = facts.messages
    if signal in (SIGABRT, SIGTRAP, SIGILL, SIGSEGV):
        if "go_panic" in said:
            return Cause("go-panic", "Go panic", f"Go panic: {said['go_panic']}")
        if "go_fatal" in said:
            return _go_fatal(facts, said["go_fatal"])
        if "rust_panic" in said:
            at = f" at {said['rust_location']}" if "rust_location" in said else ""
            return Cause("rust-panic", "Rust panic", f"Rust panic{at}: {said['rust_panic']}")
    if signal != SIGABRT and not _ended_itself(facts, signal) and not _raised_last(facts):
        text = said.get("abort") or said.get("glib")
        return _abort_message(text) if text and signal in (SIGTRAP, SIGILL) else None
    if "sanitizer" in said:
        return _sanitizer(said["sanitizer"])
    if known := _known_failure(facts):
        return known
    if "cxx_type" in said:
        what = f": {said['cxx_what']}" if "cxx_what" in said else ""
        name = said["cxx_type"]
        return Cause("cxx-exception", f"uncaught {name}", f"uncaught C++ exception {name}{what}")
    if "cxx_terminate" in said:
        short = "std::terminate() without an exception"
        hint = " (a std::thread that was not joined, or `throw;` outside of a handler)"
        return Cause("cxx-terminate", short, short + hint)
    if "logged" in said:
        return _logged(said["logged"])
    if text := said.get("abort") or said.get("glib"):
        return _abort_message(text)
    if any(_ASSERT_FAIL.match(f.function or "") for f in facts.blamed[:_LOOKED_AT]):
        return Cause("assertion", "assertion failed", "an assertion failed; its text is lost")
    if signal == SIGSEGV:
        return _trapped(facts)
    return None


def _go_fatal(facts: Facts, said: str) -> Cause:
    """Return the cause that Go's runtime reports, or the fault itself if it was in C code."""
    info = facts.siginfo if facts.handled is not None else None
    if info is not None and info.code > 0 and (cause := explain_fault(facts)):
        return cause
    if said == "unexpected signal during runtime execution":
        text = f"Go's runtime: fatal error: {said}: a fault in C code, or in the runtime itself"
        return Cause("go-fatal", "fault outside of Go code", text)
    return Cause("go-fatal", f"Go: {_steady(said)}", f"Go's runtime: fatal error: {said}")


def _ended_itself(facts: Facts, signal: int | None) -> bool:
    """Return whether the process ended itself by a signal other than SIGABRT.

    A failure function may execute a trap (V8, GLib). The first process of a pid namespace ignores
    SIGABRT, so abort() of glibc and musl then executes an instruction that always faults.
    """
    if signal in (SIGTRAP, SIGILL):
        return any(is_failure(frame) for frame in facts.blamed[:8])
    mnemonic = facts.instruction.mnemonic if facts.instruction is not None else None
    return mnemonic in _GIVE_UP and bool(facts.blamed) and _in_abort(facts.blamed)


def _in_abort(frames: Sequence[Frame]) -> bool:
    if _SMASHED.match(frames[0].function or ""):
        return True
    return _is_abort(frames) or _is_musls_check(frames[0])


def _raised_last(facts: Facts) -> bool:
    """Return whether std::terminate's handler ended the process, by a signal to itself."""
    info = facts.siginfo
    if info is None or info.code != _SI_TKILL or facts.handled is not None:
        return False
    return bool(facts.messages.keys() & {"cxx_type", "cxx_terminate"}) and any(
        is_failure(frame) for frame in facts.blamed[:8]
    )


def _is_abort(frames: Sequence[Frame]) -> bool:
    return any(plain_name(f.function) == "abort" for f in frames[:3] if f.function)


def _is_musls_check(frame: Frame) -> bool:
    """Return whether a frame is musl's; in a static program by its allocator's functions."""
    if _MUSL.search(frame.module or ""):
        return True
    return _MUSLS_HEAP.match(frame.function or "") is not None


def _trapped(facts: Facts) -> Cause:
    if _SMASHED.match(facts.blamed[0].function or ""):
        text = "stack smashing detected: a buffer on the stack was written past its end"
        return Cause("stack-smashing", "stack smashing", text)
    if _is_musls_check(facts.blamed[0]) and not _is_abort(facts.blamed):
        return Cause(
            "heap-corruption",
            "heap corruption found by musl",
            "musl's allocator, or its check of the stack, found overwritten memory",
        )
    return Cause("abort", "abort()", "the program called abort(), as the first of its namespace")


_KNOWN = (
    (r"__cxa_(pure|deleted)_virtual$", "pure-virtual", "pure virtual method called",
     "a pure or deleted virtual method was called: the object is being made, or is gone"),
    (r"std::__glibcxx_assert_fail|std::__replacement_assert", "assertion",
     "libstdc++ assertion failed",
     "an assertion of the C++ standard library failed: an index, iterator or empty object"),
    (r".*libcpp_verbose_abort", "assertion", "libc++ assertion failed",
     "an assertion of the C++ standard library failed: an index, iterator or empty object"),
    (r"alloc::alloc::handle_alloc_error|std::alloc::(rust_oom|default_alloc_error_hook)"
     r"|__rust_alloc_error_handler|__rdl_oom",
     "out-of-memory", "memory allocation failed", "Rust: a memory allocation failed"),
    (r"node::OOMErrorHandler|node::OnOOMError|v8::internal::V8::FatalProcessOutOfMemory"
     r"|v8::(Utils::ReportOOMFailure|internal::Heap::FatalProcessOutOfMemory)",
     "out-of-memory", "JavaScript heap out of memory", "V8: the JavaScript heap is full"),
    (r"v8::internal::Isolate::CreateMessageOrAbort", "js-exception",
     "uncaught JavaScript exception", "JavaScript: an exception that nothing caught"),
    (r"report_java_out_of_memory", "out-of-memory", "Java heap out of memory",
     "Java: OutOfMemoryError, with CrashOnOutOfMemoryError"),
    (r"__(add|sub|mul|neg|abs)v[sdt]i[23]$", "integer-overflow", "signed integer overflow",
     "a signed integer overflowed (-ftrapv)"),
    (r"_?Py_FatalError|fatal_error(_exit)?$", "fatal-error", "Fatal Python error",
     "the Python interpreter gave up (Fatal Python error)"),
)  # fmt: skip
_KNOWN_FAILURES = tuple((re.compile(row[0]), *row[1:]) for row in _KNOWN)


def _known_failure(facts: Facts) -> Cause | None:
    """Return the cause that a failure function shows by being on the stack."""
    for frame in facts.blamed[:_LOOKED_AT]:
        name = plain_name(frame.function) if frame.function else ""
        for pattern, kind, short, text in _KNOWN_FAILURES:
            if pattern.match(name):
                if kind == "js-exception" and "js_exception" in facts.messages:
                    return _js_exception(facts.messages["js_exception"])
                said = facts.messages.get("assertion", "")
                return Cause(kind, short, f"{text}: {said}" if said else text)
    return None


def _js_exception(said: str) -> Cause:
    """Return the cause in what V8 says: `TypeError: … is not a function`, or any value's text."""
    error = _JS_ERROR.match(said)
    name = error[1] if error else "exception"
    return Cause("js-exception", f"uncaught JavaScript {name}", f"uncaught JavaScript {said}")


def _sanitizer(report: str) -> Cause:
    """Return the cause in a sanitizer's report: `AddressSanitizer: heap-use-after-free on …`."""
    tool, _, rest = report.partition(": ")
    what = _REPORT_DETAILS.split(rest, maxsplit=1)[0].strip()[:60]
    return Cause("sanitizer", f"{tool}: {_steady(what)}", f"{report}")


def _logged(line: str) -> Cause:
    """Return the cause in a fatal line of a log: `store.cc:33: Check failed: a == b (1 vs. 2)`."""
    place, _, said = line.partition(": ")
    checked = _CHECK_FAILED.match(said)
    short = f"check `{checked['what'][:60]}' failed" if checked else _steady(said)[:60]
    kind = "assertion" if checked else "abort-message"
    return Cause(kind, short, f"{said} (logged at {place.rpartition('/')[2]})")


def _abort_message(text: str) -> Cause:
    if found := _ASSERTION.search(text):
        file = found["file"].rpartition("/")[2]
        function = plain_name(found["function"]) if found["function"] else "?"
        what = found["what"][:200]
        return Cause(
            "assertion",
            f"assertion `{what[:60]}' failed",
            f"assertion `{what}' failed in {function}() at {file}:{found['line']}",
        )
    if found := _UNEXPECTED.fullmatch(text):  # assert_perror()
        what = found["what"]
        where = f"{plain_name(found['function'])}() at {found['file'].rpartition('/')[2]}"
        text = f"an unexpected error in {where}:{found['line']}: {what}"
        return Cause("assertion", f"unexpected error: {what[:60]}", text)
    if found := _GLIB.fullmatch(text):  # g_assert()
        what = _GLIB_VALUES.sub("", found["what"])[:100]
        where = f"{plain_name(found['function'])}() at {found['file'].rpartition('/')[2]}"
        return Cause("assertion", what, f"{found['what']}, in {where}:{found['line']}")
    if "stack smashing" in text:
        return Cause(
            "stack-smashing",
            "stack smashing",
            f"{_bare(text)}: a buffer on the stack was written past its end",
        )
    if "buffer overflow detected" in text:
        return Cause(
            "buffer-overflow",
            "buffer overflow",
            f"{_bare(text)}: a checked copy was to write past the end of its buffer",
        )
    short = _steady(_bare(text))[:60]
    if _HEAP_DOUBLE_FREE.search(text):
        return Cause(
            "double-free",
            short,
            f"heap: {_bare(text)}: memory was freed twice, or the heap was overwritten",
        )
    if _HEAP.search(text):
        return Cause(
            "heap-corruption", short, f"heap corruption found by the allocator: {_bare(text)}"
        )
    return Cause("abort-message", short, f"aborted: {_bare(text)}")


def _bare(text: str) -> str:
    return text.removeprefix("*** ").removesuffix(": terminated").replace(" ***", "").strip()


def _steady(text: str) -> str:
    """Replace the parts of a message that differ between runs: addresses, pids, sizes."""
    return _NUMBER.sub("N", text)


def _overflow_handler(facts: Facts) -> Cause | None:
    """Recognise Rust's runtime, which detects a stack overflow itself and aborts."""
    for frame in facts.crashed[:12]:
        name = frame.function or ""
        if "stack_overflow" in name and "signal_handler" in name:
            return stack_overflow(facts)
    return None


# -- signals that were sent ------------------------------------------------------------------------


def _seccomp(facts: Facts) -> Cause:
    info = facts.siginfo
    name = "a system call"
    if info is not None and info.syscall is not None:
        name = f"{info.syscall_name}()" if info.syscall_name else f"system call {info.syscall}"
    return Cause(
        "seccomp",
        f"{name} refused by seccomp",
        f"{name} is forbidden by the process's seccomp filter",
    )


def _limit(signal: int) -> Cause:
    short, text = _LIMITS[signal]
    return Cause("limit", short, text)


def _is_own(facts: Facts, context: ProcessContext, code: int) -> bool:
    """Return whether the process itself sent the signal, with this si_code.

    The threads' ids and the sender's id are in the same pid namespace, the process's own.
    """
    info = facts.siginfo
    own = context.own_pids | {thread.tid for thread in facts.threads}
    return info is not None and info.code == code and info.sender_pid in own


def _called_abort(facts: Facts) -> bool:
    """Return whether SIGABRT came from abort(), which is on the stack if names are known."""
    names = {plain_name(f.function) for f in facts.blamed[:6] if f.function}
    return "abort" in names or not names & _RAISE


def _emulated(facts: Facts, signal: str) -> Cause:
    name = emulated_program(facts) or "the program"
    text = (
        f"{name} died of {signal}, and QEMU, which emulates it, ended itself in the same way: the "
        "core that QEMU wrote (qemu_*.core) has the stack"
    )
    return Cause("emulated", f"{name} died in the emulator", text)


def _sent(facts: Facts, context: ProcessContext) -> Cause:
    """Return the cause of a signal that was sent, by its sender.

    A sender outside of the process's pid namespace has pid 0, like the kernel itself.
    """
    info = facts.siginfo
    number = info.signal if info is not None else 0
    name = signal_name(number)
    pid = info.sender_pid if info is not None else None
    if info is not None and info.code in _UNSENT and not pid:
        return Cause("sent", f"{name} sent by the kernel", f"{name} came from {_UNSENT[info.code]}")
    if info is not None and _is_own(facts, context, info.code):
        if is_emulated(facts):
            return _emulated(facts, name)
        if number == SIGABRT and info.code == _SI_TKILL and _called_abort(facts):
            return explain_abort(facts) or _ABORT
        return Cause("raised", f"raised {name} itself", f"the program sent {name} to itself")
    uid = info.sender_uid if info is not None else None
    if pid == 1 and uid == 0 and number == SIGABRT:
        unit = f" of {context.unit}" if context.unit else ""
        return Cause(
            "watchdog",
            "ended by its watchdog",
            f"systemd (pid 1) sent SIGABRT: most likely the watchdog{unit} was not fed in time",
        )
    by = f"pid {pid}" if pid else "a process outside of its pid namespace, or the kernel"
    if pid is None:
        by = "another process"  # the handler did not ask who
    user = f" (uid {uid})" if pid and uid is not None else ""
    return Cause("sent", f"{name} sent by another process", f"{name} was sent by {by}{user}")
