"""Parts of large logs: what they leave out makes no difference."""

import re

import pytest

from crashd.domain.kernellog import regions as oopsregions
from crashd.domain.kernellog.analyse import analyse
from crashd.domain.kernellog.heads import find_head
from crashd.domain.kernellog.printk import LOG_MAX, is_gap, parse_lines
from crashd.domain.kernellog.regions import LINES_MAX, WHOLE_MAX, parse_regions
from tests.unit.domain.kernellog.test_analyse import BUG, CASES, CLEAN, PANIC, WARN, log_of


def quiet(size: int, start: int = 0) -> str:
    line = "[{:12.6f}] usb 1-1: new high-speed USB device number {} using xhci_hcd\n"
    return "".join(line.format(start + n / 1000, n) for n in range(size // 80))


def test_parse_regions_of_a_small_log_is_all_of_it() -> None:
    log = quiet(WHOLE_MAX // 2).encode()
    assert parse_regions(log) == parse_lines(log)


@pytest.mark.parametrize("before", [2 * WHOLE_MAX, LOG_MAX + WHOLE_MAX])
@pytest.mark.parametrize("after", [0, WHOLE_MAX])
def test_analyse_large_log_finds_its_crash(before: int, after: int) -> None:
    crash = log_of((BUG, 900001, "a"), (PANIC, 900002, "Fatal exception"))
    found = analyse((quiet(before) + crash + quiet(after, 900003)).encode())
    small = analyse((quiet(1000) + crash).encode())
    assert found is not None
    assert small is not None
    assert (found.title, found.signature, found.fatal) == (small.title, small.signature, True)
    assert (found.trace, found.text) == (small.trace, small.text)


def test_analyse_large_log_keeps_an_earlier_complaint_and_the_kernels_version() -> None:
    log = "[    0.000000] Linux version 6.1.0-9 (x@y) #1 SMP\n"
    log += log_of((BUG, 10, "a")) + quiet(2 * WHOLE_MAX, 20) + log_of((WARN, 90000, "w"))
    log += quiet(2 * WHOLE_MAX, 90001) + "[  990000.000001] Kernel panic - not syncing: no\n"
    found = analyse(log.encode())
    assert found is not None
    assert (found.title, found.release) == ("Kernel panic - not syncing: no", "6.1.0-9")
    assert found.earlier == "BUG: unable to handle kernel NULL pointer dereference in a"


def test_parse_regions_of_nothing_but_reports_is_bounded() -> None:
    log = (WARN.format(10, "w", CLEAN) * (3 * WHOLE_MAX // 300)).encode()
    lines = parse_regions(log)
    assert len(lines) <= LINES_MAX + 4 * oopsregions.AFTER
    assert lines[-1].text.startswith("---[ end trace")
    assert any(is_gap(line) for line in lines)


def test_every_report_has_a_mark_near_its_head() -> None:
    """Else a large log would hide it."""
    hidden = []
    for case in CASES:
        lines = case[-1].splitlines()
        head = next((n for n, line in enumerate(lines) if find_head(line.lstrip()) is not None), 0)
        near = "\n".join(lines[: head + oopsregions.BEFORE]).encode()
        if oopsregions._MARK.search(near) is None:
            hidden.append(case[0])
    torn = {"kernel oops in thing_middle", "kernel oops in thing_fault"}
    assert [title for title in hidden if title not in torn] == []


def test_mark_is_no_word_of_a_quiet_log() -> None:
    assert re.findall(oopsregions._MARK, quiet(10_000).encode()) == []
