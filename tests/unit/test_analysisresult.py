"""The border to the worker: hostile JSON becomes Facts or one clear error."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from crashd.analysisresult import (
    ITEMS_MAX,
    OUTPUT_MAX,
    is_started,
    is_whole,
    parse_log_report,
    parse_report,
    parse_symbols_report,
    unfinished,
)
from crashd.domain.cause.analysis import Analysis, AnalysisState, analysis_to_json
from crashd.domain.cause.explain import ProcessContext, explain
from crashd.domain.cause.signature import build_signature, build_title
from crashd.domain.kernellog.printkring import KernelLog
from crashd.errors import FormatError


def build_frame(**more: Any) -> dict[str, Any]:
    return {
        "pc": 0x401010, "start": 0x400000, "sp": 1, "function": "f", "symbol_offset": 1,
        "file": "/a.c", "line": 3, "inline": False, **more,
    }  # fmt: skip


def build_report(**more: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "machine": 62,
        "bits": 64,
        "threads": [{"tid": 7, "crashed": True, "frames": [build_frame()], "cut": False}],
        "modules": [
            {
                "name": "/usr/bin/p", "start": 0x400000, "end": 0x500000, "build_id": "ab",
                "deleted": False, "problem": None, "debug_info": True, "used": True,
            }
        ],
        "registers": {"rax": (1 << 64) - 1},
        "instruction": {
            "bytes": "90", "text": "nop", "mnemonic": "nop",
            "access": [
                {"mode": "read", "address": 1, "size": 8, "displacement": -8, "base": "rax",
                 "base_value": 9, "index": None}
            ],
        },
        "siginfo": {
            "signal": 11, "code": 1, "address": 0, "sender_pid": None, "sender_uid": None
        },
        "regions": {"pc": {"address": 1, "kind": "file", "perms": "r-x", "name": "/usr/bin/p"}},
        "messages": {"abort": "x"},
        "problems": [],
        **more,
    }  # fmt: skip


def parse(**more: Any) -> Any:
    return parse_report(json.dumps(build_report(**more)).encode())


def test_parse_report_gives_facts() -> None:
    facts = parse()
    frame = facts.crashed[0]
    assert (frame.module, frame.build_id, frame.offset) == ("/usr/bin/p", "ab", 0x1010)
    assert facts.registers["rax"] == (1 << 64) - 1
    assert facts.instruction.access[0].displacement == -8


def line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


SCRIPT = {
    "tid": 7, "crashed": False, "name": None, "cut": False,
    "frames": [
        {"kind": "lua", "function": "f", "file": "a.lua", "line": 1, "module": None,
         "build_id": None, "offset": None, "pc": None}
    ],
}  # fmt: skip


def test_parse_report_merges_the_lines_of_several_analyzers() -> None:
    lines = [
        line(build_report(problems=["one"])),
        line({"interpreted": [SCRIPT], "problems": ["two"]}),
        line({"interpreted": [SCRIPT]}),
        line({"whole": True}),
    ]
    raw = b"".join(lines)
    assert is_whole(raw)
    facts = parse_report(raw)
    assert facts.problems == ("one", "two")
    assert len(facts.interpreted) == 2
    assert facts.crashed_interpreted[0].kind == "lua"
    for end in range(len(lines[0]), len(raw) - 1):
        cut = raw[:end]
        assert is_started(cut)
        assert not is_whole(cut)
        assert parse_report(cut).crashed == facts.crashed
    assert not is_started(lines[0][:-1])


def test_unfinished_is_the_analyzer_that_began_last() -> None:
    native = line(build_report())
    assert unfinished(native) is None
    begun = native + line({"begun": "PHP stack"}) + line({"problems": []})
    begun += line({"begun": "Python stacks"})
    assert unfinished(begun) == "Python stacks"
    assert unfinished(begun + b'{"interpreted":[{"ti') == "Python stacks"
    assert unfinished(begun + line({"interpreted": []})) is None
    assert unfinished(line({"begun": "a\x1b"})) == "a\\x1b"
    assert unfinished(b"[" * 4000) is None
    assert parse_report(begun).crashed


def test_parse_report_later_line_replaces_no_native_fact() -> None:
    raw = line(build_report()) + line({"threads": [], "machine": 1, "messages": {"abort": "y"}})
    facts = parse_report(raw)
    assert facts.machine == 62
    assert facts.crashed
    assert facts.messages == {"abort": "x"}


def test_parse_report_texts_become_printable() -> None:
    evil = "\x1b[31m\x07\u202e\ud800\n"
    facts = parse(
        threads=[
            {"tid": 7, "crashed": True, "frames": [build_frame(function=evil, file=evil)],
             "cut": False, "name": evil}
        ],
        messages={evil: evil},
        problems=[evil],
    )  # fmt: skip
    texts = [
        *(facts.crashed[0].function, facts.crashed[0].file, facts.threads[0].name),
        *(*facts.messages, *facts.messages.values(), *facts.problems),
    ]
    assert all(text.isprintable() for text in texts), texts


@pytest.mark.parametrize(
    "more",
    [
        {"machine": "x"},
        {"machine": None},
        {"bits": 8},
        {"threads": [1]},
        {"threads": [{"tid": 1, "crashed": True, "frames": "no", "cut": False}]},
        {"threads": [{"tid": 1, "crashed": True, "frames": [{}], "cut": False}]},
        {"modules": [{}]},
        {"modules": 7},
        {"registers": {"rax": "many"}},
        {"registers": {"rax": 1 << 64}},
        {"siginfo": {"signal": 1}},
        {"regions": {"pc": {"address": 1, "kind": "x", "perms": "", "name": "", "more": 1}}},
        {"problems": ["x"] * (ITEMS_MAX + 1)},
        {"messages": {str(n): "" for n in range(ITEMS_MAX + 1)}},
        {"python": [[[[[[[[[[[[[[]]]]]]]]]]]]]]},
    ],
    ids=str,
)
def test_parse_report_malformed_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as caught:
        parse(**more)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", [key for key in build_report() if key != "version"])
def test_parse_report_without_a_key_is_refused(key: str) -> None:
    report = build_report()
    del report[key]
    with pytest.raises(FormatError):
        parse_report(json.dumps(report).encode())


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b"1", b"\xff", b"[" * 100_000, b"x" * (OUTPUT_MAX + 1), b"NaN"],
    ids=["empty", "cut", "list", "null", "number", "bytes", "deep", "long", "nan"],
)
def test_parse_report_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_report(raw)


def test_parse_report_workers_own_failure_is_told() -> None:
    with pytest.raises(FormatError, match=r"core is \\x1b empty"):
        parse_report(json.dumps({"failed": "core is \x1b empty"}).encode())


@pytest.mark.parametrize("cut", range(0, 1500, 37))
def test_parse_report_cut_anywhere_is_refused(cut: int) -> None:
    raw = json.dumps(build_report()).encode()
    with pytest.raises(FormatError):
        parse_report(raw[: min(cut, len(raw) - 1)])


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give the path of each number and text in a report."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))
    elif not isinstance(value, bool) and path not in (("version",), ("bits",)):
        yield path


LEAVES = list(leaves(build_report()))
EXTREMES = (-1, 0, -(1 << 63), 1 << 63, (1 << 64) - 1, "", "(" * 300, "<" * 300, "%s\n", None)


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: ".".join(map(str, path)))
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(("signal", "code"), [(11, 1), (11, 128), (7, 2), (8, 1), (6, -6), (31, 1)])
def test_whatever_is_let_in_can_be_explained(
    path: tuple[Any, ...], bits: int, signal: int, code: int
) -> None:
    for extreme in EXTREMES:
        report = build_report(bits=bits)
        report["siginfo"] |= {"signal": signal, "code": code}
        where = report
        for key in path[:-1]:
            where = where[key]
        where[path[-1]] = extreme
        try:
            facts = parse_report(json.dumps(report).encode())
        except FormatError:
            continue
        cause = explain(facts, ProcessContext(frozenset()))
        signature = build_signature("p", facts, cause)
        assert re.fullmatch(r"p8-[0-9a-f]{16}", signature)
        texts = [build_title("p", signal, facts, cause), cause.short, cause.text]
        assert all(text.isprintable() for text in texts), texts
        json.dumps(analysis_to_json(Analysis(AnalysisState.DONE, facts=facts)))


LOG = {"version": 1, "log": "[    0.000000] a\tb\r\n", "records": 1, "skipped": 0, "cut": False}


def test_log_of_a_dump_is_taken() -> None:
    log = parse_log_report(json.dumps(LOG).encode())
    assert log == KernelLog(b"[    0.000000] a\tb\r\n", 1)


@pytest.mark.parametrize(
    "change",
    [
        {"log": None},
        {"log": "\x1b[2J"},
        {"log": "\u00e9"},
        {"log": "x" * 2_000_001},
        {"log": ["x"]},
        {"records": "1"},
        {"records": -1},
        {"records": 1 << 20},
        {"skipped": None},
        {"cut": 1},
    ],
)
def test_log_that_no_worker_prints_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(FormatError, match="the worker's result"):
        parse_log_report(json.dumps({**LOG, **change}).encode())


def test_log_that_could_not_be_read_is_refused_in_the_worker_s_words() -> None:
    with pytest.raises(FormatError, match=r"^no pages \\x1b$"):
        parse_log_report(json.dumps({"failed": "no pages \x1b"}).encode())


# -- a kernel's symbols ----------------------------------------------------------------------------

KERNEL_FRAME = {
    "function": "panic",
    "module": "kernel",
    "symbol_offset": 1,
    "file": "kernel/panic.c",
    "line": 3,
    "inline": False,
    "pc": 2**64 - 1,
    "locals": [{"name": "fmt", "value": "\x1b[31mred"}],
}
KERNEL_REPORT = {
    "version": 1,
    "tid": 1,
    "comm": "sh\n",
    "frames": [KERNEL_FRAME],
    "cut": False,
    "cpus": [{"cpu": 0, "tid": 1, "comm": "sh", "pc": None, "function": None}],
    "problems": [],
    "cpu_seconds": 0.5,
}


def test_symbols_report_is_read_and_made_printable() -> None:
    facts = parse_symbols_report(json.dumps(KERNEL_REPORT).encode())
    assert facts.comm == "sh\\x0a"
    assert facts.frames[0].locals[0].value == "\\x1b[31mred"
    assert facts.cpus[0].cpu == 0


@pytest.mark.parametrize(
    "change",
    [
        {"frames": [{**KERNEL_FRAME, "pc": 2**64}]},
        {"frames": [{**KERNEL_FRAME, "pc": "x"}]},
        {"frames": [{**KERNEL_FRAME, "more": 1}]},
        {"frames": [KERNEL_FRAME] * 9000},
        {"cpus": [{"cpu": 0}]},
        {"comm": ["sh"]},
        {"extra": 1},
        {"failed": "the vmlinux cannot be used"},
    ],
)
def test_symbols_report_that_is_not_one_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        parse_symbols_report(json.dumps({**KERNEL_REPORT, **change}).encode())


@pytest.mark.parametrize("build_id", ["../x", "AB" * 10, 5, "a" * 200])
def test_log_report_with_an_absurd_build_id_is_refused(build_id: object) -> None:
    report = {"version": 1, "log": "x", "records": 1, "skipped": 0, "cut": False}
    assert parse_log_report(json.dumps({**report, "build_id": "ab" * 20}).encode()).build_id
    with pytest.raises(FormatError):
        parse_log_report(json.dumps({**report, "build_id": build_id}).encode())
