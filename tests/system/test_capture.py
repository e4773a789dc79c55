"""Every way of capture with the real kernel: memory and stream, pipe and socket, full and mini, and
what becomes of crashes that are too many, cut off, or never handed over.
"""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crashd.domain.crash.coremeta import parse_fields
from crashd.edge.capture import kernelsock
from tests.bench.measure import ShmemWatch
from tests.running import DEFAULT_CONFIG, KEEPING_CONFIG, Daemon, wait_until
from tests.system.conftest import UNLIMITED, raise_core_limit, run_crasher
from tests.system.fusefile import SilentFile

SOURCES = Path(__file__).parent / "programs"
MIB = 1 << 20
SOCKET = DEFAULT_CONFIG + '[capture]\nmode = "socket"\n'
KEEPING = '[retention.process]\nmax_per_signature = "infinity"\n'
LIMITED = """
[http]
listen = "127.0.0.1:0"
[limiter.site]
full = 2
mini = 3
[analysis]
enabled = false
"""


def with_config(text: str) -> pytest.MarkDecorator:
    """Give the daemon of a test its configuration."""
    return pytest.mark.parametrize("daemon", [text], indirect=True, ids=["configured"])


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C program with every kind of memory."""
    return build(tmp_path_factory.mktemp("zoo"), "zoo")


def build(directory: Path, name: str) -> Path:
    """Compile one of the programs."""
    program = directory / name
    source = SOURCES / f"{name}.c"
    subprocess.run(["gcc", "-g", "-O1", "-pthread", "-w", "-o", program, source], check=True)
    return program


def crash(*command: str | Path) -> int:
    """Run a program until it crashes; give its pid."""
    child = subprocess.Popen([*map(str, command)], preexec_fn=raise_core_limit)
    assert child.wait(120) == -signal.SIGSEGV
    return child.pid


def unpack(daemon: Daemon, crash_id: str) -> Path:
    """Write a core to a file."""
    path = daemon.paths.root / f"core-{crash_id}"
    daemon.crashctl("dump", crash_id, "-o", str(path))
    return path


def backtrace(program: Path, core: Path) -> list[str]:
    """Tell the functions on the crashed thread's stack, by gdb."""
    done = subprocess.run(
        ["gdb", "-nx", "-batch", "-ex", "bt 12", str(program), str(core)],
        capture_output=True,
        text=True,
        check=True,
    )
    frames = re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?(\S+)", done.stdout, re.MULTILINE)
    return frames[1:]  # gdb shows the first by itself, too


# -- the kernel's socket ---------------------------------------------------------------------------


@with_config(SOCKET)
def test_socket_crashes_are_caught_whole(
    daemon: Daemon, crash_sleep: Callable[[], int], crasher: Path, zoo: Path
) -> None:
    assert Path("/proc/sys/kernel/core_pattern").read_text().startswith("@@")
    pids = [crash_sleep(), run_crasher(crasher), crash(zoo, "dense")]
    found = {c["pid"]: c for c in daemon.wait_for(3)}
    assert set(found) == set(pids)
    for c in found.values():
        assert c["state"] == "complete", c
        assert c["capture"]["mode"] == "socket"
        assert c["signal_name"] == "SIGSEGV"
        assert c["uid"] == 0
        assert c["build_id"]
        assert json.loads(daemon.crashctl("info", c["id"], "--json").stdout)["warnings"] == []
    assert found[pids[1]]["si_code"] == 1
    assert found[pids[1]]["fault_address"] == "0x0"
    assert found[pids[2]]["capture"]["engine"] == "memory"
    stack = backtrace(crasher, unpack(daemon, found[pids[1]]["id"]))
    assert stack[:4] == ["third", "second", "first", "main"]
    status = daemon.crashctl("status", "--json")
    assert json.loads(status.stdout)["mode"] == "socket"


