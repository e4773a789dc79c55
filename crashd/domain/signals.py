"""Signal numbers and si_code values in words.

Source: signal(7), sigaction(2), asm-generic/siginfo.h.
"""

# The numbers of x86, arm, arm64, riscv, ppc and s390; only alpha, sparc, mips and parisc differ.
_NAMES_TEXT = """
SIGHUP SIGINT SIGQUIT SIGILL SIGTRAP SIGABRT SIGBUS SIGFPE SIGKILL SIGUSR1 SIGSEGV SIGUSR2
SIGPIPE SIGALRM SIGTERM SIGSTKFLT SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGTTIN SIGTTOU SIGURG
SIGXCPU SIGXFSZ SIGVTALRM SIGPROF SIGWINCH SIGIO SIGPWR SIGSYS
"""
_NAMES = tuple(_NAMES_TEXT.split())
SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS = 4, 5, 6, 7, 8, 11, 31
SIGQUIT, SIGXCPU, SIGXFSZ = 3, 24, 25

CORE_SIGNALS = frozenset({3, 4, 5, 6, 7, 8, 11, 24, 25, 31})
"""Signals that dump core by default, signal(7): the closed set of values of the label `signal`."""

_FAULT_CODES = {
    (SIGSEGV, 1): "address not mapped",
    (SIGSEGV, 2): "no permission for the mapping",
    (SIGSEGV, 3): "failed address bound check",
    (SIGSEGV, 4): "access denied by memory protection key",
    (SIGSEGV, 10): "control protection fault",
    (SIGBUS, 1): "unaligned access",
    (SIGBUS, 2): "page not there (file truncated, or out of memory)",
    (SIGBUS, 3): "object-specific hardware error",
    (SIGBUS, 4): "hardware memory error consumed",
    (SIGBUS, 5): "hardware memory error detected",
    (SIGILL, 1): "illegal opcode",
    (SIGILL, 2): "illegal operand",
    (SIGILL, 3): "illegal addressing mode",
    (SIGILL, 4): "illegal trap",
    (SIGILL, 5): "privileged opcode",
    (SIGILL, 6): "privileged register",
    (SIGILL, 7): "coprocessor error",
    (SIGILL, 8): "internal stack error",
    (SIGFPE, 1): "integer division by zero",
    (SIGFPE, 2): "integer overflow",
    (SIGFPE, 3): "floating-point division by zero",
    (SIGFPE, 4): "floating-point overflow",
    (SIGFPE, 5): "floating-point underflow",
    (SIGFPE, 6): "floating-point inexact result",
    (SIGFPE, 7): "invalid floating-point operation",
    (SIGFPE, 8): "subscript out of range",
    (SIGTRAP, 1): "breakpoint",
    (SIGTRAP, 2): "trace trap",
    (SIGSYS, 1): "system call refused by seccomp",
}
_SI_KERNEL = 0x80
_ADDRESSED = frozenset({SIGSEGV, SIGBUS})


def signal_name(number: int) -> str:
    """Return a signal's name, such as `SIGSEGV` or `SIGRTMIN+3`, or its number as text.

    libc uses the kernel's real-time signals 32 and 33 itself, so SIGRTMIN is 34.
    """
    if 1 <= number <= len(_NAMES):
        return _NAMES[number - 1]
    if 34 <= number <= 64:
        return "SIGRTMIN" if number == 34 else f"SIGRTMIN+{number - 34}"
    return str(number)


def describe(
    signal: int | None,
    si_code: int | None,
    fault_address: int | None,
    sender_pid: int | None,
    sender_uid: int | None,
    own_pid: int | None = None,
) -> str | None:
    """Describe a crash by the signal's own information in a few words; None without information.

    The analysis looks for deeper causes (the instruction, the stack, the allocator's messages).
    """
    if signal is None or si_code is None:
        return None
    if si_code <= 0:  # SI_USER, SI_QUEUE, SI_TKILL …: sent by a process, not caused by a fault
        if sender_pid and sender_pid == own_pid:
            return "raised by the process itself"
        if sender_pid:
            return f"sent by pid {sender_pid}" + (
                "" if sender_uid is None else f" (uid {sender_uid})"
            )
        return "sent by another process"
    if si_code == _SI_KERNEL:
        if signal == SIGSEGV:
            return "general protection fault (non-canonical or misused address)"
        return "raised by the kernel"
    words = _FAULT_CODES.get((signal, si_code))
    if words is None:
        return f"si_code {si_code}"
    if signal in _ADDRESSED and fault_address is not None:
        if signal == SIGSEGV and si_code in (1, 2) and fault_address < 0x10000:
            return f"NULL pointer dereference at {fault_address:#x} ({words})"
        return f"{words} at {fault_address:#x}"
    return words


def title(signal: int | None, comm: str, words: str | None) -> str:
    """Build the title of a crash whose stack is not yet known."""
    name = "crash" if signal is None else signal_name(signal)
    return f"{name} in {comm or '?'}" + (f": {words}" if words else "")


def signal_number(text: str) -> int | None:
    """Parse a signal's number or name, with or without SIG; None if it is neither."""
    if text.isascii() and text.isdigit():
        return int(text) if 1 <= int(text) <= 64 else None
    name = text.upper()
    name = name if name.startswith("SIG") else "SIG" + name
    for number in range(1, 65):
        if signal_name(number) == name:
            return number
    return None
