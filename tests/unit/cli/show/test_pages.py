import re
from typing import Any

import pytest

from crashd.cli.show.pages import THREADS_MAX, age_text, render_info, render_status
from crashd.domain.crash.model import Capture, Core, Kind, Mode, State
from tests.unit.cli.rows import HOSTILE, TIME_NS, doc_of

NOW_NS = TIME_NS + 90 * 10**9
UNSAFE = set(map(chr, [*range(32), 127, *range(128, 160), 0x202E]))


def page(
    doc: dict[str, Any], *, show_all: bool = False, color: bool = False, width: int | None = None
) -> list[str]:
    look = {"show_all": show_all, "color": color}
    return list(render_info(doc, now_ns=NOW_NS, core_file="/s/core.zst", width=width, **look))


def field(lines: list[str], label: str) -> str | None:
    found = [line.partition(": ")[2] for line in lines if line.strip().startswith(f"{label}: ")]
    return found[0] if found else None


def test_render_info_begins_with_the_title() -> None:
    assert page(doc_of())[0].startswith("SIGSEGV in nginx: NULL pointer dereference")
    assert page(doc_of(), color=True)[0].startswith("\x1b[1mSIGSEGV")


def test_render_info_tells_what_who_and_where() -> None:
    doc = doc_of()
    lines = page(doc)
    assert field(lines, "ID") == f"{doc['id']} ({doc['id'][-8:]})"
    assert "(1min 30s ago)" in (field(lines, "Time") or "")
    assert field(lines, "Signal") == "SIGSEGV (11), si_code 1, address 0x0"
    assert field(lines, "Command line") == "nginx -g 'daemon off;'"
    assert field(lines, "PID") == "1234, 7 in its own pid namespace, thread 1235 (worker)"
    assert field(lines, "UID, GID") == "33, 33"
    assert field(lines, "Readable by") == "root and uid 33"
    assert field(lines, "Unit") == "nginx.service"
    assert field(lines, "Captured") == "by pipe, engine stream, process held for 12.3ms"
    assert field(lines, "Core") == "70M, 512K resident, 296K on disk"
    assert field(lines, "Stored as") == "/s/core.zst"
    assert field(lines, "Incomplete") is None
    assert field(lines, "Signature") is None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("dpkg", "nginx 1.22.1-9 (by dpkg)"),
        ("note", "nginx 1.22.1-9 (by the executable's own note)"),
    ],
)
def test_render_info_tells_the_package_and_who_says_so(source: str, words: str) -> None:
    assert field(page(doc_of()), "Package") is None
    doc = doc_of(package_name="nginx", package_version="1.22.1-9", package_source=source)
    assert field(page(doc), "Package") == words


@pytest.mark.parametrize(
    ("capture", "words"),
    [
        (
            Capture(hold_ns=12_300_000, queued_ns=2_300_000, store_ns=4 * 10**9),
            "process held for 12.3ms (2.3ms of it queued), stored 4s later",
        ),
        (
            Capture(hold_ns=10**9, store_ns=10**9, spilled_bytes=3 << 30),
            "process held for 1s, stored 1s later (3.0G spilled to disk before)",
        ),
        (Capture(mode=Mode.SPOOL, store_ns=10**9), "stored within 1s"),
        (Capture(), "by pipe"),
    ],
)
def test_render_info_says_where_the_time_went(capture: Capture, words: str) -> None:
    assert (field(page(doc_of(capture=capture)), "Captured") or "").endswith(words)


def test_render_info_of_a_truncated_core_says_so_and_why() -> None:
    core = Core("core.zst", 1 << 20, 4096, 1 << 20, 3 << 20, False)
    lines = page(doc_of(state=State.TRUNCATED, core=core, capture=Capture(reason="over max_core")))
    assert field(lines, "Core") == "1.0M, TRUNCATED (of 3.0M), 1.0M resident, 4.0K on disk"
    assert field(lines, "Incomplete") == "over max_core"


