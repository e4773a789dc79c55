"""One crash, or one storm, on one side; and what this machine is."""

import contextlib
import mmap
import os
import platform
import resource
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench import report
from tests.bench.cases import GIB, Act, Case, Programs, Storm
from tests.bench.report import Machine, Sample
from tests.bench.sides import Outcome, Side

READY_SECONDS: Final = 120
HOLD_SECONDS_MAX: Final = 900
LISTED_SECONDS_MAX: Final = 300
QUIET_SECONDS: Final = 5
"""A storm is over when nothing was recorded for so long, and the side is at rest."""
FRESH_BYTES: Final = 64 << 20
FRESH_PAUSE_SECONDS: Final = 3.0
SETTLE_SECONDS: Final = 0.2
"""What is counted to a crash after it was listed: processes that end, buffers that are freed."""
SHMEM_SECONDS: Final = 0.002
"""Between two looks at how much shared memory there is."""
SHMEM_MAPPED_BYTES: Final = 2 * GIB
IDLE_WINDOWS: Final = 6
IDLE_SECONDS: Final = 0.5
"""Of one window."""


class MeasureError(Exception):
    """A run gave no figures; the message says why, in one line."""


# -- CPU -------------------------------------------------------------------------------------------


def parse_busy_ticks(text: str) -> int:
    """Sum what all CPUs did, from /proc/stat: user, nice, system, irq, softirq (proc_stat(5))."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, text.split()[1:8])
    return user + nice + system + irq + softirq


def busy_seconds() -> float:
    """Return how long all CPUs together were busy, but for this process."""
    ticks = parse_busy_ticks(Path("/proc/stat").read_text().partition("\n")[0])
    own = resource.getrusage(resource.RUSAGE_SELF)
    return ticks / os.sysconf("SC_CLK_TCK") - own.ru_utime - own.ru_stime


@dataclass(slots=True)
class CpuMeter:
    """CPU seconds since it was made, less what the idle machine would have taken."""

    idle_rate: float
    busy: float
    started: float

    @classmethod
    def begin(cls, idle_rate: float) -> "CpuMeter":
        """Start counting."""
        return cls(idle_rate, busy_seconds(), time.perf_counter())

    def read(self) -> float:
        """Read the meter; below zero when the machine was more idle than before."""
        elapsed = time.perf_counter() - self.started
        return busy_seconds() - self.busy - self.idle_rate * elapsed


def measure_idle() -> float:
    """Watch the idle machine: CPU seconds a second, in its quietest moment.

    What somebody else does for a while is not what an idle machine does.
    """
    rates = []
    for _ in range(IDLE_WINDOWS):
        meter = CpuMeter.begin(0.0)
        time.sleep(IDLE_SECONDS)
        rates.append(meter.read() / (time.perf_counter() - meter.started))
    return max(0.0, min(rates))


# -- the victim ------------------------------------------------------------------------------------


@contextlib.contextmanager
def start_victim(victim: Sequence[str], programs: Programs) -> Iterator[int]:
    """Start what is to crash, and wait until it is as it shall be; return its pid.

    Args:
        victim: arguments of victim.c; none for a `sleep`.
        programs: the compiled programs.

    It is ended if it still lives at the end.

    """
    argv = [str(programs.victim), *victim] if victim else ["/bin/sleep", "1000"]
    read_end, write_end = os.pipe()
    try:
        try:
            actions = [(os.POSIX_SPAWN_DUP2, write_end, 1)]
            pid = os.posix_spawn(argv[0], argv, {}, file_actions=actions)
        finally:
            os.close(write_end)
        pidfd = os.pidfd_open(pid)
        try:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(pid, resource.RLIMIT_CORE, unlimited)
            _await_ready(pid, read_end if victim else None)
            yield pid
        finally:
            # By its pidfd: once it is waited for, its pid may be another's.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            os.close(pidfd)
    finally:
        os.close(read_end)


def _await_ready(pid: int, ready: int | None) -> None:
    if ready is not None:
        if not select.select([ready], [], [], READY_SECONDS)[0] or not os.read(ready, 1):
            raise MeasureError("the victim was not ready")
        return
    end = time.monotonic() + READY_SECONDS
    stat = Path(f"/proc/{pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "S":  # not yet in nanosleep(2)
        if time.monotonic() > end:
            raise MeasureError("sleep does not sleep")
        time.sleep(0.001)


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise MeasureError in the middle of a waitpid(2) that takes too long."""

    def expire(_number: int, _frame: object) -> None:
        raise MeasureError(f"held for more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def kill_and_wait(pid: int) -> float:
    """Send SIGSEGV; return the seconds until the parent's wait returns.

    Raises:
        MeasureError: it takes too long, or something else ended it.

    """
    with _time_limit(HOLD_SECONDS_MAX):
        start = time.perf_counter()
        os.kill(pid, signal.SIGSEGV)
        _, status = os.waitpid(pid, 0)
        held = time.perf_counter() - start
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGSEGV:
        raise MeasureError(f"the victim did not die of SIGSEGV: status {status:#x}")
    return held


def crash_all(schedule: Sequence[tuple[float, int]]) -> dict[int, float]:
    """Crash processes at set times (seconds from now, pid); return for each how long it was held.

    Raises:
        MeasureError: it takes too long, or something else ended one.

    """
    held: dict[int, float] = {}
    killed: dict[int, tuple[int, float]] = {}  # by pidfd: pid and time
    left = sorted(schedule, reverse=True)
    start = time.perf_counter()
    poll = select.poll()
    try:
        while left or killed:
            now = time.perf_counter() - start
            while left and left[-1][0] <= now:
                _, pid = left.pop()
                pidfd = os.pidfd_open(pid)
                killed[pidfd] = pid, time.perf_counter()
                poll.register(pidfd, select.POLLIN)
                os.kill(pid, signal.SIGSEGV)
            if now > HOLD_SECONDS_MAX:
                raise MeasureError(f"held for more than {HOLD_SECONDS_MAX} s")
            wait_seconds = left[-1][0] - now if left else 1.0
            for pidfd, _ in poll.poll(max(0.0, wait_seconds) * 1e3):
                poll.unregister(pidfd)
                pid, since = killed.pop(pidfd)
                os.close(pidfd)
                _, status = os.waitpid(pid, 0)
                held[pid] = time.perf_counter() - since
                if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGSEGV:
                    raise MeasureError(f"a victim did not die of SIGSEGV: status {status:#x}")
    finally:
        for pidfd in killed:
            os.close(pidfd)
    return held


class ShmemWatch:
    """How far the machine's shared memory grows (Shmem of proc_meminfo(5)) while this is open."""

    def __init__(self) -> None:
        self._before = self._most = 0
        self.begin()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def begin(self) -> None:
        """Compare with what it is now: victims have made theirs."""
        self._before = parse_shmem(Path("/proc/meminfo").read_text())

    def _watch(self) -> None:
        while not self._over.wait(SHMEM_SECONDS):
            now = parse_shmem(Path("/proc/meminfo").read_text())
            self._most = max(self._most, now - self._before)

    def __enter__(self) -> "ShmemWatch":
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def grown_bytes(self) -> int:
        """Return the most that it grew so far."""
        return self._most


def parse_shmem(meminfo: str) -> int:
    """Find Shmem in /proc/meminfo, in bytes; 0 where the kernel does not say."""
    for line in meminfo.splitlines():
        if line.startswith("Shmem:"):
            return int(line.split()[1]) * 1024
    return 0


# -- one run ---------------------------------------------------------------------------------------


def measure(case: Case, side: Side, programs: Programs, idle_rate: float, *, quick: bool) -> Sample:
    """Run a case once on a side; its store is emptied before and after.

    Raises:
        MeasureError: it gave no figures.
        CrashdError: the settings could not be made, or the store not be read or emptied.
        OSError: the same.

    """
    side.come_back()
    side.configure(case.capture)
    _rest(side)  # of a run that failed
    side.clear()
    if case.storm is not None:
        sample = _measure_storm(case.storm, side, programs, idle_rate, quick)
    elif case.acts:
        sample = _measure_acts(case, side, programs)
    else:
        sample = _measure_crash(case, side, programs, idle_rate)
    side.clear()
    return sample


def _measure_crash(case: Case, side: Side, programs: Programs, idle_rate: float) -> Sample:
    with start_victim(case.victim, programs) as pid:
        side.activate()
        if case.away:
            side.leave()
        os.sync()  # what others left to be written is not this run's
        meter = CpuMeter.begin(idle_rate)
        start = time.perf_counter()
        figures = {report.HOLD: kill_and_wait(pid)}
    side.come_back()
    if side.lists:
        figures[report.LISTED] = _await_listed(side, start) - start
    _finish(side, meter, figures)
    outcome = side.outcome()
    if side.lists or outcome.recorded:
        figures[report.STORED] = outcome.stored_bytes
        figures[report.CORE] = outcome.core_bytes
    return Sample(figures, outcome.note, find_failures(case.crashes, case.crashes_away, outcome))


def find_failures(crashes: int, away: int, outcome: Outcome) -> tuple[str, ...]:
    """Say what was lost of so many crashes, `away` of which had no daemon to go to."""
    found = []
    if outcome.recorded < crashes:
        found.append(f"{crashes - outcome.recorded} of {crashes} crashes are not recorded")
    if outcome.whole is not None and outcome.whole < outcome.recorded:
        cut = outcome.recorded - outcome.whole
        found.append(f"{cut} of {outcome.recorded} cores are not whole")
    if outcome.spooled > away:
        found.append(f"{outcome.spooled - away} crashes went to the spool, past the daemon")
    return tuple(found)


def _measure_acts(case: Case, side: Side, programs: Programs) -> Sample:
    """Run the acts of a case; of each kind of crash its worst hold is the figure."""
    side.activate()
    os.sync()
    figures: dict[str, float] = {report.CRASHES: case.crashes}
    watch = ShmemWatch() if case.watch_shmem else None
    with watch or contextlib.nullcontext():
        for act in case.acts:
            for kind, seconds in _run_act(act, side, programs, watch):
                name = report.hold_of(kind)
                figures[name] = max(seconds, figures.get(name, 0.0))
    _await_all(side, case.crashes)
    _rest(side)
    if watch is not None:
        figures[report.SHMEM] = watch.grown_bytes
        figures[report.SHMEM_MAPPED] = SHMEM_MAPPED_BYTES
    outcome = side.outcome()
    if side.lists or outcome.recorded:
        figures[report.RECORDED] = outcome.recorded
        figures[report.SPOOLED] = outcome.spooled
    if outcome.whole is not None:
        figures[report.WHOLE] = outcome.whole
    return Sample(figures, outcome.note, find_failures(case.crashes, case.crashes_away, outcome))


def _run_act(
    act: Act, side: Side, programs: Programs, watch: ShmemWatch | None
) -> list[tuple[str, float]]:
    """Make all victims of an act, then crash them; return the kind and the hold of each."""
    schedule: list[tuple[float, int]] = []
    kinds: dict[int, str] = {}
    with contextlib.ExitStack() as stack:
        for salvo in act.salvos:
            for at_seconds in salvo.times:
                pid = stack.enter_context(start_victim(salvo.victim, programs))
                schedule.append((at_seconds, pid))
                kinds[pid] = salvo.kind
        if watch is not None:
            watch.begin()
        if act.away:
            side.leave()
        held = crash_all(schedule)
    side.come_back()
    if act.rest:
        _rest(side)
    return [(kinds[pid], seconds) for pid, seconds in held.items()]


def _await_all(side: Side, crashes: int) -> None:
    """Wait until all are recorded, or no more will be."""
    if side.lists:
        _await_storm(side, crashes)


def _await_listed(side: Side, start: float) -> float:
    while not side.recorded():
        waited = time.perf_counter() - start
        if waited > HOLD_SECONDS_MAX + LISTED_SECONDS_MAX or (
            waited > QUIET_SECONDS and not side.busy() and not side.recorded()
        ):
            raise MeasureError("the crash was not recorded")
        time.sleep(0.002 if waited < 1 else 0.02)
    return time.perf_counter()


def _finish(side: Side, meter: CpuMeter, figures: dict[str, float]) -> None:
    """Wait until the side is at rest and all is on disk, and read the meter."""
    _rest(side)
    os.sync()
    time.sleep(SETTLE_SECONDS)
    figures[report.CPU] = meter.read()


def _rest(side: Side) -> None:
    end = time.monotonic() + LISTED_SECONDS_MAX
    while side.busy():
        if time.monotonic() > end:
            raise MeasureError("it never came to rest")
        time.sleep(0.02)


def _measure_storm(
    storm: Storm, side: Side, programs: Programs, idle_rate: float, quick: bool
) -> Sample:
    crashes = storm.quick if quick else storm.crashes
    side.activate()
    os.sync()
    meter = CpuMeter.begin(idle_rate)
    start = time.perf_counter()
    released = _run_storm(programs.storm, crashes, storm.at_once)
    figures: dict[str, float] = {
        report.CRASHES: crashes,
        report.RELEASED_RATE: crashes / released,
    }
    if side.lists:
        listed = max(released, _await_storm(side, crashes) - start)
        figures[report.RECORDED_RATE] = side.recorded() / listed
    _finish(side, meter, figures)
    outcome = side.outcome()
    if side.lists or outcome.recorded:
        figures[report.RECORDED] = outcome.recorded
        figures[report.STORED] = outcome.stored_bytes
        figures[report.CORE] = outcome.core_bytes
    each = max(1, outcome.recorded if side.lists else crashes)  # the kernel may drop some
    figures[report.CPU_EACH] = figures[report.CPU] / each
    if report.STORED in figures:
        figures[report.STORED_EACH] = figures[report.STORED] / each
    if outcome.whole is not None:
        figures[report.WHOLE] = outcome.whole
    return Sample(figures, outcome.note, find_failures(crashes, 0, outcome))


def _run_storm(program: Path, crashes: int, at_once: int) -> float:
    command = [str(program), str(crashes), str(at_once)]
    # Of its own session, to end all its children with it.
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = child.communicate(timeout=HOLD_SECONDS_MAX)
    except subprocess.TimeoutExpired as e:
        raise MeasureError(f"the storm took more than {HOLD_SECONDS_MAX} s") from e
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
    if child.returncode:
        raise MeasureError(f"the storm failed: {errors.strip() or child.returncode}")
    return float(output)


def _await_storm(side: Side, crashes: int) -> float:
    """Wait until all are recorded, or no more will be; return when the last one was."""
    seen = -1
    changed = time.perf_counter()
    while seen < crashes:
        now, count = time.perf_counter(), side.recorded()
        if count != seen:
            seen, changed = count, now
        elif now - changed > QUIET_SECONDS and not side.busy():
            break
        elif now - changed > LISTED_SECONDS_MAX:
            raise MeasureError("it never came to rest")
        time.sleep(0.02)
    return changed


# -- the machine -----------------------------------------------------------------------------------


def describe_machine(scratch: Path, idle_rate: float) -> Machine:
    """Say what is measured on."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    device = os.stat(scratch).st_dev
    mounts = Path("/proc/self/mountinfo").read_text()
    return Machine(
        cpu=parse_cpu_model(cpuinfo) or platform.machine(),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        kernel=platform.release(),
        python=platform.python_version(),
        filesystem=parse_filesystem(mounts, os.major(device), os.minor(device)),
        systemd=_systemd_version(),
        idle_cpus=idle_rate,
        load=os.getloadavg()[0],
        fresh_seconds=measure_fresh_memory(),
    )


def measure_fresh_memory() -> tuple[float, float]:
    """Return the seconds that 64 MiB of fresh memory take: right after as much was freed, and
    after a pause; of three times the worst.
    """
    _touch_fresh()
    at_once = max(_touch_fresh() for _ in range(3))
    later = []
    for _ in range(3):
        time.sleep(FRESH_PAUSE_SECONDS)
        later.append(_touch_fresh())
    return at_once, max(later)


def _touch_fresh() -> float:
    with mmap.mmap(-1, FRESH_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        start = time.perf_counter()
        for at in range(0, FRESH_BYTES, mmap.PAGESIZE):
            memory[at] = 1
        return time.perf_counter() - start


def _systemd_version() -> str:
    try:
        done = subprocess.run(
            ["systemd-socket-activate", "--version"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "no systemd"
    return done.stdout.partition("\n")[0]


def parse_cpu_model(cpuinfo: str) -> str:
    """Find the model of the first CPU; "" where /proc/cpuinfo does not name it."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return ""


def parse_filesystem(mountinfo: str, major: int, minor: int) -> str:
    """Name the type of a device's file system (proc_pid_mountinfo(5))."""
    for line in mountinfo.splitlines():
        mount, _, filesystem = line.partition(" - ")
        if mount.split()[2] == f"{major}:{minor}":
            return filesystem.split()[0]
    return "unknown file system"


def memory_available() -> int:
    """Return how many bytes of memory could be had."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise MeasureError("/proc/meminfo has no MemAvailable")
