"""First lines of the reports of the kernel's checkers. Pure.

The checkers are sanitizers, lockdep, warnings, watchdogs for stalls, and checks of context and of
counts. Source: the printk()s of mm/{kasan,kmsan,kfence}, kernel/{kcsan,locking,rcu},
kernel/{hung_task,watchdog,workqueue}.c, lib/, mm/, from 2.6.32 to 6.19.
"""

import re
from typing import Final

from crashd.domain.kernellog.head import FUNCTION, SOURCE, Blame, Head, head
from crashd.domain.kernellog.kinds import PanicKind
from crashd.domain.kernellog.signature import normal_name

__all__ = ["BROKEN", "CHECKS", "specialise"]

_K, _B = PanicKind, Blame
_ALLOC = r"\w*(?:alloc|dup|create_object|asprintf|mmap)\w*"
_LOCKDEP = r"(?:\[ )?(?P<level>WARNING|INFO|BUG): ?"
_ADDRESS = r"(?:0x)?[0-9a-f]{8,16}"
_CRYPTO = (
    r"_*aes\w*|cipher_crypt\w*|crypto_\w*(?:crypt|digest|final|finup|reset|setkey|update)\w*|drbg_\w+"
    r"|rng_\w+|s?chacha\w*|poly1305\w*|_*sha\d\w*|keccakf\w*|_*blake2\w*|_*siphash\w*"
)
"""Functions that compute with the bytes that their callers give them."""

BROKEN: Final[tuple[Head, ...]] = (
    # leading lines: a BUG or WARNING line follows
    head(
        _K.BUG,
        r"list_(?:add|del)(?: double add| corruption)[.:,]? ?",
        "BUG: corrupted list{in_f}",
        leads=True,
        evidence=True,
    ),
    head(
        _K.BUG,
        r"usercopy: (?:Kernel|kernel) memory (?:exposure|overwrite) attempt detected",
        "BUG: bad usercopy{in_f}",
        leads=True,
        evidence=True,
    ),
    head(
        _K.WARNING,
        r"refcount_t: (?:addition on 0|underflow|saturated|decrement hit 0|increment on 0|hit 0)",
        "WARNING: refcount bug{in_f}",
        leads=True,
        evidence=True,
        skip=r"\w*refcount\w*",
    ),
    head(
        _K.WARNING,
        r"ODEBUG: \w{3,16} \w{3,16} \(active state \d{1,9}\) object",
        "WARNING: ODEBUG bug{in_f}",
        leads=True,
        evidence=True,
        skip=r"debug_\w+|__debug\w+|\w*rcu\w*|_*(?:hr)?timer_\w+|_*call_timer_fn|_*(?:expire|run)_timer\w*"
        r"|_*(?:init|destroy|cancel|queue|flush)_\w*work\w*|_*work_\w+|_*percpu_\w+|__?free_\w+"
        r"|_*(?:init|setup)_(?:hr)?timer\w*|mod_timer\w*|destroy_(?:hr)?timer\w*",
    ),
    head(
        _K.BUG,
        r"\w{1,64}: panicked at (?:(?P<reason>['\"].{1,300}['\"]),"
        r" )?[\w./+-]{1,256}:\d{1,7}:\d{1,7}:?$",
        "panic{in_f}: {reason}",
        _B.TRACE,
        leads=True,
        evidence=True,
    ),
    head(
        _K.BUG,
        rf"CFI failure at (?:{FUNCTION}|0x)",
        "CFI failure{in_f}",
        _B.HEAD,
        leads=True,
    ),
    head(
        _K.BUG,
        r"CFI failure \(target: ",
        "CFI failure{in_f}",
        _B.TRACE,
        leads=True,
    ),
)
"""Lines that say more than the report that follows them."""

_PLACED: Final = (
    head(
        _K.WARNING,
        rf"WARNING: (?:CPU: \d{{1,6}} PID: \d{{1,10}} )?at (?:{SOURCE} (?:{FUNCTION}|0x|$)"
        r"|(?P<only>[A-Za-z_.$][\w.$]{0,511})\+0x)",
        "WARNING{in_f_or_at_file}",
        _B.HEAD,
    ),
    head(  # since 6.19
        _K.WARNING,
        rf"WARNING: (?:\[.{{0,400}}?\] )?{SOURCE} at (?:0x|{FUNCTION})",
        "WARNING{in_f_or_at_file}",
        _B.HEAD,
    ),
)
"""A warning that names its place in the source; `specialise` knows some of these places."""