@with_config(SOCKET)
def test_socket_takes_nobody_but_the_kernel(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(daemon.paths.kernel_socket))
        assert peer.recv(1) == b"", "SEC-41: a peer that is not in its coredump is refused"
    assert daemon.paths.kernel_socket.stat().st_mode & 0o777 == 0o600
    wait_until(lambda: "no process in its coredump" in daemon.log.read_text(), 30, "it is told")
    assert daemon.crashes() == []


@with_config(SOCKET)
def test_socket_pattern_is_given_back(daemon: Daemon) -> None:
    daemon.stop()
    assert "@@" not in Path("/proc/sys/kernel/core_pattern").read_text()


@with_config(
    '[http]\nlisten = "127.0.0.1:0"\n[capture]\nmode = "socket"\n'
    "[limiter.uid]\nfull = 1\nmini = 0\n"
)
def test_socket_rejects_what_nothing_would_be_kept_of(
    daemon: Daemon, crash_sleep: Callable[[], int]
) -> None:
    for _ in range(4):
        crash_sleep()
    found = daemon.wait_for(4)
    assert Counter(c["state"] for c in found) == {"complete": 1, "metadata-only": 3}
    for c in found[1:]:
        assert c["capture"]["reason"].startswith("limiter.uid: ")
        assert c["comm"] == "sleep"
        assert c["core"]["path"] is None


def test_socket_that_systemd_would_hold_keeps_crashes_waiting(
    short_tmp: Path, core_pattern_owner: None
) -> None:
    del core_pattern_owner
    daemon = Daemon(short_tmp / "r", config=SOCKET)
    daemon.paths.runtime_dir.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(daemon.paths.kernel_socket))
        daemon.paths.kernel_socket.chmod(0o600)
        listener.listen(64)
        Path("/proc/sys/kernel/core_pattern").write_text(f"@@{daemon.paths.kernel_socket}")
        children = [
            subprocess.Popen(["sleep", "1000"], preexec_fn=raise_core_limit) for _ in range(5)
        ]
        for child in children:
            child.send_signal(signal.SIGSEGV)
        time.sleep(0.2)
        assert all(child.poll() is None for child in children), "held until somebody comes"
        environ = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "kernel"}
        start_with_socket(daemon, listener, environ)
        try:
            for child in children:
                assert child.wait(60) == -signal.SIGSEGV
            assert {c["state"] for c in daemon.wait_for(5)} == {"complete"}
        finally:
            daemon.stop()


def start_with_socket(daemon: Daemon, listener: socket.socket, environ: dict[str, str]) -> None:
    """Start the daemon as systemd does: the socket is its descriptor 3, LISTEN_PID its pid."""
    launcher = (
        "import os, sys\n"
        "os.dup2(int(sys.argv[1]), 3, inheritable=True)\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'crashd', *sys.argv[2:]])\n"
    )
    fd = listener.fileno()
    with daemon.log.open("ab") as log:
        daemon.process = subprocess.Popen(
            [sys.executable, "-c", launcher, str(fd), "run", "--root", str(daemon.paths.root)],
            stderr=log,
            pass_fds=[fd],
            env={**os.environ, **environ},
        )
    wait_until(lambda: " is ready" in daemon.log.read_text(), 20, "the daemon is ready")


# -- mini cores ------------------------------------------------------------------------------------

MINI = DEFAULT_CONFIG + '[capture]\nkeep = "mini"\nengine = "{}"\n'
PROGRAMS = ["threads", "stack", "leader-ended", "sparse", "protections", "files"]


