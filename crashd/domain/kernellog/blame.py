"""Finds the function to blame for a kernel crash. Pure.

It is the first function that is not a helper (helpers.py). Everything above the deepest reporting
function only made the report, whatever its name. An inlined function is never to blame: a log
without symbols does not contain it, and both logs must get the same title. The idea is syzkaller's.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from crashd.domain.kernellog.head import Blame, Head
from crashd.domain.kernellog.helpers import is_entry, is_helper, is_report, skips
from crashd.domain.kernellog.kinds import PanicKind
from crashd.domain.kernellog.signature import normal_name
from crashd.domain.kernellog.stalls import find_stall, stalled_frames
from crashd.domain.kernellog.trace import ReportFacts, TraceFrame, parse_frame

__all__ = ["Blamed", "blame", "find_panic", "protector_of"]

BLAMED_MAX: Final = 3
"""Functions that distinguish crashes in the same function."""
REPORT_FRAMES: Final = 40
"""How deep in the trace a reporting function may be."""
REPEATS: Final = 3
"""How often a function must be in a trace to count as endless recursion."""

_AT = re.compile(
    r"(?:.{0,400}\bat: (?:\[<?[0-9a-fx]{4,18}>?\] )?|\[<?[0-9a-f]{8,16}>?\] )"
    r"(?P<f>[A-Za-z_][\w.$]{0,511})(?:\+0x|$)"
)
_LOCK_TAKEN = re.compile(
    r".{0,200}(?:is trying to (?:acquire|release|lock|contend)|just changed the state|takes:"
    r"|is freeing memory"
    r"|is leaving the kernel with locks|\d locks? held by)"
)
_LOCK_HELD = re.compile(r"(?:but task is )?already holding lock")
_LOCK_LINES: Final = 4
_CHAIN = re.compile(r"-> #\d{1,4} ")
_ENABLING = re.compile(r"mark_held_locks|(?:lockdep|trace)_(?:hard|soft)irqs_on\w*")
_OWNED = re.compile(r"page last allocated via order")
_LIST_END = re.compile(r"-> #|other info|page last free|Modules linked|CPU: |Call [Tt]race:")
_CALLER = re.compile(r"caller is (?P<f>[A-Za-z_][\w.$]{0,511})")
_LAST = re.compile(r"last function: (?P<f>[A-Za-z_][\w.$]{0,511})")
STACK_END = "corrupted stack end detected"
_WORKERS = "Showing backtraces of "  # since 6.1
_WORK = re.compile(r"Workqueue: .{1,64} (?P<f>[A-Za-z_][\w.$]{0,511})(?: \(|$)")
_PROTECTOR = re.compile(
    r"stack-protector: Kernel stack is corrupted in:"
    r" (?!(?:0x)?[0-9a-f]{8,16}\b)(?P<f>[A-Za-z_][\w.$]{0,511})"
)
_BUCKETS = (
    (re.compile(r"rtnl_lock\w*"), "rtnl_lock"),
    (re.compile(r"_*synchronize_(?:rcu|srcu|net|sched)\w*"), "synchronize_rcu"),
)
"""Functions in which half of the kernel waits when one task holds a lock too long."""
_WAITS = re.compile(
    r"\w*sched\w*|\w*_(?:slow)?lock\w*|down|\w*down_\w*|\w*rwsem\w*|\w*completion\w*|\w*kthread\w*"
    r"|\w*synchronize\w*|context_switch|__switch_to\w*|(?:\w*_)?wait_\w*|bit_wait\w*|do_wait"
    r"|percpu_rwsem_wait|s?rcu_barrier\w*"
    r"|\w*freeze_queue_wait|rq_qos_wait|cancel_delayed_work\w*|bit_\w*lock\w*|_*mutex_\w*"
    r"|\w*fdatawait\w*|\w*_and_wait\w*|_*filemap_get_folio\w*|pagecache_get_page"
)


@dataclass(frozen=True, slots=True)
class Blamed:
    """The function to blame, and what distinguishes this crash from others."""

    frame: TraceFrame | None = None
    """Has an offset only if the log does."""
    name: str | None = None
    """The name as used in titles."""
    functions: tuple[str, ...] = ()
    """The function and its callers, for the signature."""


def blame(head: Head | None, facts: ReportFacts, texts: Sequence[str], named: str | None) -> Blamed:
    """Return the function to blame.

    Args:
        head: the first line of the report; None if it is missing.
        facts: the facts in its lines.
        texts: its lines.
        named: the function that the head names.
    """
    sort = head.blame if head is not None else Blame.PC if facts.pc is not None else Blame.PANIC
    if sort is Blame.NONE:
        return Blamed()
    if sort is Blame.STALL:
        stall = find_stall(stalled_frames(facts))
        return Blamed(stall.frame, stall.name, (stall.dispatched,)) if stall else Blamed()
    if sort is Blame.PANIC and any(STACK_END in text[:200] for text in texts[:8]):
        return _overrun(facts)
    if head is not None and head.kind is PanicKind.STACK_OVERFLOW:
        recursion = _find_recursion(facts.trace)
        if recursion is not None:
            return recursion
    if sort is Blame.WORK:
        return _work(facts, texts)
    if sort is Blame.HUNG:
        return _hung(facts, texts)
    skip = re.compile(head.skip) if head is not None and head.skip is not None else None
    return _choose(_candidates(sort, facts, texts, named, skip), skip)


def find_panic(trace: Sequence[TraceFrame]) -> int:
    """Return the index of panic() in a trace; -1 if it is not there."""
    functions = [normal_name(frame.function) for frame in trace]
    return next(
        (n for n, name in enumerate(functions) if name in ("panic", "vpanic", "nmi_panic")), -1
    )


def protector_of(texts: Iterable[str]) -> str | None:
    """Return the function with the stack that the compiler's stack protector found corrupted."""
    found = next(filter(None, (_PROTECTOR.search(text[:400]) for text in texts)), None)
    return found["f"] if found is not None else None


