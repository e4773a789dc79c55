"""From samples to medians, ratios, verdicts, tables and JSON; pure."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

MEMORY: Final = "crashd memory"
SHIPPING: Final = "crashd shipping"
STREAM: Final = "crashd stream"
SOCKET: Final = "crashd socket"
SYSTEMD: Final = "systemd-coredump"
KERNEL: Final = "kernel to file"
DRAIN: Final = "pipe to /dev/null"
SIDES: Final = (MEMORY, SHIPPING, STREAM, SOCKET, SYSTEMD, KERNEL, DRAIN)

HOLD: Final = "hold_seconds"
LISTED: Final = "listed_seconds"
CPU: Final = "cpu_seconds"
STORED: Final = "stored_bytes"
CORE: Final = "core_bytes"
CPU_EACH: Final = "cpu_seconds_each"
STORED_EACH: Final = "stored_bytes_each"
CRASHES: Final = "crashes"
RECORDED: Final = "recorded"
WHOLE: Final = "whole"
RELEASED_RATE: Final = "released_per_second"
RECORDED_RATE: Final = "recorded_per_second"
SHMEM: Final = "shmem_grown_bytes"
"""How far the machine's shared memory grew while a victim was held, at most."""
SHMEM_MAPPED: Final = "shmem_mapped_bytes"
SPOOLED: Final = "spooled"


def hold_of(kind: str) -> str:
    """Name the figure of the worst hold of one kind of crash in a case that has several."""
    return f"{HOLD} {kind}"


FORMAT: Final = 2
"""Version of the JSON document."""


# -- samples ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a case on a side; a figure that the side does not have is left out."""

    figures: Mapping[str, float]
    note: str = ""
    """What was not as expected."""
    failures: tuple[str, ...] = ()
    """Crashes that are missing or cut, or were spooled though the daemon was there."""


@dataclass(slots=True)
class Results:
    """All samples of one case."""

    case: str
    storm: bool = False
    kinds: tuple[str, ...] = ()
    """Of crashes, where there are several."""
    watches_shmem: bool = False
    smaller: str = ""
    """What was measured instead, with --quick; "" for the case itself."""
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Why a side has no samples, or fewer."""
    stopped: dict[str, str] = field(default_factory=dict)
    """Of those, the sides that failed."""

    def figure(self, side: str, key: str) -> float | None:
        """Summarise one figure of a side; None where there is no such figure.

        The median, but of CPU seconds the mean: the kernel counts them in ticks.
        """
        values = [s.figures[key] for s in self.samples.get(side, ()) if key in s.figures]
        if not values:
            return None
        return statistics.fmean(values) if key in (CPU, CPU_EACH) else statistics.median(values)

    def failures(self) -> list[str]:
        """Say what crashd lost, a line each; a side that stopped lost all."""
        found = [f"{self.case}: {side}: {text}" for side, text in self.stopped.items()]
        for side, samples in self.samples.items():
            found += [f"{self.case}: {side}: {text}" for s in samples for text in s.failures]
        return [line for line in found if ": crashd " in line]


def ratio(value: float | None, base: float | None) -> float | None:
    """Divide; None where there is nothing to divide, or by."""
    return None if value is None or not base else value / base


# -- targets ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """A bound for the quotient of two figures."""

    text: str
    limit: float
    figure: str
    case: str
    side: str
    against: tuple[str, str, str]
    """Case, side and figure of what it is divided by."""
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a target; both None where it was not measured."""

    target: Target
    value: float | None
    met: bool | None


def _hold(text: str, limit: float, case: str, side: str, base: tuple[str, str]) -> Target:
    return Target(text, limit, HOLD, case, side, (*base, HOLD))


def _stored(case: str) -> Target:
    text = f"{case}: core on disk / systemd-coredump"
    return Target(text, 1.0, CORE, case, MEMORY, (case, SYSTEMD, CORE))


def _worst(kind: str, limit: float) -> Target:
    text = f"burst, {kind}: worst hold / systemd-coredump"
    return Target(text, limit, hold_of(kind), _BURST, MEMORY, (_BURST, SYSTEMD, hold_of(kind)))