def test_render_info_without_core_says_none() -> None:
    lines = page(doc_of(state=State.METADATA_ONLY, core=Core()))
    assert field(lines, "Core") == "none"
    assert field(lines, "Stored as") is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"owner_uid": None, "dumpable": 2}, "root only (set-id, or otherwise not dumpable)"),
        ({"owner_uid": None}, "root only"),
        ({"owner_uid": 0}, "root only"),
    ],
)
def test_render_info_tells_who_may_read_it(changes: dict[str, Any], expected: str) -> None:
    assert field(page(doc_of(**changes)), "Readable by") == expected


def test_render_info_counts_crashes_of_the_same_signature() -> None:
    doc = {**doc_of(signature="s1"), "count_of_signature": 12}
    doc["first_of_signature"] = "2026-01-02T03:04:05.000000Z"
    assert field(page(doc), "Signature") == "s1 (seen 12 times since 2026-01-02 03:04:05)"


def test_render_info_shows_the_crashed_thread_first_and_not_too_many() -> None:
    threads = tuple(
        {"tid": tid, "name": f"t{tid}", "pc": hex(tid), "crashed": tid == 40} for tid in range(41)
    )
    lines = page(doc_of(threads=threads))
    start = lines.index("Threads (41):")
    assert lines[start + 1].split() == ["*", "40", "t40", "pc", "0x28", "crashed", "here"]
    assert lines[start + 1 + THREADS_MAX].strip() == "… and 25 more, see --all"
    assert len(lines) == start + 2 + THREADS_MAX
    assert sum(" pc " in line for line in page(doc_of(threads=threads), show_all=True)) == 41


def test_render_info_tells_threads_that_are_not_recorded() -> None:
    doc = doc_of(threads=({"tid": 1, "name": "a", "pc": None, "crashed": True},))
    lines = page({**doc, "status": "Name:\tx\nThreads:\t2001\nSigQ:\t0\n"})
    assert "Threads (2001, of which 1 are recorded):" in lines


def test_render_info_shows_the_stack() -> None:
    frames = (
        {"function": "third", "module": "nginx", "offset": 16, "file": "a.c", "line": 7},
        {"pc": "0x7f00", "function": None},
    )
    lines = page(doc_of(frames=frames))
    assert "  #0   third (nginx+0x10) at a.c:7" in lines
    assert "  #1   0x7f00" in lines


def test_render_info_numbers_python_frames_apart() -> None:
    frames = (
        {"kind": "python", "function": "load", "file": "a.py", "line": 3},
        {"kind": "python", "function": "main", "file": "a.py", "line": 9},
        {"kind": "native", "function": "raise", "module": "libc.so.6"},
    )
    lines = page(doc_of(frames=frames))
    at = lines.index("Python stack of the crashed thread:")
    assert lines[at + 1 : at + 6] == [
        "  #0   load at a.py:3",
        "  #1   main at a.py:9",
        "",
        "Native stack of the crashed thread:",
        "  #0   raise (libc.so.6)",
    ]


@pytest.mark.parametrize(
    ("kind", "name"), [("php", "PHP"), ("perl", "Perl"), ("ruby", "Ruby"), ("x", "X")]
)
def test_render_info_names_the_language(kind: str, name: str) -> None:
    lines = page(doc_of(frames=({"kind": kind, "function": "f", "file": "a", "line": 3},)))
    assert f"{name} stack of the crashed thread:" in lines


@pytest.mark.parametrize("width", [60, 80, 100])
def test_render_info_breaks_stacks_and_warnings_between_words(width: int) -> None:
    frame = {"function": "std::map<int, long>::at(int const&)", "module": "/usr/lib/libx.so.1"}
    doc = doc_of(
        cgroup=None,
        frames=[{**frame, "file": "a/rather/long/path/of/a/source.cpp", "line": 12}],
        warnings=["word " * 30, "next " * 30],
    )
    lines = page(doc, width=width)
    assert max(map(len, lines)) <= width
    text = " ".join(line.strip() for line in lines)
    assert "#0 std::map<int, long>::at(int const&) (/usr/lib/libx.so.1) at a/ra" in re.sub(
        " +", " ", text
    )


