"""Whom to blame for a crash of the kernel, and what to call it. Pure.

The function to blame is the first that is not a helper: neither the kernel's own machinery for
reports, checks and traps, nor a primitive that does what its caller told it to (copying, locking,
list and reference handling). The idea, and the form of titles, are syzkaller's.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from crashd.domain.oopsheads import Blame, Head
from crashd.domain.oopskinds import PanicKind
from crashd.domain.oopssignature import normal_name, normal_words
from crashd.domain.oopstrace import Facts, Frame

__all__ = ["TITLE_MAX", "Verdict", "judge"]

TITLE_MAX: Final = 256
BLAMED_MAX: Final = 3
"""Functions that tell one crash from another in the same function."""

_HELPERS: Final = (
    # reports
    r"_*dump_(?:stack|trace|backtrace)\w*|_*show_(?:stack|trace|regs)\w*|unwind_backtrace|panic"
    r"|nmi_panic",
    r"vpanic|_*warn(?:_\w+)?|report_bug|_*fixup_bug|handle_bug|_*report_\w*fault|v?printk\w*"
    r"|_printk\w*",
    r"oops_\w+|_*die\w*|bad_area\w*|__bad_area\w*|no_context|page_fault_oops"
    r"|kernelmode_fixup_or_oops",
    r"mm_fault_error|crash_kexec|__crash_kexec|machine_kexec|dev_(?:info|notice|warn|err|alert"
    r"|crit|emerg)",
    # traps
    r"(?:asm_)?exc_\w+|do_(?:error_)?trap\w*|do_invalid_op|invalid_op|do_general_protection",
    r"general_protection|do_page_fault|page_fault|async_page_fault|do_double_fault|double_fault"
    r"|error_entry",
    r"do_mem_abort|do_translation_fault|do_kernel_fault|do_sea|el\d\w*|brk_handler|bug_handler",
    r"do_debug_exception|call_break_hook|do_undefinstr|do_trap_\w+|handle_exception"
    r"|ret_from_exception",
    r"program_check_\w+|_*do_program_check|data_access_\w+|pgm_check_\w+|__do_pgm_check"
    r"|monitor_event_\w+",
    r"do_bad_area|do_notify_resume_bug|handle_mm_fault_error|pgm_no_context"
    r"|handle_kernel_page_fault",
    # sanitizers
    r"_*(?:asan|kasan|kmsan|msan|kfence|kcsan|tsan|ubsan|sanitizer)_\w+|kasan\w*|print_report\w*",
    r"print_address_description\w*|check_memory_region\w*|check_region_inline|read_word_at_a_time",
    r"check_canary\w*|check_heap_object|__check_(?:heap_object|object_size)\w*|usercopy_\w+|instrument_\w+|end_report|start_report|get_report_\w+",
    # memory and strings
    r"(?:__pi_|_*)mem(?:cpy|set|move|cmp|chr|scan)\w*|_*str(?:n|l|s|c|r|p|sep|str|n?len|chr)\w*",
    r"rep_(?:movs|stos)_alternative|copy_(?:user|page|from|to|mc)_\w*|_*copy_(?:from|to)_user\w*",
    r"raw_copy_\w+|__arch_copy_\w+|__(?:get|put)_user\w*|clear_(?:user|page)\w*|might_(?:fault"
    r"|sleep)",
    r"_*might_(?:sleep|resched|fault)\w*|csum_partial\w*|find_(?:first|next)_\w*bit\w*"
    r"|_find_\w+_bit",
    r"vsnprintf|v?s(?:c?n)?printf|kv?asprintf|string|pointer|number|fortify_panic|__fortify_\w+",
    # locks
    r"_*(?:raw_)?(?:spin|read|write)_(?:try)?(?:un)?lock\w*|do_raw_\w+lock\w*"
    r"|\w*queued_\w*lock_slowpath",
    r"_*(?:ww_)?mutex_\w*lock\w*|mutex_(?:remove_waiter|spin_on_owner|optimistic_spin)|_*(?:down"
    r"|up)",
    r"_*(?:down|up)_(?:read|write)\w*|rwsem_\w+|call_rwsem_\w+|_*rt_(?:mutex|spin|read|write)\w*",
    r"_*lock_(?:acquire|release|acquired|contended|is_held)\w*|lockdep_\w+"
    r"|check_(?:no)?wait_context\w*",
    r"(?:__)?lock_(?:class|stack)\w*|register_lock_class|assign_lock_key|reacquire_held_locks"
    r"|osq_(?:un)?lock\w*",
    r"check_(?:prev|prevs|noncircular|deadlock)\w*|validate_chain|print_\w*(?:bug|deadlock"
    r"|usage)\w*|mark_lock\w*",
    r"csd_lock_wait|_*pv_\w+|kvm_wait|_*native_\w*(?:wait|halt|pause)\w*|_?raw_\w+_(?:un)?lock\w*"
    r"|debug_spin\w*",
    r"(?:__)?delay\w*|_*udelay|_*const_udelay|__ndelay|read_hpet|cpu_relax",
    # lists, references, objects
    r"_*(?:h?list|hlist_nulls)_(?:add|del|replace|move|splice|empty)\w*|__list_\w+|_*refcount_\w+"
    r"|kref_\w+",
    r"kobject_(?:del|put|get|uevent_env|add_internal)|kobject_init\w*|debug_\w*object\w*"
    r"|__debug_check\w*",
    r"\w*_indirect_thunk_\w*|__x86_return_thunk|ftrace_\w+call\w*|__fentry__|kprobe_\w*handler\w*",
    r"_*flush_work\w*|_*cancel_(?:delayed_)?work\w*|(?:flush|drain|destroy|__flush)_workqueue"
    r"|try_to_grab_pending",
    r"(?:timer_)?del(?:ete)?_timer\w*|timer_delete\w*|try_to_del_timer\w*|__sanitizer_\w+",
    r"__stack_chk_fail|trace_hardirqs_\w+|preempt_(?:schedule|count)\w*|__bug_on\w*|_*bug_at\w*",
)
_HELPER = re.compile("|".join(_HELPERS))
_ENTRY = re.compile(
    r"(?:entry_|do_syscall_|do_(?:int80|fast|el0)|el0t?_|invoke_syscall|ret_from_|ret_to_"
    r"|system_call"
    r"|sysenter|tracesys|kthread$|kernel_thread|secondary_startup|start_secondary|x86_64_start"
    r"|cpu_startup"
    r"|__do_syscall$|handle_exception|start_kernel|kthread_\w*handler)"
)
_IRQ_ENTRY = re.compile(
    r"(?:asm_)?sysvec_\w+|(?:asm_)?common_interrupt|apic_timer_interrupt|\w*_interrupt"
    r"|ret_from_intr"
    r"|el1h?_\d*_?irq\w*|call_on_irq_stack|\w*nmi\w*|do_irq\w*|handle_\w*irq\w*|hrtimer_\w+"
    r"|__hrtimer_\w+"
    r"|watchdog_\w+|tick_\w+|update_process_times|rcu_\w*sched_clock_irq|perf_event_\w+"
    r"|timer_interrupt"
    r"|\w*irq_exit\w*|do_interrupt_handler|do_softirq\w*|handle_softirqs",
    re.IGNORECASE,
)
_AT = re.compile(r".{0,400}\bat: (?:\[<?[0-9a-fx]{4,18}>?\] )?(?P<f>[A-Za-z_][\w.$]{0,511})")
_CALLER = re.compile(
    r"caller is (?P<f>[A-Za-z_][\w.$]{0,511})(?:\+0x(?P<o>[0-9a-f]+)/0x(?P<s>[0-9a-f]+))?"
)
_LOCK_TAKEN = re.compile(
    r".{0,200}(?:is trying to (?:acquire|release|lock)|just changed the state|takes:"
    r"|is freeing memory)"
)
_ACCESS = re.compile(r"(Read|Write) (?:of|at)")
_PROTECTOR = re.compile(
    r"stack-protector: Kernel stack is corrupted in: (?P<f>[A-Za-z_][\w.$]{0,511})"
)
_FAILING_NULL = re.compile(r"(?:Failing address: 0{8,13}[0-9a-f]{3}\b|CR2: 0{13}[0-9a-f]{3}\b)")
_EXIT_CODE = re.compile(r" ?exitcode=.*")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Title and culprit."""

    title: str
    frame: Frame | None
    """The function to blame; of an offset only where the log tells it."""
    blamed: tuple[str, ...]
    """It and its callers, as they go into the signature."""


