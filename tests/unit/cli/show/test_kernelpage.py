"""What `info` shows of a kernel's crash and its symbols."""

from typing import Any

import pytest

from crashd.cli.show.kernelpage import kernel_fields, symbol_lines, symbols_text

KERNEL: dict[str, Any] = {
    "format": "kdump-compressed",
    "release": "6.1.0-56-cloud-amd64",
    "version": "#1 SMP Debian 6.1.192-2",
    "build_id": "abcd",
}
DONE = {"state": "done", "vmlinux": "/usr/lib/debug/boot/vmlinux-6.1"}
FRAMES = [
    {
        "function": "panic",
        "module": "kernel",
        "symbol_offset": 317,
        "file": "kernel/panic.c",
        "line": 358,
        "locals": [{"name": "buf", "value": '"\x1b[31m"'}],
    },
    {"function": "f", "module": "provoke", "inline": True, "locals": [{"name": "i", "value": "1"}]},
    {"pc": "0xffff"},
]


def symbols_field(kernel: dict[str, Any]) -> str | None:
    return dict(kernel_fields({"kernel": kernel})).get("symbols")


def test_missing_vmlinux_is_named_with_its_package_also_where_nothing_is_analysed() -> None:
    wanted = "none (build-id abcd; install linux-image-6.1.0-56-cloud-amd64-dbg)"
    assert symbols_field(KERNEL) == wanted
    symbols = {"state": "none", "build_id": "abcd", "package": "kernel-debuginfo-6", "reason": None}
    said = symbols_field({**KERNEL, "symbols": symbols})
    assert said == "none (build-id abcd; install kernel-debuginfo-6)"


def test_without_dump_or_build_id_there_is_nothing_to_say() -> None:
    assert symbols_field({**KERNEL, "build_id": None}) is None
    assert symbols_field({**KERNEL, "format": None}) is None


@pytest.mark.parametrize(
    ("symbols", "text"),
    [
        ({"state": "none", "reason": "x is of another kernel"}, "none (x is of another kernel)"),
        ({"state": "none"}, "none"),
        ({"state": "failed", "build_id": "ab", "reason": "cut"}, "none (build-id ab; cut)"),
        ({"state": "failed", "reason": "\x1b[2J"}, "none (\\x1b[2J)"),
    ],
)
def test_reason_is_one_printable_line(symbols: dict[str, Any], text: str) -> None:
    assert symbols_text(symbols) == text


def test_vmlinux_that_was_used_is_named_and_why_it_stays() -> None:
    assert symbols_field({**KERNEL, "symbols": DONE}) == f"by {DONE['vmlinux']}"
    kept = symbols_field({**KERNEL, "symbols": {**DONE, "kept": "it is gone"}})
    assert kept == f"by {DONE['vmlinux']} (kept: it is gone)"


def test_stack_has_lines_inlines_modules_and_the_locals_of_panic() -> None:
    threads = [
        {"cpu": 1, "tid": 7, "name": "sh", "crashed": True, "function": "panic"},
        {"cpu": 0, "tid": 0, "name": "swapper/0", "function": None},
    ]
    doc = {"kernel": {**KERNEL, "symbols": DONE}, "frames": FRAMES, "threads": threads}
    assert list(symbol_lines(doc, show_all=False)) == [
        "",
        "Stack of the task that panicked:",
        "  #0   panic+0x13d at kernel/panic.c:358",
        '         buf = "\\x1b[31m"',
        "  #1   f (inlined) [provoke]",
        "  #2   0xffff",
        "",
        "CPUs (2):",
        "  *    1  sh[7]                     in panic",
        "       0  swapper/0[0]",
    ]
    assert "         i = 1" in symbol_lines(doc, show_all=True)


def test_long_lists_are_cut_with_a_hint_and_whole_with_all() -> None:
    threads = [{"cpu": n, "tid": n, "name": "x"} for n in range(40)]
    doc = {"kernel": {"symbols": DONE}, "frames": FRAMES * 10, "threads": threads}
    short, whole = (list(symbol_lines(doc, show_all=show_all)) for show_all in (False, True))
    assert "       … and 10 more, see --all" in short
    assert "    … and 24 more, see --all" in short
    assert not any("--all" in line for line in whole)
    assert len(whole) > len(short)


def test_record_without_symbols_shows_no_stack() -> None:
    for kernel in (None, KERNEL, {**KERNEL, "symbols": {"state": "none"}}):
        assert list(symbol_lines({"kernel": kernel, "frames": FRAMES}, show_all=True)) == []
