"""A Debian with its own systemd in a container: the job container.sh, each of its tests by name."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests import guide
from tests.vm import package

HERE = Path(__file__).parent
ROOTFS = Path("/var/cache/crashd-test/rootfs-4")
"""Another name with each change of build-rootfs.sh."""
SECONDS = 400
_LINE = re.compile(r"^(PASS|FAIL) (test_[a-z0-9_]+) (\d+)\r?$", re.MULTILINE)


def rootfs(suite: str) -> Path:
    """Return where the root of a release is, or will be."""
    return ROOTFS.with_name(f"{ROOTFS.name}-{suite}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one test in a job."""

    passed: bool
    seconds: float
    log: str


def tests_of(job: Path) -> list[str]:
    """Name the tests of a job, in their order."""
    return re.findall(r"^(test_[a-z0-9_]+)\(\) \{", job.read_text(), re.MULTILINE)


def missing() -> list[str]:
    """Name the programs that are not installed."""
    return [name for name in ("systemd-nspawn", "mmdebstrap", "script") if not shutil.which(name)]


def run(deb: Path, work: Path) -> dict[str, Outcome]:
    """Run the job; `work` keeps its logs."""
    subprocess.run(["sh", HERE / "build-rootfs.sh", ROOTFS], check=True, timeout=900)
    job, out = work / "job", work / "out"
    job.mkdir(parents=True)
    shutil.copy(deb, job / "crashd.deb")
    package.make_previous(deb, job / "crashd-previous.deb", work)
    shutil.copy(HERE.parent / "data/core-x86_64.gz", job / "core.gz")
    for name in ("lib.sh", "container.sh"):
        shutil.copy(HERE / name, job)
    commands = guide.commands(of_the_system=True)
    (job / "guide").write_text("".join(f"{line}\n" for line in commands))
    (job / "run.sh").write_text("exec bash /job/container.sh\n")
    subprocess.run(
        ["bash", HERE / "nspawn-run.sh", ROOTFS, job, out, str(SECONDS)],
        timeout=SECONDS + 60,
        check=False,
    )
    return outcomes(out / "job.log", out)


def outcomes(log: Path, out: Path) -> dict[str, Outcome]:
    """Read what became of the tests from what a job printed."""
    text = log.read_text(errors="replace") if log.exists() else ""
    found = {}
    for verdict, name, milliseconds in _LINE.findall(text):
        own = out / f"{name}.log"
        details = own.read_text(errors="replace")[-6000:] if own.exists() else ""
        found[name] = Outcome(verdict == "PASS", int(milliseconds) / 1000, details)
    return found
