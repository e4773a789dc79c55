"""Logs with their right answers, in every form and with quiet lines in front."""

import re
from itertools import cycle
from pathlib import Path

import pytest

from crashd.domain.kernellog.analyse import LogAnalysis, analyse, analyse_report, find_reports
from crashd.domain.kernellog.printk import parse_lines
from tests.unit.domain.kernellog.test_analyse import CASES

DATA = Path(__file__).parents[3] / "data/dmesg"
QUIET = "".join(f"[{n / 100:12.6f}] demo: line {n} of a long and quiet boot\n" for n in range(400))
LABELLED: dict[str, tuple[str, str]] = {
    head.partition(" | ")[0]: (head.partition(" | ")[2], log)
    for head, _, log in (
        case.partition("\n") for case in (DATA / "labelled.txt").read_text().split("=== ")[1:]
    )
}


def analysed(log: str) -> LogAnalysis | None:
    return analyse(log.encode())


def label(name: str, quiet: bool = False) -> LogAnalysis:
    found = analysed((QUIET if quiet else "") + LABELLED[name][1])
    assert found is not None
    return found


@pytest.mark.parametrize("quiet", [False, True], ids=["alone", "quiet"])
@pytest.mark.parametrize("name", LABELLED)
def test_analyse_labelled_log_has_its_title(name: str, quiet: bool) -> None:
    title, log = LABELLED[name]
    found = analysed((QUIET if quiet and log.startswith("[") else "") + log)
    assert (found.title if found is not None else "-") == title


@pytest.mark.parametrize(
    ("name", "trace"),
    [
        ("arm-unwind-warn", 7),
        ("arm32-refcount", 8),
        ("riscv-pf", 3),
        ("kfence-trace", 4),
        ("mips-pf", 2),
        ("loongarch-pf", 2),
    ],
)
@pytest.mark.parametrize("quiet", [False, True])
def test_analyse_labelled_log_has_its_trace(name: str, trace: int, quiet: bool) -> None:
    assert len(label(name, quiet).trace) == trace


def test_analyse_labelled_kfence_trace_is_of_the_access() -> None:
    found = label("kfence-trace")
    assert [frame.function for frame in found.trace[:2]] == ["demo_read", "vfs_read"]


@pytest.mark.parametrize("name", [n for n, (title, _) in LABELLED.items() if title != "-"])
def test_find_reports_labelled_log_has_one_report(name: str) -> None:
    lines = parse_lines((QUIET + LABELLED[name][1]).encode())
    assert len(list(find_reports(lines, dead=True))) == 1


def test_signature_of_a_recursion_does_not_tell_where_the_stack_was_full() -> None:
    assert label("recursion-a").signature == label("recursion-b").signature


def test_signature_of_a_warning_is_the_same_in_each_kernels_words() -> None:
    names = ("warn-old-nofile", "warn619-0x0", "warn619-cond", "warn619-file")
    assert len({label(name).signature for name in names}) == 1


def test_analyse_newline_in_a_hung_tasks_name_is_shown() -> None:
    assert (label("hung-comm-newline").comm, label("hung-comm-newline").pid) == ("ab\\x0acd", 18088)


# ---- every report, in every form that a log may have ----

FORMS = {
    "as it is": "{text}",
    "stamped": "[  {n:3}.{u:06}] {text}",
    "caller": "[  {n:3}.{u:06}][ T4711] {text}",
    "level": "<4>[  {n:3}.{u:06}] {text}",
    "syslog": "Nov 23 11:00:00 host kernel: [  {n:3}.{u:06}] {text}",
    "kmsg": "4,{n},{n}{u:06},-;{text}",
    "login": "host login: [  {n:3}.{u:06}] {text}",
}
OWN_STAMP = re.compile(r"(?:\[ {0,8}\d+\.\d+\]|<\d>|\w{3} {1,2}\d)")
UNSTAMPED = [case for case in CASES if not OWN_STAMP.match(case[-1])]


def in_form(form: str, log: str) -> str:
    lines = enumerate(log.splitlines())
    return "".join(FORMS[form].format(n=100, u=n, text=text) + "\n" for n, text in lines)


def first(log: str) -> LogAnalysis:
    return next(analyse_report(r) for r in find_reports(parse_lines(log.encode()), dead=True))


@pytest.mark.parametrize("form", FORMS)
def test_titles_in_each_form_of_a_log_are_exact(form: str) -> None:
    wrong = [
        (case[0], first(in_form(form, case[-1])).title)
        for case in UNSTAMPED
        if first(in_form(form, case[-1])).title != case[0]
    ]
    assert wrong == []


@pytest.mark.parametrize("form", ["stamped", "syslog", "kmsg"])
def test_titles_after_quiet_lines_are_exact(form: str) -> None:
    quiet = "".join(f"eth{n}: link is up\n" for n in range(60))
    wrong = [
        case[0] for case in UNSTAMPED if first(in_form(form, quiet + case[-1])).title != case[0]
    ]
    assert wrong == []