CHECKS: Final[tuple[Head, ...]] = (
    # ---- sanitizers ----
    head(
        _K.KASAN,
        rf"BUG: KASAN: (?P<what>[a-z-]{{2,40}}(?: or [a-z-]{{2,40}})?) "
        rf"(?:in (?:{_ADDRESS}|{FUNCTION})|on address)",
        "KASAN: {what}{access}{in_f}",
        _B.HEAD,
        skip=_CRYPTO,
    ),
    head(
        _K.KFENCE,
        rf"BUG: KFENCE: (?P<what>[a-z -]{{2,40}}) in (?:{_ADDRESS}|{FUNCTION})",
        "KFENCE: {what}{in_f}",
        _B.HEAD,
    ),
    head(
        _K.KMSAN,
        rf"BUG: KMSAN: (?P<what>[a-z-]{{2,40}}) in (?:{_ADDRESS}|{FUNCTION})",
        "KMSAN: {what}{in_f}",
        _B.HEAD,
        skip=_CRYPTO,
    ),
    head(
        _K.KCSAN,
        r"BUG: KCSAN: (?P<what>[a-z :-]{2,40}) in (?P<pair>.{2,512})",
        "KCSAN: {what} in {pair}",
        _B.NONE,
    ),
    head(
        _K.UBSAN,
        rf"UBSAN: (?P<what>[A-Za-z -]{{4,60}}?) in {SOURCE}",
        "UBSAN: {what}{in_f}",
        _B.TRACE,
        evidence=True,
        skip=r"\w*overflow\w*",
    ),
    # ---- lock checking ----
    head(
        _K.DEADLOCK,
        rf"{_LOCKDEP}(?:possible (?:circular locking dependency|recursive locking"
        r"|irq lock inversion dependency|circular dependency|nested lock) detected"
        r"|(?:HARDIRQ|SOFTIRQ)\S{0,16}-safe -> \S{1,32} lock order detected)",
        "possible deadlock{in_f}",
        _B.LOCK,
        skip=r"process_one_work|process_scheduled_works",
    ),
    head(
        _K.DEADLOCK, rf"{_LOCKDEP}inconsistent lock state", "inconsistent lock state{in_f}", _B.LOCK
    ),
    head(
        _K.DEADLOCK,
        rf"{_LOCKDEP}(?P<what>[Ii]nvalid wait context|bad unlock balance|bad contention"
        rf"|held lock freed"
        r"|lock held when returning to user space|[Nn]ested lock was not taken)",
        "{level}: {what}{in_f}",
        _B.LOCK,
    ),
    head(
        _K.DEADLOCK,
        rf"{_LOCKDEP}.{{1,64}}/\d{{1,10}} (?P<what>still has locks held)!?",
        "{level}: {what}{in_f}",
        _B.LOCK,
    ),
    head(
        _K.DEADLOCK,
        rf"{_LOCKDEP}(?P<what>suspicious RCU usage)",
        "{level}: {what}{in_f}",
        _B.TRACE,
        skip=r"\w*rcu\w*",
    ),
    head(
        _K.DEADLOCK,
        rf"{_LOCKDEP}(?P<what>trying to register non-static key)",
        "{level}: {what}{in_f}",
        _B.TRACE,
        skip=r"lock_\w+|\w*_(?:stack|irq\w*)",
    ),
    head(
        _K.DEADLOCK,
        r"BUG: (?P<what>(?:MAX|looking up)[\w ]{4,40} (?:too low!|invalid subclass))",
        "BUG: {what}",
        _B.NONE,
    ),
    # ---- warnings ----
    *_PLACED,
    head(
        _K.WARNING,
        r"WARNING: kernel stack (?P<what>regs|frame pointer) at \S{1,20} in .{1,64} has bad "
        r"(?P<reg>'\w{1,4}' )?value",
        "WARNING: kernel stack {what} has bad {reg}value",
        _B.NONE,
    ),
    head(
        _K.WARNING,
        r"WARNING: stack recursion on stack type \d",
        "WARNING: stack recursion{in_f}",
        _B.TRACE,
        evidence=True,
    ),
    # ---- what does not go on ----
    head(
        _K.SOFT_LOCKUP,
        r"(?:NMI )?(?:watchdog: )?BUG: soft lockup - CPU#(?P<cpu>\d{1,6}) stuck for \d{1,9}s!"
        r"(?: \[(?P<comm>.{1,64}):(?P<pid>\d{1,10})\])?",
        "BUG: soft lockup{in_f}",
        _B.STALL,
    ),
    head(
        _K.HARD_LOCKUP,
        r"(?:NMI )?(?:watchdog: )?(?:CPU ?(?P<by>\d{1,6}):? )?(?:BUG: Hard LOCKUP"
        r"|Watchdog (?:CPU:\d{1,6} )?detected (?:hard LOCKUP|Hard LOCKUP)"
        r"|self-detected hard LOCKUP|detected hard LOCKUP|Hard LOCKUP)(?: on (?:cpu"
        r"|other CPUs) (?P<cpu>\d{1,6}))?",
        "BUG: hard lockup{in_f}",
        _B.STALL,
    ),
    head(
        _K.HUNG_TASK,
        r"INFO: task (?P<comm>.{1,64}):(?P<pid>\d{1,10}) blocked (?:in I/O wait )?"
        r"for more than \d{1,9} seconds",
        "INFO: task hung{in_f}",
        _B.HUNG,
    ),
    head(
        _K.HUNG_TASK,
        r"INFO: task (?P<comm>.{1,64}):(?P<pid>\d{1,10}) can't die for more than \d{1,9} seconds",
        "INFO: task can't die{in_f}",
        _B.HUNG,
    ),
    head(
        _K.RCU_STALL,
        r"(?:rcu: )?(?:INFO: )?rcu_\w{2,32} (?:self-)?detected(?: expedited)? stalls?(?: on|$)",
        "INFO: rcu detected stall{in_f}",
        _B.STALL,
    ),
    head(
        _K.WORKQUEUE_LOCKUP,
        r"BUG: workqueue lockup - pool",
        "BUG: workqueue lockup{in_f}",
        _B.WORK,
    ),
    # ---- context ----
    head(
        _K.ATOMIC,
        r"BUG: sleeping function called from invalid context at ",
        "BUG: sleeping function called from invalid context{in_f}",
        _B.TRACE,
    ),
    head(
        _K.ATOMIC,
        r"BUG: scheduling while atomic: (?P<comm>.{1,64})/(?P<pid>\d{1,10})/0x",
        "BUG: scheduling while atomic{in_f}",
        _B.TRACE,
        skip=r"\w*sched\w*|do_wait\w*|wait_\w+|\w*nanosleep\w*|usleep_\w+|msleep\w*",
    ),
    head(
        _K.ATOMIC,
        r"BUG: using (?P<what>_{0,2}\w{3,40}\(\)) in preemptible \[",
        "BUG: using {what} in preemptible code{in_f}",
        _B.CALLER,
        skip=r"\w*preempt\w*|\w*smp_processor_id\w*|\w*this_cpu\w*",
    ),
    head(
        _K.ATOMIC,
        r"BUG: workqueue leaked (?P<what>lock or atomic|atomic, lock or RCU)",
        "BUG: workqueue leaked {what}{in_f}",
        _B.LAST,
    ),
    # ---- counted and leaked ----
    head(
        _K.LEAK,
        r"unregister_netdevice: waiting for \S{1,32} to become free",
        "unregister_netdevice: waiting for DEV to become free",
        _B.NONE,
    ),
    head(
        _K.LEAK,
        r"BUG: memory leak$",
        "memory leak{in_f}",
        _B.TRACE,
        evidence=True,
        skip=rf"kmemleak\w*|{_ALLOC}|idr_get\w*|list_lru_init\w*|\w*pcpu_create\w*",
    ),
    head(
        _K.BUG,
        r"BUG: Bad page state in process ",
        "BUG: Bad page state{in_f}",
        _B.OWNER,
        skip=r"bad_page\w*|\w*page_(?:is_)?bad\w*|check_\w+|free_\w+|__free\w+|__folio_put\w*"
        r"|release_pages|bulk_\w+|\w*folios_put\w*|\w*page_prepare|_*(?:re)?set_page_owner"
        r"|\w*alloc\w*|_*filemap_get_folio\w*|pagecache_get_page|page_cache_\w+|\w*page_cache_ra",
    ),
    head(
        _K.BUG,
        r"BUG: Bad page map in process ",
        "BUG: Bad page map",
        _B.TRACE,
    ),
    head(_K.BUG, r"BUG: Bad rss-counter state ", "BUG: Bad rss-counter state", _B.NONE),
    head(
        _K.BUG,
        r"BUG: non-zero (?P<what>\w{4,24}) on freeing mm",
        "BUG: non-zero {what} on freeing mm",
        _B.NONE,
    ),
    head(
        _K.BUG,
        r"BUG: Dentry .{1,200} still in use.{0,20}?(?P<what> \[unmount of [^\]]{1,64}\])?$",
        "BUG: Dentry still in use{what}",
        _B.NONE,
    ),
    head(
        _K.BUG,
        r"VFS: Busy inodes after unmount of ",
        "VFS: Busy inodes after unmount (use-after-free)",
        _B.NONE,
        leads=True,
    ),
    head(
        _K.BUG,
        r"VFS: Close: file count is (?:0|zero)",
        "VFS: Close: file count is zero (use-after-free)",
        _B.NONE,
        leads=True,
    ),
    head(
        _K.BUG,
        r"BUG: (?P<what>(?:spin|rw|write-|raw_spin)lock (?:lockup(?: suspected)?"
        r"|already unlocked|recursion"
        r"|bad magic|wrong owner|wrong CPU|trylock failure))\b",
        "BUG: {what}{in_f}",
        _B.TRACE,
        skip=r"\w*(?:spin|rwlock|read|write)_\w*|rwlock_bug",
    ),
    head(
        _K.BUG,
        r"BUG \S{1,64} \(.{1,64}\): (?P<what>[A-Z][\w ()-]{3,60})",
        "BUG: {what}{in_f}",
        _B.TRACE,
        evidence=True,
        skip=r"check_\w+|print_\w+|on_freelist|(?:free|alloc)_debug_processing|\w*_consistency_checks",
    ),
    head(_K.BUG, r"BUG: (?P<words>.{3,200})", "BUG: {words}{in_f}", _B.TRACE, evidence=True),
)

