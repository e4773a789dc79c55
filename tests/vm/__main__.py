"""`python -m tests.vm`: build the package, and try it on a real systemd; with CRASHD_TEST_VM=1 also
on each release of Debian, and in a guest whose kernel really panics. As root; exit status 1 when a
test failed.
"""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.vm import container, guest, package, platform


def report(kind: str, wanted: list[str], found: dict[str, container.Outcome]) -> int:
    """Print each test; return how many did not pass."""
    failed = 0
    for name in wanted:
        outcome = found.get(name)
        if outcome is None or not outcome.passed:
            failed += 1
            print(f"FAIL {kind}::{name}", "" if outcome else "(was not reached)")
            print("" if outcome is None else outcome.log)
        else:
            print(f"ok   {kind}::{name} ({outcome.seconds:.1f} s)")
    return failed


def run_guest(deb: Path, work: Path) -> int:
    """Run the guest's tests; return how many did not pass."""
    if guest.missing():
        print(f"the guest needs: {' '.join(guest.missing())}", file=sys.stderr)
        return 1
    started = time.monotonic()
    found = guest.run_tests(deb, work)
    print(f"guest: {time.monotonic() - started:.0f} s")
    exposure = work / "out/result/exposure"
    print(exposure.read_text() if exposure.exists() else "no exposure")
    failed = report("guest", container.tests_of(guest.HERE / "guest.sh"), found)
    started = time.monotonic()
    found = guest.run_symbol_tests(deb, work / "symbols")
    print(f"symbols: {time.monotonic() - started:.0f} s")
    return failed + report("symbols", container.tests_of(guest.HERE / "symbols.sh"), found)


def run_platforms(deb: Path, work: Path) -> int:
    """Try the package on each release of Debian; return how many tests did not pass."""
    failed = 0
    for suite in platform.SUITES:
        found = platform.run(deb, suite, work / suite)
        failed += report(suite, container.tests_of(platform.JOB), found)
        figures = work / suite / "out/figures"
        print(figures.read_text() if figures.exists() else "no figures")
    return failed


def main() -> int:
    """Run everything that this machine allows; return the exit status."""
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # core_pattern is put back
    if os.geteuid() != 0 or container.missing():
        print(f"needs root, and: {' '.join(container.missing())}", file=sys.stderr)
        return 2
    work = Path(tempfile.mkdtemp(prefix="crashd-vm-"))
    deb = package.build(work)
    print(f"{deb.name}: {deb.stat().st_size >> 10} KiB, {time.monotonic() - started:.0f} s")
    found = container.run(deb, work / "container")
    failed = report("container", container.tests_of(container.HERE / "container.sh"), found)
    exposure = work / "container/out/exposure"
    print("exposure:", *exposure.read_text().split() if exposure.exists() else "none")
    if os.environ.get("CRASHD_TEST_VM") == "1":
        failed += run_platforms(deb, work / "platforms")
        failed += run_guest(deb, work / "guest")
    print(f"{time.monotonic() - started:.0f} s in all; logs are in {work}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
