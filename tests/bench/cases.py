"""What crashes: the cases, and their programs, compiled from the C files beside this one."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.bench.report import DRAIN, MEMORY, SOCKET, STREAM, SYSTEMD

SOURCES: Final = Path(__file__).parent
MIB: Final = 1 << 20
GIB: Final = 1 << 30
UNLIMITED: Final = 'max_core = "infinity"\ndeadline = "1h"\n'
"""A section [capture] that cuts nothing."""


class CompileError(Exception):
    """A program of the benchmark could not be built."""


@dataclass(frozen=True, slots=True)
class Storm:
    """Many small crashes, as fast as the machine makes them."""

    crashes: int
    at_once: int
    quick: int
    """How many crashes with --quick."""


@dataclass(frozen=True, slots=True)
class Salvo:
    """Crashes of one kind, at set times after their act begins."""

    kind: str
    victim: tuple[str, ...] = ()
    """Arguments of victim.c; none for `sleep 1000`."""
    count: int = 1
    at_seconds: float = 0
    every_seconds: float = 0

    @property
    def times(self) -> list[float]:
        """Return when each of them crashes, in seconds after the act began."""
        return [self.at_seconds + number * self.every_seconds for number in range(self.count)]


@dataclass(frozen=True, slots=True)
class Act:
    """Salvos that belong together: all their victims are ready before the first one crashes."""

    salvos: tuple[Salvo, ...]
    away: bool = False
    """Whether the collector's daemon is stopped meanwhile; it is back before the next act."""
    rest: bool = True
    """Whether the next act waits until the side has done with this one."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that crashes, or several in their order."""

    name: str
    runs: int
    """On each side, by default."""
    victim: tuple[str, ...] = ()
    """Arguments of victim.c; none for `sleep 1000`."""
    resident_bytes: int = 0
    slow: Mapping[str, int] = field(default_factory=dict)
    """For sides that take very long: how many runs at most; 0 is none without --all."""
    storm: Storm | None = None
    acts: tuple[Act, ...] = ()
    """Instead of one victim: the worst hold of each kind is what counts."""
    away: bool = False
    """Whether the collector's daemon is stopped when the victim crashes, and started after it."""
    capture: str = UNLIMITED
    """Of crashd's configuration: what its section [capture] has."""
    only: tuple[str, ...] = ()
    """The sides that it can be measured on; all by default."""
    watch_shmem: bool = False
    """Whether the machine's shared memory is watched while a victim is held."""
    quick_runs: int = 1
    quick: "Case | None" = None
    """What is measured instead with --quick, under the same name."""

    def runs_of(self, side: str, *, wanted: int | None, quick: bool, every: bool) -> int:
        """Return how often to run on a side.

        Args:
            side: its name.
            wanted: the value of --runs, if given.
            quick: whether slow ones are left out, and `quick_runs` is the default.
            every: whether no side is left out.

        """
        if self.only and side not in self.only:
            return 0
        default = self.quick_runs if quick else self.runs
        runs = default if wanted is None else wanted
        if side not in self.slow:
            return runs
        if every:
            return max(1, min(runs, self.slow[side]))
        return 0 if quick else min(runs, self.slow[side])

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of crashes in its acts, in their order."""
        return tuple(dict.fromkeys(salvo.kind for act in self.acts for salvo in act.salvos))

    @property
    def crashes(self) -> int:
        """Return how many crashes it makes; a storm says itself."""
        return sum(salvo.count for act in self.acts for salvo in act.salvos) if self.acts else 1

    @property
    def crashes_away(self) -> int:
        """Return how many of them happen while no daemon is there."""
        if not self.acts:
            return int(self.away)
        return sum(salvo.count for act in self.acts if act.away for salvo in act.salvos)


def _dense(size: int) -> tuple[str, ...]:
    return ("dense", str(size))


def _mapped(size: int, resident: int = 100 * MIB) -> tuple[str, ...]:
    return ("mapped", str(size), str(resident))


def _zeros(size: int) -> tuple[str, ...]:
    return ("zeros", str(size))


TINY, MAPPED_4, DENSE_256, DENSE_1024 = "tiny", "4 GiB mapped", "256 MiB dense", "1 GiB dense"
ALONE, AFTER, WAITING, ANONYMOUS, MEMFD = "alone", "after", "waiting", "anonymous", "memfd"
_DRAINING: Final = {SYSTEMD: 1, STREAM: 1, DRAIN: 1}
"""Sides that read a whole address space."""
_CRASHD: Final = (MEMORY, STREAM, SOCKET)


def _burst(divisor: int) -> tuple[Act, ...]:
    """Build what a failing host does: large crashes at once, then many small ones."""
    return (
        Act(
            (
                Salvo(DENSE_1024, _dense(GIB // divisor)),
                Salvo(DENSE_256, _dense(256 * MIB // divisor), 3, 0.5),
                Salvo(MAPPED_4, _mapped(4 * GIB), 1, 0.5),
                Salvo(TINY, (), 10, 1.0, 0.2),
            )
        ),
    )


def _loop(divisor: int, times: int, every_seconds: float) -> tuple[Act, ...]:
    """Build a service that crashes again and again, alone and after two large crashes."""
    service = _mapped(4 * GIB, 50 * MIB)
    return (
        Act((Salvo(ALONE, service, times, 0.5, every_seconds),)),
        Act((Salvo("large", _dense(GIB // divisor), 2),), rest=False),
        Act((Salvo(AFTER, service, times, 0.5, every_seconds),)),
    )


def _backlog(size: int) -> tuple[Act, ...]:
    """Build small crashes, alone and while six large cores wait in the spool."""
    return (
        Act((Salvo(ALONE, (), 5, 0, 0.2),)),
        Act((Salvo("spooled", _dense(size), 6),), away=True, rest=False),
        Act((Salvo(WAITING, (), 5, 0, 0.2),)),
    )


_SPARSE_ACTS: Final = (
    Act((Salvo(ANONYMOUS, ("pages", str(2 * GIB), "2"), 3, 0, 0.5),)),
    Act((Salvo(MEMFD, ("memfd", str(2 * GIB), "2"), 3, 0, 0.5),)),
)
CASES: Final = (
    Case("sleep", 15, quick_runs=5),
    Case(
        "256 MiB dense",
        3,
        _dense(256 * MIB),
        256 * MIB,
        quick=Case("64 MiB", 1, _dense(64 * MIB), 64 * MIB),
    ),
    Case("1 GiB dense", 3, _dense(GIB), GIB, quick_runs=0),
    Case(
        "4 GiB dense, buffer 512 MiB",
        1,
        _dense(4 * GIB),
        4 * GIB,
        slow={SYSTEMD: 1, STREAM: 0, SOCKET: 1, DRAIN: 1},
        capture=UNLIMITED + 'buffer = "512M"\n',
        quick=Case(
            "512 MiB",
            1,
            _dense(512 * MIB),
            512 * MIB,
            slow={SYSTEMD: 0},
            capture=UNLIMITED + 'buffer = "64M"\n',
        ),
    ),
    Case("1 GiB zeros", 3, _zeros(GIB), GIB, quick_runs=0),
    Case(
        "3 GiB zeros",
        1,
        _zeros(3 * GIB),
        3 * GIB,
        slow={SYSTEMD: 1},
        quick=Case("512 MiB", 1, _zeros(512 * MIB), 512 * MIB, slow={SYSTEMD: 0}),
    ),
    Case("16 GiB mapped", 3, _mapped(16 * GIB), 100 * MIB, slow=_DRAINING),
    Case(
        "16 GiB mapped, daemon stopped",
        1,
        _mapped(16 * GIB),
        100 * MIB,
        slow={SYSTEMD: 1},
        away=True,
        only=(MEMORY, SYSTEMD),
        quick=Case(
            "4 GiB",
            1,
            _mapped(4 * GIB),
            100 * MIB,
            slow={SYSTEMD: 0},
            away=True,
            only=(MEMORY, SYSTEMD),
        ),
    ),
    Case(
        "64 GiB mapped",
        3,
        _mapped(64 * GIB),
        100 * MIB,
        slow={SYSTEMD: 0, STREAM: 0, DRAIN: 0},
        capture="",  # the limits of the default configuration do not count holes
    ),
    Case("500 threads", 3, ("threads", "500"), slow=_DRAINING),
    Case(
        "2 GiB sparse memfd",
        1,
        slow=_DRAINING,
        acts=_SPARSE_ACTS,
        watch_shmem=True,
    ),
    Case(
        "burst",
        1,
        resident_bytes=2 * GIB,
        acts=_burst(1),
        slow=_DRAINING,
        quick=Case("quarter", 1, acts=_burst(4), resident_bytes=GIB, slow=_DRAINING),
    ),
    Case(
        "loop after a burst",
        1,
        resident_bytes=3 * GIB,
        acts=_loop(1, 10, 4),
        slow={SYSTEMD: 1, STREAM: 0, DRAIN: 0},
        quick=Case("quarter", 1, acts=_loop(4, 3, 2), resident_bytes=GIB, slow=_DRAINING),
    ),
    Case(
        "backlog",
        1,
        resident_bytes=2 * GIB,
        acts=_backlog(256 * MIB),
        only=_CRASHD[:2],
        quick=Case("quarter", 1, acts=_backlog(64 * MIB), resident_bytes=GIB, only=_CRASHD[:2]),
    ),
    Case("storm, 16 at once", 1, storm=Storm(300, 16, quick=60)),
    Case("storm, 100 at once", 1, storm=Storm(1000, 100, quick=200)),
)


@dataclass(frozen=True, slots=True)
class Programs:
    """The compiled programs."""

    victim: Path
    storm: Path
    drain: Path


def compile_programs(directory: Path) -> Programs:
    """Compile the C programs into a directory.

    Raises:
        CompileError: there is no compiler, or it failed.

    """
    return Programs(
        _compile("victim", directory, "-pthread"),
        _compile("storm", directory),
        # Static: the kernel starts it for each crash, and the loader is not what is measured.
        _compile("drain", directory, "-static"),
    )


def _compile(name: str, directory: Path, *options: str) -> Path:
    program = directory / name
    command = ["gcc", "-O2", *options, "-o", str(program), str(SOURCES / f"{name}.c")]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as e:
        raise CompileError("no gcc: apt-get install gcc libc6-dev") from e
    except subprocess.CalledProcessError as e:
        raise CompileError(f"{name}.c: {e.stderr.strip()}") from e
    return program
