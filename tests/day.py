"""A day of a crash-looping service, simulated: `python -m tests.day`.

One service crashes every 2 s (43,200 times), every tenth time by a second bug; other services crash
between. For a while at noon the clock is a year ahead. The store is real, the cores are small, the
clock is the simulation's; the limits are met by the daemon's own code, which is called here instead
of woken. Printed is what an operator would ask.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from crashd.daemon.after.retention import Retention
from crashd.domain.crash.model import Core, Crash, State
from crashd.domain.keep.process import Policy
from crashd.domain.units import Amount
from crashd.store import entry as entries
from crashd.store.index import Index
from crashd.store.paths import Paths
from crashd.store.retention import Removed, RowWriter, Told
from tests.builders.crashes import build_crash
from tests.yardstick import slowness

CRASHES = 43_200
CORE_BYTES = 64 << 10
START_NS = 1_795_000_000 * 10**9
EVERY_NS = 2 * 10**9
YEAR_NS = 366 * 86400 * 10**9
OTHERS_EVERY = 400
BATCH = 5
"""Crashes until retention is woken: it waits for them to settle."""
EVERYTHING_EVERY = 300
"""Crashes in the ten minutes between two plans of everything."""
LIST_SECONDS = 1.0
"""What an operator takes for at once, on a slow machine under load."""


@dataclass(slots=True)
class Day:
    """One simulation, and its figures."""

    paths: Paths
    index: Index
    crashes: int
    limit_bytes: int
    deleted: Counter[str] = field(default_factory=Counter)
    """By reason."""
    largest_bytes: int = 0
    """Records and cores together, before retention was at it."""
    slowest_seconds: float = 0.0
    """Of retention."""
    _now_ns: int | None = START_NS
    _first: dict[str, str] = field(default_factory=dict)
    _newest: dict[str, str] = field(default_factory=dict)
    _others: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Let the day pass."""
        rows = RowWriter(self.index)

        def done(removed: Removed) -> None:
            if removed.reason is not None:
                self.deleted[removed.reason] += 1
            rows.add(removed)

        retention = Retention(self.paths, Told(done, settled=rows.write), lambda: self._now_ns)
        retention.configure(
            Policy(
                max_use=Amount(size_bytes=self.limit_bytes),
                max_count=10_000,
                max_age_ns=90 * 86400 * 10**9,
                max_per_signature=20,
                metadata_max_age_ns=YEAR_NS,
            )
        )
        fresh: list[Crash] = []
        for number in range(self.crashes):
            fresh.append(self._add(number))
            if len(fresh) == BATCH or number == self.crashes - 1:
                self.index.put(fresh)
                fresh.clear()
                self._meet(
                    retention, everything=number % EVERYTHING_EVERY >= EVERYTHING_EVERY - BATCH
                )

    def _meet(self, retention: Retention, *, everything: bool) -> None:
        used = self.index.usage()["process"][1] + self.index.records_bytes()
        self.largest_bytes = max(self.largest_bytes, used)
        begun_s = time.monotonic()
        if not retention.meet(everything=everything) and not everything:
            retention.meet(everything=True)
        self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - begun_s)

    def _add(self, number: int) -> Crash:
        other = number % OTHERS_EVERY == OTHERS_EVERY - 1
        name = f"other{number // OTHERS_EVERY}" if other else "loop"
        signature = f"p1-{name}" if other else f"p1-{name}-{'b' if number % 10 == 9 else 'a'}"
        ahead = self.crashes // 2 <= number < self.crashes // 2 + self.crashes // 50
        time_ns = START_NS + number * EVERY_NS + (YEAR_NS if ahead else 0)
        self._now_ns = None if ahead else time_ns
        core = Core("core.zst", CORE_BYTES, CORE_BYTES, CORE_BYTES, CORE_BYTES, True)
        crash = build_crash(
            number,
            time_ns=time_ns,
            sequence=START_NS + number,
            unit=f"{name}.service",
            signature=signature,
            maps=b"x" * 4096,
        )
        crash = replace(crash, state=State.COMPLETE, core=core)
        with entries.create(self.paths, crash) as entry:
            fd = entry.create_core()
            os.write(fd, b"c" * CORE_BYTES)
            os.close(fd)
            entry.commit_core()
            entry.write(crash, sync=False)
        self._first.setdefault(signature, crash.id)
        self._newest[signature] = crash.id
        if other:
            self._others.add(crash.id)
        return crash

    def missing(self) -> list[str]:
        """Name the first and newest crashes of each signature whose cores are gone, and those of
        other services.
        """
        wanted = {*self._first.values(), *self._newest.values(), *self._others}
        return sorted(i for i in wanted if not (self.paths.crashes / i / "core.zst").exists())

    def wanted(self) -> int:
        """Count what `missing` looks for."""
        return len({*self._first.values(), *self._newest.values(), *self._others})

    def disk_bytes(self) -> int:
        """Measure what the store has on disk: blocks of directories and files."""
        return sum(os.lstat(path).st_blocks * 512 for path in self.paths.crashes.rglob("*"))

    def index_bytes(self) -> int:
        """Measure the index."""
        return sum(path.stat().st_size for path in self.paths.state_dir.glob("index.sqlite*"))

    def list_seconds(self, *arguments: str) -> float:
        """Time `crashctl list` from start to end."""
        command = [sys.executable, "-m", "crashd.cli", "--root", str(self.paths.root), "list"]
        begun_s = time.monotonic()
        subprocess.run([*command, *arguments], stdout=subprocess.DEVNULL, check=True)
        return time.monotonic() - begun_s