def _candidates(
    sort: Blame,
    facts: ReportFacts,
    texts: Sequence[str],
    named: str | None,
    skip: re.Pattern[str] | None,
) -> Sequence[TraceFrame]:
    """Return the functions that may be to blame, most likely first."""
    if sort is Blame.PC and facts.pc is not None:
        return _from(facts.pc.function, facts)
    if sort is Blame.PANIC:
        return _panicked(facts, texts)
    if sort is Blame.LOCK:
        return _locked(facts, texts, skip)
    if sort is Blame.OWNER:  # where a bad page is noticed is chance
        return _find_listed(texts, _OWNED, skip) or _reported(facts)
    found = {
        Blame.HEAD: lambda: named or (facts.pc.function if facts.pc is not None else None),
        Blame.CALLER: lambda: _find(_CALLER, texts),
        Blame.LAST: lambda: _find(_LAST, texts),
    }.get(sort, lambda: None)()
    return _from(found, facts) if found is not None else _reported(facts)


def _find(pattern: re.Pattern[str], texts: Sequence[str]) -> str | None:
    match = next(filter(None, (pattern.match(text.lstrip()) for text in texts)), None)
    return match["f"] if match is not None else None


def _reported(facts: ReportFacts) -> Sequence[TraceFrame]:
    """Return the trace without the frames that made the report: reporters, and the trap."""
    trace = facts.trace
    start = 0
    for n, frame in enumerate(trace[:REPORT_FRAMES]):
        if is_entry(frame.function):
            break
        if is_report(frame.function):
            start = n + 1
    trap = facts.interrupted_at
    if facts.interrupted is not None and trap >= start:
        above = [frame for frame in trace[start:trap] if frame.reliable]
        if all(is_helper(frame.function) for frame in above):
            return [facts.interrupted, *trace[trap:]]
    return trace[start:]


def _from(function: str, facts: ReportFacts) -> Sequence[TraceFrame]:
    """Return the trace from a function on, followed by its callers.

    The function may appear several times: as the program counter, as the interrupted function, or
    on the stack by chance. A reliable frame wins over a chance one.
    """
    trace = facts.trace
    name = normal_name(function)
    places = [n for n, frame in enumerate(trace) if normal_name(frame.function) == name]
    sure = next((n for n in places if trace[n].reliable), None)
    known = [
        f
        for f in (facts.pc, facts.interrupted)
        if f is not None and normal_name(f.function) == name
    ]
    first = known[0] if known else trace[places[0]] if places else None
    if first is None:
        return [TraceFrame(function, None, None, None, True), *_reported(facts)]
    first = TraceFrame(first.function, first.offset, first.size, first.module, True)
    if facts.interrupted in known:
        return [first, *trace[facts.interrupted_at :]]
    at = sure if sure is not None else places[-1] if places else -1
    return [first, *trace[at + 1 :]]


def _locked(
    facts: ReportFacts, texts: Sequence[str], skip: re.Pattern[str] | None
) -> Sequence[TraceFrame]:
    """Return the functions that may be to blame for a lock.

    Who takes it; if that function only locks, who holds the other lock; and if that is the
    workqueue, who waits for its work. If a lock is held while interrupts are enabled, who does
    that, not where the lock was taken.
    """
    functions = (normal_name(frame.function) for frame in facts.trace[:REPORT_FRAMES])
    if any(map(_ENABLING.fullmatch, functions)):
        return _reported(facts)
    taker = _find_lock(texts, skip)
    if taker is not None:
        return _from(taker, facts)
    return _find_listed(texts, _CHAIN, skip) or _reported(facts)


def _find_lock(texts: Sequence[str], skip: re.Pattern[str] | None) -> str | None:
    """Return the function that takes the lock: `at: f` soon after the line about the lock.

    If that function only locks, return the one that holds the other lock.
    """
    for start in (_LOCK_TAKEN, _LOCK_HELD):
        begin = next((n for n, text in enumerate(texts[:200]) if start.match(text.lstrip())), None)
        if begin is None:
            continue
        for text in texts[begin : begin + _LOCK_LINES]:
            match = _AT.match(text.lstrip())
            if match is not None:
                if not skips(match["f"], skip):
                    return match["f"]
                break
    return None


