"""From the facts of a crash to its cause, in one line that an operator understands. Pure.

What a program or its runtime said itself counts first; then who sent the signal; then what the
instruction accesses, with which pointer, and what is mapped there. Where a handler had caught a
signal, the facts are of that one, and what the handler did is a consequence.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from crashd.domain.cause.analysis import Cause, Facts, Frame
from crashd.domain.cause.faults import explain_fault, stack_overflow
from crashd.domain.cause.signature import in_library_source, notable, plain_name
from crashd.domain.signals import (
    SIGABRT,
    SIGILL,
    SIGSEGV,
    SIGSYS,
    SIGTRAP,
    describe,
    signal_name,
)

_NUMBER = re.compile(r"0x[0-9a-f]+|\b\d{2,}\b")
_TEXT_MAX = 400
_SI_TKILL = -6  # asm-generic/siginfo.h

_ASSERTION = re.compile(
    r"(?:[^:]*: )?(?P<file>[^:]+):(?P<line>\d+): (?P<function>.*?):? "
    r"Assertion [`'](?P<what>.*)' failed",
    re.DOTALL,
)
_HEAP_DOUBLE_FREE = re.compile(r"double free|fasttop")
_HEAP = re.compile(
    r"corrupted|free\(\)|malloc\(\)|realloc\(\)|calloc\(\)|munmap_chunk|mremap_chunk|tcache|"
    r"invalid (pointer|size|next size|chunk size)|unaligned .*chunk|mismatching"
)


@dataclass(frozen=True, slots=True)
class Context:
    """What is known of the crash besides its core."""

    own_pids: frozenset[int]
    """The process's ids, in its own pid namespace and in the host's."""
    unit: str | None = None


def explain(facts: Facts, context: Context) -> Cause:
    """Tell why it crashed."""
    info = facts.siginfo
    signal = info.signal if info is not None else None
    cause = _last_words(facts, signal) or _overflow_handler(facts)
    if cause is None and info is not None:
        if signal == SIGSYS and info.code == 1:
            cause = _seccomp(facts)
        elif info.code <= 0:
            cause = _sent(facts, context)
        else:
            cause = explain_fault(facts)
    if cause is None:
        words = None
        if info is not None:
            words = describe(info.signal, info.code, info.address, None, None)
        name = signal_name(signal) if signal is not None else "a crash"
        cause = Cause("unknown", words or name, words or f"{name} without a known cause")
    return _bounded(cause, _where(notable(facts, cause)), _consequence(facts))


def _consequence(facts: Facts) -> str:
    """Say what a handler made of the signal, where one had caught it."""
    if facts.handled is None or facts.siginfo is None:
        return ""
    first, last = signal_name(facts.siginfo.signal), signal_name(facts.handled.signal)
    if facts.handled.again:
        return f"; a handler caught {first} and raised it again"
    if facts.handled.code > 0:
        return f"; its handler for {first} then crashed itself ({last})"
    if facts.handled.signal == SIGABRT:
        return f"; its handler for {first} then aborted the process"
    return f"; its handler for {first} then ended the process by {last}"


def _bounded(cause: Cause, where: str, consequence: str) -> Cause:
    text = cause.text.replace("\n", " ")[:_TEXT_MAX]
    if where and where not in text:
        text += f", in {where}"
    text += consequence
    return Cause(cause.kind, cause.short.replace("\n", " ")[:120], text)


def _where(frames: Iterable[Frame]) -> str:
    """Name the function that matters most, and its line."""
    for frame in frames:
        if frame.function is None and frame.module is None:
            continue
        if frame.function is None:
            return f"{(frame.module or '').rpartition('/')[2]}+{frame.offset or 0:#x}"
        text = f"{plain_name(frame.function)[:80]}()"
        if frame.file and frame.line and not in_library_source(frame):
            text += f" at {frame.file.rpartition('/')[2]}:{frame.line}"
        return text
    return ""


# -- last words ------------------------------------------------------------------------------------


def _last_words(facts: Facts, signal: int | None) -> Cause | None:
    said = facts.messages
    if signal in (SIGABRT, SIGTRAP, SIGILL, SIGSEGV):
        if "go_panic" in said:
            return Cause("go-panic", "Go panic", f"Go panic: {said['go_panic']}")
        if "go_fatal" in said:
            fatal = said["go_fatal"]
            return Cause("go-fatal", f"Go: {_steady(fatal)}", f"Go's runtime: fatal error: {fatal}")
        if "rust_panic" in said:
            at = f" at {said['rust_location']}" if "rust_location" in said else ""
            return Cause("rust-panic", "Rust panic", f"Rust panic{at}: {said['rust_panic']}")
    if signal == SIGABRT and "cxx_type" in said:
        what = f": {said['cxx_what']}" if "cxx_what" in said else ""
        name = said["cxx_type"]
        return Cause("cxx-exception", f"uncaught {name}", f"uncaught C++ exception {name}{what}")
    if signal == SIGABRT and "cxx_terminate" in said:
        short = "std::terminate() without an exception"
        hint = " (a std::thread that was not joined, or `throw;` outside of a handler)"
        return Cause("cxx-terminate", short, short + hint)
    if signal in (SIGABRT, SIGTRAP, SIGILL) and (text := said.get("abort") or said.get("glib")):
        return _abort_message(text)
    return None


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
    """Take out of a message what another run has otherwise: addresses, pids, sizes."""
    return _NUMBER.sub("N", text)


def _overflow_handler(facts: Facts) -> Cause | None:
    """Recognise Rust's runtime, which tells a stack overflow by itself and aborts."""
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


def _sent(facts: Facts, context: Context) -> Cause:
    info = facts.siginfo
    number = info.signal if info is not None else 0
    name = signal_name(number)
    pid = info.sender_pid if info is not None else None
    # its threads' ids are those of its own pid namespace, as the sender's is
    own = context.own_pids | {thread.tid for thread in facts.threads}
    if pid and pid in own:
        if number == SIGABRT and info is not None and info.code == _SI_TKILL:
            return Cause("abort", "abort()", "the program called abort()")
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
    user = f" (uid {uid})" if pid and uid is not None else ""
    return Cause("sent", f"{name} sent by another process", f"{name} was sent by {by}{user}")
