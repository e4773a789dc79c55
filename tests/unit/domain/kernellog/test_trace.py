"""Frames and facts in the words of every architecture."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.kernellog.trace import TraceFrame as Frame
from crashd.domain.kernellog.trace import collect_facts, parse_frame


@pytest.mark.parametrize(
    ("text", "frame"),
    [
        (" f+0x8f/0x1000 [mod]", Frame("f", 0x8F, 0x1000, "mod", True)),
        (" ? f+0x1/0x2", Frame("f", 1, 2, None, False)),
        (" [<ffffffff81d91389>] f.isra.0+0x1/0x2", Frame("f.isra.0", 1, 2, None, True)),
        (" [<ffffffff81d91389>] ? f+0x1/0x2 [m]", Frame("f", 1, 2, "m", False)),
        (" <IRQ>  [<ffffffff816>] f+0x1/0x2", Frame("f", 1, 2, None, True)),
        (" <<EOE>>  <IRQ>  [<ffffffff816>] f+0x1/0x2", Frame("f", 1, 2, None, True)),
        (" f+0x1/0x2 [m 0123456789abcdef]", Frame("f", 1, 2, "m", True)),
        (" f+0x1/0x2 (P)", Frame("f", 1, 2, None, True)),
        (" f+0x1/0x2 lib/dump_stack.c:113", Frame("f", 1, 2, None, True)),
        ("([<0000000000106790>] f+0x0/0x20 [m])", Frame("f", 0, 0x20, "m", True)),
        ("[c00000000bf3aa10] [c0000000004b] f+0x1/0x2 (unreliable)", Frame("f", 1, 2, None, False)),
        ("[c00000000bf3aa10] [c0000000004b8f5c] .f+0x1/0x2", Frame(".f", 1, 2, None, True)),
        ("[<c0401234>] (f) from [<c02a5678>] (g+0x9c/0x130)", Frame("f", None, None, None, True)),
        ("[<c0401234>] (f+0x1/0x2) from [<c02a5678>] (g+0x9c/0x130)", Frame("f", 1, 2, None, True)),
        (" f from g+0x9c/0x130", Frame("f", None, None, None, True)),
        (" f lib/dump_stack.c:88 [inline]", Frame("f", None, None, None, True, inlined=True)),
        ("-000|f+0x1/0x2", None),
        (" ? 0xffffffffc04b5000", None),
        ("RAX: 0000000000000000 RBX: ff2feaacbff39950", None),
        ("", None),
    ],
)  # fmt: skip
def test_parse_frame_each_form_is_understood(text: str, frame: Frame | None) -> None:
    assert parse_frame(text) == frame


@pytest.mark.parametrize(
    "text",
    [
        "RIP: 0010:f+0x5/0x7 [m]",
        "RIP: 0010:[<ffffffff8124e424>]  [<ffffffff8124e424>] f+0x5/0x7 [m]",
        "RIP: e030:f+0x5/0x7 [m]",
        "EIP: f+0x5/0x7 [m]",
        "EIP is at f+0x5/0x7 [m]",
        "IP: [<ffffffff8124e424>] f+0x5/0x7 [m]",
        "PC is at f+0x5/0x7 [m]",
        "pc : f+0x5/0x7 [m]",
        "epc : f+0x5/0x7 [m]",
        "Krnl PSW : 0704f00180000000 00000000001067ae (f+0x5/0x7 [m])",
        "NIP [c00800000a5d0008] f+0x5/0x7 [m]",
    ],
)
def test_collect_facts_program_counter_of_each_architecture_is_found(text: str) -> None:
    assert collect_facts([text]).pc == Frame("f", 5, 7, "m", True)


@pytest.mark.parametrize("text", ["RIP: 0033:0x7f1bf611f829", "RIP: 0010:0x0", "RIP: 0010:(null)"])
def test_collect_facts_program_counter_without_a_name_is_none(text: str) -> None:
    assert collect_facts([text]).pc is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "CPU: 1 PID: 451 Comm: insmod Kdump: loaded Tainted: G      D    OE      6.1.0-56 #1",
            ("insmod", 451, 1, "GDOE", "6.1.0-56"),
        ),
        (
            "CPU: 12 UID: 1000 PID: 7 Comm: a b) c Not tainted 6.11.0 #0 PREEMPT(full)",
            ("a b) c", 7, 12, "", "6.11.0"),
        ),
        (
            "CPU: 1 PID: 4 Comm: x Not tainted 1.1 y Not tainted 6.1.0 #1",
            ("x Not tainted 1.1 y", 4, 1, "", "6.1.0"),
        ),
        (
            "Pid: 491, comm: scsi_eh_0 Tainted: G        W  ---------------- T 2.6.32-220.el6 #1",
            ("scsi_eh_0", 491, None, "GWT", "2.6.32-220.el6"),
        ),
        ("Process a b (pid: 99, stack limit = 0x1)", ("a b", 99, None, "", None)),
        ("Read of size 8 at addr ffff888012345678 by task cat/331", ("cat", 331, None, "", None)),
    ],
)
def test_collect_facts_process_is_told(text: str, told: tuple[object, ...]) -> None:
    facts = collect_facts([text])
    assert (facts.comm, facts.pid, facts.cpu, facts.taint, facts.release) == told


def test_collect_facts_first_trace_counts() -> None:
    facts = collect_facts(
        [
            "Call Trace:",
            " a+0x1/0x2",
            "Allocated by task 1:",
            " b+0x1/0x2",
            "Call Trace:",
            " c+0x1/0x2",
        ]
    )
    assert [frame.function for frame in facts.trace] == ["a"]


def test_collect_facts_where_the_interrupt_came_is_not_where_it_happened() -> None:
    facts = collect_facts(
        ["RIP: 0010:a+0x1/0x2", "Call Trace:", " b+0x1/0x2", "RIP: 0010:c+0x1/0x2"]
    )
    assert facts.pc is not None
    assert facts.interrupted is not None
    assert (facts.pc.function, facts.interrupted.function) == ("a", "c")


def test_collect_facts_modules_end_at_what_is_none() -> None:
    facts = collect_facts(["Modules linked in: a(OE+) b-c d_e [last unloaded: f]"])
    assert facts.modules == ("a", "b-c", "d_e")


@given(st.lists(st.text(max_size=80), max_size=20), st.booleans())
def test_collect_facts_of_any_text_never_raises(texts: list[str], headless: bool) -> None:
    assert len(collect_facts(texts, headless=headless).trace) <= len(texts)
