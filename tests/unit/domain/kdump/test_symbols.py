"""What a vmlinux adds to a record, and what it leaves."""

from dataclasses import replace

from crashd.domain.crash.model import Crash, Kind, State, from_json, to_json
from crashd.domain.kdump.symbols import (
    DONE,
    FAILED,
    NONE,
    CpuTask,
    KernelFacts,
    KernelFrame,
    Local,
    Symbols,
    add_symbols,
    keep_symbols,
    symbols_of,
)

CRASH = Crash(
    id="20260101t000000-00000000-0-abcdefgh",
    kind=Kind.KERNEL,
    state=State.COMPLETE,
    time_ns=10**18,
    boot_id="0" * 32,
    title="kernel BUG in f",
    signature="k2-1",
    explanation="In f.",
    frames=({"function": "f", "module": "kernel"},),
    kernel={"build_id": "ab", "inode": 7, "dump": "dump.1", "changed_ns": 5},
)
FRAME = KernelFrame("panic", None, 16, "kernel/panic.c", 3, False, 2**64 - 16, (Local("i", "1"),))
FACTS = KernelFacts(
    tid=12,
    comm="sh",
    frames=(FRAME, replace(FRAME, function="f", inline=True, module="mod", locals=())),
    cut=False,
    cpus=(CpuTask(0, 0, "swapper/0", None, None), CpuTask(1, 12, "sh", 2**63, "panic")),
    problems=("one",),
    cpu_seconds=0.5,
)
FOUND = Symbols(DONE, 1.5, vmlinux="/v", stamp=(1, 2, 3, 4), facts=FACTS, cpu_seconds=0.7)


def test_symbols_add_frames_and_cpus_and_leave_title_and_signature() -> None:
    crash = add_symbols(CRASH, FOUND, "ab")
    told = (crash.title, crash.signature, crash.explanation)
    assert told == (CRASH.title, CRASH.signature, CRASH.explanation)
    assert [frame["function"] for frame in crash.frames] == ["panic", "f"]
    assert crash.frames[0] == {
        "function": "panic",
        "module": "kernel",
        "symbol_offset": 16,
        "file": "kernel/panic.c",
        "line": 3,
        "inline": False,
        "pc": "0xfffffffffffffff0",
        "locals": [{"name": "i", "value": "1"}],
        "kind": "kernel",
    }
    assert crash.frames[1]["module"] == "mod" and crash.frames[1]["inline"]
    assert [(t["cpu"], t["tid"], t["name"], t["crashed"]) for t in crash.threads] == [
        (1, 12, "sh", True),
        (0, 0, "swapper/0", False),
    ]
    said = symbols_of(crash.kernel)
    assert said is not None
    assert (said["state"], said["vmlinux"], said["warnings"]) == ("done", "/v", ["one"])
    assert from_json(to_json(crash)) == crash


def test_task_that_panicked_is_told_of_when_no_cpu_has_it() -> None:
    crash = add_symbols(CRASH, replace(FOUND, facts=replace(FACTS, cpus=())), "ab")
    assert [(t["tid"], t["crashed"], t.get("cpu")) for t in crash.threads] == [(12, True, None)]


def test_without_frames_those_of_the_log_stay() -> None:
    crash = add_symbols(CRASH, replace(FOUND, facts=replace(FACTS, frames=())), "ab")
    assert crash.frames == CRASH.frames


def test_what_was_found_stays_when_the_vmlinux_has_gone() -> None:
    found = add_symbols(CRASH, FOUND, "ab")
    later = add_symbols(found, Symbols(NONE, 9.0, reason="gone"), "ab")
    said = symbols_of(later.kernel) or {}
    assert (said["state"], said["kept"], said["time"]) == ("done", "gone", 9.0)
    assert (later.frames, later.threads) == (found.frames, found.threads)


def test_new_look_at_the_same_dump_keeps_its_symbols() -> None:
    found = add_symbols(CRASH, FOUND, "ab")
    again = keep_symbols(CRASH, found)
    assert (again.frames, again.threads) == (found.frames, found.threads)
    assert symbols_of(again.kernel) == symbols_of(found.kernel)
    for key, value in (("inode", 8), ("build_id", "cd"), ("dump", "dump.2")):
        other = replace(CRASH, kernel={**(CRASH.kernel or {}), key: value})
        assert keep_symbols(other, found) == other, key


def test_failure_is_not_kept_for_a_dump_that_changed() -> None:
    failed = add_symbols(CRASH, Symbols(FAILED, 1.0, reason="cut"), "ab")
    assert symbols_of(keep_symbols(CRASH, failed).kernel) == symbols_of(failed.kernel)
    changed = replace(CRASH, kernel={**(CRASH.kernel or {}), "changed_ns": 6})
    assert symbols_of(keep_symbols(changed, failed).kernel) is None


def test_new_record_has_none() -> None:
    assert keep_symbols(CRASH, None) == CRASH
    assert keep_symbols(CRASH, CRASH) == CRASH
