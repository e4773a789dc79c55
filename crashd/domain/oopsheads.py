"""The lines that reports of the kernel begin with: what happened, and how its title is made. Pure.

A title has the form that kernel developers know from syzkaller's reports. Each head is matched at
the start of a line, and asks for more of it than the 15 characters that a process may name itself:
`%s[%d]: segfault at` begins with words that any user chooses.

Source: the printk()s of kernel/{panic,hung_task,watchdog}.c, kernel/rcu, kernel/locking, lib/, mm/
and arch/*/{kernel/traps.c,mm/fault.c}, from 2.6.32 to 6.18.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from crashd.domain.oopskinds import PanicKind

__all__ = ["HEADS", "Blame", "Head", "find_head"]


class Blame(StrEnum):
    """Where the function stands that a title names."""

    PC = "pc"
    """The program counter, else the trace."""
    TRACE = "trace"
    HEAD = "head"
    """The head's own word, if it is no helper; else the trace."""
    LOCK = "lock"
    """`at: f`, behind the lock that is taken."""
    CALLER = "caller"
    """`caller is f`, else the trace."""
    STALL = "stall"
    """The program counter, or where the watchdog's interrupt came, or the trace."""
    PANIC = "panic"
    """The caller of panic()."""
    NONE = "none"


_F = r"(?P<func>[A-Za-z_.$][\w.$]{0,511})(?:\+0x[0-9a-f]{1,8})?"
_SRC = r"(?P<file>[\w./+-]{1,256}):\d{1,7}"
_TRAP = r"[0-9a-f]{4,16} (?:ilc:\d )?\[#\d{1,9}\](?: |$)"


@dataclass(frozen=True, slots=True)
class Head:
    """One sort of first line."""

    kind: PanicKind
    pattern: re.Pattern[str]
    title: str
    """With the pattern's groups, and {in_f}: " in f" where f is known."""
    blame: Blame = Blame.PC
    leads: bool = False
    """The report proper follows: its head line says less than this one."""
    follows: bool = False
    """May be the next line of a report whose first line said more."""
    evidence: bool = False
    """A report only with a call trace or registers: the line alone is too short to be sure."""
    skip: str | None = None
    """Further functions that are not to blame: a pattern for the whole name."""


def _head(
    kind: PanicKind, pattern: str, title: str, blame: Blame = Blame.PC, /, **more: Any
) -> Head:
    return Head(kind, re.compile(pattern), title, blame, **more)


_K, _B = PanicKind, Blame
_ALLOC = (
    r"(?:k|v|kv|kmem_|slab_|__kmem_|__slab_|__k)\w*(?:alloc|free|cache)\w*|___?slab\w*"
    r"|.*free_pages?\w*"
)
_NULL = "BUG: unable to handle kernel NULL pointer dereference{in_f}"
_PAGING = "BUG: unable to handle kernel paging request{in_f}"
_LOCKDEP = r"(?:WARNING|\[ INFO|INFO|\[ BUG|BUG): ?"