@pytest.mark.parametrize(
    "daemon",
    [MINI.format(e) for e in ("memory", "stream")],
    indirect=True,
    ids=["memory", "stream"],
)
def test_mini_cores_show_the_stacks_of_full_ones(
    daemon: Daemon, zoo: Path, short_tmp: Path
) -> None:
    # in two runs the stack ends at the same instruction only if it begins at the same address
    fixed = ("setarch", "-R", zoo)
    pids = {crash(*fixed, name, short_tmp): name for name in PROGRAMS}
    found = {pids[c["pid"]]: c for c in daemon.wait_for(len(pids))}
    daemon.paths.config_dropins.mkdir(mode=0o755)
    # from memory: streaming 16 GiB of zeros takes most of a minute, and both engines are the same
    full_config = '[capture]\nkeep = "full"\nengine = "auto"\n'
    (daemon.paths.config_dropins / "full.toml").write_text(full_config)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "configuration reloaded" in daemon.log.read_text(), 30, "reload")
    full = {crash(*fixed, name, short_tmp): name for name in PROGRAMS}
    whole = {full[c["pid"]]: c for c in daemon.wait_for(2 * len(pids)) if c["pid"] in full}
    for name, c in found.items():
        assert c["state"] == "complete", c
        assert c["capture"]["disposition"] == "mini"
        assert c["core"]["complete"]
        assert c["core"]["size_bytes"] <= 40 * MIB
        assert c["build_id"] == whole[name]["build_id"]
        mini, other = (unpack(daemon, x["id"]) for x in (c, whole[name]))
        assert backtrace(zoo, mini) == backtrace(zoo, other), name
        assert drgn_stack(mini) == drgn_stack(other), name


def drgn_stack(core: Path) -> list[str]:
    """Tell the functions on the crashed thread's stack, by drgn."""
    import drgn

    program = drgn.Program()
    program.set_core_dump(str(core))
    with contextlib.suppress(
        drgn.MissingDebugInfoError
    ):  # of the vdso, and where none is installed
        program.load_debug_info(None, True, True)
    trace = program.crashed_thread().stack_trace()
    return [frame.name for frame in list(trace)[:12]]


# -- limits ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The benchmark's victim, which touches as much of its memory as it is told."""
    program = tmp_path_factory.mktemp("victim") / "victim"
    source = Path(__file__).parents[1] / "bench" / "victim.c"
    subprocess.run(["gcc", "-O1", "-pthread", "-o", program, source], check=True)
    return program


