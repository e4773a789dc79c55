"""What names a crash: reports of every sort, in the words of every architecture."""

import gzip
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashd.domain.kernellog.analyse import (
    TEXT_MAX,
    Impact,
    LogAnalysis,
    PanicKind,
    analyse,
    analyse_report,
    find_reports,
)
from crashd.domain.kernellog.printk import parse_lines
from crashd.domain.kernellog.title import TITLE_MAX
from crashd.domain.kernellog.trace import FRAMES_MAX, MODULES_MAX

DATA = Path(__file__).parents[3] / "data/dmesg"
CLOUD = "6.1.0-56-cloud-amd64"
K = PanicKind


def read_data(name: str) -> bytes:
    return gzip.decompress((DATA / f"{name}.gz").read_bytes())


def analysed(log: str | bytes) -> LogAnalysis:
    found = analyse(log.encode() if isinstance(log, str) else log)
    assert found is not None
    return found


def events(log: str | bytes, *, dead: bool = False) -> list[LogAnalysis]:
    lines = parse_lines(log.encode() if isinstance(log, str) else log)
    return [analyse_report(report) for report in find_reports(lines, dead=dead)]


# ---- logs that real kernels left ----


class Expected(NamedTuple):
    title: str
    kind: PanicKind
    function: str
    comm: str
    pid: int
    cpu: int
    module: str | None = "provoke"
    panic: str | None = None
    fatal: bool = True
    taint: str = "GOE"