def main(argv: list[str]) -> int:
    """Simulate a day, print the figures; 1 where one is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.day", description=__doc__)
    parser.add_argument("--crashes", type=int, default=CRASHES)
    parser.add_argument("--limit", type=int, default=1 << 30, help="max_use, bytes")
    parser.add_argument("--directory", help="where the store is made (default: as TMPDIR says)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="crashd-day-", dir=options.directory) as directory:
        paths = Paths(Path(directory))
        entries.prepare(paths)
        begun_s = time.monotonic()
        with Index.open(paths.index) as index:
            day = Day(paths, index, crashes=options.crashes, limit_bytes=options.limit)
            day.run()
            rows = len(index.ids())
        return 0 if report(day, rows, time.monotonic() - begun_s) else 1


def report(day: Day, rows: int, took_seconds: float) -> bool:
    """Print the figures; tell whether all are as they should be."""
    missing, disk, index = day.missing(), day.disk_bytes(), day.index_bytes()
    newest, everything = day.list_seconds("-n", "20"), day.list_seconds()
    aged = day.deleted["max_age"] + day.deleted["metadata_max_age"]
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(day.deleted.items()))
    print(f"crashes                        {day.crashes} in {took_seconds:.0f} s of simulation")
    print(f"max_use                        {day.limit_bytes / 1e6:.1f} MB")
    print(f"used, at most                  {day.largest_bytes / 1e6:.1f} MB")
    print(f"on disk in the end             {disk / 1e6:.1f} MB")
    print(f"deleted                        {day.deleted.total()}: {reasons}")
    print(f"deleted early, for their age   {aged}")
    print(f"first, newest, others' cores   {day.wanted() - len(missing)} of {day.wanted()}")
    print(f"retention, at most             {day.slowest_seconds:.2f} s at a time")
    print(f"index                          {index / 1e6:.1f} MB of {rows} crashes (at most 100)")
    print(f"crashctl list -n 20            {newest * 1000:.0f} ms")
    print(f"crashctl list                  {everything * 1000:.0f} ms")
    within = max(day.largest_bytes, disk) <= day.limit_bytes
    quick = newest < LIST_SECONDS * slowness()
    return within and quick and not missing and not aged and index < 100e6


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