def _kinds(case: str, kind: str, limit: float, base: str) -> Target:
    text = f"{case}: worst hold, {kind} / {base}"
    return Target(text, limit, hold_of(kind), case, MEMORY, (case, MEMORY, hold_of(base)))


_TINY, _SMALL, _LARGE, _ZEROS = "sleep", "256 MiB dense", "1 GiB dense", "1 GiB zeros"
_SPILL, _ZEROS_MORE, _SPARSE = "4 GiB dense, buffer 512 MiB", "3 GiB zeros", "2 GiB sparse memfd"
_MAPPED, _MAPPED_MORE, _STOPPED = "16 GiB mapped", "64 GiB mapped", "16 GiB mapped, daemon stopped"
_STORM, _STORM_MORE = "storm, 16 at once", "storm, 100 at once"
_BURST, _LOOP, _BACKLOG = "burst", "loop after a burst", "backlog"
TARGETS: Final = (
    _hold("sleep, pipe: hold / systemd-coredump", 0.04, _TINY, MEMORY, (_TINY, SYSTEMD)),
    _hold("sleep, socket: hold / systemd-coredump", 0.04, _TINY, SOCKET, (_TINY, SYSTEMD)),
    _hold("256 MiB dense: hold / systemd-coredump", 0.1, _SMALL, MEMORY, (_SMALL, SYSTEMD)),
    _hold("256 MiB dense: hold / pipe to /dev/null", 1.0, _SMALL, MEMORY, (_SMALL, DRAIN)),
    _hold("1 GiB dense: hold / systemd-coredump", 0.07, _LARGE, MEMORY, (_LARGE, SYSTEMD)),
    _hold("1 GiB dense: hold / pipe to /dev/null", 1.0, _LARGE, MEMORY, (_LARGE, DRAIN)),
    _hold(f"{_SPILL}: hold / systemd-coredump", 0.15, _SPILL, MEMORY, (_SPILL, SYSTEMD)),
    _hold("3 GiB zeros: hold / systemd-coredump", 0.1, _ZEROS_MORE, MEMORY, (_ZEROS_MORE, SYSTEMD)),
    _hold("16 GiB mapped: hold / systemd-coredump", 0.003, _MAPPED, MEMORY, (_MAPPED, SYSTEMD)),
    _hold(f"{_STOPPED}: hold / systemd-coredump", 0.02, _STOPPED, MEMORY, (_STOPPED, SYSTEMD)),
    _hold("64 GiB mapped: hold / 16 GiB mapped", 1.2, _MAPPED_MORE, MEMORY, (_MAPPED, MEMORY)),
    _worst("tiny", 0.05),
    _worst("4 GiB mapped", 0.02),
    _worst("256 MiB dense", 0.05),
    _worst("1 GiB dense", 0.05),
    _kinds(_LOOP, "after", 1.5, "alone"),
    _kinds(_BACKLOG, "waiting", 2.0, "alone"),
    _kinds(_SPARSE, "memfd", 1.5, "anonymous"),
    Target(
        f"{_SPARSE}: growth of shared memory / mapped",
        0.01,
        SHMEM,
        _SPARSE,
        MEMORY,
        (_SPARSE, MEMORY, SHMEM_MAPPED),
    ),
    *(_stored(case) for case in (_TINY, _SMALL, _LARGE, _ZEROS, _MAPPED)),
    Target(
        "storm, 16 at once: recorded per second / systemd-coredump",
        4.0,
        RECORDED_RATE,
        _STORM,
        MEMORY,
        (_STORM, SYSTEMD, RECORDED_RATE),
        at_least=True,
    ),
    Target(
        "storm, 100 at once: recorded per second / systemd-coredump, 16 at once",
        8.0,
        RECORDED_RATE,
        _STORM_MORE,
        MEMORY,
        (_STORM, SYSTEMD, RECORDED_RATE),
        at_least=True,
    ),
    Target(
        "storm, 100 at once: recorded / crashes",
        1.0,
        RECORDED,
        _STORM_MORE,
        MEMORY,
        (_STORM_MORE, MEMORY, CRASHES),
        at_least=True,
    ),
)
"""The figures to reach."""


