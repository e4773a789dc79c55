"""Run the benchmark: `python -m tests.bench --help`."""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crashd.errors import CrashdError
from tests.bench.cases import CASES, Case, CompileError, Programs, compile_programs
from tests.bench.measure import (
    MeasureError,
    describe_machine,
    measure,
    measure_idle,
    memory_available,
)
from tests.bench.report import (
    MEMORY,
    SIDES,
    SYSTEMD,
    TARGETS,
    Results,
    build_document,
    format_failures,
    format_results,
    format_verdicts,
    judge,
)
from tests.bench.sides import NotAvailableError, Side, make_sides
from tests.bench.sysctls import locked, preserved

COPIES = 3
"""How often a case's memory has to fit: the victim, a buffer, the page cache of its core."""

NOT_ABLE = "has no daemon that may be away"
QUICK_SIDES = (MEMORY, SYSTEMD)
IDLE_CPUS_MAX = 0.1
"""More at rest is somebody else's."""


def choose(text: str, names: Sequence[str]) -> list[str]:
    """Resolve a list such as "memory,systemd": each word has to stand in a name."""
    found: list[str] = []
    for word in text.split(","):
        matching = [name for name in names if word and word.strip() in name]
        if not matching:
            raise argparse.ArgumentTypeError(f"{word!r} is in none of: {', '.join(names)}")
        found += matching
    return found


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    cases = [case.name for case in CASES]
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measure what a crash costs, by crashd and by others. Run it as root.",
        epilog=f"cases: {'; '.join(cases)}. sides: {'; '.join(SIDES)}.",
    )
    add = parser.add_argument
    add(
        "--cases",
        metavar="WORD,…",
        type=lambda text: choose(text, cases),
        default=cases,
        help="only the cases with one of these words in their names",
    )
    add(
        "--sides",
        metavar="WORD,…",
        type=lambda text: choose(text, SIDES),
        help="the same for sides (default: all; with --quick memory and systemd-coredump)",
    )
    add("--runs", type=_positive, help="runs of each case on each side, but for the slowest")
    add("--quick", action="store_true", help="two minutes: smaller cases, few sides; no targets")
    add("--all", action="store_true", help="leave no case out on a side that is slow at it")
    add(
        "--no-lock",
        action="store_true",
        help="do not wait for the right to set kernel.core_pattern: the caller has it",
    )
    add("--json", type=Path, metavar="FILE", help="where to write the figures (default: a new one)")
    add(
        "--scratch",
        type=Path,
        metavar="DIR",
        default=Path("/var/tmp"),
        help="where crashd and the kernel store; a short path on the disk of /var (%(default)s)",
    )
    arguments = parser.parse_args(argv)
    if arguments.sides is None:
        arguments.sides = list(QUICK_SIDES if arguments.quick else SIDES)
    return arguments


def say(text: str) -> None:
    """Report how far it is."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def start_sides(sides: Sequence[Side], cleanup: contextlib.ExitStack) -> dict[str, str]:
    """Start them; give for each why it is not available, "" where it is."""
    reasons = {}
    for side in sides:
        with contextlib.ExitStack() as stack:
            stack.callback(side.stop)
            try:
                side.start()
                side.activate()
            except (NotAvailableError, CrashdError, OSError) as e:
                reasons[side.name] = str(e).partition("\n")[0]
                say(f"{side.name}: not available: {reasons[side.name]}")
            else:
                reasons[side.name] = ""
                cleanup.enter_context(stack.pop_all())
    return reasons


def run_case(
    case: Case,
    sides: Sequence[Side],
    programs: Programs,
    idle_rate: float,
    arguments: argparse.Namespace,
) -> Results:
    """Run one case: every side in turn, and again: where the machine drifts, it does so for all."""
    results = Results(case.name, case.storm is not None, case.kinds, case.watch_shmem)
    if arguments.quick and case.quick is not None:
        case = case.quick
        results.smaller = case.name
    if case.resident_bytes * COPIES > memory_available():
        results.missing = dict.fromkeys((s.name for s in sides), "not measured: too little memory")
        return results
    counts = {
        side.name: case.runs_of(
            side.name, wanted=arguments.runs, quick=arguments.quick, every=arguments.all
        )
        for side in sides
    }
    for name, count in counts.items():
        if not count:
            able = not case.only or name in case.only
            results.missing[name] = "left out, it takes minutes: --all" if able else NOT_ABLE
    for turn in range(max(counts.values(), default=0)):
        for side in sides:
            if turn >= counts[side.name] or side.name in results.missing:
                continue
            try:
                sample = measure(case, side, programs, idle_rate, quick=arguments.quick)
            except (MeasureError, CrashdError, OSError) as e:
                results.missing[side.name] = f"stopped in run {turn + 1}: {e}"
                results.stopped[side.name] = str(e)
                say(f"{case.name}: {side.name}: {e}")
            else:
                results.samples.setdefault(side.name, []).append(sample)
    return results


def run(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Measure and print everything; return the JSON document, and what crashd lost."""
    with contextlib.ExitStack() as stack:
        if not arguments.no_lock:
            stack.enter_context(locked())
        scratch = Path(tempfile.mkdtemp(prefix="cd", dir=arguments.scratch.resolve()))
        stack.callback(shutil.rmtree, scratch)
        stack.enter_context(preserved())
        programs = compile_programs(scratch)
        sides = make_sides(arguments.sides, scratch, programs)
        reasons = start_sides(sides, stack)
        machine = describe_machine(scratch, measure_idle())
        print(f"{machine.describe()}\n", flush=True)
        if machine.idle_cpus > IDLE_CPUS_MAX:
            say("somebody else is at work here: CPU figures are worth nothing, the others little")
        results: dict[str, Results] = {}
        for case in CASES:
            if case.name not in arguments.cases:
                continue
            start = time.monotonic()
            able = [side for side in sides if not reasons[side.name]]
            results[case.name] = run_case(case, able, programs, machine.idle_cpus, arguments)
            say(f"{case.name}: {time.monotonic() - start:.0f} s")
            print(format_results(results[case.name]), end="\n\n", flush=True)
    verdicts = [] if arguments.quick else [judge(target, results) for target in TARGETS]
    failures = [line for result in results.values() for line in result.failures()]
    if reasons.get(MEMORY):
        failures.append(f"{MEMORY}: {reasons[MEMORY]}")
    for name, reason in reasons.items():
        if reason:
            print(f"{name}: not available: {reason}")
    if verdicts:
        print(f"targets\n{format_verdicts(verdicts)}\n")
    print(format_failures(failures), flush=True)
    return build_document(machine, reasons, list(results.values()), verdicts), failures


def _interrupt(number: int, _frame: object) -> None:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # from here on everything is being put back
    raise SystemExit(128 + number)


def main() -> int:
    """Run the benchmark; return 1 where crashd lost, cut or spooled what it should not have.

    Targets do not count: machines are noisy.
    """
    arguments = parse_arguments(sys.argv[1:])
    if os.geteuid() != 0:
        say("run it as root: it sets kernel.core_pattern")
        return 3
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        if arguments.json is not None:
            arguments.json.touch()  # or fail before the first run and not after the last one
        document, failures = run(arguments)
    except (CrashdError, CompileError, OSError) as e:
        say(str(e))
        return 1
    text = json.dumps(document, indent=2) + "\n"
    if arguments.json is None:
        with tempfile.NamedTemporaryFile(
            "w", prefix="crashd-bench-", suffix=".json", delete=False
        ) as file:
            file.write(text)
        print(f"\nfigures: {file.name}")
    else:
        arguments.json.write_text(text)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
