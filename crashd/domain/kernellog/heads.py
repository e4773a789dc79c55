"""First lines of the kernel's reports: what happened, and how to build the title. Pure.

Titles have the form that kernel developers know from syzkaller. Each head is matched at the start
of a line, and requires more than the 15 characters that a process can choose as its name: `%s[%d]:
segfault at` begins with words that any user can choose. This module has faults, traps, hardware
errors and the end of the machine; checks.py has the checkers.

Source: the printk()s of kernel/panic.c, lib/bug.c and arch/*/{kernel/traps.c,mm/fault.c}, from
2.6.32 to 6.19.
"""

import re
from typing import Final

from crashd.domain.kernellog.checks import BROKEN, CHECKS, specialise
from crashd.domain.kernellog.head import FUNCTION, SOURCE, TRAP, Blame, Head, head
from crashd.domain.kernellog.kinds import PanicKind

__all__ = ["HEADS", "Blame", "Head", "find_head"]

_K, _B = PanicKind, Blame
_NULL = "BUG: unable to handle kernel NULL pointer dereference{in_f}"
_PAGING = "BUG: unable to handle kernel paging request{in_f}"

HEADS: Final[tuple[Head, ...]] = (
    *BROKEN,
    # ---- memory access ----
    head(
        _K.OOPS,
        r"(?:BUG: |CPU \d{1,6} )?(?:[Uu]nable to handle kernel"
        r"|[Kk]ernel) NULL pointer dereference(?=[ ,]|$)",
        _NULL,
    ),
    head(_K.OOPS, r"Bad Address \(null pointer deref\?\): Code=\d{1,3} ", _NULL),
    head(
        _K.OOPS,
        r"Kernel Fault: Code=\d{1,3} (?:\([\w /,-]{3,60}\) at addr"
        r"|regs=\S{1,20} \(Addr=)(?: ?(?P<null>0{5,13}[0-9a-f]{3}\b))?",
        _PAGING,
    ),
    head(
        _K.OOPS,
        r"(?:BUG: |CPU \d{1,6} )?[Uu]nable to handle (?:kernel paging request(?: for \w+)?"
        r"|page fault for address"
        r"|kernel (?:data access|instruction fetch))(?:.*? at (?:virtual )?(?:address )?"
        r"(?P<null>(?:0x)?0{5,16}[0-9a-f]{3}\b)?)?",
        _PAGING,
    ),
    head(
        _K.OOPS, r"Unable to handle kernel pointer dereference (?:in virtual|at virtual)", _PAGING
    ),
    head(
        _K.OOPS,
        r"Unable to handle kernel (?P<what>[a-z][a-z -]{4,60}?)(?: (?:outside"
        r"|without) uaccess routines)?"
        r" (?:at virtual address|at address)",
        "BUG: unable to handle kernel {what}{in_f}",
    ),
    head(
        _K.GPF,
        r"(?:Oops: ){0,2}general protection(?: fault)?(?=[:,] | for non-canonical )",
        "general protection fault{in_f}",
    ),
    head(
        _K.OOPS,
        r"Unhandled (?:fault|prefetch abort): (?P<what>[a-z][a-z -]{3,60}?)"
        r"(?: on (?:non-)?linefetch)? \(0x[0-9a-f]{1,16}\)",
        "{what}{in_f}",
        evidence=True,
    ),
    head(
        _K.OOPS,
        r"(?P<what>(?:Data|Instruction) bus error), e(?:pc|ra) == ",
        "{what}{in_f}",
        evidence=True,
    ),
    # ---- stacks ----
    head(
        _K.STACK_OVERFLOW,
        r"BUG: (?:TASK |IRQ |NMI )?stack guard page was hit at",
        "BUG: stack guard page was hit{in_f}",
    ),
    head(
        _K.STACK_OVERFLOW,
        r"Insufficient stack space to handle exception!",
        "kernel stack overflow{in_f}",
    ),
    head(
        _K.STACK_OVERFLOW,
        r"(?i:kernel stack overflow)(?:[.:]? ?\S{0,8}$| in process )",
        "kernel stack overflow{in_f}",
        evidence=True,
    ),
    head(
        _K.STACK_OVERFLOW,
        rf"\w{{1,64}}\(\): .{{1,64}} has overflown the kernel stack \(.{{1,300}}ip:{FUNCTION}",
        "kernel stack overflow{in_f}",
        _B.HEAD,
        leads=True,
        evidence=True,
    ),
    head(_K.DOUBLE_FAULT, r"(?:traps: )?PANIC: double fault[ ,]", "PANIC: double fault{in_f}"),
    head(_K.OOPS, r"PANIC: early exception 0x", "PANIC: early exception{in_f}"),
    # ---- bugs ----
    head(
        _K.UBSAN,
        rf"UBSAN: (?P<what>[a-z][a-z -]{{3,60}}?) at {FUNCTION}",
        "UBSAN: {what}{in_f}",
        _B.HEAD,
    ),
    head(
        _K.UBSAN,
        r"Internal error: UBSAN: (?P<what>[a-z][a-z -]{3,60}?): [0-9a-f]{1,16} \[#\d{1,9}\]",
        "UBSAN: {what}{in_f}",
    ),
    head(
        _K.BUG,
        rf"(?:traps: )?Missing ENDBR: {FUNCTION}",
        "Missing ENDBR{in_f}",
        _B.HEAD,
        leads=True,
    ),
    head(
        _K.BUG,
        r"[kK]ernel BUG at lib/list_debug\.c:\d{1,7}!",
        "BUG: corrupted list{in_f}",
    ),
    head(
        _K.BUG,
        r"[kK]ernel BUG at mm/usercopy\.c:\d{1,7}!",
        "BUG: bad usercopy{in_f}",
    ),
    head(_K.BUG, rf"[kK]ernel BUG at {SOURCE}!?", "kernel BUG{in_f_or_at_file}"),
    # ---- traps; also the line after most of the above ----
    head(
        _K.DIVIDE,
        rf"(?:Oops: ){{0,2}}(?:divide[ _]error"
        rf"|fixpoint divide exception)(?:, [^:]{{1,80}})?: {TRAP}",
        "divide error{in_f}",
        follows=True,
    ),
    head(
        _K.INVALID_OPCODE,
        rf"(?:Oops: ){{0,2}}(?:invalid[ _]op(?:code)?"
        rf"|illegal operation)(?:, [^:]{{1,80}})?: {TRAP}",
        "invalid opcode{in_f}",
        follows=True,
    ),
    head(
        _K.STACK_OVERFLOW,
        rf"(?:Oops: ){{0,2}}(?:stack guard page"
        rf"|kernel stack overflow(?: \([\w ]{{1,20}}\))?): {TRAP}",
        "BUG: stack guard page was hit{in_f}",
        follows=True,
    ),
    head(
        _K.DOUBLE_FAULT,
        rf"(?:Oops: ){{0,2}}double fault: {TRAP}",
        "PANIC: double fault{in_f}",
        follows=True,
    ),
    head(
        _K.GPF,
        rf"(?:Oops: ){{0,2}}general_protection: {TRAP}",
        "general protection fault{in_f}",
        follows=True,
    ),
    head(
        _K.OOPS,
        rf"(?:Oops: ){{0,2}}stack[ _]segment: {TRAP}",
        "stack segment fault{in_f}",
        follows=True,
    ),
    head(_K.OOPS, rf"(?:Oops: ){{1,2}}{TRAP}", "kernel oops{in_f}", follows=True, evidence=True),
    head(
        _K.OOPS,
        rf"(?:Oops: ){{0,2}}(?P<what>[A-Za-z][A-Za-z0-9 _/-]{{2,40}})(?:, [^:]{{1,80}})?: {TRAP}",
        "{what}{in_f}",
        follows=True,
        evidence=True,
    ),
    head(
        _K.BUG,
        r"(?:Internal error: Oops - BUG: |[kK]ernel BUG |Kernel bug detected)(?:[0-9a-f]{1,16} )?"
        r"\[#\d{1,9}\](?:[ :]|$)",
        "kernel BUG{in_f}",
        follows=True,
        evidence=True,
    ),
    head(
        _K.INVALID_OPCODE,
        r"(?:Internal error: )?Oops - [uU]ndefined instruction: [0-9a-f]{1,16} \[#\d{1,9}\]"
        r"(?: |$)",
        "undefined instruction{in_f}",
        follows=True,
        evidence=True,
    ),
    head(
        _K.BUG,
        r"Internal error: Oops - CFI: [0-9a-f]{1,16} \[#\d{1,9}\](?: |$)",
        "CFI failure{in_f}",
        follows=True,
        evidence=True,
    ),
    head(_K.MCE, r"Oops: Machine check, sig: 7 \[#\d{1,9}\]", "Machine check{in_f}"),
    head(
        _K.OOPS,
        r"(?:Internal error: )?(?:Oops|(?<=: ):)(?::? (?:[0-9a-f]{1,16}"
        r"|Kernel access of bad area, sig: \d{1,2}"
        r"|Exception in kernel mode, sig: \d{1,2}))? ?\[#\d{1,9}\](?:[ :]|$)",
        "kernel oops{in_f}",
        follows=True,
        evidence=True,
    ),
    head(
        _K.OOPS,
        r"(?:Internal error|Oops)(?:: | - )(?:Oops - )?(?P<what>[A-Za-z][\w ()/,-]{2,60}?)"
        r"(?:, sig: \d{1,2})?(?::? [0-9a-f]{1,16})?:? ?\[#\d{1,9}\](?: |$)",
        "{what}{in_f}",
        follows=True,
        evidence=True,
    ),
    head(
        _K.OOPS,
        r"(?P<what>[A-Z][\w ,/()-]{3,60})\[#\d{1,9}\]:$",
        "{what}{in_f}",
        follows=True,
        evidence=True,
    ),
    head(
        _K.PANIC,
        r"Bad mode in (?!Error)[\w ]{3,40} handler detected on CPU",
        "Kernel panic - not syncing: bad mode{in_f}",
    ),
    head(
        _K.PANIC,
        r"Unhandled (?:64|32)-bit el1[ht] \w{2,8} exception on CPU",
        "Kernel panic - not syncing: Unhandled exception{in_f}",
    ),
    head(
        _K.SERROR,
        r"(?:SError Interrupt on CPU\d{1,6}, code|Bad mode in Error handler detected)",
        "SError{in_f}",
    ),
    *CHECKS,
    # ---- hardware ----
    head(
        _K.MCE,
        r"(?:mce: )?\[Hardware Error\]: CPU (?P<cpu>\d{1,6}): Machine Check(?: Exception)?: "
        r"[0-9a-f]{1,16} Bank (?P<bank>\d{1,3})",
        "Machine check: bank {bank}",
        _B.NONE,
    ),
    head(
        _K.MCE,
        r"\{\d{1,9}\}\[Hardware Error\]: event severity: (?P<what>fatal|recoverable)",
        "Hardware error: {what}",
        _B.NONE,
    ),
    head(
        _K.MCE,
        r"(?:mce: )?Uncorrected hardware memory error in user-access at",
        "Uncorrected hardware memory error",
        _B.NONE,
    ),
    head(
        _K.MCE,
        r"Memory failure: 0x[0-9a-f]{1,16}: (?:recovery action|Sending SIGBUS|Killing)",
        "Memory failure",
        _B.NONE,
    ),
    head(
        _K.NMI,
        r"(?:NMI: )?(?P<what>IOCK error|PCI system error \(SERR\)) (?:\([\w? ]{1,40}\) )?(?:for"
        r"|on) ",
        "NMI: {what}",
        _B.NONE,
    ),
    head(
        _K.NMI,
        r"Uhhuh\. NMI received for unknown reason (?P<what>[0-9a-f]{2}) ",
        "NMI: unknown reason {what}",
        _B.NONE,
    ),
    # ---- the end ----
    head(
        _K.SYSRQ,
        r"(?:sysrq: )?[sS]ys[rR]q ?: Trigger a (?:crash|crashdump)$",
        "Kernel panic - not syncing: sysrq triggered crash",
        _B.PANIC,
        leads=True,
    ),
    head(
        _K.PANIC,
        r"Kernel panic - not syncing: ?(?P<words>.{0,512})",
        "Kernel panic - not syncing: {words}",
        _B.PANIC,
        skip=r"_*schedule\w*",
    ),
)

