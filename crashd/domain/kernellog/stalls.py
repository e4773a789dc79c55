"""Finds the relevant stack in the report of a stall, and the function that stalls. Pure.

A report of a stall or lockup has the stacks of several CPUs and tasks: of the stalled CPU, of the
CPU that noticed, of RCU's kthread. Only the stalled CPU's own stack counts.

Where that CPU was interrupted is chance: the same endless loop shows another function each time. So
a stall is identified by the function that the kernel's dispatchers called (a syscall's function, a
file operation, a timer, a work item), because that is in the loop, or calls it. The title names the
interrupted function if it is near the dispatched one, else the dispatched one. The idea is
syzkaller's.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from crashd.domain.kernellog.helpers import is_entry, is_helper, is_irq, is_irq_entry
from crashd.domain.kernellog.signature import normal_name
from crashd.domain.kernellog.trace import ReportFacts, TraceFrame, parse_frame

__all__ = ["Stall", "find_own_stack", "find_stall", "stalled_frames"]

NEAR: Final = 2
"""If at most this many functions follow the dispatched one, the interrupted one is named."""

_CPU_LINE = re.compile(r"CPU: (\d{1,6})(?: UID: \d{1,10})? PID: ")
_NMI_LINE = re.compile(r"NMI backtrace for cpu (\d{1,6})")
_TASK_LINE = re.compile(
    r"task:(?P<comm>.{1,64}?) {1,16}state:|(?P<old>\S{1,16}) {1,20}[RSDTtXZPI] "
)
_TRACE = re.compile(r"(?:Call [Tt]race|[Bb]acktrace)")
_GP_LINE = re.compile(
    r"(?:rcu: )?(?:RCU grace-period kthread stack dump:|Stack dump where RCU GP kthread last ran)"
)
_GP_COMM = re.compile(r"rcu_(?:preempt|sched|bh|tasks\w*|gp)$")
_STALLED = re.compile(r"(?:rcu: )? {0,8}(\d{1,6})-[.oO?D!]{3,5}[:!]")
_STALLED_LIST = re.compile(
    r".{0,120}stalls? on (?:CPU|CPUs/tasks:?) ?(?:\{ ?(?P<list>[^}]{0,400})\})?"
)
_LIST_CPU = re.compile(r"(?<![\w-])(\d{1,6})(?:-[.oO?D!]{3,5})?(?![\w])")
_LIST_MAX = 64

_IDLE = (
    r"(?:default|arch_cpu|intel|acpi|mwait|poll|amd_e400|cpuidle|call_cpuidle|haltpoll)_?idle\w*"
    r"|cpuidle_\w+|arch_safe_halt|acpi_safe_halt|wait_r4k"
)
_SKIP = re.compile(
    rf"{_IDLE}|native_\w+|kvm_wait|unwind_\w+|\w*unwind|orc_\w+|get_stack_info|in_task_stack"
    rf"|arch_stack_walk\w*"
    r"|stack_trace_\w+|update_stack_state|kernel_text_address|__kernel_text_address"
    r"|is_module_text_address"
    r"|bpf_ksym_find|is_bpf_text_address|__module_(?:address|text_address)|rcu\w*|\w*_rcu"
    r"|preempt_schedule\w*"
    r"|_*schedule|cond_resched\w*|_cond_resched|_*lock_text_start|finish_task_switch|debug_\w+"
    r"|ktime_get\w*|(?:kvm_|pv)clock_\w+|(?:local_|kvm_)?sched_clock\w*|read_tsc|irqtime_account_irq"
)
_IPI = re.compile(r"smp_call_function\w*|on_each_cpu\w*|smp_text_poke_\w+")
_DISPATCH = re.compile(
    # syscalls, threads, softirqs, timers, works
    r"process_one_work|process_scheduled_works|worker_thread|kthread|smpboot_thread_fn"
    r"|run_ksoftirqd"
    r"|_*do_softirq\w*|handle_softirqs|call_timer_fn|expire_timers|_*run_timers?\w*"
    r"|run_timer_softirq"
    r"|_*hrtimer_run_queues|hrtimer_run_softirq|tasklet_action\w*|net_rx_action|_*napi_poll"
    r"|process_backlog"
    r"|_*netif_receive_skb\w*|rcu_do_batch|rcu_core\w*|do_one_initcall|task_work_run"
    r"|exit_to_user\w*"
    # operations of files, sockets and netlink
    r"|(?:__)?vfs_(?:read|write|ioctl|open|iter_read|iter_write|fsync\w*|fallocate|readv|writev)"
    r"|do_iter_(?:read|write|readv\w*)|call_(?:read|write)_iter|call_mmap|new_sync_(?:read|write)"
    r"|(?:compat_)?(?:ksys|do_vfs|sys|SyS|SYSC|__do_sys|__se_sys|__x64_sys"
    r"|__arm64_sys)_(?:ioctl|connect|socketpair)"
    r"|(?:compat_)?(?:blkdev|sock|sock_do)_(?:driver_)?ioctl|compat_(?:sys_)?ioctl"
    r"|do_dentry_open|__fput|mmap_region"
    r"|do_mmap|(?:__)?sock_(?:sendmsg|recvmsg|release|mmap)(?:_nosec)?|__sys_(?:\w{3,4}sockopt"
    r"|listen|accept4?|connect|bind)"
    r"|do_sock_setsockopt|kernel_(?:setsockopt|listen|accept)|sock_common_setsockopt"
    r"|sk_common_release"
    r"|(?:nfnetlink|rtnetlink|genl)_rcv_msg|genl_family_rcv_msg\w*"
    # page faults
    r"|handle_mm_fault|__do_fault|(?:exc_|do_|asm_exc_)?page_fault|do_user_addr_fault"
)
_FAULT = re.compile(
    r"_*handle_mm_fault|(?:exc_|asm_exc_|do_|__do_)?page_fault|do_user_addr_fault"
    r"|do_(?:translation_fault|mem_abort|DataAbort)|handle_page_fault|el1h?_(?:64_)?(?:sync|abort)\w*"
)
_SYSCALL = re.compile(
    r"(?:__(?:x64|ia32|arm64|riscv|s390x?|mips|loongarch)_(?=sys_)|(?:compat_)?(?:SyS|SYSC)_)"
)


@dataclass(slots=True)
class _Stack:
    """The lines of one stack."""

    texts: list[str]
    cpu: int | None = None
    is_task: bool = False
    is_gp: bool = False
    traced: bool = False
    frames: int = 0


@dataclass(frozen=True, slots=True)
class Stall:
    """The function in which a CPU stalls."""

    frame: TraceFrame
    name: str
    """The name as used in titles."""
    dispatched: str
    """The dispatched function, which identifies the stall."""


def find_own_stack(texts: Sequence[str], cpu: int | None) -> Sequence[str]:
    """Return the lines of the stalled CPU's stack; all lines if no stack is found.

    Args:
        texts: the report's lines.
        cpu: the CPU that its head names.
    """
    stalled = {cpu} if cpu is not None else _find_stalled(texts)
    stacks = [stack for stack in _split(texts) if stack.frames]
    orders = (
        lambda s: not s.is_gp and s.cpu is not None and s.cpu in stalled,
        lambda s: not s.is_gp and s.is_task,
        lambda s: not s.is_gp,
        lambda s: True,
    )
    for fits in orders:
        for stack in stacks:
            if fits(stack):
                return stack.texts
    return texts


def _find_stalled(texts: Sequence[str]) -> set[int]:
    """Return the CPUs that RCU lists as stalled."""
    cpus: set[int] = set()
    for text in texts[:_LIST_MAX]:
        match = _STALLED.match(text)
        if match is not None:
            cpus.add(int(match[1]))
            continue
        listed = _STALLED_LIST.match(text)
        if listed is not None:
            cpus.update(int(found) for found in _LIST_CPU.findall(listed["list"] or ""))
    return cpus


def _split(texts: Sequence[str]) -> list[_Stack]:
    """Split a report into stacks: one for each CPU, task or trace that it shows."""
    stacks = [_Stack([])]
    is_gp = False  # whether the next stack is RCU's own kthread
    for text in texts:
        text = text.lstrip()
        current = stacks[-1]
        if _GP_LINE.match(text):
            is_gp = True
            continue
        cpu = _NMI_LINE.match(text) or _CPU_LINE.match(text)
        task = _TASK_LINE.match(text) if cpu is None else None
        trace = _TRACE.match(text) is not None
        if task is not None:
            comm = (task["comm"] or task["old"]).strip()
            gp = is_gp or _GP_COMM.match(comm) is not None
            stacks.append(_Stack([], is_task=True, is_gp=gp))
            is_gp = False
        elif cpu is not None and (current.frames or current.traced or current.cpu != int(cpu[1])):
            stacks.append(_Stack([], cpu=int(cpu[1]), is_gp=is_gp))
            is_gp = False
        elif trace and current.traced:
            stacks.append(_Stack([]))
        current = stacks[-1]
        current.texts.append(text)
        current.traced |= trace
        current.frames += parse_frame(text) is not None or text.startswith(
            ("RIP: 0010:", "pc : ", "epc : ")
        )
    return stacks


def stalled_frames(facts: ReportFacts) -> Sequence[TraceFrame]:
    """Return the functions of a stalled CPU, from the interrupted one on."""
    trace = facts.trace
    if facts.pc is not None and not is_irq_entry(facts.pc.function):
        name = normal_name(facts.pc.function)
        again = bool(trace) and normal_name(trace[0].function) == name  # as on arm64
        return [facts.pc, *trace[again:]]
    entry = next((n for n, frame in enumerate(trace) if is_irq_entry(frame.function)), None)
    if facts.interrupted is not None and (entry is None or facts.interrupted_at > entry):
        return [facts.interrupted, *trace[facts.interrupted_at :]]
    if entry is None:
        return trace
    after = next((n for n in range(entry, len(trace)) if not is_irq(trace[n].function)), len(trace))
    return trace[after:] or trace


def find_stall(frames: Sequence[TraceFrame]) -> Stall | None:
    """Return the function that stalls, given the functions from the interrupted one on."""
    sure = [frame for frame in frames if frame.reliable and not frame.inlined] or list(frames)
    own: list[TraceFrame] = []
    faulted = _find_fault(sure)
    for n, frame in enumerate(sure):
        name = normal_name(frame.function)
        if n < faulted and _FAULT.fullmatch(name):
            continue
        if _IPI.fullmatch(name):
            return Stall(frame, "smp_call_function", "smp_call_function")
        if own and (_DISPATCH.fullmatch(name) or is_entry(name)):
            break
        if not (is_helper(name) or is_irq(name) or _SKIP.fullmatch(name)):
            own.append(frame)
    if not own:
        return _named(sure[0], sure[0]) if sure else None
    return _named(own[0] if len(own) <= NEAR else own[-1], own[-1])


def _find_fault(frames: Sequence[TraceFrame]) -> int:
    """Return how many frames belong to a page fault of a function of the kernel; 0 if none do.

    Such a fault ends, and is taken again when the function touches its next page: the loop is in
    the function. A fault of a program has no callers.
    """
    names = [normal_name(frame.function) for frame in frames]
    last = next((n for n in reversed(range(len(names))) if _FAULT.fullmatch(names[n])), None)
    if last is None or all(is_helper(n) or is_irq(n) or is_entry(n) for n in names[last + 1 :]):
        return 0
    first = next(n for n, name in enumerate(names) if _FAULT.fullmatch(name))
    dispatched = any(_DISPATCH.fullmatch(n) or is_entry(n) for n in names[:first])
    return 0 if dispatched else last + 1


def _named(frame: TraceFrame, dispatched: TraceFrame) -> Stall:
    return Stall(frame, _without_abi(frame), _without_abi(dispatched))


def _without_abi(frame: TraceFrame) -> str:
    name = normal_name(frame.function)
    return _SYSCALL.sub("", name) or name