def test_the_tables_are_as_wide_as_they_should_be() -> None:
    """The issue asks for 95 % of kinds and 85 % of functions; the tables are all right, so what
    counts is how much they ask.
    """
    assert len(CASES) + len(LABELLED) >= 200
    assert len({case[1] for case in CASES}) >= 25


FRAME = re.compile(r"^(\s+(?:\[<[0-9a-f]+>\] )?(?:\? )?)([A-Za-z_]\w+)(\+0x)", re.MULTILINE)


@pytest.mark.parametrize("suffix", [".isra.0", ".constprop.3.cold", ".llvm.1234567"])
def test_signature_is_the_same_where_a_compiler_splits_functions(suffix: str) -> None:
    split = [
        case[0]
        for case in UNSTAMPED
        if first(FRAME.sub(rf"\1\2{suffix}\3", case[-1])).signature != first(case[-1]).signature
    ]
    assert split == []


@pytest.mark.parametrize("every", [3, 5])
def test_signature_is_the_same_with_lines_of_others_in_between(every: int) -> None:
    other = "usb 1-{n}: new high-speed USB device number {n} using xhci_hcd\n"
    mixed = [
        (
            case[0],
            "".join(
                line + "\n" + (other.format(n=n) if n % every == 2 else "")
                for n, line in enumerate(case[-1].splitlines())
            ),
            case[-1],
        )
        for case in UNSTAMPED
    ]
    assert [t for t, log, alone in mixed if first(log).signature != first(alone).signature] == []


def interleaved(logs: tuple[str, str], callers: tuple[str, str], step: int) -> str:
    """Return two reports, `step` lines of each in turn."""
    parts = [
        [f"[  100.{n:06}][{caller:>6}] {text}" for n, text in enumerate(log.splitlines())]
        for log, caller in zip(logs, callers, strict=True)
    ]
    rounds = range(0, max(map(len, parts)), step)
    return "\n".join(line for n in rounds for part in parts for line in part[n : n + step])


@pytest.mark.parametrize("callers", [("T77", "T88"), ("C0", "C1"), ("T77", "C1")])
@pytest.mark.parametrize("step", [1, 3, 6])
def test_reports_of_two_cpus_at_once_are_two(callers: tuple[str, str], step: int) -> None:
    alone = [
        case[-1]
        for case in UNSTAMPED
        if "Kernel panic" not in case[-1]
        and "Sending NMI" not in case[-1]
        and len(titles(case[-1])) == 1
    ]
    stalls = [log for log in alone if "NMI backtrace" in log]
    others = [log for log in alone if "stall" not in titles(log)[0] and "lockup" not in log]
    pairs = [*zip(alone, others[7:], strict=False), *zip(cycle(stalls), others, strict=False)]
    wrong = [
        (titles(a), titles(b))
        for a, b in pairs
        if sorted(titles(interleaved((a, b), callers, step))) != sorted(titles(a) + titles(b))
    ]
    assert wrong == []


def titles(log: str) -> list[str]:
    return [analyse_report(report).title for report in find_reports(parse_lines(log.encode()))]


def test_signatures_of_different_reports_differ() -> None:
    signatures: dict[str, set[str]] = {}
    for case in CASES:
        signatures.setdefault(first(case[-1]).signature, set()).add(case[0])
    merged = {signature: titles for signature, titles in signatures.items() if len(titles) > 1}
    assert merged == {}


def case_of(title: str) -> str:
    return next(case[-1] for case in CASES if case[0] == title)


SPINLOCK = case_of("BUG: spinlock bad magic in thing_spin")
PROTECTOR = next(c[-1] for c in CASES if "is corrupted in: ffffffff" in c[-1])
STALL = case_of("INFO: rcu detected stall in thing_crunch")
OVERSIZED = case_of("WARNING in thing_alloc_ring")
COPY = case_of("KMSAN: kernel-infoleak in __skb_datagram_iter")
RWLOCK = SPINLOCK.replace("BUG: spinlock bad magic", "BUG: rwlock cpu recursion")


@pytest.mark.parametrize(
    ("log", "old", "new", "same"),
    [
        (SPINLOCK, "on CPU#0, sh/12", "on CPU#7, a b/314", True),
        (RWLOCK, "on CPU#0, sh/12", "on CPU#7, a b/314", True),
        (PROTECTOR, "ffffffff84d32d9b", "ffffffffa1b2c3d4", True),
        (PROTECTOR, "thing_overrun", "other_overrun", False),
        (STALL, "RIP: 0010:thing_crunch", "RIP: 0010:thing_crunch_more", True),  # the same loop
        (STALL, "other_work", "yet_another_work", True),  # where RCU's kthread ran
        (STALL, "rcu_gp_fqs_loop", "rcu_gp_init", True),
        (STALL, " thing_ioctl+", " other_ioctl+", False),
        (OVERSIZED, "thing_alloc_ring", "other_alloc_ring", False),
        (COPY, "__skb_datagram_iter", "__tun_datagram_iter", False),
    ],
)
def test_signature_is_of_the_bug(log: str, old: str, new: str, same: bool) -> None:
    assert old in log
    assert (first(log).signature == first(log.replace(old, new)).signature) is same
