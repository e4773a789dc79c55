"""What crashes: the cases, and their programs, compiled from the C files beside this one."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.bench.report import DRAIN, STREAM, SYSTEMD

SOURCES: Final = Path(__file__).parent
MIB: Final = 1 << 20
GIB: Final = 1 << 30


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
class Case:
    """One thing that crashes."""

    name: str
    runs: int
    """On each side, by default."""
    victim: tuple[str, ...] = ()
    """Arguments of victim.c; none for `sleep 1000`."""
    resident_bytes: int = 0
    slow: Mapping[str, int] = field(default_factory=dict)
    """For sides that take very long: how many runs at most; 0 is none without --all."""
    storm: Storm | None = None
    quick_runs: int = 1

    def runs_of(self, side: str, *, wanted: int | None, quick: bool, every: bool) -> int:
        """Tell how often to run on a side.

        Args:
            side: its name.
            wanted: the value of --runs, if given.
            quick: whether slow ones are left out, and `quick_runs` is the default.
            every: whether no side is left out.

        """
        default = self.quick_runs if quick else self.runs
        runs = default if wanted is None else wanted
        if side not in self.slow:
            return runs
        if every:
            return max(1, min(runs, self.slow[side]))
        return 0 if quick else min(runs, self.slow[side])


_MAPPED: Final = str(100 * MIB)
CASES: Final = (
    Case("sleep", 15, quick_runs=5),
    Case("256 MiB dense", 3, ("dense", str(256 * MIB)), 256 * MIB),
    Case("1 GiB dense", 3, ("dense", str(GIB)), GIB),
    Case("1 GiB zeros", 3, ("zeros", str(GIB)), GIB),
    Case("3 GiB zeros", 1, ("zeros", str(3 * GIB)), 3 * GIB, slow={SYSTEMD: 1}),
    Case(
        "16 GiB mapped",
        3,
        ("mapped", str(16 * GIB), _MAPPED),
        100 * MIB,
        slow={SYSTEMD: 1, STREAM: 1, DRAIN: 1},
    ),
    Case(
        "64 GiB mapped",
        3,
        ("mapped", str(64 * GIB), _MAPPED),
        100 * MIB,
        slow={SYSTEMD: 0, STREAM: 0, DRAIN: 0},
    ),
    Case("500 threads", 3, ("threads", "500"), slow={SYSTEMD: 1, STREAM: 1, DRAIN: 1}),
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
