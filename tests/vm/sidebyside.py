"""Runs in the container of platform.sh, as root: what coredumpctl(1) shows in its options and
examples is given to coredumpctl and to crashctl, and both have to find the same crashes. Prints a
line for each; exit status 1 if one differs.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = "/usr/bin/sleep"


def run(*command: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command; nothing is read from the terminal."""
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=120)


def theirs(*arguments: str) -> list[int]:
    """Return the pids that coredumpctl lists, in its order."""
    done = run("coredumpctl", "--no-pager", "--no-legend", *arguments)
    # Sat 2026-11-28 07:00:02 UTC 262 ...
    return [int(line.split()[4]) for line in done.stdout.decode().splitlines()]


def ours(*arguments: str) -> list[int]:
    """Return the pids that crashctl lists, in its order."""
    done = run("crashctl", "--no-pager", "--no-legend", "--json=short", *arguments)
    return [row["pid"] for row in json.loads(done.stdout or b"[]")]


def lists() -> list[list[str]]:
    """Name the ways to list."""
    first, *_ = theirs()
    host = Path("/proc/sys/kernel/hostname").read_text().strip()
    # to the second, as both print it; coredumpctl's is that of the entry, a moment after the crash
    row = json.loads(run("crashctl", "--json=short", "list").stdout)[0]
    time = row["time"][:19].replace("T", " ")
    return [
        [],
        ["list"],
        ["-1"],
        ["-r"],
        ["-r", "-n", "2", "list"],
        ["-q", "list"],
        ["-S", "-1h"],
        ["-U", "-1h"],
        ["--since=today"],
        ["--since", "yesterday", "--until", "now"],
        ["--until=2020-01-01"],
        ["--since", time],
        ["list", "sleep"],
        ["list", PROGRAM],
        ["list", str(first)],
        ["list", f"COREDUMP_PID={first}"],
        ["list", f"COREDUMP_EXE={PROGRAM}"],
        ["list", "COREDUMP_COMM=sleep"],
        ["list", "COREDUMP_SIGNAL=6"],
        ["list", "COREDUMP_SIGNAL_NAME=SIGSEGV"],
        ["list", "COREDUMP_UID=0"],
        ["list", "COREDUMP_UID=4711"],
        ["list", f"_HOSTNAME={host}"],
        ["list", "sleep", "COREDUMP_SIGNAL=11"],
        ["list", "no-such-program"],
        ["list", "/usr/bin/no-such-program"],
    ]


def fields(name: str) -> tuple[list[str], list[str]]:
    """Return what -F prints: theirs and ours."""
    first, second = (
        sorted(run(program, "--no-pager", "-F", name, "list").stdout.decode().split("\n"))
        for program in ("coredumpctl", "crashctl")
    )
    return [line for line in first if line], [line for line in second if line]


def cores(pid: int) -> tuple[bytes, bytes]:
    """Return the core as both dump it."""
    with tempfile.TemporaryDirectory() as directory:
        found = []
        for program in ("coredumpctl", "crashctl"):
            file = Path(directory, program)
            run(program, "-o", str(file), "dump", str(pid))
            found.append(file.read_bytes() if file.exists() else b"")
    return found[0], found[1]


def statuses(*arguments: str) -> tuple[bool, bool]:
    """Return whether each succeeds."""
    first, second = (
        run(program, *arguments).returncode == 0 for program in ("coredumpctl", "crashctl")
    )
    return first, second


def debugged(*arguments: str) -> tuple[bool, bool]:
    """Return whether the debugger of each shows where the process ended."""
    first, second = (
        b"Program terminated with signal" in run(program, *arguments).stdout
        for program in ("coredumpctl", "crashctl")
    )
    return first, second


def main() -> int:
    """Compare; return the exit status."""
    failed = 0

    def judge(what: str, first: object, second: object, shown: object) -> None:
        nonlocal failed
        failed += first != second
        print("same  " if first == second else "DIFFER", what, shown)
        if first != second:
            print(f"       coredumpctl: {first!r:.300}\n       crashctl:    {second!r:.300}")

    for arguments in lists():
        first, second = theirs(*arguments), ours(*arguments)
        judge(" ".join(arguments) or "(nothing)", first, second, len(first))
    # with systemd 252's nspawn, a unit with a /proc of its own sees the boot of the machine
    seen = json.loads(run("crashctl", "--json=short", "list").stdout)[0]["boot_id"]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    judge("_BOOT_ID=", theirs("list", f"_BOOT_ID={boot}"), ours("list", f"_BOOT_ID={seen}"), "")
    # coredumpctl's are the two oldest, although its -1 is the newest
    judge("-n 2", theirs("-r", "-n", "2")[::-1], ours("-n", "2"), 2)
    for name in ("COREDUMP_PID", "COREDUMP_EXE", "COREDUMP_SIGNAL_NAME"):
        before, after = fields(name)
        judge(f"-F {name} list", before, after, len(before))
    pid = theirs("list", "COREDUMP_SIGNAL=6")[0]
    one, other = cores(pid)
    judge(f"-o FILE dump {pid}", one, other, len(one))
    for arguments in (["info", str(pid)], ["info", "999999"], ["--help"], ["--version"], ["-x"]):
        judge(f"status of {' '.join(arguments)}", *statuses(*arguments), "")
    for verb in ("debug", "gdb"):
        judge(f"{verb} -A -batch {pid}", *debugged(verb, "-A", "-batch", str(pid)), "")
        judge(
            f"--debugger=gdb -A -batch {verb}",
            *debugged("--debugger=gdb", "-A", "-batch", verb),
            "",
        )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
