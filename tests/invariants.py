"""What holds whatever was done to crashd: asked of a running daemon, once nothing is under way.

- every file in the store is owned, every committed core can be read: `crashctl verify --strict`
- what /metrics says is what the rows say
- the daemon has no more descriptors, processes and threads than before
- nothing outside of its root was changed (tests/outside.py)
"""

import os
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crashd.domain.crash.model import Kind
from tests.outside import Outside
from tests.running import Daemon, wait_until

QUIET_SECONDS = 120.0
LEAK_SECONDS = 15.0
"""A client's thread may end, and a file be closed, a little later."""
SQLITE_KEEPS = 4
"""Descriptors that SQLite keeps for its next connection: to close one while another connection of
the process has a lock would drop that (unixClose() of os_unix.c). As many as were open at once.
"""
SHOWN_MAX = 20
_SAMPLE = re.compile(r"(\w+)(?:\{([^}]*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_KINDS = tuple(kind.value for kind in Kind)

Sample = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a daemon has of the system."""

    files: Counter[str]
    """Its descriptors, by what they are: numbers of sockets and pipes left out."""
    processes: int
    """All its descendants."""
    threads: int
    resident_bytes: int

    @property
    def descriptors(self) -> int:
        """How many there are."""
        return self.files.total()


def read_footprint(pid: int) -> Footprint:
    """Look at a process by /proc."""
    files: Counter[str] = Counter()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            files[re.sub(r":\[\d+\]", "", os.readlink(f"/proc/{pid}/fd/{fd}"))] += 1
        except FileNotFoundError:
            continue  # closed meanwhile
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Footprint(
        files,
        len(descendants(pid)),
        len(os.listdir(f"/proc/{pid}/task")),
        pages * os.sysconf("SC_PAGE_SIZE"),
    )


def descendants(pid: int) -> list[int]:
    """List all processes that descend of one, as far as their parents live."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += [int(child), *descendants(int(child))]
    except OSError:
        return found  # gone meanwhile
    return found


def started_at(pid: int) -> str | None:
    """Tell when a process started, in a unit of its own: one of the same number started at another
    time. None where there is none.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        return None


def scrape(daemon: Daemon) -> dict[Sample, float]:
    """Read all samples of /metrics."""
    with urllib.request.urlopen(daemon.metrics_url(), timeout=10) as answer:
        text = answer.read().decode()
    found: dict[Sample, float] = {}
    for line in text.splitlines():
        match = None if line.startswith("#") else _SAMPLE.fullmatch(line)
        if match:
            found[match[1], frozenset(_LABEL.findall(match[2] or ""))] = float(match[3])
    return found


def total(samples: Mapping[Sample, float], name: str, **labels: str) -> float:
    """Add all samples of a name that have these labels."""
    wanted = set(labels.items())
    return sum(value for (found, has), value in samples.items() if found == name and wanted <= has)


def wait_until_quiet(daemon: Daemon, seconds: float = QUIET_SECONDS) -> None:
    """Wait until nothing is captured, taken in, analysed or deleted, for a second on end."""
    seen: list[tuple[object, float]] = []

    def quiet() -> bool:
        status = daemon.status()
        busy = any(status[key] for key in ("in_flight", "queued", "spool_backlog"))
        analysing = any(_is_analysis(pid) for pid in descendants(daemon.pid))
        store = {**status["store"], "free_bytes": None}  # of the disk, which others write to
        now = (busy or analysing, store, status["crashes_total"])
        if busy or analysing or not seen or seen[0][0] != now:
            seen[:] = [(now, time.monotonic())]
            return False
        return time.monotonic() - seen[0][1] > 1

    wait_until(quiet, seconds, "the daemon has nothing left to do")


def _is_analysis(pid: int) -> bool:
    try:
        return b"crashd.analyzers" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def of_store(daemon: Daemon) -> list[str]:
    """Run `crashctl verify --strict`."""
    done = daemon.crashctl("verify", "--strict", check=False)
    if done.returncode == 0:
        return []
    return [f"verify: {line}" for line in (done.stdout or done.stderr).splitlines()]


def of_metrics(daemon: Daemon, *, deleted: bool = False) -> list[str]:
    """Compare /metrics with the rows; `deleted`: crashes went whole, so that counters may be ahead
    of rows.
    """
    samples, rows = scrape(daemon), daemon.crashes()
    said: list[tuple[str, float, float]] = []
    ahead: list[tuple[str, float, float]] = []
    for kind in _KINDS:
        of_kind = [row for row in rows if row["kind"] == kind]
        stored = sum((row["core"] or {}).get("stored_bytes", 0) for row in of_kind)
        finished = [row for row in of_kind if row["state"] != "capturing"]
        counted = total(samples, "crashd_crashes_total", kind=kind)
        said += [
            (f"entries of {kind}", total(samples, "crashd_store_entries", kind=kind), len(of_kind)),
            (f"bytes of {kind}", total(samples, "crashd_store_bytes", kind=kind), stored),
        ]
        (ahead if deleted else said).append((f"{kind} crashes", counted, len(finished)))
    signatures = {row["signature"] for row in rows} - {None}
    said += [
        ("signatures", total(samples, "crashd_signatures"), len(signatures)),
        ("captures in flight", total(samples, "crashd_captures_in_flight"), 0),
        (
            "crashes by signal",
            total(samples, "crashd_crashes_by_signal_total"),
            total(samples, "crashd_crashes_total", kind="process"),
        ),
    ]
    for state in ("complete", "incomplete", "capturing"):
        dumps = [r for r in rows if (r["kernel"] or {}).get("path") and r["state"] == state]
        counted = total(samples, "crashd_kdump_dumps", state=state)
        said.append((f"{state} dumps", counted, len(dumps)))
    return [
        *(
            f"metrics: {what}: {value:g}, not {rows:g}"
            for what, value, rows in said
            if value != rows
        ),
        *(
            f"metrics: {what}: {value:g}, of {rows:g}"
            for what, value, rows in ahead
            if value < rows
        ),
    ]


def of_footprint(pid: int, before: Footprint) -> list[str]:
    """Tell what a daemon has more of than before, for longer than a moment."""
    found: list[str] = []

    def grown() -> bool:
        now = read_footprint(pid)
        more = now.files - before.files
        for name in list(more):
            if name.endswith("/index.sqlite") and more[name] <= SQLITE_KEEPS:
                del more[name]
        found[:] = [f"leak: {count} more descriptors of {name}" for name, count in more.items()]
        for what in ("processes", "threads"):
            count = getattr(now, what) - getattr(before, what)
            if count > 0:
                found.append(f"leak: {count} more {what}")
        return bool(found)

    try:
        wait_until(lambda: not grown(), LEAK_SECONDS, "nothing leaked")
    except AssertionError:
        return found
    return []


def of_outside(outside: Outside) -> list[str]:
    """Tell what was changed outside of the root."""
    found = [f"outside: {what} ({count})" for what, count in outside.touched.most_common(SHOWN_MAX)]
    return [*found, "outside: events were lost"] if outside.overflowed else found


def of_processes(family: Mapping[int, str | None]) -> list[str]:
    """Tell which of a stopped daemon's processes (pid: `started_at`) are still there."""
    left: list[int] = []

    def gone() -> bool:
        left[:] = [p for p, start in family.items() if start and started_at(p) == start]
        return not left

    try:
        wait_until(gone, LEAK_SECONDS, "all its processes are gone")
    except AssertionError:
        return [f"leak: process {pid} outlives its daemon" for pid in left]
    return []


def check_all(
    daemon: Daemon,
    before: Footprint | None = None,
    outside: Outside | None = None,
    *,
    deleted: bool = False,
) -> list[str]:
    """Check everything of a running daemon, once it is quiet; return what does not hold."""
    wait_until_quiet(daemon)
    found: list[str] = [*of_store(daemon), *of_metrics(daemon, deleted=deleted)]
    if before is not None:
        found += of_footprint(daemon.pid, before)
    if outside is not None:
        found += of_outside(outside)
    return found


def assert_invariants(daemon: Daemon, **more: Any) -> None:
    """Fail with all that does not hold."""
    found: Sequence[str] = check_all(daemon, **more)
    assert not found, "\n".join(found)
