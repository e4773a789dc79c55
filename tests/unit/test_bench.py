"""The pure parts of tests/bench: what is made of the figures, and what is read from texts."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.configuration import files as configfiles
from crashd.domain.crash.model import Capture, Core, Engine, Mode, State
from crashd.store.paths import Paths
from tests.bench import report
from tests.bench.__main__ import choose, parse_arguments
from tests.bench.cases import CASES, Case, Salvo
from tests.bench.measure import (
    find_failures,
    parse_busy_ticks,
    parse_cpu_model,
    parse_filesystem,
    parse_shmem,
)
from tests.bench.report import (
    CPU,
    DRAIN,
    HOLD,
    KERNEL,
    MEMORY,
    RECORDED,
    SIDES,
    STORED,
    STREAM,
    SYSTEMD,
    TARGETS,
    Machine,
    Results,
    Sample,
    Target,
    Verdict,
)
from tests.bench.sides import (
    NotAvailableError,
    Outcome,
    SystemdCoredump,
    build_config,
    describe_captures,
    last_line,
    parse_sysctls,
)
from tests.builders.crashes import build_crash

SPARSE = "2 GiB sparse memfd"
MACHINE = Machine(
    "A CPU", 2, 24 << 30, "6.18", "3.11.2", "ext4", "systemd 252", 0.004, 1.5, (0.01, 0.4)
)


def samples(key: str, *values: float) -> list[Sample]:
    return [Sample({key: value}) for value in values]


def held(**seconds: float) -> Results:
    """Results with one sample of a hold time for each side, named by its last word."""
    names = {side.split()[-1].replace("-", "_").replace("/", ""): side for side in SIDES}
    return Results(
        "sleep", samples={names[key]: samples(HOLD, value) for key, value in seconds.items()}
    )


# -- medians and ratios ----------------------------------------------------------------------------


def test_figure_of_several_runs_is_the_median() -> None:
    results = Results("c", samples={MEMORY: samples(HOLD, 9.0, 1.0, 2.0)})
    assert results.figure(MEMORY, HOLD) == 2.0


def test_figure_of_cpu_is_the_mean() -> None:
    results = Results("c", samples={MEMORY: samples(CPU, 0.0, 0.0, 0.03)})
    assert results.figure(MEMORY, CPU) == pytest.approx(0.01)


def test_figure_that_only_some_runs_have_is_of_those() -> None:
    runs = [*samples(HOLD, 1.0), *samples(STORED, 5.0)]
    assert Results("c", samples={MEMORY: runs}).figure(MEMORY, STORED) == 5.0


def test_figure_without_samples_is_none() -> None:
    assert Results("c").figure(MEMORY, HOLD) is None
    assert Results("c", samples={MEMORY: samples(CPU, 1.0)}).figure(MEMORY, HOLD) is None


@pytest.mark.parametrize(
    ("value", "base", "expected"),
    [(1.0, 4.0, 0.25), (0.0, 4.0, 0.0), (None, 4.0, None), (1.0, None, None), (1.0, 0.0, None)],
)
def test_ratio_of_what_is_there(
    value: float | None, base: float | None, expected: float | None
) -> None:
    assert report.ratio(value, base) == expected


# -- targets ---------------------------------------------------------------------------------------

AT_MOST = Target("t", 0.16, HOLD, "sleep", MEMORY, ("sleep", SYSTEMD, HOLD))


@pytest.mark.parametrize(("memory", "met"), [(0.016, True), (0.015, True), (0.017, False)])
def test_judge_at_most_is_met_up_to_the_limit(memory: float, met: bool) -> None:
    results = held(memory=memory, systemd_coredump=0.1)
    verdict = report.judge(AT_MOST, {"sleep": results})
    assert verdict.value == pytest.approx(memory / 0.1)
    assert verdict.met is met


@pytest.mark.parametrize(("recorded", "met"), [(1000, True), (999, False)])
def test_judge_at_least_is_met_from_the_limit_on(recorded: int, met: bool) -> None:
    target = TARGETS[-1]
    figures = {RECORDED: recorded, report.CRASHES: 1000}
    results = Results(target.case, storm=True, samples={MEMORY: [Sample(figures)]})
    assert report.judge(target, {target.case: results}).met is met


def test_judge_without_case_or_side_is_not_measured() -> None:
    for results in ({}, {"sleep": held(memory=1.0)}, {"sleep": held(systemd_coredump=1.0)}):
        assert report.judge(AT_MOST, results) == Verdict(AT_MOST, None, None)


def test_targets_name_cases_and_sides_that_there_are() -> None:
    cases = {case.name for case in CASES}
    for target in TARGETS:
        base_case, base_side, _ = target.against
        assert {target.case, base_case} <= cases
        assert {target.side, base_side} <= set(SIDES)


def test_targets_have_the_limits_of_the_issue() -> None:
    holds = [target.limit for target in TARGETS if target.figure == HOLD]
    assert holds == [0.04, 0.04, 0.1, 1.0, 0.07, 1.0, 0.15, 0.1, 0.003, 0.02, 1.2]


def test_targets_of_kinds_name_kinds_that_their_case_has() -> None:
    cases = {case.name: case for case in CASES}
    prefix = report.hold_of("")
    named = [t for t in TARGETS if t.figure.startswith(prefix)]
    assert {t.case for t in named} == {"burst", "loop after a burst", "backlog", SPARSE}
    for target in named:
        for figure in (target.figure, target.against[2]):
            assert figure.removeprefix(prefix) in cases[target.case].kinds


def test_format_verdicts_says_what_became_of_each() -> None:
    missed = Verdict(replace(AT_MOST, text="other"), 0.2, False)
    text = report.format_verdicts(
        [Verdict(AT_MOST, 0.1, True), missed, Verdict(TARGETS[-1], None, None)]
    )
    lines = [line.split() for line in text.splitlines()[1:]]
    assert lines[0] == ["crashd", "memory", "t", "at", "most", "0.16", "0.1", "met"]
    assert lines[1][-3:] == ["0.2", "NOT", "met"]
    assert lines[2][-5:] == ["at", "least", "1", "not", "measured"]


# -- tables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.00 ms"),
        (0.000912, "0.91 ms"),
        (0.0451, "45.1 ms"),
        (0.9121, "912 ms"),
        (1.0, "1.00 s"),
        (63.94, "63.9 s"),
        (256.0, "256 s"),
    ],
)
def test_format_seconds_shows_three_digits(seconds: float, text: str) -> None:
    assert report.format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (4096, "4.00 KiB"),
        (129 << 20, "129 MiB"),
        (1 << 30, "1.00 GiB"),
        (5 << 40, "5120 GiB"),
    ],
)
def test_format_bytes_shows_three_digits(size: int, text: str) -> None:
    assert report.format_bytes(size) == text


@pytest.mark.parametrize(("value", "text"), [(0.00314, "0.0031"), (0.163, "0.16"), (12.34, "12.3")])
def test_format_ratio_shows_what_counts(value: float, text: str) -> None:
    assert report.format_ratio(value) == text


def test_format_results_aligns_and_compares_with_systemd() -> None:
    results = held(memory=0.01, systemd_coredump=0.1, devnull=0.001)
    lines = report.format_results(results).splitlines()
    assert lines[0] == "sleep"
    assert len({len(line) for line in lines[1:]}) == 1
    assert lines[2].split()[:5] == ["crashd", "memory", "1", "10.0", "ms"]
    assert lines[2].split()[5] == "0.1"
    assert lines[3].split()[:5] == ["systemd-coredump", "1", "100", "ms", "1"]
    assert [line.split()[0] for line in lines[2:]] == ["crashd", "systemd-coredump", "pipe"]


def test_format_results_without_systemd_has_no_ratios() -> None:
    row = report.format_results(held(memory=0.01)).splitlines()[-1]
    assert row.split() == ["crashd", "memory", "1", "10.0", "ms", *["-"] * 7]


def test_format_results_says_why_a_side_is_missing_and_what_was_odd() -> None:
    runs = [Sample({HOLD: 1.0}, "1 of 1 by pipe stream"), Sample({HOLD: 1.0})]
    results = Results("c", samples={MEMORY: runs}, missing={DRAIN: "left out"})
    lines = report.format_results(results).splitlines()
    assert lines[-2:] == [
        "  crashd memory: 1 of 1 by pipe stream (1 of 2 runs)",
        "  pipe to /dev/null: left out",
    ]


def test_format_results_shows_cpu_below_the_noise_as_none() -> None:
    row = report.format_results(Results("c", samples={MEMORY: samples(CPU, -0.02)}))
    assert "0.00 ms" in row
    assert "-0" not in row


def test_format_results_of_storm_counts_what_was_recorded() -> None:
    figures = {report.CRASHES: 300.0, RECORDED: 67.0}
    text = report.format_results(Results("s", storm=True, samples={SYSTEMD: [Sample(figures)]}))
    assert text.splitlines()[1].split()[:4] == ["side", "runs", "released/s", "ratio"]
    assert "300" in text.split() and "67" in text.split()


def test_format_results_of_several_kinds_has_a_column_for_each() -> None:
    figures = {report.hold_of("tiny"): 0.02, report.hold_of("1 GiB"): 1.5, report.SPOOLED: 2.0}
    results = Results("burst", kinds=("1 GiB", "tiny"), samples={MEMORY: [Sample(figures)]})
    lines = report.format_results(results).splitlines()
    assert lines[0] == "burst: worst hold of each kind"
    assert lines[1].split()[2:7] == ["1", "GiB", "ratio", "tiny", "ratio"]
    assert "1.50 s" in lines[2] and "20.0 ms" in lines[2]
    assert lines[2].split()[-1] == "2"


def test_format_results_says_what_was_measured_instead() -> None:
    assert report.format_results(Results("a", smaller="64 MiB")).startswith("a (quick: 64 MiB)\n")


# -- what was lost ---------------------------------------------------------------------------------


def test_failures_are_those_of_crashd() -> None:
    lost = Sample({}, failures=("1 of 2 cores are not whole",))
    results = Results(
        "c",
        samples={MEMORY: [Sample({}), lost], SYSTEMD: [lost]},
        stopped={STREAM: "it never came to rest", SYSTEMD: "lost"},
    )
    assert results.failures() == [
        f"c: {STREAM}: it never came to rest",
        f"c: {MEMORY}: 1 of 2 cores are not whole",
    ]


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Outcome(12, 0, 0, 12, 6), ()),
        (Outcome(11, 0, 0, 11, 6), ("1 of 12 crashes are not recorded",)),
        (Outcome(12, 0, 0, 10, 6), ("2 of 12 cores are not whole",)),
        (Outcome(12, 0, 0, 12, 7), ("1 crashes went to the spool, past the daemon",)),
        (Outcome(12, 0, 0, None, 0), ()),
    ],
)
def test_find_failures_says_what_was_lost(outcome: Outcome, words: tuple[str, ...]) -> None:
    assert find_failures(12, 6, outcome) == words


def test_parse_shmem_is_in_bytes() -> None:
    assert parse_shmem("MemTotal:  9 kB\nShmem:   8200 kB\nShmemHuge: 1 kB\n") == 8200 << 10
    assert parse_shmem("MemTotal:  9 kB\n") == 0


# -- JSON ------------------------------------------------------------------------------------------


def test_build_document_is_json_with_runs_medians_and_ratios() -> None:
    results = held(memory=0.01, systemd_coredump=0.1)
    results.missing[KERNEL] = "stopped"
    results.samples[SYSTEMD] += samples(report.CORE, 24576.0)
    verdicts = [report.judge(AT_MOST, {"sleep": results})]
    document = json.loads(
        json.dumps(report.build_document(MACHINE, {MEMORY: "", STREAM: "no"}, [results], verdicts))
    )
    assert document["format"] == report.FORMAT
    assert document["machine"]["cpus"] == 2
    assert document["sides"] == {MEMORY: {"not_available": None}, STREAM: {"not_available": "no"}}
    memory = document["cases"]["sleep"][MEMORY]
    assert memory["runs"] == [{HOLD: 0.01, "note": None, "failures": []}]
    assert memory["summary"][HOLD] == 0.01
    assert memory["ratio"][HOLD] == pytest.approx(0.1)
    assert memory["ratio"][STORED] is None
    assert memory["summary"][report.CORE] is None
    assert document["cases"]["sleep"][SYSTEMD]["summary"][report.CORE] == 24576
    assert document["cases"]["sleep"][KERNEL]["missing"] == "stopped"
    assert DRAIN not in document["cases"]["sleep"]
    assert document["targets"][0]["met"] is True


def test_describe_machine_is_one_line() -> None:
    assert MACHINE.describe() == (
        "A CPU, 2 CPUs, 24.0 GiB of memory, Linux 6.18, Python 3.11.2, ext4, systemd 252, "
        "load 1.50, 0.004 CPUs busy at rest, "
        "64 MiB of fresh memory in 10.0 ms, after a pause in 400 ms"
    )


# -- cases and arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "quick", "every", "expected"),
    [
        (None, False, False, (3, 1, 0)),
        (None, True, False, (2, 0, 0)),
        (None, False, True, (3, 1, 1)),
        (5, False, False, (5, 1, 0)),
        (1, True, True, (1, 1, 1)),
    ],
)
def test_runs_of_slow_sides_are_few(
    wanted: int | None, quick: bool, every: bool, expected: tuple[int, ...]
) -> None:
    case = Case("c", 3, quick_runs=2, slow={STREAM: 1, SYSTEMD: 0})
    runs = [
        case.runs_of(side, wanted=wanted, quick=quick, every=every)
        for side in (MEMORY, STREAM, SYSTEMD)
    ]
    assert tuple(runs) == expected


def test_cases_count_their_crashes() -> None:
    backlog = next(case for case in CASES if case.name == "backlog")
    assert (backlog.crashes, backlog.crashes_away) == (16, 6)
    assert backlog.quick is not None and backlog.quick.kinds == backlog.kinds
    stopped = next(case for case in CASES if case.name == "16 GiB mapped, daemon stopped")
    assert (stopped.crashes, stopped.crashes_away) == (1, 1)


def test_cases_leave_out_sides_that_cannot_be_measured() -> None:
    case = Case("c", 3, only=(MEMORY,))
    runs = [case.runs_of(side, wanted=None, quick=False, every=True) for side in SIDES]
    assert dict(zip(SIDES, runs, strict=True)) == {**dict.fromkeys(SIDES, 0), MEMORY: 3}


def test_quick_cases_keep_the_kinds_of_their_targets() -> None:
    for case in CASES:
        if case.quick is not None:
            assert (case.quick.kinds, case.quick.away) == (case.kinds, case.away), case.name


def test_salvo_times_are_from_the_start_of_its_act() -> None:
    assert Salvo("k", (), 3, 1.0, 0.5).times == [1.0, 1.5, 2.0]


def test_parse_arguments_quick_measures_few_sides() -> None:
    assert parse_arguments(["--quick"]).sides == [MEMORY, SYSTEMD]
    assert parse_arguments([]).sides == list(SIDES)
    assert parse_arguments(["--quick", "--sides", "socket"]).sides == [report.SOCKET]


def test_parse_arguments_words_choose_cases_and_sides() -> None:
    arguments = parse_arguments(["--cases", "sleep,storm", "--sides", "memory,systemd"])
    assert arguments.cases == ["sleep", "storm, 16 at once", "storm, 100 at once"]
    assert arguments.sides == [MEMORY, SYSTEMD]


@pytest.mark.parametrize(
    "argv", [["--cases", "nothing"], ["--sides", ""], ["--sides", "memory,"], ["--runs", "0"]]
)
def test_parse_arguments_nonsense_is_refused(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        parse_arguments(argv)
    assert refused.value.code == 2
    assert argv[0] in capsys.readouterr().err


def test_choose_word_that_is_in_none_names_all() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is in none of: a, b"):
        choose("c", ["a", "b"])


# -- what is read ----------------------------------------------------------------------------------


def test_parse_busy_ticks_leaves_idle_and_what_is_counted_twice_out() -> None:
    line = "cpu  1 20 300 4000 50000 600000 7000000 80000000 900000000 1000000000"
    assert parse_busy_ticks(line) == 7600321


def test_parse_cpu_model_is_that_of_the_first() -> None:
    assert parse_cpu_model("processor\t: 0\nmodel name\t: A: B\nmodel name\t: C\n") == "A: B"
    assert parse_cpu_model("processor\t: 0\nBogoMIPS\t: 50\n") == ""


def test_parse_filesystem_finds_the_device() -> None:
    mountinfo = (
        "23 1 0:5 / /proc rw - proc proc rw\n"
        "24 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
    )
    assert parse_filesystem(mountinfo, 254, 0) == "ext4"
    assert parse_filesystem(mountinfo, 254, 1) == "unknown file system"


SYSCTL_D = """
# kernel.core_pattern=|/no/such/thing
kernel.core_pattern=|/lib/systemd/systemd-coredump %P %u %g %s %t 9223372036854775808 %h %d
kernel.core_pipe_limit = 16
fs.suid_dumpable=2
"""


def test_parse_sysctls_reads_what_systemd_would_set() -> None:
    found = parse_sysctls(SYSCTL_D)
    assert found.pattern.startswith("|/lib/systemd/systemd-coredump %P %u")
    assert found.pattern.endswith(" %h %d")
    assert (found.pipe_limit, found.suid_dumpable) == ("16", "2")


def test_parse_sysctls_without_one_is_not_available() -> None:
    with pytest.raises(NotAvailableError, match=r"fs\.suid_dumpable"):
        parse_sysctls(SYSCTL_D.replace("fs.suid_dumpable", "#"))


def test_systemd_coredump_that_never_started_removes_nothing(short_tmp: Path) -> None:
    core = short_tmp / "core.sleep.0.zst"
    core.touch()
    side = SystemdCoredump(short_tmp / "log", short_tmp)
    assert side.recorded() == 0
    side.clear()
    assert core.exists()


def test_last_line_finds_the_reason(short_tmp: Path) -> None:
    log = short_tmp / "log"
    assert last_line(log) == ""
    log.write_text("first: not registered\n\nsecond\n\n")
    assert last_line(log) == "second"
    assert last_line(log, "not reg") == "first: not registered"


def test_build_config_cuts_nothing(short_tmp: Path) -> None:
    paths = Paths(short_tmp)
    paths.config_file.parent.mkdir(parents=True)
    paths.config_file.write_text(build_config("pipe", "stream"))
    settings = configfiles.load(paths)
    assert settings.capture.engine == "stream"
    assert settings.capture.max_core_bytes is None
    assert settings.http.address is None


@pytest.mark.parametrize("case", [c for case in CASES for c in (case, case.quick) if c])
def test_build_config_of_each_case_is_one(short_tmp: Path, case: Case) -> None:
    paths = Paths(short_tmp)
    paths.config_file.parent.mkdir(parents=True)
    paths.config_file.write_text(build_config("pipe", "auto", case.capture))
    assert configfiles.load(paths).capture.engine == "auto"


LARGE = Core(size_bytes=2 << 20)


def test_describe_captures_as_expected_says_nothing() -> None:
    crash = build_crash(capture=Capture(Mode.PIPE, Engine.MEMORY), core=LARGE)
    small = build_crash(capture=Capture(Mode.PIPE, Engine.STREAM))
    assert describe_captures([small], "pipe auto") == ""
    assert describe_captures([crash], "pipe memory") == ""


def test_describe_captures_names_fallbacks_and_what_is_not_whole() -> None:
    spooled = build_crash(1, capture=Capture(Mode.SPOOL, Engine.STREAM), core=LARGE)
    cut = build_crash(
        2,
        state=State.TRUNCATED,
        capture=Capture(Mode.PIPE, Engine.MEMORY, reason="too large"),
        core=LARGE,
    )
    assert describe_captures([spooled, cut], "pipe memory") == (
        "1 of 2 by spool stream, 1 truncated: too large"
    )