_REFCOUNT: Final = next(h for h in BROKEN if "refcount" in h.title)
_ODEBUG: Final = next(h for h in BROKEN if "ODEBUG" in h.title)


def _warning(title: str, skip: str | None = None) -> Head:
    return head(_K.WARNING, "", title, _B.HEAD, skip=skip)


_SORTS: Final = tuple(
    (re.compile(file), re.compile(function), sort)
    for file, function, sort in (
        (r"(?:lib/debugobjects\.c)?", r"(?:debug_\w+)?", _warning(_ODEBUG.title, _ODEBUG.skip)),
        (
            r"(?:lib/refcount\.c)?",
            r"(?:refcount_\w+)?",
            _warning(_REFCOUNT.title, _REFCOUNT.skip),
        ),
        (r"lib/kobject\.c", r"kobject_\w+", _warning("WARNING: kobject bug{in_f}")),
        (
            r"fs/proc/generic\.c",
            r"proc_register",
            _warning("WARNING: proc registration bug{in_f}", r"_*proc_\w+"),
        ),
        (r"(?:mm/usercopy\.c)?", r"usercopy_warn", _warning("WARNING: bad usercopy{in_f}")),
        (
            r"kernel/locking/lockdep\.c",
            r"\w*lock_\w+",
            _warning("WARNING: locking bug{in_f}", r"\w*lock_\w+|(?:lock|release)_sock\w*"),
        ),
        (  # its only WARN()
            r"(?:mm/vmalloc\.c)?",
            r"_*vmalloc_node_range(?:_noprof)?",
            _warning("WARNING: zero-size vmalloc{in_f}"),
        ),
        (r"(?:mm/\w+\.c)?", r"_*k?v?.?malloc\w*", _warning("WARNING: kmalloc bug{in_f}")),
        (r".*", r"usb_submit_urb", _warning("WARNING{in_f}/usb_submit_urb")),
    )
)


def specialise(found: Head, match: re.Match[str]) -> Head:
    """Return the head for a warning at this place: the checker's own if known, else `found`."""
    if found not in _PLACED:
        return found
    groups = match.groupdict()
    file, function = groups["file"] or "", groups["func"] or groups.get("only") or ""
    for file_pattern, function_pattern, sort in _SORTS:
        if file_pattern.fullmatch(file) and function_pattern.fullmatch(normal_name(function)):
            return sort
    return found