HEADS: Final[tuple[Head, ...]] = (
    # ---- sanitizers ----
    _head(
        _K.KASAN,
        rf"BUG: KASAN: (?P<what>[a-z-]{{2,40}}(?: or [a-z-]{{2,40}})?) (?:in {_F}|on address)",
        "KASAN: {what}{access}{in_f}",
        _B.HEAD,
        skip=r"k(?:v|z)?free\w*|vfree\w*|vunmap\w*|kmem_cache_free\w*|_*slab_free\w*|__cache_free",
    ),
    _head(
        _K.KFENCE,
        rf"BUG: KFENCE: (?P<what>[a-z -]{{2,40}}) in {_F}",
        "KFENCE: {what}{in_f}",
        _B.HEAD,
    ),
    _head(
        _K.KMSAN, rf"BUG: KMSAN: (?P<what>[a-z-]{{2,40}}) in {_F}", "KMSAN: {what}{in_f}", _B.HEAD
    ),
    _head(
        _K.KCSAN,
        r"BUG: KCSAN: (?P<what>[a-z -]{2,40}) in (?P<pair>.{2,512})",
        "KCSAN: {what} in {pair}",
        _B.NONE,
    ),
    _head(
        _K.UBSAN,
        rf"UBSAN: (?P<what>[A-Za-z -]{{4,60}}?) in {_SRC}",
        "UBSAN: {what}{in_f}",
        _B.TRACE,
        evidence=True,
        skip=r".*ubsan.*|.*overflow.*|handle_\w+",
    ),
    # ---- memory access ----
    _head(
        _K.OOPS,
        r"(?:BUG: )?(?:[Uu]nable to handle kernel|[Kk]ernel) NULL pointer dereference(?=[ ,])",
        _NULL,
    ),
    _head(
        _K.OOPS,
        r"(?:BUG: )?[Uu]nable to handle (?:kernel paging request(?: for \w+)?"
        r"|page fault for address"
        r"|kernel (?:data access|instruction fetch))(?:.*? at (?:virtual )?(?:address )?"
        r"(?P<null>(?:0x)?0{5,16}[0-9a-f]{3}\b)?)?",
        _PAGING,
    ),
    _head(
        _K.OOPS, r"Unable to handle kernel pointer dereference (?:in virtual|at virtual)", _PAGING
    ),
    _head(
        _K.OOPS,
        r"Unable to handle kernel (?P<what>[a-z][a-z -]{4,60}?) (?:at virtual address|at address)",
        "BUG: unable to handle kernel {what}{in_f}",
    ),
    _head(
        _K.GPF,
        r"(?:Oops: )?general protection(?: fault)?(?=[:,] )",
        "general protection fault{in_f}",
    ),
    # ---- stacks ----
    _head(
        _K.STACK_OVERFLOW,
        r"BUG: (?:TASK |IRQ |NMI )?stack guard page was hit at",
        "BUG: stack guard page was hit{in_f}",
    ),
    _head(
        _K.STACK_OVERFLOW,
        r"Insufficient stack space to handle exception!",
        "kernel stack overflow{in_f}",
    ),
    _head(
        _K.STACK_OVERFLOW,
        r"(?i:kernel stack overflow)[.:]? ?\S{0,8}$",
        "kernel stack overflow{in_f}",
        evidence=True,
    ),
    _head(_K.DOUBLE_FAULT, r"(?:traps: )?PANIC: double fault[ ,]", "PANIC: double fault{in_f}"),
    # ---- what the kernel found broken ----
    _head(
        _K.BUG,
        r"list_(?:add|del)(?: double add| corruption)[.:,]? ?",
        "BUG: corrupted list{in_f}",
        leads=True,
        evidence=True,
        skip=r".*list_.*",
    ),
    _head(
        _K.BUG,
        r"usercopy: (?:Kernel|kernel) memory (?:exposure|overwrite) attempt detected",
        "BUG: bad usercopy{in_f}",
        leads=True,
        skip=r".*usercopy.*|__check\w*|check_\w*object\w*",
    ),
    _head(
        _K.WARNING,
        r"refcount_t: (?:addition on 0|underflow|saturated|decrement hit 0|increment on 0|hit 0)",
        "WARNING: refcount bug{in_f}",
        _B.HEAD,
        leads=True,
        evidence=True,
        skip=r".*refcount.*|kref_.*|kobject_.*",
    ),
    _head(
        _K.BUG,
        r"[kK]ernel BUG at lib/list_debug\.c:\d{1,7}!",
        "BUG: corrupted list{in_f}",
        skip=r".*list_.*",
    ),
    _head(
        _K.BUG,
        r"[kK]ernel BUG at mm/usercopy\.c:\d{1,7}!",
        "BUG: bad usercopy{in_f}",
        skip=r".*usercopy.*|__check\w*|check_\w*object\w*",
    ),
    _head(_K.BUG, rf"[kK]ernel BUG at {_SRC}!?", "kernel BUG{in_f_or_at_file}"),
    # ---- traps; the line that follows most of the above ----
    _head(
        _K.DIVIDE,
        rf"(?:Oops: )?(?:divide error|fixpoint divide exception)(?:, [^:]{{1,80}})?: {_TRAP}",
        "divide error{in_f}",
        follows=True,
    ),
    _head(
        _K.INVALID_OPCODE,
        rf"(?:Oops: )?(?:invalid opcode|illegal operation)(?:, [^:]{{1,80}})?: {_TRAP}",
        "invalid opcode{in_f}",
        follows=True,
    ),
    _head(
        _K.STACK_OVERFLOW,
        rf"(?:Oops: )?(?:stack guard page|kernel stack overflow(?: \([\w ]{{1,20}}\))?): {_TRAP}",
        "BUG: stack guard page was hit{in_f}",
        follows=True,
    ),
    _head(
        _K.DOUBLE_FAULT,
        rf"(?:Oops: )?double fault: {_TRAP}",
        "PANIC: double fault{in_f}",
        follows=True,
    ),
    _head(_K.OOPS, rf"Oops: {_TRAP}", "kernel oops{in_f}", follows=True, evidence=True),
    _head(
        _K.OOPS,
        rf"(?:Oops: )?(?P<what>[A-Za-z][A-Za-z /-]{{3,40}})(?:, [^:]{{1,80}})?: {_TRAP}",
        "{what}{in_f}",
        follows=True,
        evidence=True,
    ),
    _head(
        _K.BUG,
        r"(?:Internal error: Oops - BUG: |[kK]ernel BUG )(?:[0-9a-f]{1,16} )?\[#\d{1,9}\](?: |$)",
        "kernel BUG{in_f}",
        follows=True,
        evidence=True,
    ),
    _head(_K.MCE, r"Oops: Machine check, sig: 7 \[#\d{1,9}\]", "Machine check{in_f}"),
    _head(
        _K.OOPS,
        r"(?:Internal error: )?Oops(?::? (?:[0-9a-f]{8,16}|Kernel access of bad area, sig: \d{1,2}"
        r"|Exception in kernel mode, sig: \d{1,2}))? ?\[#\d{1,9}\](?: |$)",
        "kernel oops{in_f}",
        follows=True,
        evidence=True,
    ),
    _head(
        _K.OOPS,
        r"(?:Internal error|Oops)(?:: | - )(?:Oops - )?(?P<what>[A-Za-z][\w ()/,-]{3,60}?)"
        r"(?:, sig: \d{1,2})?:? ?(?:[0-9a-f]{1,16} )?\[#\d{1,9}\](?: |$)",
        "{what}{in_f}",
        follows=True,
        evidence=True,
    ),
    _head(
        _K.SERROR,
        r"(?:SError Interrupt on CPU\d{1,6}, code|Bad mode in Error handler detected)",
        "SError{in_f}",
    ),
    # ---- lock checking ----
    _head(
        _K.DEADLOCK,
        rf"{_LOCKDEP}(?:possible (?:circular locking dependency|recursive locking"
        rf"|irq lock inversion"
        r" dependency|circular dependency|nested lock) detected|(?:HARDIRQ"
        r"|SOFTIRQ)\S{0,16}-safe -> \S{1,32}"
        r" lock order detected)",
        "possible deadlock{in_f}",
        _B.LOCK,
    ),
    _head(
        _K.DEADLOCK, rf"{_LOCKDEP}inconsistent lock state", "inconsistent lock state{in_f}", _B.LOCK
    ),
    _head(
        _K.DEADLOCK,
        rf"{_LOCKDEP}(?P<what>[Ii]nvalid wait context|bad unlock balance detected!?"
        rf"|held lock freed!?"
        r"|lock held when returning to user space!?|suspicious RCU usage"
        r"|trying to register non-static key|Nested lock was not taken)",
        "WARNING: {what}{in_f}",
        _B.LOCK,
        skip=r".*rcu.*|lockdep\w*|register_lock_class|assign_lock_key|print_\w+",
    ),
    # ---- warnings ----
    _head(
        _K.WARNING,
        rf"WARNING: (?:CPU: \d{{1,6}} PID: \d{{1,10}} )?at lib/debugobjects\.c:\d{{1,7}} {_F}",
        "WARNING: ODEBUG bug{in_f}",
        _B.HEAD,
        skip=rf"debug_\w+|__debug\w+|{_ALLOC}|.*(?:rcu|hrtimer_|timer_|work_|percpu_|kobject_)\w*",
    ),
    _head(
        _K.WARNING,
        rf"WARNING: (?:CPU: \d{{1,6}} PID: \d{{1,10}} )?at lib/refcount\.c:\d{{1,7}} {_F}",
        "WARNING: refcount bug{in_f}",
        _B.HEAD,
        skip=r".*refcount.*|kref_.*|kobject_.*",
    ),
    _head(
        _K.WARNING,
        rf"WARNING: (?:CPU: \d{{1,6}} PID: \d{{1,10}} )?at {_SRC} (?:{_F}|0x)",
        "WARNING{in_f_or_at_file}",
        _B.HEAD,
    ),
    _head(_K.WARNING, rf"WARNING: {_SRC} at {_F}", "WARNING{in_f_or_at_file}", _B.HEAD),
    _head(
        _K.WARNING,
        r"WARNING: (?P<what>stack recursion|kernel stack (?:regs|frame pointer)) (?=.{0,80}\d)",
        "WARNING: {what}{in_f}",
        _B.TRACE,
        evidence=True,
    ),
    # ---- what does not go on ----
    _head(
        _K.SOFT_LOCKUP,
        r"(?:NMI )?(?:watchdog: )?BUG: soft lockup - CPU#(?P<cpu>\d{1,6}) stuck for \d{1,9}s!"
        r"(?: \[(?P<comm>.{1,64}):(?P<pid>\d{1,10})\])?",
        "BUG: soft lockup{in_f}",
        _B.STALL,
    ),
    _head(
        _K.HARD_LOCKUP,
        r"(?:NMI )?(?:watchdog: )?(?:CPU ?\d{1,6}:? )?(?:BUG: Hard LOCKUP"
        r"|Watchdog detected hard LOCKUP"
        r"|self-detected hard LOCKUP|detected hard LOCKUP)(?: on (?:cpu"
        r"|other CPUs) (?P<cpu>\d{1,6}))?",
        "BUG: hard lockup{in_f}",
        _B.STALL,
    ),
    _head(
        _K.HUNG_TASK,
        r"INFO: task (?P<comm>.{1,64}):(?P<pid>\d{1,10}) blocked (?:in I/O wait )?"
        r"for more than \d{1,9} seconds",
        "INFO: task hung{in_f}",
        _B.TRACE,
        skip=r".*(?:sched|_lock|_slowlock|down_|completion|kthread|wait|synchronize|context_switch"
        r"|__switch_to|_timeout|cancel_delayed_work|flush_work|call_rwsem).*|down|bit_\w+"
        r"|.*barrier.*",
    ),
    _head(
        _K.RCU_STALL,
        r"(?:rcu: )?(?:INFO: )?rcu_\w{2,32} (?:self-)?detected(?: expedited)? stalls?(?: on|$)",
        "INFO: rcu detected stall{in_f}",
        _B.STALL,
        skip=r".*rcu.*|print_cpu_stall|check_cpu_stall|update_process_times|tick_.*|sched_show_task|trigger_.*|nmi_.*",
    ),
    _head(_K.WORKQUEUE_LOCKUP, r"BUG: workqueue lockup - pool", "BUG: workqueue lockup", _B.NONE),
    # ---- context ----
    _head(
        _K.ATOMIC,
        r"BUG: sleeping function called from invalid context at ",
        "BUG: sleeping function called from invalid context{in_f}",
        _B.TRACE,
    ),
    _head(
        _K.ATOMIC,
        r"BUG: scheduling while atomic: (?P<comm>.{1,64})/(?P<pid>\d{1,10})/0x",
        "BUG: scheduling while atomic{in_f}",
        _B.TRACE,
        skip=r".*sched.*|do_wait\w*|wait_\w+|.*_timeout\w*|.*nanosleep\w*|usleep_\w+|msleep\w*|__might\w+",
    ),
    _head(
        _K.ATOMIC,
        r"BUG: using (?P<what>_{0,2}\w{3,40}\(\)) in preemptible \[",
        "BUG: using {what} in preemptible code{in_f}",
        _B.CALLER,
        skip=r".*preempt\w*|.*smp_processor_id\w*",
    ),
    # ---- counted and leaked ----
    _head(
        _K.LEAK,
        r"unregister_netdevice: waiting for \S{1,32} to become free",
        "unregister_netdevice: waiting for DEV to become free",
        _B.NONE,
    ),
    _head(
        _K.LEAK,
        r"BUG: memory leak$",
        "memory leak{in_f}",
        _B.TRACE,
        evidence=True,
        skip=rf"kmemleak\w*|{_ALLOC}|.*(?:alloc|dup|create_object|asprintf|mmap)\w*",
    ),
    _head(
        _K.BUG,
        r"BUG: Bad page state in process ",
        "BUG: Bad page state{in_f}",
        _B.TRACE,
        skip=rf"bad_page\w*|.*page_(?:is_)?bad\w*|check_\w+|{_ALLOC}|free_\w+|__free\w+|.*rmqueue\w*|prep_new_page|get_page_from_freelist|__alloc_\w+|alloc_\w+|bulk_\w+|rmqueue\w*|__folio_put\w*|release_pages",
    ),
    _head(
        _K.BUG,
        r"BUG: Bad page map in process ",
        "BUG: Bad page map{in_f}",
        _B.TRACE,
        skip="print_bad_pte",
    ),
    _head(_K.BUG, r"BUG: Bad rss-counter state ", "BUG: Bad rss-counter state", _B.NONE),
    _head(
        _K.BUG,
        r"BUG: non-zero (?P<what>\w{4,24}) on freeing mm",
        "BUG: non-zero {what} on freeing mm",
        _B.NONE,
    ),
    _head(_K.BUG, r"BUG: Dentry .{1,200} still in use", "BUG: Dentry still in use", _B.NONE),
    _head(
        _K.BUG,
        r"BUG: spinlock (?P<what>lockup suspected|already unlocked|recursion|bad magic"
        r"|wrong owner|wrong CPU)\b",
        "BUG: spinlock {what}{in_f}",
        _B.TRACE,
        skip=".*spin_.*",
    ),
    _head(
        _K.BUG,
        r"BUG \S{1,64} \(.{1,64}\): (?P<what>[A-Z][\w ()-]{3,60})",
        "BUG: {what}{in_f}",
        _B.TRACE,
        evidence=True,
        skip=rf"object_err|slab_\w+|check_\w+|print_\w+|on_freelist|{_ALLOC}",
    ),
    _head(_K.BUG, r"BUG: (?P<words>.{3,200})", "BUG: {words}{in_f}", _B.TRACE, evidence=True),
    # ---- hardware ----
    _head(
        _K.MCE,
        r"(?:mce: )?\[Hardware Error\]: CPU (?P<cpu>\d{1,6}): Machine Check(?: Exception)?: "
        r"[0-9a-f]{1,16} Bank (?P<bank>\d{1,3})",
        "Machine check: bank {bank}",
        _B.NONE,
    ),
    _head(
        _K.MCE,
        r"\{\d{1,9}\}\[Hardware Error\]: event severity: (?P<what>fatal|recoverable)",
        "Hardware error: {what}",
        _B.NONE,
    ),
    _head(
        _K.MCE,
        r"(?:mce: )?Uncorrected hardware memory error in user-access at",
        "Uncorrected hardware memory error",
        _B.NONE,
    ),
    _head(
        _K.MCE,
        r"Memory failure: 0x[0-9a-f]{1,16}: (?:recovery action|Sending SIGBUS|Killing)",
        "Memory failure",
        _B.NONE,
    ),
    _head(
        _K.NMI,
        r"(?:NMI: )?(?P<what>IOCK error|PCI system error \(SERR\)) (?:\([\w? ]{1,40}\) )?(?:for"
        r"|on) ",
        "NMI: {what}",
        _B.NONE,
    ),
    _head(
        _K.NMI,
        r"Uhhuh\. NMI received for unknown reason (?P<what>[0-9a-f]{2}) ",
        "NMI: unknown reason {what}",
        _B.NONE,
    ),
    # ---- the end ----
    _head(
        _K.SYSRQ,
        r"(?:sysrq: )?[sS]ys[rR]q ?: Trigger a (?:crash|crashdump)$",
        "Kernel panic - not syncing: sysrq triggered crash",
        _B.PANIC,
        leads=True,
    ),
    _head(
        _K.PANIC,
        r"Kernel panic - not syncing: ?(?P<words>.{0,512})",
        "Kernel panic - not syncing: {words}",
        _B.PANIC,
        skip=r"_*schedule\w*",
    ),
)

_FIRST = re.compile(
    r"BUG|U[nB]|[uU]n|general |Oops|Int|In|int|k?Kernel |kernel |WARN|INFO|\[ |\[H|\{|list_"
    r"|usercopy|refcount|"
    r"[a-zA-Z /,-]{4,120}: [0-9a-f]{4}|NMI|watchdog|CPU.{0,12}ard LOCKUP|Watch|rcu|traps: P|PANIC"
    r"|SE|Bad mode|mce|Memory f|"
    r"Uhh|[sS]ys[rR]q|IOCK|PCI"
)
_USERS_WORDS = re.compile(
    r".{1,16}?(?:\[\d{1,10}\](?::? (?:segfault|bad frame|trap |general protection ip)|: )"
    r"| invoked oom-killer|: page allocation failure)"
)


def find_head(text: str) -> tuple[Head, re.Match[str]] | None:
    """Find what a line begins a report of."""
    text = text.lstrip()
    if _FIRST.match(text) is None:
        return None
    for head in HEADS:
        match = head.pattern.match(text)
        if match is not None:
            return None if _USERS_WORDS.match(text) is not None else (head, match)
    return None