def test_render_info_of_a_crash_in_capture_says_that_the_analysis_is_pending() -> None:
    doc = doc_of(state=State.CAPTURING, analysis={"state": "pending"})
    assert field(page(doc), "Analysis") == "pending: the core is being captured"


def test_render_info_says_that_the_analysis_is_pending() -> None:
    assert (field(page(doc_of(analysis={"state": "pending"})), "Analysis") or "").startswith("pend")


def test_render_info_wraps_between_words() -> None:
    doc = doc_of(explanation="word " * 40 + "end")
    lines = list(
        render_info(doc, now_ns=NOW_NS, show_all=False, color=False, core_file=None, width=60)
    )
    start = next(n for n, line in enumerate(lines) if "Explanation: word" in line)
    assert lines[start + 1].startswith(" " * 17 + "word")
    assert max(map(len, lines[start : start + 4])) <= 60
    path = "/var/lib/crashd/crashes/" + "x" * 60
    lines = list(
        render_info(doc, now_ns=NOW_NS, show_all=False, color=False, core_file=path, width=60)
    )
    assert field(lines, "Stored as") == path  # beside its label, however long


def test_render_info_on_a_very_narrow_terminal_wraps_below_the_label() -> None:
    doc = doc_of(explanation="word " * 20 + "end", warnings=["first " * 9 + "end", "next " * 9])
    lines = page(doc, width=40)
    start = lines.index("Explanation: word word word word word")
    assert lines[start + 1] == "    word word word word word word word"
    text = " ".join(" ".join(lines).split())
    assert "Explanation: " + "word " * 20 + "end" in text
    assert "Warnings: " + "first " * 9 + "end " + "next " * 9 in text + " "


def test_render_info_shows_environment_and_maps_with_all_only() -> None:
    doc = doc_of(environ=(b"A=1", b"B=\x1b[31m"), maps=b"400000-500000 r-xp\n600000-700000 rw-p\n")
    assert not [line for line in page(doc) if "A=1" in line or "r-xp" in line]
    lines = page(doc, show_all=True)
    assert lines[lines.index("Environment:") + 1 :][:2] == ["  A=1", "  B=\\x1b[31m"]
    assert lines[lines.index("Maps:") + 1 :][:2] == ["  400000-500000 r-xp", "  600000-700000 rw-p"]


def test_render_info_shortens_a_huge_command_line() -> None:
    doc = doc_of(argv=(b"x" * 50_000,))
    assert (field(page(doc), "Command line") or "").endswith("… (48000 more characters with --all)")
    assert len(field(page(doc, show_all=True), "Command line") or "") == 50_000


def test_render_info_lists_warnings() -> None:
    lines = page(doc_of(warnings=("one: two", "three")))
    start = next(number for number, line in enumerate(lines) if "Warnings: one: two" in line)
    assert lines[start + 1].strip() == "three"


def test_render_info_of_a_kernel_crash() -> None:
    kernel = {"release": "6.1.0", "path": "/var/crash/202601010000", "maker": "kdump-tools"}
    kernel |= {"dump": "dump.202601010000", "format": "kdump-compressed", "dump_level": "31"}
    doc = doc_of(
        kind=Kind.KERNEL, kernel=kernel, core=Core(), boot_id="0" * 32, report=("Oops: here",)
    )
    lines = page(doc)
    assert field(lines, "Kind") == "kernel"
    assert field(lines, "Kernel") == "6.1.0"
    assert field(lines, "Source") == "/var/crash/202601010000 (kdump-tools)"
    assert field(lines, "Dump") == "dump.202601010000 (kdump-compressed, level 31)"
    assert field(lines, "Boot ID") is None
    assert lines[-2:] == ["From the log:", "  Oops: here"]
    assert field(lines, "Readable by") is None


