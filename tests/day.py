"""A day of a crash-looping service, simulated: `python -m tests.day`.

One service crashes every 2 s (43,200 times), with a second bug now and then; between, other
services crash seldom. The store is real, the cores are small, the clock is the simulation's; limits
are met after each crash by the code that the daemon uses. Printed is what an operator would ask.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from crashd.domain.model import Core, Crash, State
from crashd.domain.retention import Policy, Usage, plan
from crashd.store import entry as entries
from crashd.store.expiry import Removed, carry_out_all, read_stored
from crashd.store.index import Index
from crashd.store.paths import Paths
from tests.builders.crashes import build_crash

CORE_BYTES = 16 << 10
START_NS = 1_795_000_000 * 10**9
EVERY_NS = 2 * 10**9
OTHERS_EVERY = 400
BATCH = 50


class Day:
    """One simulation."""

    def __init__(self, paths: Paths, index: Index, *, crashes: int, limit_bytes: int) -> None:
        self._paths = paths
        self._index = index
        self._crashes = crashes
        self._policy = Policy(
            max_use=None,
            max_count=limit_bytes // (2 * CORE_BYTES),
            max_per_signature=20,
            metadata_max_age_ns=366 * 86400 * 10**9,
        )
        self._limit = limit_bytes
        self._first: dict[str, str] = {}
        self._newest: dict[str, str] = {}
        self.others: set[str] = set()
        self.largest_bytes = 0
        """Of all cores together, after retention."""
        self.deleted = 0

    def run(self) -> None:
        """Let the day pass."""
        fresh: list[Crash] = []
        for number in range(self._crashes):
            other = number % OTHERS_EVERY == OTHERS_EVERY - 1
            bug = "b" if number % 10 == 9 else "a"
            name = f"other{number // OTHERS_EVERY}" if other else "loop"
            signature = f"p1-{name}{'' if other else bug}"
            crash = self._add(number, name, signature)
            fresh.append(crash)
            self._first.setdefault(signature, crash.id)
            self._newest[signature] = crash.id
            if other:
                self.others.add(crash.id)
            if len(fresh) >= BATCH or number == self._crashes - 1:
                self._index.put(fresh)
                fresh.clear()
                self._retain(START_NS + number * EVERY_NS)

    def _add(self, number: int, name: str, signature: str) -> Crash:
        core = Core("core.zst", CORE_BYTES, CORE_BYTES, CORE_BYTES, CORE_BYTES, True)
        crash = build_crash(
            number,
            time_ns=START_NS + number * EVERY_NS,
            unit=f"{name}.service",
            signature=signature,
            maps=b"x" * 4096,
        )
        crash = replace(crash, state=State.COMPLETE, core=core)
        with entries.create(self._paths, crash) as entry:
            fd = entry.create_core()
            os.write(fd, b"c" * CORE_BYTES)
            os.close(fd)
            entry.commit_core()
            entry.write(crash, sync=False)
        return crash

    def _retain(self, now_ns: int) -> None:
        tombstones: list[Crash] = []

        def done(removed: Removed) -> None:
            self.deleted += 1
            if removed.tombstone is not None:
                tombstones.append(removed.tombstone)

        def failed(deletion: object, error: Exception) -> None:
            raise error

        # after a capture tombstones need not be in the plan
        crashes = read_stored(self._index, " AND stored_bytes > 0")
        usage = Usage(total_bytes=1 << 40, free_bytes=1 << 39)
        deletions = plan(crashes, usage, self._policy, now_ns)
        carry_out_all(self._paths, deletions, done=done, failed=failed)
        self._index.put(tombstones)
        stored = self._index.usage()["process"][1]
        self.largest_bytes = max(self.largest_bytes, stored)

    def missing_first_or_newest(self) -> list[str]:
        """Name the signatures whose first or newest core is gone."""
        wanted = {*self._first.values(), *self._newest.values()}
        return sorted(i for i in wanted if not (self._paths.crashes / i / "core.zst").exists())

    def others_left(self) -> set[str]:
        """Name the other services' crashes that have their cores."""
        return {i for i in self.others if (self._paths.crashes / i / "core.zst").exists()}


def main(argv: list[str]) -> int:
    """Simulate a day, print the figures; 1 where one is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.day", description=__doc__)
    parser.add_argument("--crashes", type=int, default=43_200)
    parser.add_argument("--limit", type=int, default=64 << 20, help="bytes of cores")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="crashd-day-") as directory:
        paths = Paths(Path(directory))
        entries.prepare(paths)
        with Index.open(paths.index) as index:
            day = Day(paths, index, crashes=options.crashes, limit_bytes=options.limit)
            begun = time.monotonic()
            day.run()
            took_s = time.monotonic() - begun
        index_bytes = sum(p.stat().st_size for p in paths.state_dir.glob("index.sqlite*"))
        missing, left = day.missing_first_or_newest(), day.others_left()
        good = day.largest_bytes <= options.limit and not missing and left == day.others
        print(f"crashes                    {options.crashes} in {took_s:.0f} s of simulation")
        print(f"cores on disk, at most     {day.largest_bytes} of {options.limit} bytes allowed")
        print(f"deleted                    {day.deleted}")
        print(f"first or newest missing    {len(missing)}")
        print(f"other services' cores      {len(left)} of {len(day.others)}")
        print(f"index                      {index_bytes / 1e6:.1f} MB (at most 100)")
        return 0 if good and index_bytes < 100e6 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