def judge(target: Target, results: Mapping[str, Results]) -> Verdict:
    """Compare what was measured, by the case's name, with a target."""

    def find(case: str, side: str, key: str) -> float | None:
        return results[case].figure(side, key) if case in results else None

    value = ratio(find(target.case, target.side, target.figure), find(*target.against))
    if value is None:
        return Verdict(target, None, None)
    return Verdict(
        target, value, value >= target.limit if target.at_least else value <= target.limit
    )


def format_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Lay out the targets, a line each."""
    rows = []
    for verdict in verdicts:
        target = verdict.target
        outcome = {True: "met", False: "NOT met", None: "not measured"}[verdict.met]
        bound = f"{'at least' if target.at_least else 'at most'} {target.limit:g}"
        value = "" if verdict.value is None else format_ratio(verdict.value)
        rows.append((target.side, target.text, bound, value, outcome))
    return _lay_out([("side", "target", "bound", "measured", "")], rows, left=(0, 1, 2, 4))


# -- tables ----------------------------------------------------------------------------------------


def format_seconds(seconds: float) -> str:
    """Show a time with three digits: `1.23 ms`, `45.6 s`."""
    return f"{_three(seconds * 1e3)} ms" if seconds < 1 else f"{_three(seconds)} s"


def format_bytes(size: float) -> str:
    """Show a size with three digits: `12.3 MiB`."""
    units = ("B", "KiB", "MiB", "GiB")
    for unit in units[:-1]:
        if size < 1000:
            return f"{_three(size)} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1024
    return f"{_three(size)} {units[-1]}"


def format_ratio(value: float) -> str:
    """Show a ratio: two digits after the zeros, `0.0031`, `0.16`, `12`."""
    return f"{value:.3g}" if value >= 1 else f"{value:.2g}"


def _three(value: float) -> str:
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"


def _format_cpu(seconds: float) -> str:
    return format_seconds(max(0.0, seconds))  # below nothing: less than the idle machine's noise


@dataclass(frozen=True, slots=True)
class Column:
    """A figure in a table."""

    figure: str
    title: str
    show: Callable[[float], str]
    compared: bool = True
    """Whether its ratio to systemd-coredump stands beside it."""


def _count(value: float) -> str:
    return f"{value:.0f}"


_CRASH_COLUMNS: Final = (
    Column(HOLD, "hold", format_seconds),
    Column(LISTED, "listed", format_seconds),
    Column(CPU, "CPU", _format_cpu),
    Column(STORED, "on disk", format_bytes),
)
_STORM_COLUMNS: Final = (
    Column(RELEASED_RATE, "released/s", _three),
    Column(RECORDED_RATE, "recorded/s", _three),
    Column(CRASHES, "crashes", _count, compared=False),
    Column(RECORDED, "recorded", _count, compared=False),
    Column(WHOLE, "whole", _count, compared=False),
    Column(CPU_EACH, "CPU each", _format_cpu),
    Column(STORED_EACH, "on disk each", format_bytes),
)


_ACTS_COLUMNS: Final = (
    Column(CRASHES, "crashes", _count, compared=False),
    Column(RECORDED, "recorded", _count, compared=False),
    Column(WHOLE, "whole", _count, compared=False),
    Column(SPOOLED, "spooled", _count, compared=False),
)
_SHMEM_COLUMNS: Final = (
    Column(SHMEM, "Shmem grown", format_bytes, compared=False),
    *_ACTS_COLUMNS,
)


def columns_of(results: Results) -> tuple[Column, ...]:
    """Return the columns of a case's table."""
    if results.storm:
        return _STORM_COLUMNS
    if not results.kinds:
        return _CRASH_COLUMNS
    worst = tuple(Column(hold_of(kind), kind, format_seconds) for kind in results.kinds)
    return worst + _SHMEM_COLUMNS if results.watches_shmem else worst + _ACTS_COLUMNS


def format_failures(failures: Sequence[str]) -> str:
    """Lay out what crashd lost, a line each."""
    return "\n".join(failures) or "no crash was lost, cut or spooled past the daemon"