def crash_victim(program: Path, *arguments: int | str, core_limit: int = UNLIMITED) -> None:
    """Have it allocate as told, then end it as a fault would."""
    child = subprocess.Popen(
        [str(program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (core_limit, UNLIMITED)),
    )
    with child:
        assert child.stdout is not None and child.stdout.read(1)
        os.kill(child.pid, signal.SIGSEGV)
    assert child.returncode == -signal.SIGSEGV


@pytest.mark.parametrize("engine", ["memory", "stream"])
def test_holes_count_for_no_limit(
    short_tmp: Path, core_pattern_owner: None, victim: Path, engine: str
) -> None:
    config = KEEPING_CONFIG + f'[capture]\nengine = "{engine}"\nmax_core = "200M"\n'
    mapped = (64 if engine == "memory" else 2) << 30
    with Daemon(short_tmp / "r", config=config) as daemon:
        crash_victim(victim, "mapped", mapped, 50 << 20)
        crash_victim(victim, "mapped", mapped, 50 << 20, core_limit=150 << 20)
        for c in daemon.wait_for(2):
            assert (c["state"], c["capture"]["engine"]) == ("complete", engine), c
            assert c["core"]["size_bytes"] > mapped
            assert c["core"]["stored_bytes"] < 100 << 20


@with_config(KEEPING_CONFIG + '[capture]\nmax_core = "16M"\n')
def test_core_that_is_cut_keeps_every_stack(daemon: Daemon, zoo: Path) -> None:
    crash(zoo, "crowd")
    (c,) = daemon.wait_for(1)
    assert c["state"] == "truncated", c
    assert c["capture"]["reason"].startswith("capture.max_core")
    assert c["core"]["resident_bytes"] <= 24 << 20  # by blocks of 128 KiB, each partly zeros
    core = unpack(daemon, c["id"])
    done = subprocess.run(
        ["gdb", "-nx", "-batch", "-ex", "thread apply all -q bt 30", str(zoo), str(core)],
        capture_output=True,
        text=True,
        check=True,
    )
    frames = Counter(re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?(\w+)", done.stdout, re.MULTILINE))
    assert (frames["idle"], frames["crash"], frames["main"]) == (20, 2, 1), (
        done.stdout
    )  # gdb shows the first by itself, too


# -- without a daemon ------------------------------------------------------------------------------


def ways_of_spooled(daemon: Daemon) -> list[bytes]:
    """Return by which engine the handler took each core that waits in the spool."""
    found = sorted(daemon.paths.spool.glob("[0-9]*/done"))
    return [parse_fields(done.read_bytes())["engine"] for done in found]


@with_config(KEEPING_CONFIG)
def test_large_core_is_spooled_from_memory(daemon: Daemon, victim: Path, zoo: Path) -> None:
    daemon.stop(signal.SIGKILL)  # what it registered stands
    crash_victim(victim, "mapped", 8 << 30, 20 << 20)
    crash_victim(victim, "memfd", 2 << 30, 2)
    crash_victim(victim, "dense", 64 << 20, core_limit=40 << 20)
    crash(zoo, "uffd-minor")
    crash(zoo, "plain")
    # who is let go at the end of its stream ends before its core is complete
    wait_until(lambda: len(ways_of_spooled(daemon)) == 5, 20, "all are spooled")
    assert ways_of_spooled(daemon) == [b"memory"] * 3 + [b"stream"] * 2
    daemon.start()
    found = sorted(daemon.wait_for(5), key=lambda c: str(c["time"]))
    mapped, sparse, cut, minor, plain = found
    assert [c["capture"]["engine"] for c in found] == ["memory"] * 3 + ["stream"] * 2
    assert {c["state"] for c in (mapped, sparse, minor, plain)} == {"complete"}
    assert mapped["core"]["size_bytes"] > 8 << 30 and mapped["core"]["stored_bytes"] < 30 << 20
    assert sparse["core"]["size_bytes"] > 2 << 30 and sparse["core"]["stored_bytes"] < 1 << 20
    assert (cut["state"], cut["capture"]["reason"]) == ("truncated", "spooled: size limit")
    frames = subprocess.run(
        ["gdb", "-nx", "-batch", "-ex", "bt", str(victim), str(unpack(daemon, cut["id"]))],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert " in main " in frames or "main (" in frames, frames


# -- the limiter -----------------------------------------------------------------------------------


@with_config(LIMITED)
def test_limiter_keeps_first_then_mini_then_counts(daemon: Daemon, zoo: Path) -> None:
    for _ in range(4):
        crash(zoo, "plain")
    daemon.wait_for(4)
    daemon.stop()
    daemon.start()  # the state survives
    for _ in range(3):
        crash(zoo, "plain")
    found = daemon.wait_for(7)
    kept = [c["capture"]["disposition"] for c in found]
    assert kept == ["full"] * 2 + ["mini"] * 3 + ["metadata"] * 2
    assert {c["title"] for c in found} == {found[0]["title"]}
    text = daemon.crashctl("info", found[-1]["id"]).stdout
    assert "limiter.site: more crashes than 2 full and 3 mini cores in 1h" in text
    assert metric(daemon, 'crashd_limited_total{scope="site"}') >= 2
    other = subprocess.Popen(["sleep", "1000"], preexec_fn=raise_core_limit)
    time.sleep(0.05)
    other.send_signal(signal.SIGSEGV)
    other.wait(20)
    wait_until(
        lambda: any(c["comm"] == "sleep" and c["state"] == "complete" for c in daemon.seen()),
        20,
        "another site is kept whole",
    )


def metric(daemon: Daemon, series: str) -> float:
    """Scrape one series."""
    import urllib.request

    with urllib.request.urlopen(daemon.metrics_url(), timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(series)))


@with_config(DEFAULT_CONFIG + '[capture]\nrules = ["metadata exe=*/zoo"]\n')
def test_rules_decide_what_is_kept(
    daemon: Daemon, zoo: Path, crash_sleep: Callable[[], int]
) -> None:
    crash(zoo, "plain")
    crash_sleep()
    by_comm = {c["comm"]: c for c in daemon.wait_for(2)}
    assert by_comm["zoo"]["state"] == "metadata-only"
    assert "capture.rules" in by_comm["zoo"]["capture"]["reason"]
    assert by_comm["sleep"]["state"] == "complete"


# -- what goes wrong -------------------------------------------------------------------------------


PATIENT_CONFIG = DEFAULT_CONFIG + '[capture]\npage_timeout = "300ms"\n'


@with_config(PATIENT_CONFIG)
def test_sec_34_page_that_never_answers_costs_itself_alone(
    daemon: Daemon, tmp_path: Path, short_tmp: Path
) -> None:
    with SilentFile(short_tmp / "silent") as silent:
        pid = crash(build(tmp_path, "stuck"), str(silent.path))
        (c,) = daemon.wait_for(1)
        assert silent.asked, "nobody read it"
    assert (c["pid"], c["state"]) == (pid, "truncated")
    assert "did not answer before capture.page_timeout" in c["capture"]["reason"]
    core = unpack(daemon, c["id"]).read_bytes()
    assert core.count(b"a" * 4096) >= 4 * MIB // 4096
    assert core.count(b"b" * 4096) >= 4 * MIB // 4096, "what comes after it"
    crash(build(tmp_path, "zoo"), "plain")
    assert {c["state"] for c in daemon.wait_for(2)} == {"truncated", "complete"}


@with_config(PATIENT_CONFIG)
@pytest.mark.parametrize("case", ["uffd-missing", "uffd-minor"])
def test_sec_34_pages_that_a_program_brings_are_not_waited_for(
    daemon: Daemon, zoo: Path, case: str
) -> None:
    crash(zoo, case)
    (c,) = daemon.wait_for(1)
    assert c["state"] == "complete", c
    assert c["capture"]["engine"] == ("memory" if case == "uffd-missing" else "stream")


@contextlib.contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path | None]:
    """Make a cgroup with so much memory, of version 1 or 2; None where there is no such thing."""
    tries = (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    )
    for base, name in tries:
        group = Path(base) / f"crashd-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            with contextlib.suppress(OSError):
                (group / name).write_text(str(limit_bytes))
            if (group / name).exists():
                yield group
                return
        finally:
            group.rmdir()
    yield None


def test_sparse_shared_memory_is_not_filled_in(daemon: Daemon, victim: Path) -> None:
    """A plain read allocates each page that a tmpfs file has not, in the process's own cgroup."""
    with memory_cgroup(256 * MIB) as group, ShmemWatch() as watch:
        child = subprocess.Popen(
            [str(victim), "memfd", str(2 << 30), "2"],
            stdout=subprocess.PIPE,
            preexec_fn=raise_core_limit,
        )
        with child:
            assert child.stdout is not None and child.stdout.read(1)
            if group is not None:
                (group / "cgroup.procs").write_text(str(child.pid))
            watch.begin()
            os.kill(child.pid, signal.SIGSEGV)
        assert child.returncode == -signal.SIGSEGV, "killed for memory"
        (c,) = daemon.wait_for(1)
        assert (c["state"], c["capture"]["engine"]) == ("complete", "memory"), c
        assert c["core"]["size_bytes"] > 2 << 30
        assert watch.grown_bytes < 64 * MIB


@with_config(DEFAULT_CONFIG + '[capture]\nbuffer = "1M"\nspill = "0"\ncompression_level = 9\n')
def test_process_killed_while_its_memory_is_read(daemon: Daemon, zoo: Path) -> None:
    child = subprocess.Popen([zoo, "slow"], preexec_fn=raise_core_limit)
    wait_until(
        lambda: "CoreDumping:\t1" in Path(f"/proc/{child.pid}/status").read_text(), 20, "it dumps"
    )
    time.sleep(0.3)
    child.kill()
    assert child.wait(60) in (-signal.SIGSEGV, -signal.SIGKILL)
    (c,) = daemon.wait_for(1, seconds=120)
    assert c["state"] == "truncated"
    assert "was killed" in c["capture"]["reason"]
    core = c["core"]
    assert 0 < core["resident_bytes"] < 192 * MIB
    assert core["size_bytes"] == core["expected_bytes"], "zeros for what was not read"
    assert json.loads(daemon.crashctl("verify", "--deep", "--json").stdout) is not None


def test_hugetlbfs_falls_back_to_the_stream(daemon: Daemon, zoo: Path) -> None:
    pages = Path("/proc/sys/vm/nr_hugepages")
    before = pages.read_text()
    pages.write_text("8")
    try:
        crash(zoo, "hugetlb")
    finally:
        pages.write_text(before)
    (c,) = daemon.wait_for(1)
    assert (c["state"], c["capture"]["engine"]) == ("complete", "stream")
    assert (
        "hugetlbfs" in json.loads(daemon.crashctl("info", c["id"], "--json").stdout)["warnings"][0]
    )


@with_config(DEFAULT_CONFIG + "[capture]\npipe_limit = 1\n")
def test_fault_27_crash_that_the_kernel_drops_is_a_record(daemon: Daemon) -> None:
    time.sleep(5.1)  # the kernel logs ten refusals in 5 s, counts the others: let that begin anew
    children = [subprocess.Popen(["sleep", "9"], preexec_fn=raise_core_limit) for _ in range(6)]
    os.kill(daemon.pid, signal.SIGSTOP)  # the first holds its slot
    try:
        for child in children:
            child.send_signal(signal.SIGSEGV)
        wait_until(lambda: sum(c.poll() is not None for c in children) >= 5, 20, "five are gone")
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert {child.wait(30) for child in children} == {-signal.SIGSEGV}
    found = daemon.wait_for(6)
    named = [c for c in found if c["pid"] is not None]  # and one of those before that were not
    assert Counter(c["state"] for c in named) == {"complete": 1, "lost": 5}
    lost: list[dict[str, Any]] = [c for c in named if c["state"] == "lost"]
    assert {c["pid"] for c in named} == {child.pid for child in children}
    assert all("core_pipe_limit" in c["capture"]["reason"] for c in lost)
    assert metric(daemon, 'crashd_dropped_total{reason="kernel_refused"}') >= 5
    daemon.stop()
    daemon.start()
    assert len(daemon.wait_for(len(found))) == len(found), "none a second time after a restart"


@pytest.mark.parametrize(
    ("daemon", "crashes"),
    [
        (KEEPING + '[http]\nlisten = "127.0.0.1:0"\n', 1000),
        (KEEPING + '[http]\nlisten = "off"\n[capture]\nmode = "socket"\n', 400),
    ],
    indirect=["daemon"],
    ids=["pipe", "socket"],
)
def test_fault_07_storm_leaves_a_record_of_every_crash(
    daemon: Daemon, crashes: int, tmp_path: Path
) -> None:
    storm = tmp_path / "storm"
    source = Path(__file__).parents[1] / "bench" / "storm.c"
    subprocess.run(["gcc", "-O1", "-o", storm, source], check=True)
    subprocess.run([storm, f"{crashes}", "100"], check=True, capture_output=True, timeout=120)
    found = daemon.wait_for(crashes, seconds=120)
    states = Counter((c["state"], c["capture"]["reason"]) for c in found)
    assert len(found) == crashes
    assert {state for state, _ in states} <= {"complete", "metadata-only"}, states
    memory = Path(f"/proc/{daemon.pid}/status").read_text()
    peak_kib = next(int(x.split()[1]) for x in memory.splitlines() if x.startswith("VmHWM"))
    assert peak_kib < 100 << 10


def test_kernel_socket_is_there_on_this_kernel() -> None:
    modes = Path("/proc/sys/kernel/core_modes")
    assert kernelsock.kernel_has_socket() is (modes.exists() and "socket" in modes.read_text())
