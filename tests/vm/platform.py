"""The package on each release of Debian: installed, upgraded and removed in a container, where the
kernel itself brings the crashes, and beside coredumpctl. Takes over core_pattern while it runs, and
puts it back.
"""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.vm import container, package

HERE = Path(__file__).parent
JOB = HERE / "platform.sh"
SUITES = ("bookworm", "trixie", "testing")
SECONDS = 300
_KERNEL = Path("/proc/sys/kernel")
_ENTER = """#!/bin/sh
# of the kernel: the handler of the container in which the process crashed; others are ignored
host=$1 pid=$2 tid=$3
shift 3
[ "$(readlink "/proc/$host/ns/mnt")" != "$(readlink /proc/1/ns/mnt)" ] || exec cat >/dev/null
set -- "$pid" "$1" "$2" "$3" "$pid" "$tid" "$4" "$5" "$6" "$7" "" host
exec nsenter -t "$host" -m -u -i -p /usr/libexec/crashd-core "$@"
"""


@contextlib.contextmanager
def entering(directory: Path) -> Iterator[None]:
    """Have the kernel run the handler of the crashed process's own container."""
    program = directory / "enter"
    program.write_text(_ENTER)
    program.chmod(0o755)
    wanted = {
        "core_pattern": f"|{program} %P %p %i %e %s %t %u %g %c %d",
        "core_pipe_limit": "64",
    }
    before = {name: (_KERNEL / name).read_text() for name in wanted}
    try:
        for name, value in wanted.items():
            (_KERNEL / name).write_text(value)
        yield
    finally:
        for name, value in before.items():
            (_KERNEL / name).write_text(value)


def run(deb: Path, suite: str, work: Path) -> dict[str, container.Outcome]:
    """Run the job on a release; `work` keeps its logs, and `out/figures` what it measured."""
    root = container.rootfs(suite)
    subprocess.run(["sh", HERE / "build-rootfs.sh", root, suite], check=True, timeout=900)
    job, out = work / "job", work / "out"
    job.mkdir(parents=True)
    shutil.copy(deb, job / "crashd.deb")
    package.make_previous(deb, job / "crashd-previous.deb", work)
    for name in ("lib.sh", "platform.sh", "sidebyside.py", "burst.py"):
        shutil.copy(HERE / name, job)
    (job / "run.sh").write_text("exec bash /job/platform.sh\n")
    with entering(work):
        subprocess.run(
            ["bash", HERE / "nspawn-run.sh", root, job, out, str(SECONDS)],
            timeout=SECONDS + 60,
            check=False,
        )
    return container.outcomes(out / "job.log", out)