def judge(
    head: Head | None,
    match: re.Match[str] | None,
    facts: Facts,
    texts: Sequence[str],
) -> Verdict:
    """Tell what to call a report, and whom to blame.

    Args:
        head: how it begins; None when its first lines are missing.
        match: its match on that line.
        facts: what its lines tell.
        texts: its lines.

    """
    groups = {} if match is None else match.groupdict()
    candidates = _candidates(head, facts, texts, groups.get("func"))
    skip = re.compile(head.skip) if head is not None and head.skip is not None else None
    at = _first_to_blame(candidates, skip, exact=head is not None and head.blame is Blame.LOCK)
    frame = candidates[at] if at is not None else None
    blamed: tuple[str, ...] = ()
    if at is not None and head is not None and head.blame is not Blame.STALL:
        callers = [f.function for f in candidates[at:] if f.reliable and not _is_helper(f, skip)]
        blamed = tuple(_until_entry(callers))[:BLAMED_MAX]
    if head is None:
        what = (
            "kernel panic" if _find_panic(facts.trace) >= 0 and facts.pc is None else "kernel oops"
        )
        return Verdict(f"{what}{_in(frame)}"[:TITLE_MAX], frame, blamed)
    return Verdict(_build_title(head, groups, frame, texts)[:TITLE_MAX], frame, blamed)


