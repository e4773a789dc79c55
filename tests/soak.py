"""Everything at once, for as long as is wanted: `python -m tests.soak --minutes 60`, as root.

Processes of several users crash in many ways, kernel dumps appear, the daemon is stopped, killed
and told to reload, operators ask, change and delete, Prometheus scrapes, and all of it on a disk
that is too small. In the second half the daemon is left alone, so that what it has of memory and
descriptors can be compared. Then nothing may be missing: each crash has a row or is counted as
lost, and the invariants hold (tests/invariants.py). Takes kernel.core_pattern over, and puts it
back. A machine's other crashes during that time are in the rows, and in nobody's way.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from crashd.domain.units import format_size
from crashd.errors import CrashdError
from crashd.store.index import Index
from tests.builders.kdumps import save
from tests.conftest import PROC_SYS, hold_core_pattern, own_settings
from tests.invariants import (
    Footprint,
    check_all,
    descendants,
    of_processes,
    read_footprint,
    started_at,
)
from tests.outside import Outside
from tests.running import Daemon, crashctl, wait_until
from tests.soakparts import Crasher, Ledger, Operator, Part

DISK_BYTES = 128 << 20
TOUCHED = (Path("/"), Path("/tmp"), Path("/var"), Path("/run"), Path("/dev/shm"))
TICK_SECONDS = 0.5
PRINT_SECONDS = 5.0
DUMP_SECONDS = 6.0
RESTART_SECONDS = 7.0
SPOOL_SECONDS = 150.0
GROWTH_BYTES = 12 << 20
"""And a tenth: how much more memory the daemon may have after its half of the time."""
CONFIG = """
[http]
listen = "127.0.0.1:0"
[limiter.site]
full = 30
mini = 30
per = "1min"
[retention.process]
max_use = "40M"
keep_free = "15%"
max_per_signature = 8
[retention.kernel]
max_count = 3
[kdump]
rescan = "5s"
[analysis]
timeout = "20s"
"""


class Soak:
    """One run."""

    def __init__(self, root: Path, seconds: float, seed: int) -> None:
        self._root = root
        self._seconds = seconds
        self._dice = random.Random(seed)
        self.ledger = Ledger()
        self.daemon = Daemon(root / "r", config=CONFIG)
        self._steady = threading.Lock()
        self._family: dict[int, str | None] = {}
        self._kernel_log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._kernel_log, 0, os.SEEK_END)
        self._said = b""
        self.before: Footprint | None = None
        self.after: Footprint | None = None
        self.largest_bytes = 0
        """Resident memory of the last daemon at most."""

    def run(self) -> None:
        """Do all of it; what is wrong is in the ledger."""
        program = self._root / "mortal"
        source = Path(__file__).parent / "system/programs/mortal.c"
        subprocess.run(["gcc", "-O0", "-g", "-pthread", "-o", program, source], check=True)
        with Outside(self.daemon.paths.root, TOUCHED) as outside:
            self.daemon.start()
            self._adopt(outside)
            self.daemon.crashctl("install")  # so that crashes are spooled while it is away
            try:
                self._work(program, outside)
                self._settle(outside)
            finally:
                self.daemon.stop()
                crashctl(self.daemon.paths.root, "uninstall", check=False)
        self._epilogue()

    # -- the work --------------------------------------------------------------------------------

    def _work(self, program: Path, outside: Outside) -> None:
        parts: list[Part] = [
            Crasher(program, pause, self.ledger, random.Random(self._dice.random()))
            for pause in (0.15, 0.4, 2.0)
        ]
        dice = random.Random(self._dice.random())
        parts.append(Operator(self.daemon, self._steady, self.ledger, dice))
        for part in parts:
            part.start()
        begun = time.monotonic()
        try:
            self._tick_until(begun, begun + self._seconds / 2, outside)
            self.before = self._measure(begun)
            self._tick_until(begun, begun + self._seconds, None)
        finally:
            for part in parts:
                part.end()
        self._print(begun)

    def _tick_until(self, begun: float, end: float, outside: Outside | None) -> None:
        """Let time pass; with `outside` the daemon is restarted now and then."""
        next_print = next_dump = time.monotonic()
        next_restart = next_print + RESTART_SECONDS
        while (now := time.monotonic()) < end:
            self._look()
            if now >= next_dump:
                next_dump = now + DUMP_SECONDS
                self._dump()
            if now >= next_restart and outside is not None:
                self._restart(outside)
                next_restart = time.monotonic() + RESTART_SECONDS
            if now >= next_print:
                next_print = now + PRINT_SECONDS
                self._print(begun)
            time.sleep(TICK_SECONDS)

    def _measure(self, begun: float) -> Footprint:
        """Measure a daemon that has seen something of everything."""
        count = self.ledger.made.total() + 20
        end = time.monotonic() + 60
        while self.ledger.made.total() < count and time.monotonic() < end:
            self._look()
            time.sleep(TICK_SECONDS)
        self._print(begun)
        with self._steady:
            crashctl(self.daemon.paths.root, "status")
            return read_footprint(self.daemon.pid)

    def _dump(self) -> None:
        """Let the kernel crash, as far as anyone can tell from its dump."""
        hours, minutes = divmod(len(self.ledger.dumps), 60)
        days, hours = divmod(hours, 24)
        stamp = f"202601{days + 1:02d}{hours:02d}{minutes:02d}"
        directory = self.daemon.paths.kernel_dumps / stamp
        try:
            save(self.daemon.paths.kernel_dumps, stamp, cut=self._dice.random() < 0.3)
        except OSError:  # the disk is full: so it is for kdump
            shutil.rmtree(directory, ignore_errors=True)
            return
        self.ledger.dumps.add(stamp)

    def _restart(self, outside: Outside) -> None:
        how = self._dice.choice((signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, signal.SIGHUP))
        self.ledger.restarts[how.name] += 1
        if how is signal.SIGHUP:
            os.kill(self.daemon.pid, how)
            return
        with self._steady:
            self._adopt(outside)
            self.daemon.stop(how)
            time.sleep(self._dice.uniform(0, 2))
            self.daemon.start()
            self._adopt(outside)

    def _adopt(self, outside: Outside) -> None:
        for pid in (self.daemon.pid, *descendants(self.daemon.pid)):
            self._family[pid] = started_at(pid)
            outside.adopt(pid)

    # -- looking on ------------------------------------------------------------------------------

    def _look(self) -> None:
        """See what rows there are, before retention takes one, and what there is of the disk."""
        disk = os.statvfs(self.daemon.paths.state_dir)
        used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
        self.ledger.disk_bytes = max(self.ledger.disk_bytes, used)
        if self.before is not None and self.daemon.process is not None:
            resident = read_footprint(self.daemon.pid).resident_bytes
            self.largest_bytes = max(self.largest_bytes, resident)
        self._listen()
        with (
            contextlib.suppress(CrashdError),
            Index.open(self.daemon.paths.index, readonly=True) as index,
        ):
            sql = "SELECT id, kind, pid, state, iif(kind = 'kernel', doc, NULL) FROM crash"
            for crash_id, kind, pid, state, doc in index.fetch(sql):
                self.ledger.rows[crash_id] = (kind, pid, state)
                path = (json.loads(doc)["kernel"] or {}).get("path") if doc else None
                if path:
                    self.ledger.dumps_seen.add(Path(path).name)

    def _listen(self) -> None:
        """Read what was said in the kernel's log."""
        while True:
            try:
                self._said += os.read(self._kernel_log, 8192)
            except BrokenPipeError:
                continue  # some of it is gone already, and the next read goes on
            except BlockingIOError:
                return

    def _print(self, begun: float) -> None:
        ledger, pid = self.ledger, self.daemon.pid
        now = read_footprint(pid)
        print(
            f"{time.monotonic() - begun:6.0f} s: {ledger.made.total()} crashes, "
            f"{len(ledger.dumps)} dumps, {len(ledger.rows)} rows, "
            f"{ledger.restarts.total()} restarts, {ledger.asked.total()} questions, "
            f"disk {format_size(ledger.disk_bytes)}, memory {format_size(now.resident_bytes)}, "
            f"{now.descriptors} descriptors, {now.processes} processes",
            flush=True,
        )

    # -- the end ---------------------------------------------------------------------------------

    def _settle(self, outside: Outside) -> None:
        """Let the daemon finish, and check all that can be of a running one."""
        spool = self.daemon.paths.spool
        with contextlib.suppress(AssertionError):  # `verify` names what is left
            empty = "the spool is empty"
            wait_until(
                lambda: not [n for n in os.listdir(spool) if n[0].isdigit()], SPOOL_SECONDS, empty
            )
        for text in check_all(self.daemon, self.before, outside, deleted=True):
            self.ledger.wrong(text)
        self._look()
        self.after = read_footprint(self.daemon.pid)
        self._adopt(outside)
        if self.before is not None:
            allowed = self.before.resident_bytes * 11 // 10 + GROWTH_BYTES
            if self.after.resident_bytes > allowed:
                self.ledger.wrong(
                    f"memory grew to {self.after.resident_bytes}, over {allowed} bytes"
                )

    def _epilogue(self) -> None:
        """Check what is left once nothing runs."""
        os.close(self._kernel_log)
        lost = rb";crashd-core: ([^\n]*)"
        self.ledger.complaints += [
            m.decode("utf-8", "replace") for m in re.findall(lost, self._said)
        ]
        self.ledger.account()
        for text in of_processes(self._family):
            self.ledger.wrong(text)
        done = crashctl(self.daemon.paths.root, "verify", "--strict", check=False)
        for line in (done.stdout or done.stderr).splitlines() if done.returncode else ():
            self.ledger.wrong(f"verify --strict, stopped: {line}")
        for line in self.daemon.log.read_text(errors="replace").splitlines():
            if "Traceback" in line or "failed, ignoring" in line:
                self.ledger.wrong(f"the daemon's log: {line}")

    def report(self) -> list[str]:
        """Say in figures what was done and what it cost."""
        ledger = self.ledger
        states = Counter(state for kind, _, state in ledger.rows.values() if kind == "process")
        disk = f"{format_size(ledger.disk_bytes)} of {format_size(DISK_BYTES)}"
        lines = [
            f"crashes made               {ledger.made.total()}",
            f"their rows                 {states.total()} ({_counts(states)})",
            f"counted as lost            {ledger.lost} ({len(ledger.complaints)} without a row)",
            f"kernel dumps               {len(ledger.dumps)}, rows {len(ledger.dumps_seen)}",
            f"restarts                   {_counts(ledger.restarts)}",
            f"questions, scrapes         {ledger.asked.total()}, {ledger.scrapes}",
            f"disk used at most          {disk}",
        ]
        if self.before is not None and self.after is not None:
            memory = [format_size(f.resident_bytes) for f in (self.before, self.after)]
            most = format_size(self.largest_bytes)
            lines += [
                f"memory, half-way, end      {memory[0]}, {memory[1]} (at most {most})",
                f"descriptors                {self.before.descriptors}, {self.after.descriptors}",
                f"processes                  {self.before.processes}, {self.after.processes}",
                f"threads                    {self.before.threads}, {self.after.threads}",
            ]
        return [*lines, f"violations                 {len(ledger.violations)}"]


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common()) or "none"


@contextlib.contextmanager
def small_disk(root: Path) -> Iterator[None]:
    """Mount a small file system at the root's /var."""
    var = root / "r/var"
    var.mkdir(parents=True)
    options = f"size={DISK_BYTES},mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "crashd-soak", var], check=True)
    try:
        (var / "crash").mkdir(mode=0o755)
        yield
    finally:
        subprocess.run(["umount", "-l", var], check=True)


def soak(seconds: float, seed: int) -> Soak:
    """Run it with kernel.core_pattern in our hands."""
    root = Path(tempfile.mkdtemp(prefix="cd", dir="/tmp"))
    root.chmod(0o755)  # other users' processes run a program in it
    try:
        with small_disk(root):
            run = Soak(root, seconds, seed)
            run.run()
            return run
    finally:
        shutil.rmtree(root)


def main(argv: Sequence[str]) -> int:
    """Soak, print the figures; 1 where something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="(default: 60)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    options = parser.parse_args(argv)
    print(f"seed {options.seed}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # all is put back then, too
    with hold_core_pattern(600):
        owner = own_settings(PROC_SYS)
        try:
            run = soak(options.minutes * 60, options.seed)
        finally:
            owner.restore()
    print("\n".join(run.report()))
    return 1 if run.ledger.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