def _find_listed(
    texts: Sequence[str], start: re.Pattern[str], skip: re.Pattern[str] | None
) -> Sequence[TraceFrame]:
    """Return the functions listed after a line, from the first that is not a helper on.

    Lines of others may stand between them.
    """
    begin = next((n for n, text in enumerate(texts) if start.match(text.lstrip())), len(texts))
    frames: list[TraceFrame] = []
    for text in map(str.lstrip, texts[begin + 1 :]):
        frame = parse_frame(text)
        if _LIST_END.match(text) or (frame is not None and is_entry(frame.function)):
            break
        if frame is not None and (frames or not skips(frame.function, skip)):
            frames.append(frame)
    return frames


def _panicked(facts: ReportFacts, texts: Sequence[str]) -> Sequence[TraceFrame]:
    """Return the functions that may be to blame for a panic: the callers of panic().

    For a watchdog's panic these are the functions of the CPU that it interrupted.
    """
    protector = protector_of(texts[:8])
    if protector is not None:
        return _from(protector, facts)
    at = find_panic(facts.trace)
    if at < 0:
        return [*([facts.pc] if facts.pc is not None else []), *facts.trace]
    callers = facts.trace[at + 1 :]
    if not callers or not callers[0].function.startswith("watchdog_"):
        return callers
    below = ReportFacts(
        interrupted=facts.interrupted,
        interrupted_at=max(0, facts.interrupted_at - at - 1),
        trace=callers,
    )
    return stalled_frames(below)


def _hung(facts: ReportFacts, texts: Sequence[str]) -> Blamed:
    """Blame the function in which a task waits; for a place where many wait, that place."""
    trace = _sure(facts.trace)
    for n, frame in enumerate(trace):
        if is_entry(frame.function):
            break
        for bucket, name in _BUCKETS:
            if bucket.fullmatch(normal_name(frame.function)):
                return Blamed(frame, name, (name, *_callers(trace[n + 1 :], _WAITS)[:1]))
    return _choose(trace, _WAITS)


def _overrun(facts: ReportFacts) -> Blamed:
    """Blame the function that was dispatched: where the scheduler saw that the stack had been
    overrun is chance.
    """
    callers = facts.trace[find_panic(facts.trace) + 1 :]
    stall = find_stall(callers)
    if stall is None:
        return Blamed()
    named = (f for f in callers if normal_name(f.function).endswith(stall.dispatched))
    return Blamed(next(named, stall.frame), stall.dispatched, (stall.dispatched,))


def _work(facts: ReportFacts, texts: Sequence[str]) -> Blamed:
    """Blame the work of the first stalled worker; older kernels do not show these."""
    shown = next((n for n, text in enumerate(texts) if text.lstrip().startswith(_WORKERS)), None)
    found = _find(_WORK, texts[shown:]) if shown is not None else None
    if found is None:
        return Blamed()
    here = next((frame for frame in facts.trace if frame.function == found), None)
    frame = here or TraceFrame(found, None, None, None, True)
    return Blamed(frame, normal_name(found), (found,))


def _find_recursion(trace: Sequence[TraceFrame]) -> Blamed | None:
    """Find the functions of an endless recursion; the same wherever the stack overflowed."""
    sure = _sure(trace)
    counts = Counter(normal_name(frame.function) for frame in sure)
    names = sorted(name for name, count in counts.items() if count >= REPEATS)
    names = [name for name in names if not is_helper(name)] or names
    if not names:
        return None
    frame = next(frame for frame in sure if normal_name(frame.function) == names[0])
    return Blamed(frame, names[0], tuple(names[:BLAMED_MAX]))


def _sure(frames: Sequence[TraceFrame]) -> Sequence[TraceFrame]:
    return [f for f in frames if f.reliable and not f.inlined] or [
        f for f in frames if not f.inlined
    ]


def _choose(frames: Sequence[TraceFrame], skip: re.Pattern[str] | None) -> Blamed:
    """Choose the first frame that is not a helper: a reliable one, else any, else frame 0."""
    frames = [frame for frame in frames if not frame.inlined]
    if not frames:
        return Blamed()
    tests: tuple[Callable[[TraceFrame], bool], ...] = (
        lambda f: f.reliable and not is_entry(f.function) and not skips(f.function, skip),
        lambda f: not is_entry(f.function) and not skips(f.function, skip),
        lambda f: f.reliable and not is_helper(f.function),
        lambda f: f.reliable,
    )
    places = (next((n for n, frame in enumerate(frames) if test(frame)), None) for test in tests)
    at = next((n for n in places if n is not None), 0)
    return Blamed(
        frames[at], normal_name(frames[at].function), _callers(frames[at:], skip)[:BLAMED_MAX]
    )


def _callers(frames: Sequence[TraceFrame], skip: re.Pattern[str] | None) -> tuple[str, ...]:
    names = []
    for frame in frames:
        if is_entry(frame.function):
            break
        if frame.reliable and not skips(frame.function, skip):
            names.append(frame.function)
    return tuple(names)