def _build_title(
    head: Head, groups: dict[str, str | None], frame: Frame | None, texts: Sequence[str]
) -> str:
    words = {name: normal_words(value or "") for name, value in groups.items() if name != "func"}
    what = words.get("what", "")
    if head.kind is PanicKind.PANIC:
        words["words"] = _panic_words(groups.get("words") or "")
    elif head.kind is PanicKind.KASAN:
        words["what"] = what = "invalid-free" if "invalid-free" in what else what
        found = next(filter(None, (_ACCESS.match(text.lstrip()) for text in texts)), None)
        if found is not None and (not what.endswith("-free") or "after" in what):
            words["access"] = f" {found[1]}"
    elif head.kind in (PanicKind.NMI, PanicKind.MCE):  # numbers that tell one fault from another
        words |= {name: value or "" for name, value in groups.items() if name in ("what", "bank")}
    title = head.title
    if "paging request" in title and (
        groups.get("null") or any(_FAILING_NULL.search(text[:200]) for text in texts[:64])
    ):
        title = title.replace("paging request", "NULL pointer dereference")
    fallback = f" at {groups['file']}" if groups.get("file") else ""
    in_f = _in(frame)
    return title.format_map(
        {"access": "", **words, "in_f": in_f, "in_f_or_at_file": in_f or fallback}
    ).strip()


def _in(frame: Frame | None) -> str:
    return f" in {normal_name(frame.function)}" if frame is not None else ""


def _panic_words(words: str) -> str:
    protector = _PROTECTOR.match(words)
    if protector is not None:
        return f"stack-protector: Kernel stack is corrupted in {normal_name(protector['f'])}"
    return normal_words(_EXIT_CODE.sub("", words)) if "kill init" in words else normal_words(words)


def _candidates(
    head: Head | None, facts: Facts, texts: Sequence[str], named: str | None
) -> Sequence[Frame]:
    """Order the functions that may be to blame, the likeliest first."""
    trace = facts.trace
    pc = [facts.pc] if facts.pc is not None else []
    blame = head.blame if head is not None else Blame.PC if facts.pc is not None else Blame.PANIC
    if blame is Blame.NONE:
        return ()
    if blame is Blame.PC:
        return _with_first(pc, trace)
    if blame is Blame.HEAD and named is not None:
        return _with_first([_named(named, (*pc, *trace))], trace)
    if blame is Blame.LOCK:
        found = _find_lock(texts)
        return _with_first([_named(found, trace)], trace) if found is not None else trace
    if blame is Blame.CALLER:
        match = next(filter(None, (_CALLER.match(text.lstrip()) for text in texts)), None)
        return _with_first([_named(match["f"], trace)], trace) if match is not None else trace
    if blame is Blame.STALL:
        return _stalled(facts)
    if blame is Blame.PANIC:
        return _panicked(facts, texts)
    return trace