@pytest.mark.parametrize("show_all", [False, True])
def test_render_info_hostile_values_cannot_reach_the_terminal(show_all: bool) -> None:
    text = HOSTILE.decode("utf-8", "replace")
    doc = doc_of(
        comm=HOSTILE,
        thread_comm=HOSTILE,
        exe=HOSTILE,
        argv=(HOSTILE,),
        cwd=HOSTILE,
        root=HOSTILE,
        hostname=HOSTILE,
        nodename=HOSTILE + b"2",
        environ=(HOSTILE,),
        maps=HOSTILE,
        limits=HOSTILE,
        title=text,
        explanation=text,
        signature=text,
        unit=text,
        user_unit=text,
        container_id=text,
        container_runtime=text,
        warnings=(text, text),
        log=(text,),
        kernel={text: text},
        threads=({"tid": text, "name": text, "pc": text, "crashed": True},),
        frames=({"function": text, "module": text, "file": text, "line": text},),
        capture=Capture(reason=text),
    )
    for line in page(doc, show_all=show_all):
        assert not UNSAFE & set(line), line


def test_render_info_of_a_row_from_the_index_alone() -> None:
    doc = doc_of()
    for key in ("time_ns", "threads", "ns_pid", "owner_uid", "environ", "capture", "core"):
        del doc[key]
    lines = page(doc)
    assert (field(lines, "Time") or "").startswith("2026-11-2")
    assert field(lines, "Core") == "none"


@pytest.mark.parametrize(
    ("age_ns", "words"),
    [
        (0, "just now"),
        (999_999_999, "just now"),
        (61_500_000_000, "1min 1s ago"),
        (-5 * 10**9, "5s in the future"),
    ],
)
def test_age_text_is_in_words(age_ns: int, words: str) -> None:
    assert age_text(TIME_NS, TIME_NS + age_ns) == words


STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "pid": 4711,
    "ready": True,
    "registered": False,
    "core_pattern": "core\x1b",
    "mode": "pipe",
    "workers": 2,
    "in_flight": 1,
    "queued": 3,
    "spool_backlog": 5,
    "crashes_total": 7,
    "store": {"entries": 4, "bytes": 1 << 20, "free_bytes": 1 << 30},
    "metrics_address": ["127.0.0.1:9816", "[::1]:9816"],
    "root": "/",
    "started_ns": TIME_NS,
}


def test_render_status_shows_everything() -> None:
    lines = list(render_status(STATUS, now_ns=NOW_NS, color=False))
    assert lines[0] == "crashd 0.1.0"
    assert field(lines, "PID") == "4711"
    assert field(lines, "Ready") == "yes"
    assert field(lines, "Registered") == "no"
    assert field(lines, "core_pattern") == "core\\x1b"
    assert field(lines, "Captures") == "1 in flight, 3 queued"
    assert field(lines, "Spool") == "5 crashes waiting to be ingested"
    assert field(lines, "Store") == "4 crashes, 1.0M; 1.0G free"
    metrics = "http://127.0.0.1:9816/metrics, http://[::1]:9816/metrics"
    assert field(lines, "Metrics") == metrics


def test_render_status_says_what_waits_for_the_fleet_and_why() -> None:
    told = {"url": "s3://b", "waiting": 3, "cores_waiting": 1, "oldest_ns": NOW_NS - 60 * 10**9}
    lines = list(render_status({"fleet": told}, now_ns=NOW_NS, color=False))
    waits = "3 records and 1 cores wait, the oldest came 1min ago"
    assert field(lines, "Fleet") == f"s3://b; {waits}"
    told |= {"failure": "network", "failure_text": "away\x1b"}
    lines = list(render_status({"fleet": told}, now_ns=NOW_NS, color=False))
    assert field(lines, "Fleet") == f"{waits}; away\\x1b"


def test_render_status_of_an_empty_answer_does_not_fail() -> None:
    lines = list(render_status({}, now_ns=NOW_NS, color=True))
    assert field(lines, "Ready") == "\x1b[31mno\x1b[0m"
    assert field(lines, "Metrics") == "off"