SYSRQ = "Kernel panic - not syncing: sysrq triggered crash"
NULL = "BUG: unable to handle kernel NULL pointer dereference in"
REAL: dict[str, Expected] = {
    "bug": Expected("kernel BUG in provoke_bug", K.BUG, "provoke_bug", "insmod", 451, 1),
    "div0": Expected("divide error in provoke_div", K.DIVIDE, "provoke_div", "insmod", 451, 0),
    "driver-panic": Expected(
        "Kernel panic - not syncing: provoke: panic called by a driver",
        K.PANIC,
        "provoke_init",
        "insmod",
        451,
        1,
        panic="provoke: panic called by a driver",
    ),
    "gpf": Expected(
        "general protection fault in provoke_gpf", K.GPF, "provoke_gpf", "insmod", 452, 1
    ),
    "irq-null": Expected(f"{NULL} provoke_timer_fn", K.OOPS, "provoke_timer_fn", "swapper/0", 0, 0),
    "softlockup": Expected(
        "BUG: soft lockup in provoke_spin",
        K.SOFT_LOCKUP,
        "provoke_spin",
        "insmod",
        451,
        1,
        panic="softlockup: hung tasks",
    ),
    "sysrq": Expected(
        SYSRQ,
        K.SYSRQ,
        "sysrq_handle_crash",
        "bash",
        398,
        0,
        None,
        "sysrq triggered crash",
        taint="",
    ),
    "cut-sync": Expected(
        SYSRQ,
        K.SYSRQ,
        "sysrq_handle_crash",
        "bash",
        398,
        1,
        None,
        "sysrq triggered crash",
        taint="",
    ),
    "full-cycle.serial": Expected(
        SYSRQ,
        K.SYSRQ,
        "sysrq_handle_crash",
        "bash",
        396,
        1,
        None,
        "sysrq triggered crash",
        taint="",
    ),
    "crashkernel-96M-hang.serial": Expected(
        "Kernel panic - not syncing: System is deadlocked on memory",
        K.OOM,
        "out_of_memory.cold",
        "kworker/u2:0",
        9,
        0,
        None,
        "System is deadlocked on memory",
        taint="",
    ),
    "oops-not-fatal.serial": Expected(
        f"{NULL} provoke_null_deref",
        K.OOPS,
        "provoke_null_deref",
        "insmod",
        452,
        1,
        fatal=False,
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_analyse_log_of_a_real_crash_names_it(name: str) -> None:
    expected = REAL[name]
    found = analysed(read_data(name))
    assert found.title == expected.title
    assert found.kind is expected.kind
    assert (found.function, found.module) == (expected.function, expected.module)
    assert (found.comm, found.pid, found.cpu) == (expected.comm, expected.pid, expected.cpu)
    assert (found.panic, found.fatal) == (expected.panic, expected.fatal)
    assert (found.release, found.taint) == (CLOUD, expected.taint)
    assert found.hardware is not None
    assert found.hardware.startswith("QEMU Standard PC (Q35 + ICH9, 2009)")


@pytest.mark.parametrize("name", ["enospc", "journal-after"])
def test_analyse_log_without_a_crash_is_none(name: str) -> None:
    assert analyse(read_data(name)) is None


def test_analyse_all_of_a_report_is_told() -> None:
    found = analysed(read_data("irq-null"))
    assert found.offset == "0x5/0x20"
    assert found.severity is Impact.FATAL
    assert found.time_s == 42.101339
    assert found.modules[:3] == ("provoke", "kvm_amd", "kvm")
    assert found.taint_words == ("out-of-tree module", "unsigned module")
    assert [frame.function for frame in found.trace[:4]] == [
        "call_timer_fn",
        "__run_timers",
        "run_timer_softirq",
        "handle_softirqs",
    ]
    assert found.text.startswith("BUG: kernel NULL pointer dereference, address: 00000000")
    raw = read_data("irq-null")[found.offset_bytes :]
    assert raw.startswith(b"[   42.101339] BUG: kernel NULL")


def test_find_reports_serial_log_of_two_kernels_finds_both_panics() -> None:
    found = events(read_data("crashkernel-96M-hang.serial"))
    assert [(event.kind, event.fatal) for event in found] == [(K.SYSRQ, True), (K.OOM, True)]


def test_analyse_same_crash_on_another_boot_has_the_same_signature() -> None:
    assert analysed(read_data("sysrq")).signature == analysed(read_data("cut-sync")).signature


def test_analyse_different_crashes_have_different_signatures() -> None:
    names = [name for name, expected in REAL.items() if expected.title != SYSRQ]
    assert len({analysed(read_data(name)).signature for name in names}) == len(names)


# ---- one report of every sort ----


def read_cases() -> list[tuple[str, ...]]:
    names = ("reports", "checkers", "stalls", "faults")
    text = "".join((DATA / f"{name}.txt").read_text() for name in names)
    return [
        (*(part.strip() for part in head.split(" | ")), body)
        for head, _, body in (case.partition("\n") for case in text.split("=== ")[1:])
    ]


CASES = read_cases()


@pytest.mark.parametrize("case", CASES, ids=[f"{n}-{case[1]}" for n, case in enumerate(CASES)])
def test_analyse_report_of_every_sort_names_it(case: tuple[str, ...]) -> None:
    title, kind, function, comm, pid, release, log = case
    found = events(log, dead=True)[0]
    assert found.title == title
    assert found.kind == kind
    told = (found.function or "-").split(".")[0]
    assert told == function
    assert (found.comm or "-") == comm
    assert (found.release or "-") == release
    assert (str(found.pid) if found.pid is not None else "-") == pid
    assert found.fatal or "Kernel panic" not in log


# ---- which report names the crash ----

BUG = """\
[  {0}.000001] BUG: kernel NULL pointer dereference, address: 0000000000000010
[  {0}.000002] Oops: 0002 [#1] PREEMPT SMP
[  {0}.000003] CPU: 1 PID: 451 Comm: insmod {2} 6.1.0 #1
[  {0}.000004] RIP: 0010:{1}+0x5/0x20
[  {0}.000005] Call Trace:
[  {0}.000006]  caller_of_{1}+0x5/0x20
[  {0}.000007] ---[ end trace 0000000000000000 ]---
"""
WARN = """\
[  {0}.000001] ------------[ cut here ]------------
[  {0}.000002] WARNING: CPU: 0 PID: 12 at drivers/misc/thing.c:28 {1}+0xba/0x110
[  {0}.000003] CPU: 0 PID: 12 Comm: sh {2} 6.1.0 #1
[  {0}.000004] Call Trace:
[  {0}.000005]  caller_of_{1}+0x5/0x20
[  {0}.000006] ---[ end trace 0000000000000000 ]---
"""
PANIC = """\
[  {0}.000001] Kernel panic - not syncing: {1}
[  {0}.000002] CPU: 0 PID: 1 Comm: init {2} 6.1.0 #1
[  {0}.000003] Call Trace:
[  {0}.000004]  panic+0x118/0x2f4
[  {0}.000005]  do_it+0x118/0x2f4
"""
LOCKUP = """\
[  {0}.000001] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [insmod:451]
[  {0}.000002] CPU: 1 PID: 451 Comm: insmod {2} 6.1.0 #1
[  {0}.000003] RIP: 0010:{1}+0xe/0x10
"""
CALM = "[  {0}.000001] usb 1-1: new high-speed USB device\n"
BANNER = "[    0.000000] Linux version 6.1.0-9 (x@y) #1 SMP\n"
CLEAN, DIED = "Not tainted", "Tainted: G      D           "


def log_of(*parts: tuple[str, int, str] | tuple[str, int, str, str]) -> str:
    return "".join(part[0].format(part[1], part[2], (*part, CLEAN)[3]) for part in parts)


@pytest.mark.parametrize(
    ("log", "title"),
    [
        (log_of((BUG, 10, "a"), (PANIC, 11, "Fatal exception")), f"{NULL} a"),
        (log_of((BUG, 10, "a"), (BUG, 12, "b"), (PANIC, 13, "Fatal exception")), f"{NULL} a"),
        (
            log_of((BUG, 10, "a"), (BUG, 900, "b"), (PANIC, 901, "Fatal exception")),
            f"{NULL} b",
        ),
        (
            log_of((WARN, 10, "w"), (BUG, 900, "b"), (PANIC, 901, "Fatal exception")),
            f"{NULL} b",
        ),
        (log_of((WARN, 899, "w"), (BUG, 900, "b")), f"{NULL} b"),
        (log_of((WARN, 900, "w"), (PANIC, 900, "panic_on_warn set ...")), "WARNING in w"),
        (log_of((WARN, 10, "w"), (PANIC, 900, "no")), "Kernel panic - not syncing: no"),
        (log_of((BUG, 890, "b"), (PANIC, 900, "no")), "Kernel panic - not syncing: no"),
        (log_of((BUG, 10, "b"), (PANIC, 900, "no")), "Kernel panic - not syncing: no"),
        (
            log_of(
                (BUG, 10, "b"), (LOCKUP, 100, "c", DIED), (PANIC, 101, "softlockup: hung tasks")
            ),
            "BUG: soft lockup in c",
        ),
        (
            log_of((BUG, 10, "b"), (LOCKUP, 100, "c"), (PANIC, 101, "softlockup: hung tasks")),
            "BUG: soft lockup in c",
        ),
        (log_of((BUG, 10, "b"), (CALM, 9000, "")), f"{NULL} b"),
        (log_of((WARN, 10, "w"), (CALM, 20, "")), "WARNING in w"),
        (
            log_of((BUG, 10, "old"), (PANIC, 11, "Fatal exception"))
            + BANNER
            + log_of((BUG, 20, "new"), (PANIC, 21, "Fatal exception")),
            f"{NULL} new",
        ),
        (
            log_of((BUG, 10, "old"), (PANIC, 11, "Fatal exception"))
            + BANNER
            + log_of((WARN, 20, "w")),
            f"{NULL} old",
        ),
    ],
    ids=lambda value: None,
)
def test_analyse_names_the_first_of_the_chain_that_led_to_the_end(log: str, title: str) -> None:
    assert analysed(log).title == title


RSS = "[  {0}.000001] BUG: Bad rss-counter state mm:00000000f00dcafe type:MM_ANONPAGES val:2\n"
HUNG = """\
[  {0}.000001] INFO: task sync:77 blocked for more than 120 seconds.
[  {0}.000002]       {2} 6.1.0 #1
[  {0}.000003] task:sync            state:D stack:0     pid:77    ppid:1      flags:0x00000002
[  {0}.000004] Call Trace:
[  {0}.000005]  __schedule+0x282/0x870
[  {0}.000006]  {1}+0x3a/0x90
"""
KASAN = """\
[  {0}.000001] BUG: KASAN: slab-use-after-free in {1}+0x44/0x90
[  {0}.000002] Read of size 8 at addr ffff124eadbb8ecc by task sh/9
[  {0}.000003] Call Trace:
[  {0}.000004]  {1}+0x44/0x90
"""
OOM = "Out of memory: compulsory panic_on_oom is enabled"
DIES = "Kernel panic - not syncing:"


@pytest.mark.parametrize(
    ("log", "title", "earlier"),
    [
        (log_of((RSS, 89, ""), (PANIC, 99, OOM)), f"{DIES} {OOM}", "BUG: Bad rss-counter state"),
        (log_of((LOCKUP, 89, "c"), (PANIC, 99, OOM)), f"{DIES} {OOM}", "BUG: soft lockup in c"),
        (
            log_of((LOCKUP, 89, "c"), (PANIC, 99, "sysrq triggered crash")),
            f"{DIES} sysrq triggered crash",
            "BUG: soft lockup in c",
        ),
        (
            log_of((BUG, 70, "b"), (HUNG, 89, "f"), (PANIC, 89, "hung_task: blocked tasks")),
            "INFO: task hung in f",
            f"{NULL} b",
        ),
        (
            log_of((HUNG, 60, "f"), (LOCKUP, 89, "c"), (PANIC, 90, "softlockup: hung tasks")),
            "BUG: soft lockup in c",
            "INFO: task hung in f",
        ),
        (
            log_of((LOCKUP, 80, "c"), (WARN, 90, "w"), (PANIC, 90, "panic_on_warn set ...")),
            "WARNING in w",
            "BUG: soft lockup in c",
        ),
        (
            log_of((RSS, 89, ""), (BUG, 90, "b"), (PANIC, 90, "Fatal exception")),
            f"{NULL} b",
            "BUG: Bad rss-counter state",
        ),
        (
            log_of((KASAN, 90, "k"), (BUG, 90, "b"), (PANIC, 90, "Fatal exception")),
            "KASAN: slab-use-after-free Read in k",
            None,
        ),
        (
            log_of((WARN, 50, "w"), (PANIC, 90, "thing is dead")),
            f"{DIES} thing is dead",
            "WARNING in w",
        ),
        (
            log_of((BUG, 50, "b"), (PANIC, 90, "Attempted to kill init! exitcode=0x00000009")),
            f"{DIES} Attempted to kill init!",
            f"{NULL} b",
        ),
        (log_of((PANIC, 90, "no")), f"{DIES} no", None),
        (
            log_of((BUG, 10, "old"), (PANIC, 11, "Fatal exception"))
            + BANNER
            + log_of((PANIC, 20, "no")),
            f"{DIES} no",
            None,
        ),
    ],
    ids=lambda value: None,
)
def test_analyse_names_what_the_kernel_died_of_and_keeps_the_complaint_before(
    log: str, title: str, earlier: str | None
) -> None:
    found = analysed(log)
    assert (found.title, found.earlier, found.fatal) == (title, earlier, True)


def test_analyse_warning_that_the_machine_outlived_is_none() -> None:
    assert analyse(log_of((WARN, 10, "w"), (CALM, 9000, "")).encode()) is None


def test_analyse_release_is_of_the_boot_where_the_report_has_none() -> None:
    log = BANNER + "[   10.000001] Kernel panic - not syncing: no\n"
    assert analysed(log).release == "6.1.0-9"


@pytest.mark.parametrize("dead", [True, False])
def test_find_reports_unfinished_oops_at_the_end_is_fatal_if_the_machine_is_dead(
    dead: bool,
) -> None:
    log = log_of((BUG, 10, "a")).rpartition("[  10.000007]")[0]
    assert [event.fatal for event in events(log, dead=dead)] == [dead]


def test_find_reports_of_a_live_log_yields_each_event() -> None:
    log = log_of(
        (WARN, 10, "w"), (CALM, 11, ""), (BUG, 12, "a"), (LOCKUP, 40, "c"), (WARN, 41, "x")
    )
    assert [(event.kind, event.severity, event.function) for event in events(log)] == [
        (K.WARNING, Impact.WARNING, "w"),
        (K.OOPS, Impact.ERROR, "a"),
        (K.SOFT_LOCKUP, Impact.ERROR, "c"),
        (K.WARNING, Impact.WARNING, "x"),
    ]


def test_find_reports_of_several_hung_tasks_the_panic_follows_from_the_first() -> None:
    case = next(log for title, _, _, _, _, _, log in CASES if "task hung" in title)
    assert [(event.comm, event.pid, event.fatal) for event in events(case)] == [
        ("fsstress", 4411, True),
        ("fsstress", 4412, False),
    ]


def test_find_reports_interleaved_cpus_are_told_apart_by_their_callers() -> None:
    one = re.sub(r"\]", "][   T1]", log_of((BUG, 10, "a")), flags=0).splitlines()
    two = re.sub(r"\]", "][   C2]", log_of((BUG, 10, "b")), flags=0).splitlines()
    one = [re.sub(r"\[(#1|.end)\]\[   T1\]", r"[\1]", line) for line in one]
    two = [re.sub(r"\[(#1|.end)\]\[   C2\]", r"[\1]", line) for line in two]
    mixed = "\n".join(line for pair in zip(one, two, strict=True) for line in pair)
    found = events(mixed)
    assert [event.title for event in found] == [f"{NULL} a", f"{NULL} b"]
    assert [[frame.function for frame in event.trace] for event in found] == [
        ["caller_of_a"],
        ["caller_of_b"],
    ]


@pytest.mark.parametrize(
    "words",
    [
        "BUG: a[123]: segfault at 0 ip 000055d0 sp 00007ffc error 4 in a[55d0c0ff0000+1000]",
        "Oops: 0000 [#1] invoked oom-killer: gfp_mask=0x140cca, order=0, oom_score_adj=0",
        "traps: BUG: x[9] general protection fault ip:55d0 sp:7ffc error:0 in x[55d0+1000]",
        "WARNING: x[9] trap int3 ip:55d0 sp:7ffc error:0 in x[55d0+1000]",
        "UBSAN: a in b:1[9]: segfault at 0 ip 000055d0 sp 00007ffc error 4",
        "BUG: KASAN: a i[9]: segfault at 0 ip 000055d0 sp 00007ffc error 4",
    ],
)
def test_find_reports_of_a_process_that_is_named_like_one_are_none(words: str) -> None:
    log = f"[   10.000001] {words}\n[   10.000002] Call Trace:\n[   10.000003]  f+0x1/0x2\n"
    assert events(log) == []


@pytest.mark.parametrize(
    "words",
    [
        "WARNING: Spectre v2 mitigation leaves CPU vulnerable to RETBleed attacks",
        "NMI watchdog: Perf NMI watchdog permanently disabled",
        "INFO: NMI handler (ghes_notify_nmi) took too long to run: 1.5 msecs",
        "mce: [Hardware Error]: Machine check events logged",
        "usb 1-1: Product: BUG: unable to handle kernel NULL pointer dereference",
        "rcu: Hierarchical SRCU implementation.",
        "BUG: a line that nothing follows",
    ],
)
def test_find_reports_of_mere_messages_are_none(words: str) -> None:
    assert events(f"[   10.000001] {words}\n[   10.000002] usb 1-1: x\n") == []


NOBODY = """\
irq 16: nobody cared (try booting with the "irqpoll" option)
CPU: 0 PID: 0 Comm: swapper/0 Not tainted 6.1.0 #1
Hardware name: Example
Call Trace:
 <IRQ>
 dump_stack_lvl+0x44/0x5c
 __report_bad_irq+0x35/0xa7
 note_interrupt+0x245/0x290
 handle_irq_event+0x6d/0x80
 </IRQ>
 <TASK>
RIP: 0010:cpuidle_enter_state+0xd6/0x420
 do_idle+0x202/0x2a0
 </TASK>
handlers:
[<00000000e6c1b4a7>] usb_hcd_irq
Disabling IRQ #16
"""
MSR = """\
unchecked MSR access error: RDMSR from 0x1c9 at rIP: 0xffffffff810a1b2c (native_read_msr+0x4/0x40)
Call Trace:
 <TASK>
 intel_pmu_init+0x1/0x2
 </TASK>
"""


@pytest.mark.parametrize("dead", [True, False], ids=["dead", "live"])
@pytest.mark.parametrize("quiet", ["", "usb 1-1: new device\n"], ids=["", "quiet"])
@pytest.mark.parametrize("words", [NOBODY, MSR], ids=["nobody-cared", "msr"])
def test_find_reports_of_a_stack_that_is_shown_for_another_reason_are_none(
    words: str, quiet: str, dead: bool
) -> None:
    assert events(quiet + words, dead=dead) == []


def test_find_reports_of_a_live_kernel_never_begin_in_the_middle() -> None:
    log = "".join(log_of((WARN, 10, "w")).splitlines(keepends=True)[2:])
    assert [event.kind for event in events(log, dead=True)] == [K.OOPS]
    assert events(log, dead=False) == []


def test_find_reports_head_of_a_process_with_a_line_break_is_put_together() -> None:
    log = HUNG.format(10, "f", CLEAN).replace("sync:77", "a\n[  10.000001] b\n[  10.000001] :77")
    (event,) = events(log)
    assert (event.title, event.comm, event.pid) == ("INFO: task hung in f", "a\\x0ab\\x0a", 77)
    log = "[  10.000001] BUG: scheduling while atomic: a\n[  10.000001] b/77/0x00000002\n"
    log += "[  10.000002] CPU: 0 PID: 77 Comm: a\n[  10.000002] b Not tainted 6.1.0 #1\n"
    log += "[  10.000003] Call Trace:\n[  10.000004]  f+0x1/0x2\n"
    (event,) = events(log)
    assert (event.comm, event.pid, event.release) == ("a\\x0ab", 77, "6.1.0")


def test_find_reports_line_of_a_user_behind_half_a_head_is_no_head() -> None:
    log = "[  10.000001] INFO: task force is on its way\n[  10.000002] a:1 blocked\n"
    assert events(log) == []


def test_find_reports_stack_dump_without_a_head_is_none() -> None:
    log = "[   10.000001] Call Trace:\n[   10.000002]  f+0x1/0x2\n[   10.000003]  g+0x1/0x2\n"
    assert events(log) == []


@pytest.mark.parametrize(
    ("name", "cut_before", "title", "comm"),
    [
        ("irq-null", "CPU: 0 PID: 0", "kernel oops in provoke_timer_fn", "swapper/0"),
        ("irq-null", "RIP: 0010:provoke", "kernel oops in provoke_timer_fn", None),
        ("irq-null", "Call Trace:", "kernel oops in call_timer_fn", None),
        ("irq-null", " __run_timers+", "kernel oops in __run_timers", None),
        ("bug", "invalid opcode: 0000", "invalid opcode in provoke_bug", "insmod"),
        ("softlockup", "RIP: 0010:provoke", "kernel oops in provoke_spin", "insmod"),
        ("sysrq", "CPU: 0 PID: 398", "kernel panic in sysrq_handle_crash", "bash"),
        ("driver-panic", "Call Trace:", "kernel panic in provoke_init", None),
    ],
)
def test_analyse_log_that_begins_within_a_report_names_what_is_left(
    name: str, cut_before: str, title: str, comm: str | None
) -> None:
    log = read_data(name)
    start = log.index(b"\n", analysed(log).offset_bytes - 1) + 1
    found = analysed(log[log.rindex(b"\n", 0, log.index(cut_before.encode(), start)) + 1 :])
    assert (found.title, found.comm, found.fatal) == (title, comm, True)


# ---- what stays the same, and what does not ----


def vary(log: str, seed: int) -> str:
    """Let the same happen on another boot, cpu and process."""

    def address(match: re.Match[str]) -> str:
        return f"{(int(match[0], 16) * 7 + seed * 0x200000) % 2**64 | 1 << 63:016x}"

    log = re.sub(r"(?<![0-9a-f])ffff[0-9a-f]{12}(?![0-9a-f])", address, log)
    log = re.sub(r"PID: \d+", f"PID: {seed + 2}", log)
    log = re.sub(r"CPU: \d+", f"CPU: {seed}", log)
    log = re.sub(r"on cpu \d+", f"on cpu {seed}", log)
    log = re.sub(r"CPU ?#\d+", f"CPU#{seed}", log)
    log = re.sub(r"(?m)^\[ *(\d+)(\.\d+)\]", lambda m: f"[{int(m[1]) + seed:5}{m[2]}]", log)
    return re.sub(r"\]\[ *([CT])\d+\]", lambda m: f"][{m[1] + str(seed + 1):>6}]", log)


@given(st.sampled_from(CASES), st.integers(0, 500), st.booleans())
def test_signature_another_boot_cpu_and_process_is_the_same(
    case: tuple[str, ...], seed: int, crlf: bool
) -> None:
    log = vary(case[-1], seed)
    again = events(log.replace("\n", "\r\n") if crlf else log, dead=True)[0]
    first = events(case[-1], dead=True)[0]
    assert (again.signature, again.title) == (first.signature, first.title)


@pytest.mark.parametrize("form", ["<4>{}", "Nov 23 11:00:00 host kernel: {}", "vt login: {}"])
def test_signature_in_another_form_of_the_log_is_the_same(form: str) -> None:
    for case in CASES:
        if not case[-1].startswith("[  "):
            continue
        log = "".join(form.format(line) + "\n" for line in case[-1].splitlines())
        first = events(case[-1], dead=True)[0]
        assert events(log, dead=True)[0].signature == first.signature


def test_signature_in_records_of_dev_kmsg_is_the_same() -> None:
    log = log_of((WARN, 10, "w"), (BUG, 12, "a"), (PANIC, 13, "Fatal exception"))
    records = "".join(
        f"4,{n},{line[3:5]}{line[6:12]},-;{line[14:]}\n SUBSYSTEM=x\n"
        for n, line in enumerate(log.splitlines())
    )
    assert analysed(records).signature == analysed(log).signature
    assert analysed(records).time_s == analysed(log).time_s


def test_signature_of_a_rotated_ring_buffer_is_the_same() -> None:
    log = "".join(CALM.format(second) for second in range(10, 60))
    log += log_of((BUG, 70, "a"), (PANIC, 71, "Fatal exception"))
    lines = log.splitlines(keepends=True)
    rotated = "".join(lines[-9:] + lines[:-9])
    assert analysed(rotated).signature == analysed(log).signature
    assert analysed(rotated).fatal


def test_signature_different_functions_differ() -> None:
    assert analysed(log_of((BUG, 10, "a"))).signature != analysed(log_of((BUG, 10, "b"))).signature


def test_signature_of_another_compilers_clone_is_the_same() -> None:
    plain, clone = log_of((BUG, 10, "a")), log_of((BUG, 10, "a")).replace(" a+", " a.isra.0+")
    clone = clone.replace(":a+", ":a.constprop.3.cold+")
    assert analysed(clone).signature == analysed(plain).signature
    assert analysed(clone).function == "a.constprop.3.cold"


def test_signature_of_the_same_function_by_another_way_differs() -> None:
    log = log_of((BUG, 10, "a"))
    other = log.replace("caller_of_a", "another_caller")
    assert analysed(log).signature != analysed(other).signature


# ---- hostile logs ----

WORDS = sorted({line for case in CASES for line in case[-1].splitlines()})
MUTATIONS = st.lists(
    st.one_of(st.sampled_from(WORDS).map(str.encode), st.binary(max_size=60)), max_size=40
).map(b"\n".join)


@settings(max_examples=300)
@given(MUTATIONS)
def test_analyse_of_any_lines_is_bounded(log: bytes) -> None:
    for event in events(log, dead=True):
        assert 0 < len(event.title) <= TITLE_MAX
        assert event.title.isprintable() or not event.title.isascii()
        assert len(event.trace) <= FRAMES_MAX
        assert len(event.modules) <= MODULES_MAX
        assert len(event.text.encode()) <= TEXT_MAX
        assert re.fullmatch(r"k4-[0-9a-f]{16}", event.signature)
    analyse(log)


@given(st.sampled_from(CASES), st.data())
def test_analyse_of_a_torn_report_never_raises(case: tuple[str, ...], data: st.DataObject) -> None:
    log = case[-1].encode()
    start = data.draw(st.integers(0, len(log)))
    end = data.draw(st.integers(start, len(log)))
    analyse(log[start:end])


def test_analyse_report_of_endless_lines_is_bounded() -> None:
    log = log_of((BUG, 10, "a")).partition("[  10.000007]")[0]
    log += "".join(f"[  10.100000]  f{n}+0x1/0x2\n" for n in range(5000))
    log += "[  10.200000] Modules linked in: " + " ".join(f"m{n}" for n in range(5000)) + "\n"
    found = analysed(log)
    assert len(found.trace) == FRAMES_MAX
    assert len(found.text) <= TEXT_MAX


def test_panic_on_warn_follows_from_the_warning_not_from_a_stall_of_another_cpu() -> None:
    log = """
[  560.713151][ T1194] WARNING: CPU: 2 PID: 1194 at net/thing.c:2381 thing_fini+0x440/0x5c0
[  560.713160][ T1234] INFO: rcu_sched detected stalls on CPUs/tasks:
[  560.713169][ T1234]  (detected by 1, t=105002 jiffies, g=687946, c=687945, q=520)
[  560.713187][ T1234]  a.out   R running task on cpu   1     0 315571 315308 0x0000000e
[  560.714556][ T1194] Kernel panic - not syncing: panic_on_warn set ...
[  560.715572][ T1194] CPU: 2 PID: 1194 Comm: kworker/u12:4 Not tainted 4.20.0 #5
[  560.719399][ T1194] Call Trace:
[  560.719962][ T1194]  dump_stack+0x1db/0x2d0
[  560.722633][ T1194]  panic+0x2cb/0x65c
[  560.728889][ T1194]  __warn.cold+0x20/0x48
[  560.732696][ T1194]  invalid_op+0x14/0x20
[  560.733271][ T1194] RIP: 0010:thing_fini+0x440/0x5c0
[  560.747522][ T1194]  thing_exit+0x25/0x70
"""
    found = analyse(log.lstrip().encode())
    assert found is not None
    assert (found.title, found.fatal) == ("WARNING in thing_fini", True)