_FIRST = re.compile(
    r"BUG|U[nB]|[uU]n|Data bus|general|Oops|Bad Add|Int|In|int|k?Kernel |kernel |WARN|INFO|\[ |\[H"
    r"|\{|list_|usercopy|refcount|\w{1,64}\(\): |ODEBUG|CFI|VFS: [BC]|Missing|traps: [PM]"
    r"|\w{1,64}: panicked"
    r"|[a-zA-Z0-9 _/,-]{4,120}: [0-9a-f]{4}|[A-Z][\w ,/()-]{3,60}\[#|NMI|watchdog"
    r"|CPU.{0,12}ard LOCKUP"
    r"|CPU \d{1,6} [Uu]n|Watch|rcu|PANIC|SE|Bad mode|mce|Memory f|Uhh|[sS]ys[rR]q|IOCK|PCI"
)
_USERS_WORDS = re.compile(
    r".{1,16}?(?:\[\d{1,10}\](?::? (?:segfault|bad frame|trap |general protection ip)|: )"
    r"| invoked oom-killer|: page allocation failure)"
)


def find_head(text: str) -> tuple[Head, re.Match[str]] | None:
    """Return the head that a line matches, if it begins a report."""
    text = text.lstrip()
    if _FIRST.match(text) is None:
        return None
    for sort in HEADS:
        match = sort.pattern.match(text)
        if match is not None:
            return (
                None if _USERS_WORDS.match(text) is not None else (specialise(sort, match), match)
            )
    return None
