from dataclasses import replace

import pytest

from crashd.domain.crash.model import Crash, Mode, State, from_json, to_json
from crashd.domain.kdump.directory import classify
from crashd.domain.kdump.record import Look, build_record, explain, split_log, token_of
from crashd.domain.kdump.vmcore import Completeness, DumpVerdict, judge
from crashd.domain.kernellog.analyse import analyse
from tests.builders.kdumpdir import KdumpFormat, directory, file, flatten
from tests.builders.kdumps import kernel_log
from tests.unit.domain.kdump.test_vmcore import unzstd

STAMP = b"202601020304"
DUMP = flatten(KdumpFormat().build())


def look(log: bytes = b"", dump: bytes | None = DUMP, *, name: bytes = STAMP) -> Look:
    files = [file(b"dump." + STAMP)] if dump is not None else []
    files += [file(b"dmesg." + STAMP)] if log else []
    told = classify(directory(name), files)
    assert told is not None
    verdict = None if dump is None else judge(dump, len(dump), dump[-4096:], unzstd)
    return Look("/var/crash", told, 7, verdict, log, "file", analyse(log) if log else None, False)


def record(found: Look, before: Crash | None = None) -> Crash:
    return build_record(found, before, hostname=b"here", random=1, seen_ns=5)


def test_build_record_of_a_whole_dump_has_what_dump_and_log_tell() -> None:
    crash = record(look(kernel_log("gpf")))
    assert crash.state is State.COMPLETE
    assert crash.time_ns == 1_700_000_000 * 10**9
    assert crash.title == "general protection fault in provoke_gpf"
    assert crash.capture.mode is Mode.KDUMP
    assert crash.kernel is not None
    assert crash.kernel["crash_time_source"] == "dump"
    assert crash.kernel["dump_level"] == 31
    assert crash.kernel["module"] == "provoke"
    assert any("general protection fault" in line for line in crash.report)
    assert from_json(to_json(crash)) == crash


@pytest.mark.parametrize(
    ("found", "state", "reason"),
    [
        (look(dump=None), State.INCOMPLETE, "the directory is empty"),
        (look(b"[ 1.0] words\n", None), State.INCOMPLETE, "there is no memory image, only the log"),
        (look(dump=b""), State.INCOMPLETE, "dump.202601020304: empty"),
        (look(dump=DUMP[:-16]), State.INCOMPLETE, "no end marker"),
        (look(dump=b"makedumpfile Failed.\n"), State.INCOMPLETE, "bytes of text"),
        (replace(look(), growing=True), State.CAPTURING, ""),
    ],
)
def test_build_record_of_what_is_not_whole_says_why(found: Look, state: State, reason: str) -> None:
    crash = record(found)
    assert crash.state is state
    assert reason in (crash.capture.reason or "")
    assert not crash.core.complete
    assert crash.title.startswith("kernel crash: ")


def test_build_record_again_keeps_id_pin_and_first_sight() -> None:
    first = replace(record(replace(look(), growing=True)), pinned=True)
    later = build_record(look(kernel_log()), first, hostname=b"here", random=9, seen_ns=99)
    assert (later.id, later.pinned, later.token) == (first.id, True, first.token)
    assert later.kernel is not None and later.kernel["first_seen_ns"] == 5
    assert later.signature is not None


def test_build_record_of_another_host_is_that_hosts() -> None:
    assert record(look(name=b"db7-202601020304")).hostname == b"db7"
    assert record(look()).hostname == b"host1"  # as the dump's own header has it
    assert record(look(dump=None)).hostname == b"here"


def test_token_of_is_the_directorys() -> None:
    assert token_of("/a", b"b") == token_of("/a", b"b")
    assert len({token_of("/a", b"b"), token_of("/a", b"c"), token_of("/b", b"b")}) == 3


def test_signature_is_that_of_the_bug_not_of_the_boot() -> None:
    one, other = record(look(kernel_log("gpf"))), record(look(kernel_log("gpf"), None))
    assert one.signature == other.signature
    assert one.signature != record(look(kernel_log("bug"))).signature


def test_explain_says_what_where_and_to_whom() -> None:
    analysis = analyse(kernel_log("sysrq"))
    assert analysis is not None
    text = explain(analysis)
    assert text.startswith("Somebody made the kernel crash through sysrq, in sysrq_handle_crash")
    assert "while running" in text


def test_split_log_keeps_the_end_and_escapes() -> None:
    lines = split_log(b"x\n" * 10_000 + b"\x1b[2Jlast\n")
    assert len(lines) == 4000
    assert lines[-1] == "\\x1b[2Jlast"


def test_record_of_hostile_head_has_no_control_characters() -> None:
    names = (b"Linux", b"h\x1bst", b"6.\n1", b"#1", b"x86_64", b"")
    dump = flatten(KdumpFormat(utsname=names, vmcoreinfo=b"").build())
    verdict = judge(dump, len(dump), dump[-4096:], unzstd)
    assert verdict == replace(verdict, completeness=Completeness.COMPLETE)
    crash = record(replace(look(), verdict=DumpVerdict(Completeness.COMPLETE, "", verdict.head)))
    assert crash.kernel is not None
    assert "\x1b" not in str(to_json(crash))
    assert "\n" not in str(crash.kernel["release"])


def test_build_record_keeps_the_complaint_before_what_the_kernel_died_of() -> None:
    log = (
        b"[   80.000001] BUG: Bad rss-counter state mm:00000000f00dcafe type:MM_ANONPAGES val:2\n"
        b"[   90.000001] Kernel panic - not syncing: Out of memory: panic_on_oom is enabled\n"
    )
    kernel = record(look(log)).kernel
    assert kernel is not None
    assert kernel["panic_kind"] == "oom"
    assert kernel["earlier"] == "BUG: Bad rss-counter state"
