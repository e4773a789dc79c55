"""What happens during a soak, and what is noted of it: see tests/soak.py."""

import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.invariants import Sample, scrape
from tests.running import Daemon, crashctl

UIDS = (0, 65534, 12345)
LIMITS = ("-1", "-1", "-1", "0", "4096", "1048576")
"""RLIMIT_CORE; -1 is as much as there may be."""
SIZES_KIB = (16, 16, 256, 1024, 8192, 24576)
DEATHS = ("null", "threads", "abort", "divide", "trap", "stack")
COMMS = (b"worker", b"a b)c (d", b"\xff\xfe\x01\n\t", b"$(reboot)", b"]} \x1b[31m", b"x" * 15)
SIGNALS = (signal.SIGSEGV, signal.SIGABRT, signal.SIGQUIT, signal.SIGBUS, signal.SIGSYS)


@dataclass
class Ledger:
    """What was done, and what was seen of it; each part has one writer."""

    made: Counter[int] = field(default_factory=Counter)
    """Processes that crashed, by pid."""
    dumps: set[str] = field(default_factory=set)
    rows: dict[str, tuple[str, int | None, str]] = field(default_factory=dict)
    """All rows that ever were: kind, pid and newest state, by id."""
    dumps_seen: set[str] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)
    scrapes: int = 0
    restarts: Counter[str] = field(default_factory=Counter)
    disk_bytes: int = 0
    """Used at most."""
    complaints: list[str] = field(default_factory=list)
    """What the handler said in the kernel's log: a crash that it could not keep."""
    violations: list[str] = field(default_factory=list)

    def wrong(self, text: str) -> None:
        """Note what may not be."""
        if text not in self.violations and len(self.violations) < 200:
            self.violations.append(text)
            print(f"VIOLATION: {text}", flush=True)

    @property
    def lost(self) -> int:
        """Crashes that are rows without more than that they were, and those not even that."""
        return sum(row[2] == "lost" for row in self.rows.values()) + len(self.complaints)

    def account(self) -> None:
        """Compare what was made with what was seen."""
        rows = self.rows.values()
        seen = Counter(pid for kind, pid, _ in rows if kind == "process" and pid is not None)
        missing = self.made - seen
        if missing.total() > len(self.complaints):
            pids, told = sorted(missing.elements())[:10], len(self.complaints)
            self.wrong(f"{missing.total()} crashes have no row, {told} were told of: {pids}")
        for pid, count in self.made.items():
            if seen[pid] > count:
                self.wrong(f"the crash of pid {pid} has {seen[pid]} rows")
        for name in sorted(self.dumps - self.dumps_seen):
            self.wrong(f"the dump {name} has no row")


class Part(threading.Thread):
    """Something that is done over and over until the end; what it raises is a violation."""

    def __init__(self, name: str, ledger: Ledger, dice: random.Random) -> None:
        super().__init__(name=name, daemon=True)
        self.ledger = ledger
        self.dice = dice
        self.stopping = threading.Event()

    def run(self) -> None:
        """Do it."""
        while not self.stopping.is_set():
            try:
                self.once()
            except Exception as e:  # boundary: the other parts go on, and the soak fails
                self.ledger.wrong(f"{self.name}: {type(e).__name__}: {e}")
                self.stopping.wait(1)

    def once(self) -> None:
        """Do it once."""
        raise NotImplementedError

    def end(self) -> None:
        """End it after what it is doing."""
        self.stopping.set()
        self.join()


class Crasher(Part):
    """Lets processes crash, one at a time."""

    def __init__(self, program: Path, pause: float, ledger: Ledger, dice: random.Random) -> None:
        super().__init__("crashes", ledger, dice)
        self._program = str(program)
        self._pause = pause

    def once(self) -> None:
        """Let one process crash, and note it once it is dead."""
        dice = self.dice
        launch = [self._program, "as", str(dice.choice(UIDS)), dice.choice(LIMITS)]
        number: signal.Signals | None = None
        match dice.randrange(8):
            case 0:
                words = [sys.executable, "-c", "import ctypes; ctypes.string_at(0)"]
            case 1 | 2:
                words, number = [self._program, "wait"], dice.choice(SIGNALS)
            case _:
                size, comm = str(dice.choice(SIZES_KIB)), dice.choice(COMMS).hex()
                words = [self._program, "die", dice.choice(DEATHS), size, comm]
        with subprocess.Popen(
            [*launch, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
        ) as child:
            if number is not None and child.stdout is not None:
                child.stdout.readline()
                child.send_signal(number)
            try:
                status = child.wait(120)
            except subprocess.TimeoutExpired:
                child.kill()
                raise
        if status >= 0:
            raise RuntimeError(f"{words} ended with status {status}")
        self.ledger.made[child.pid] += 1
        self.stopping.wait(dice.expovariate(1 / self._pause))


class Operator(Part):
    """Asks crashctl, and Prometheus's questions; `steady` is held where the daemon must stay."""

    def __init__(
        self, daemon: Daemon, steady: threading.Lock, ledger: Ledger, dice: random.Random
    ) -> None:
        super().__init__("operator", ledger, dice)
        self._daemon = daemon
        self._steady = steady
        self._counted: tuple[int, dict[Sample, float]] = (0, {})

    def once(self) -> None:
        """Ask one thing."""
        scratch = self._daemon.paths.root / "core"
        choices: tuple[tuple[str, ...], ...] = (
            ("list", "--json"),
            ("list", "-n", "20", "uid=65534"),
            ("info", "-1", "--json"),
            ("top",),
            ("stats",),
            ("status", "--json"),
            ("vacuum", "--dry-run"),
            ("vacuum",),
            ("kdump",),
            ("dump", "-1", "-f", "-o", str(scratch)),
            ("pin", self._some_id()),
            ("unpin", self._some_id()),
            ("delete", "-y", self._some_id()),
            ("verify",),
        )
        words = self.dice.choice(choices)
        self.ledger.asked[words[0]] += 1
        done = crashctl(self._daemon.paths.root, *words, check=False)
        if done.returncode not in (0, 1, 4) or "Traceback" in done.stderr:
            self.ledger.wrong(f"crashctl {words}: {done.returncode}: {done.stderr[-500:]}")
        if self.dice.random() < 0.1:
            self._verify()
        self._scrape()
        self.stopping.wait(0.5)

    def _some_id(self) -> str:
        ids = list(self.ledger.rows)[-50:]
        return self.dice.choice(ids) if ids else "none"

    def _verify(self) -> None:
        """Beside a daemon at work nothing may look wrong."""
        with self._steady:
            done = crashctl(self._daemon.paths.root, "verify", "--strict", check=False)
        self.ledger.asked["verify --strict"] += 1
        for line in (done.stdout or done.stderr).splitlines() if done.returncode else ():
            self.ledger.wrong(f"verify --strict, amid all: {line}")

    def _scrape(self) -> None:
        """Counters of one daemon never fall."""
        with self._steady:
            samples, pid = scrape(self._daemon), self._daemon.pid
        before_pid, before = self._counted
        for sample, value in before.items() if before_pid == pid else ():
            if sample[0].endswith(("_total", "_count", "_bucket")) and samples[sample] < value:
                self.ledger.wrong(f"{sample} fell from {value} to {samples[sample]}")
        self._counted = (pid, samples)
        self.ledger.scrapes += 1