def format_results(results: Results) -> str:
    """Lay out the table of one case; a ratio is one to systemd-coredump."""
    columns = columns_of(results)
    header = ["side", "runs"]
    for column in columns:
        header += [column.title, "ratio"] if column.compared else [column.title]
    rows = [_row(results, side, columns) for side in SIDES if results.samples.get(side)]
    name = results.case + (f" (quick: {results.smaller})" if results.smaller else "")
    name += ": worst hold of each kind" if results.kinds else ""
    lines = [name, _lay_out([tuple(header)], rows, left=(0,))]
    for side in SIDES:
        notes = [note for note in (results.missing.get(side, ""), _notes(results, side)) if note]
        if notes:
            lines.append(f"  {side}: {'; '.join(notes)}")
    return "\n".join(lines)


def _row(results: Results, side: str, columns: Iterable[Column]) -> tuple[str, ...]:
    cells = [side, str(len(results.samples[side]))]
    for column in columns:
        value = results.figure(side, column.figure)
        cells.append("-" if value is None else column.show(value))
        if column.compared:
            quotient = ratio(value, results.figure(SYSTEMD, column.figure))
            cells.append("-" if quotient is None else format_ratio(max(0.0, quotient)))
    return tuple(cells)


def _notes(results: Results, side: str) -> str:
    found = Counter(sample.note for sample in results.samples.get(side, ()) if sample.note)
    runs = len(results.samples.get(side, ()))
    return "; ".join(f"{note} ({n} of {runs} runs)" for note, n in found.items())


def _lay_out(
    header: Sequence[tuple[str, ...]], rows: Sequence[tuple[str, ...]], left: Sequence[int]
) -> str:
    lines = [*header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  "
        + "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


# -- JSON ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Machine:
    """What was measured on."""

    cpu: str
    cpus: int
    memory_bytes: int
    kernel: str
    python: str
    filesystem: str
    """Of the scratch directory, where crashd and the kernel write."""
    systemd: str
    idle_cpus: float
    """CPUs that it took while nothing crashed, all sides at rest."""
    load: float
    """Of the last minute, before the first run: what else was at work."""
    fresh_seconds: tuple[float, float] = (0.0, 0.0)
    """What 64 MiB of fresh memory take, right after as much was freed, and a few seconds later. A
    virtual machine gives freed memory back to its host and must ask for it again (free page
    reporting, Documentation/mm/free_page_reporting.rst): a hold that follows a pause pays for that.
    """

    def describe(self) -> str:
        """Say it in one line."""
        return (
            f"{self.cpu}, {self.cpus} CPUs, {format_bytes(self.memory_bytes)} of memory, "
            f"Linux {self.kernel}, Python {self.python}, {self.filesystem}, {self.systemd}, "
            f"load {self.load:.2f}, {self.idle_cpus:.3f} CPUs busy at rest, 64 MiB of fresh memory "
            f"in {format_seconds(self.fresh_seconds[0])}, "
            f"after a pause in {format_seconds(self.fresh_seconds[1])}"
        )


def build_document(
    machine: Machine,
    sides: Mapping[str, str],
    results: Sequence[Results],
    verdicts: Sequence[Verdict],
) -> dict[str, Any]:
    """Build the JSON document.

    Args:
        machine: what was measured on.
        sides: of each, why it is not available; "" where it is.
        results: of all cases.
        verdicts: on all targets.

    """
    return {
        "format": FORMAT,
        "machine": asdict(machine),
        "sides": {name: {"not_available": reason or None} for name, reason in sides.items()},
        "cases": {result.case: _case_document(result) for result in results},
        "targets": [
            {**asdict(verdict.target), "value": verdict.value, "met": verdict.met}
            for verdict in verdicts
        ],
    }


def _case_document(results: Results) -> dict[str, Any]:
    shown = [column.figure for column in columns_of(results)]
    found = [key for runs in results.samples.values() for run in runs for key in run.figures]
    keys = list(dict.fromkeys([*shown, *found]))
    document: dict[str, Any] = {}
    for side in SIDES:
        samples = results.samples.get(side, ())
        if not samples and side not in results.missing:
            continue
        summary = {key: results.figure(side, key) for key in keys}
        document[side] = {
            "summary": summary,
            "ratio": {key: ratio(summary[key], results.figure(SYSTEMD, key)) for key in keys},
            "runs": [
                {**s.figures, "note": s.note or None, "failures": list(s.failures)} for s in samples
            ],
            "missing": results.missing.get(side),
        }
    return document