def _with_first(first: Iterable[Frame], trace: Sequence[Frame]) -> Sequence[Frame]:
    """Put a function in front of a trace that has it not, or not first."""
    first = list(first)
    if not first:
        return trace
    name = first[0].function
    at = next(
        (n for n, frame in enumerate(trace) if frame.reliable and frame.function == name), None
    )
    return [*first, *(trace if at is None else trace[at + 1 :])]


def _named(function: str, known: Iterable[Frame]) -> Frame:
    """Find a function's frame, for its offset and module."""
    found = next((frame for frame in known if frame.function == function), None)
    return found if found is not None else Frame(function, None, None, None, True)


def _find_lock(texts: Sequence[str]) -> str | None:
    """Find who takes the lock: `at: f` soon after the line that says what is done to it."""
    starts = [n for n, text in enumerate(texts[:200]) if _LOCK_TAKEN.match(text)]
    if not starts:
        return None
    for text in texts[starts[0] : starts[0] + 4]:
        match = _AT.match(text)
        if match is not None:
            return match["f"]
    return None


def _stalled(facts: Facts) -> Sequence[Frame]:
    """Order the functions of a cpu that does not go on: where the watchdog interrupted it first."""
    if facts.pc is not None and not _is_irq_entry(facts.pc):
        return _with_first([facts.pc], facts.trace)
    interrupted = [facts.interrupted] if facts.interrupted is not None else []
    return _with_first(interrupted, _after_irq(facts.trace))


def _after_irq(trace: Sequence[Frame]) -> Sequence[Frame]:
    """Leave out the interrupt that a trace begins in."""
    entries = [n for n, frame in enumerate(trace) if _is_irq_entry(frame)]
    return trace[entries[-1] + 1 :] if entries else trace


def _is_irq_entry(frame: Frame) -> bool:
    return _IRQ_ENTRY.fullmatch(normal_name(frame.function)) is not None


def _panicked(facts: Facts, texts: Sequence[str]) -> Sequence[Frame]:
    protector = next(filter(None, (_PROTECTOR.search(text[:400]) for text in texts[:8])), None)
    if protector is not None:
        return _with_first([_named(protector["f"], facts.trace)], facts.trace)
    at = _find_panic(facts.trace)
    if at < 0:
        return _with_first([facts.pc] if facts.pc is not None else [], facts.trace)
    callers = facts.trace[at + 1 :]
    if not callers or not callers[0].function.startswith("watchdog_"):
        return callers
    interrupted = [facts.interrupted] if facts.interrupted is not None else []
    return _with_first(interrupted, _after_irq(callers))


def _find_panic(trace: Sequence[Frame]) -> int:
    """Find panic() in a trace; -1 when it is not there."""
    functions = [normal_name(frame.function) for frame in trace]
    return next((n for n, name in enumerate(functions) if name.endswith("panic")), -1)


def _first_to_blame(
    frames: Sequence[Frame], skip: re.Pattern[str] | None, *, exact: bool
) -> int | None:
    """Find the first that is no helper; sure frames first, then any, then the very first."""
    if not frames:
        return None
    if exact and frames[0].offset is None:
        return 0
    tests: tuple[Callable[[Frame], bool], ...] = (
        lambda f: f.reliable and not _ENTRY.match(f.function) and not _is_helper(f, skip),
        lambda f: not _ENTRY.match(f.function) and not _is_helper(f, skip),
        lambda f: f.reliable and _HELPER.fullmatch(normal_name(f.function)) is None,
        lambda f: f.reliable,
    )
    for test in tests:
        found = next((n for n, frame in enumerate(frames) if test(frame)), None)
        if found is not None:
            return found
    return 0


def _is_helper(frame: Frame, skip: re.Pattern[str] | None) -> bool:
    name = normal_name(frame.function)
    return _HELPER.fullmatch(name) is not None or (
        skip is not None and skip.fullmatch(name) is not None
    )


def _until_entry(functions: Iterable[str]) -> Iterable[str]:
    for function in functions:
        if _ENTRY.match(function):
            return
        yield function
