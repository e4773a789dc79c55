"""Crash three programs and check that crashd kept each of them whole; for packaging/run.sh --demo.

`demo.py endpoint` tells where the metrics will be, and fails where that port is taken.
"""

import argparse
import json
import os
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crashd.configuration import files as configfiles
from crashd.errors import CrashdError
from crashd.store.paths import Paths

DEADLINE_SECONDS = 60
EXPLAIN_SECONDS = 20
UNKNOWN = "off, or on a port chosen at the start"
HERE = Path(__file__).resolve().parent


class DemoError(Exception):
    """crashd did not do what the demo shows; the message says what, in one line."""


@dataclass(frozen=True, slots=True)
class Victim:
    """One program that crashed."""

    name: str
    pid: int
    signal: int


class Crashctl:
    """The operator's command, on the root of the demo."""

    def __init__(self, program: Path, root: Path) -> None:
        self._argv = [str(program), "--root", str(root)]

    def show(self, *arguments: str) -> None:
        """Run it for the reader."""
        print(f"\n$ {shlex.join(['crashctl', *self._argv[1:], *arguments])}", flush=True)
        self._run(arguments, stdout=None)

    def records(self) -> list[dict[str, Any]]:
        """Return what `list --json` says."""
        found: list[dict[str, Any]] = json.loads(self._run(("list", "--json"), ok=(0, 1)) or "[]")
        return found

    def dump(self, crash_id: str, output: Path) -> None:
        """Write the core of one crash to `output`."""
        self._run(("dump", crash_id, "-o", str(output)))

    def _run(
        self,
        arguments: Sequence[str],
        *,
        stdout: int | None = subprocess.PIPE,
        ok: Sequence[int] = (0,),
    ) -> str:
        done = subprocess.run(
            [*self._argv, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        if done.returncode not in ok:
            raise DemoError(f"crashctl {shlex.join(arguments)}: exit status {done.returncode}")
        return done.stdout or ""


def print_endpoint(root: Path) -> None:
    """Print the address of the metrics, UNKNOWN where there is none.

    Raises:
        DemoError: another program listens there.

    """
    address = configfiles.load(Paths(root.absolute())).http.address
    if address is None or address[1] == 0:
        print(UNKNOWN)
        return
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    name = f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as e:
            raise DemoError(
                f"the metrics cannot be served on {name}: {e.strerror}: stop what listens there "
                f"(ss -ltnp), or set [http] listen in {Paths(root).config_file}"
            ) from e
    print(f"http://{name}/metrics")


def build_c_program(directory: Path) -> list[str]:
    """Compile the crasher in C; where there is no compiler, a shell takes its part."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        print("no C compiler: a shell takes the part of the C program")
        return ["sh", "-c", "kill -SEGV $$"]
    program = directory / "null_write"
    source = HERE / "null_write.c"
    subprocess.run([compiler, "-g", "-O1", "-o", str(program), str(source)], check=True)
    return [str(program)]


def crash_programs(directory: Path) -> Iterator[Victim]:
    """Crash a C program, `sleep` and Python, and wait for the end of each."""
    program = build_c_program(directory)
    faulthandler = "import faulthandler; faulthandler._sigsegv()"
    for name, argv, sent in (
        ("a C program that writes to NULL", program, None),
        ("sleep, killed by SIGSEGV", ["sleep", "1000"], signal.SIGSEGV),
        ("Python, by faulthandler._sigsegv()", [sys.executable, "-c", faulthandler], None),
    ):
        with subprocess.Popen(argv, cwd=directory, stdin=subprocess.DEVNULL) as process:
            if sent is not None:
                process.send_signal(sent)
            status = process.wait(DEADLINE_SECONDS)
        if status != -signal.SIGSEGV:
            raise DemoError(f"{name}: ended with status {status} instead of by SIGSEGV")
        print(f"crashed: pid {process.pid}, {name}")
        yield Victim(name, process.pid, signal.SIGSEGV)


def wait_for_records(
    crashctl: Crashctl, victims: Sequence[Victim], old: frozenset[str]
) -> list[dict[str, Any]]:
    """Wait until crashd has the crash of each victim, and return its records in that order."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        records = {r["pid"]: r for r in crashctl.records() if r["id"] not in old}
        found = [records.get(victim.pid) for victim in victims]
        settled = [r for r in found if r is not None and r["state"] != "capturing"]
        if len(settled) == len(victims):
            return settled
        if time.monotonic() > deadline:
            states = [
                f"pid {v.pid}: {'not there' if r is None else r['state']}"
                for v, r in zip(victims, found, strict=True)
            ]
            raise DemoError(f"not caught within {DEADLINE_SECONDS} s: {', '.join(states)}")
        time.sleep(0.2)


def wait_for_explanations(crashctl: Crashctl, ids: Set[str]) -> None:
    """Wait until crashes are analysed; without that, `info` says that it is pending."""
    deadline = time.monotonic() + EXPLAIN_SECONDS
    while time.monotonic() < deadline:
        if all(r["signature"] for r in crashctl.records() if r["id"] in ids):
            return
        time.sleep(0.2)


def check_record(
    crashctl: Crashctl, record: dict[str, Any], victim: Victim, directory: Path
) -> None:
    """Check that one crash was caught whole, down to the bytes of its core.

    Raises:
        DemoError: it was not.

    """
    core = record["core"]
    for what, found, expected in (
        ("state", record["state"], "complete"),
        ("signal", record["signal"], victim.signal),
        ("core.complete", core["complete"], True),
    ):
        if found != expected:
            raise DemoError(
                f"{victim.name} (pid {victim.pid}): {what} is {found!r}, not {expected!r}"
            )
    output = directory / "core"
    crashctl.dump(record["id"], output)
    with output.open("rb") as file:
        magic = file.read(4)
        size_bytes = os.fstat(file.fileno()).st_size
    output.unlink()
    if magic != b"\x7fELF" or size_bytes != core["size_bytes"]:
        raise DemoError(
            f"{victim.name} (pid {victim.pid}): the dumped core has {size_bytes} bytes and begins "
            f"with {magic!r}; {core['size_bytes']} bytes of ELF were expected"
        )
    print(
        f"whole: pid {victim.pid}, a core of {size_bytes} bytes, "
        f"{core['stored_bytes']} bytes in the store"
    )


def check_metrics(url: str, at_least: int) -> None:
    """Fetch the metrics, show those that count crashes, and check that ours are counted."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        with opener.open(url, timeout=10) as response:
            text = response.read(1 << 24).decode()
        counters = [s for s in text.splitlines() if s.startswith("crashd_crashes_total{")]
        if sum(float(line.rpartition(" ")[2]) for line in counters) >= at_least:
            break
        if time.monotonic() > deadline:
            raise DemoError(f"{url} does not count the crashes: {counters}")
        time.sleep(0.2)
    print(f"\n{url}:", *counters, sep="\n  ")


def crash(root: Path, program: Path, metrics: str) -> None:
    """Show the whole of it.

    Raises:
        DemoError: crashd failed.

    """
    if metrics == UNKNOWN:
        raise DemoError("the demo needs to know the port of [http] listen")
    # crashd honours RLIMIT_CORE, and the limit of most shells is 0.
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    crashctl = Crashctl(program, root)
    old = frozenset(record["id"] for record in crashctl.records())
    with tempfile.TemporaryDirectory(prefix="crashd-demo-") as name:
        directory = Path(name)
        victims = list(crash_programs(directory))
        records = wait_for_records(crashctl, victims, old)
        wait_for_explanations(crashctl, {record["id"] for record in records})
        crashctl.show("list")
        for record in records:
            crashctl.show("info", record["id"])
        print()
        for record, victim in zip(records, victims, strict=True):
            check_record(crashctl, record, victim, directory)
    check_metrics(metrics, len(victims))
    print("\nAll three crashes were caught whole.")


def main() -> int:
    """Run one of the two verbs; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    verbs = parser.add_subparsers(dest="verb", required=True)
    endpoint = verbs.add_parser("endpoint")
    crasher = verbs.add_parser("crash")
    crasher.add_argument("--crashctl", type=Path, required=True)
    crasher.add_argument("--metrics", required=True)
    for verb in (endpoint, crasher):
        verb.add_argument("--root", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        if arguments.verb == "endpoint":
            print_endpoint(arguments.root)
        else:
            crash(arguments.root, arguments.crashctl, arguments.metrics)
    except (DemoError, CrashdError, OSError, subprocess.SubprocessError) as e:
        print(f"run.sh: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
