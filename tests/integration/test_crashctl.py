"""crashctl as a process of its own, on a real store and a real control socket."""

import json
import os
import pty
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crashd.cli.check import doctor
from crashd.cli.context import Context
from crashd.cli.control import ControlClient
from crashd.cli.source import DaemonSource, open_direct
from crashd.daemon.control import ControlServer
from crashd.domain.crash.model import (
    LIST_KEYS,
    Capture,
    Core,
    Crash,
    Disposition,
    State,
    build_id_text,
    to_json,
)
from crashd.domain.crash.query import Query
from crashd.domain.host.doctor import Level
from crashd.edge.capture.handoff import listen_unix
from crashd.edge.sandbox.loanedid import IDS
from crashd.edge.web.exporter import Exporter
from crashd.errors import NotFoundError, UnavailableError
from crashd.store.corefile import CoreWriter
from crashd.store.entry import create, open_entry, prepare
from crashd.store.index import Index
from crashd.store.paths import Paths
from crashd.store.retention import Outcome
from tests.running import wait_until
from tests.unit.cli.rows import HOSTILE, NGINX, TIME_NS

CORE = b"\x7fELF" + os.urandom(100_000) + bytes(5 << 20) + b"end"
HOLE = 64 << 20
REPOSITORY = Path(__file__).parents[2]


@dataclass
class Store:
    """A root with crashes; `ids` by a name for each."""

    paths: Paths
    ids: dict[str, str]

    def run(
        self, *words: str, env: dict[str, str] | None = None, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run crashctl, into pipes and without a terminal."""
        return subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=environment(env),
            timeout=60,
            check=False,
            **more,
        )

    def command(self, *words: str) -> list[str]:
        """Build the command line."""
        return [sys.executable, "-m", "crashd.cli", "--root", str(self.paths.root), *words]

    def json(self, *words: str) -> Any:
        """Run crashctl --json."""
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """Make an environment in which nothing of ours shows."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "TZ": "UTC", "LC_ALL": "C.UTF-8", **(more or {})}


def add_crash(paths: Paths, number: int, *, core: bool = True, **changes: Any) -> Crash:
    """Put a crash into the store as the daemon does."""
    time_ns = TIME_NS + number * 10**9
    pid = changes.setdefault("pid", 1000 + number)
    crash_id = build_id_text(time_ns, NGINX.boot_id, pid, number * 7_919_000_017)
    crash = replace(NGINX, id=crash_id, time_ns=time_ns, core=Core(), **changes)
    with create(paths, crash) as entry:
        if core:
            fd = entry.create_core()
            writer = CoreWriter(fd, level=1, threads=0)
            writer.write(memoryview(CORE))
            writer.hole(HOLE)
            writer.finish()
            os.close(fd)
            entry.commit_core()
            stored = Core(
                "core.zst",
                writer.size_bytes,
                writer.stored_bytes,
                writer.resident_bytes,
                writer.size_bytes,
                crash.state is State.COMPLETE,
            )
            crash = replace(crash, core=stored)
        entry.write(crash, sync=False)
    return crash


@pytest.fixture
def store(short_tmp: Path) -> Store:
    """A store of five crashes, the hostile one among them."""
    paths = Paths(short_tmp)
    prepare(paths)
    text = HOSTILE.decode("utf-8", "replace")
    crashes = {
        "old": add_crash(paths, 0),
        "hostile": add_crash(
            paths, 1, comm=HOSTILE, exe=b"/" + HOSTILE, argv=(HOSTILE,), title=text
        ),
        "none": add_crash(
            paths,
            2,
            core=False,
            state=State.METADATA_ONLY,
            comm=b"redis",
            capture=Capture(reason="RLIMIT_CORE is 0"),
        ),
        "cut": add_crash(paths, 3, state=State.TRUNCATED, comm=b"redis"),
        "new": add_crash(paths, 4),
    }
    with Index.open(paths.index) as index:
        index.put(crashes.values())
    return Store(paths, {name: crash.id for name, crash in crashes.items()})


def on_terminal(
    command: Sequence[str], env: dict[str, str], answer: bytes = b""
) -> tuple[int, str]:
    """Run a command on a terminal of its own; give its exit status and all it showed."""
    child, terminal = pty.fork()
    if child == 0:
        os.execve(command[0], list(command), env)
    shown = bytearray()
    try:
        if answer:
            os.write(terminal, answer)
        while select.select([terminal], [], [], 60)[0]:
            part = os.read(terminal, 65536)
            if not part:
                break
            shown += part
    except OSError:
        pass  # EIO: the last process on it has ended
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode().replace("\r\n", "\n")


# ---- list and info ----


def test_list_shows_the_newest_last(store: Store) -> None:
    done = store.run("list")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[2] for line in lines[1:]] == [i[-8:] for i in store.ids.values()]
    reverse = store.run("list", "-r", "--no-legend").stdout.splitlines()
    assert reverse == lines[:0:-1]


def test_list_keeps_the_newest(store: Store) -> None:
    newest = store.json("list", "-n", "2")
    assert [crash["id"] for crash in newest] == [store.ids["cut"], store.ids["new"]]
    assert [crash["id"] for crash in store.json("list", "-1")] == [store.ids["new"]]


def test_list_json_has_the_promised_keys(store: Store) -> None:
    crashes = store.json("list")
    assert [list(crash) for crash in crashes] == [list(LIST_KEYS)] * 5


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["redis"], ["none", "cut"]),
        (["redis", "state=truncated"], ["cut"]),
        (["pid=1000", "pid=1004"], ["old", "new"]),
        (["1003"], ["cut"]),
        (["nginx.service", "comm=nginx"], ["old", "new"]),
        (["--since", "2026-11-23 05:02:12"], ["cut", "new"]),
    ],
)
def test_list_filters(store: Store, words: list[str], names: list[str]) -> None:
    assert [crash["id"] for crash in store.json("list", *words)] == [store.ids[n] for n in names]


def test_list_on_a_terminal_fits_it_and_is_coloured(store: Store) -> None:
    env = environment({"COLUMNS": "80", "TERM": "xterm"})
    status, shown = on_terminal(store.command("list"), env)
    assert status == 0
    assert f"\x1b[33m{store.ids['cut'][-8:]}" in shown  # there is no room for the state
    _, plain = on_terminal(store.command("list"), {**env, "NO_COLOR": "1"})
    assert "\x1b" not in plain
    assert len(plain.splitlines()) == 6
    assert 70 < max(map(len, plain.splitlines())) <= 80  # cut between words
    _, forced = on_terminal(store.command("list", "--color=always"), {**env, "NO_COLOR": "1"})
    assert forced == shown


@pytest.mark.parametrize(
    "verb", [["list"], ["list", "--json"], ["info", "--all"], ["info", "--json"]]
)
def test_hostile_names_cannot_reach_the_terminal(store: Store, verb: list[str]) -> None:
    done = store.run(*verb, store.ids["hostile"])
    assert done.returncode == 0
    text = done.stdout.replace("\n", "")
    assert text
    assert text.isprintable()


def test_info_shows_the_newest_and_says_so(store: Store) -> None:
    done = store.run("info", "nginx")
    assert store.ids["new"] in done.stdout
    assert done.stderr == "crashctl: newest of 2 matching crashes\n"
    assert store.run("-q", "info", "nginx").stderr == ""
    assert store.run("info").stderr == ""


def test_info_shows_the_newest_few(store: Store) -> None:
    done = store.run("info", "-n", "2", "nginx")
    assert done.stderr == ""
    pages = [done.stdout.index(store.ids[name]) for name in ("old", "new")]
    assert pages == sorted(pages)
    assert "\n\nSIGSEGV in " in done.stdout
    done = store.run("info", "-rn2")
    assert done.stdout.index(store.ids["new"]) < done.stdout.index(store.ids["cut"])
    assert store.ids["none"] not in done.stdout
    assert [doc["id"] for doc in store.json("info", "-n", "9", "redis")] == [
        store.ids["none"],
        store.ids["cut"],
    ]
    assert store.run("info", "-n", "3").stderr == ""
    said = store.run("info", "-n", "2", "/usr/sbin/nginx").stderr
    assert said == "crashctl: newest 2 of 4 matching crashes\n"


@pytest.mark.parametrize("verb", [["info"], ["dump", "-o", "core"]])
def test_times_narrow_what_is_the_newest(store: Store, tmp_path: Path, verb: list[str]) -> None:
    before = ["-U", "2026-11-23 05:02:10 UTC"]
    done = store.run(*before, *verb, "nginx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert store.ids["old"] in done.stdout + done.stderr
    done = store.run(*verb, "nginx", "--since=2026-11-24", cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "crashctl: no crash matches nginx")
    assert store.run(*verb, "nginx", "-S", "whenever").returncode == 2


def test_info_json_has_the_whole_record(store: Store) -> None:
    found = store.json("info", store.ids["cut"][-8:])
    with open_direct(context(store)).index as index:
        row = index.get(store.ids["cut"])
    assert row is not None
    row["core"]["path"] = found["core"]["path"]  # the index has the name in the entry
    assert row == {key: found[key] for key in LIST_KEYS}
    assert {*to_json(NGINX), "count_of_signature"} == set(found)


def context(store: Store) -> Context:
    return Context(str(store.paths.root), color=False, legend=True, quiet=True, width=None)


def test_output_nobody_reads_ends_quietly(store: Store) -> None:
    for words in (["list"], ["info"], ["list", "--json"], ["dump", store.ids["new"]]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            store.command(*words),
            stdout=writer,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=60,
            check=False,
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (1, b""), words


def test_output_on_a_full_disk_is_an_error(store: Store) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            store.command("list"),
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == b"crashctl: input/output: No space left on device\n"


def test_closed_descriptors_are_no_files_of_ours(store: Store) -> None:
    done = store.run("pin", store.ids["new"], preexec_fn=lambda: os.closerange(0, 3))
    assert done.returncode == 0
    assert store.json("verify") == []


# ---- the habits of coredumpctl's users ----


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["old", "hostile", "none", "cut", "new"]),
        (["-r"], ["new", "cut", "none", "hostile", "old"]),
        (["-1"], ["new"]),
        (["-n", "2"], ["cut", "new"]),
        (["list", "/usr/sbin/nginx"], ["old", "none", "cut", "new"]),
        (["list", "/usr/sbin/*"], ["old", "none", "cut", "new"]),
        (["list", "red?s"], ["none", "cut"]),
        (["list", "COREDUMP_COMM=redis"], ["none", "cut"]),
        (["list", "_SYSTEMD_UNIT=nginx.service", "redis"], ["none", "cut"]),
        (["list", "_HOSTNAME=web1", "redis"], ["none", "cut"]),
        (["list", "_BOOT_ID=5f0c77aa-0000-0000-0000-000000000000", "1003"], ["cut"]),
        (["list", "uid=www-data", "1003"], ["cut"]),
        (["list", "SIGSEGV", "1003"], ["cut"]),
        (["list", "-S", "2026-11-23 05:02:12 UTC"], ["cut", "new"]),
        (["-U", "Mon 2026-11-23 05:02:10", "list"], ["old"]),
        (["list", "--all", "1003"], ["cut"]),
    ],
)
def test_habit_same_crashes_are_listed(store: Store, words: list[str], names: list[str]) -> None:
    done = store.run(*words, "--no-legend", "--no-pager")
    assert (done.returncode, done.stderr) == (0, "")
    shown = [line.split()[2] for line in done.stdout.splitlines()]
    assert shown == [store.ids[name][-8:] for name in names]


COUNTING = "#!/bin/sh\necho got $#\n"


def test_habit_the_examples_of_coredumpctls_page(store: Store, tmp_path: Path) -> None:
    """Each command of coredumpctl(1)'s EXAMPLES, as it stands there, with our names."""
    done = store.run("list", "/usr/sbin/nginx")
    assert len(done.stdout.splitlines()) == 5
    fake = tmp_path / "gdb"
    fake.write_text(COUNTING)
    fake.chmod(0o755)
    where = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    for verb in ("debug", "gdb"):
        done = store.run(verb, "--as-root", env=where)
        assert (done.returncode, done.stdout[:4]) == (0, "got "), done.stderr
    arguments = "--debugger-arguments=-batch -ex 'info all-registers'"
    assert store.run("debug", arguments, "--as-root", env=where).returncode == 0
    assert store.ids["cut"] in store.run("info", "1003").stdout
    done = store.run("-o", str(tmp_path / "bar.coredump"), "dump", "/usr/sbin/nginx")
    assert done.returncode == 0
    assert (tmp_path / "bar.coredump").stat().st_size == len(CORE) + HOLE
    done = store.run("debug", f"--debugger={fake}", "--as-root", env={"TMPDIR": str(tmp_path)})
    assert done.stdout.startswith("got ")


def test_list_field_prints_one_value_per_crash(store: Store) -> None:
    assert store.run("-F", "COREDUMP_COMM", "redis").returncode == 2  # no command: not a MATCH
    assert store.run("-F", "COREDUMP_COMM", "list", "redis").stdout == "redis\nredis\n"
    assert store.run("list", "--field=pid", "redis").stdout == "1002\n1003\n"
    done = store.run("list", "-F", "COREDUMP_SIGNL")
    assert done.returncode == 2
    assert "unknown field COREDUMP_SIGNL, did you mean signal?" in done.stderr


def test_json_has_forms_and_the_paths_of_cores(store: Store) -> None:
    path = store.json("list", "1003")[0]["core"]["path"]
    assert path == str(store.paths.crashes / store.ids["cut"] / "core.zst")
    assert Path(path).is_file()
    assert store.json("info", "1003")["core"]["path"] == path
    assert store.json("list", "1002")[0]["core"]["path"] is None
    short, pretty = (store.run("list", f"--json={form}").stdout for form in ("short", "pretty"))
    assert short.count("\n") == 1
    assert pretty.startswith('[\n  {\n    "id"')
    assert json.loads(short) == json.loads(pretty) == store.json("list")
    assert store.run("list", "--json=off").stdout == store.run("list").stdout


def test_directory_and_file_are_other_places_to_read(store: Store, tmp_path: Path) -> None:
    elsewhere = Store(Paths(tmp_path / "nothing"), store.ids)
    state = str(store.paths.state_dir)
    assert elsewhere.run("list", "-D", state).stdout == store.run("list").stdout
    assert store.ids["new"] in elsewhere.run("info", "-D", state).stdout
    for wrong in (tmp_path, tmp_path / "nope"):
        done = elsewhere.run("list", "-D", str(wrong))
        assert done.returncode == 4
        assert "a copy of /var/lib/crashd" in done.stderr
        assert "start" not in done.stderr
    pattern = f"{state}/index.sql*e"
    assert elsewhere.run("list", "--file", pattern).stdout == store.run("list").stdout
    done = elsewhere.run("info", "--file", pattern, "1003")
    assert store.ids["cut"] in done.stdout
    assert "only the index was read" in done.stdout
    assert elsewhere.run("list", "--file", f"{state}/none*").returncode == 4
    journal = tmp_path / "system.journal"
    journal.write_bytes(b"LPKSHHRH" + bytes(4096))
    done = elsewhere.run("list", "--file", str(journal))
    assert done.returncode == 4
    assert "reindex" not in done.stderr
    assert "index.sqlite of crashd" in done.stderr


def test_long_output_on_a_terminal_goes_through_the_pager(store: Store) -> None:
    env = environment({"TERM": "xterm", "COLUMNS": "80", "SYSTEMD_PAGERSECURE": "0"})
    env["SYSTEMD_PAGER"] = "sh -c 'cat; echo paged $LESS'"
    status, shown = on_terminal(store.command("info", "--all"), env)
    assert status == 0
    assert shown.endswith("paged FRSXMK\n")
    assert "paged" not in on_terminal(store.command("list"), env)[1]  # fits on the screen
    assert "paged" not in on_terminal(store.command("info", "--all", "--no-pager"), env)[1]
    assert "paged" not in store.run("info", "--all", env=env).stdout
    quits = {**env, "SYSTEMD_PAGER": "true"}
    assert on_terminal(store.command("info", "--all"), quits) == (0, "")


# ---- dump ----


def test_dump_writes_the_kernels_bytes_sparsely(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "core"
    done = store.run("dump", "nginx", "-o", str(target))
    assert done.returncode == 0
    assert f"{store.ids['new']}: 70M written to {target}" in done.stderr
    found = target.stat()
    assert found.st_size == len(CORE) + HOLE
    assert found.st_mode & 0o777 == 0o600
    assert found.st_blocks * 512 < 1 << 20
    with target.open("rb") as file:
        assert file.read(len(CORE)) == CORE
        assert file.read() == bytes(HOLE)


@pytest.mark.parametrize("words", [[], ["-o", "-"]])
def test_dump_into_a_pipe_gives_the_same_bytes(store: Store, words: list[str]) -> None:
    done = subprocess.run(
        store.command("dump", "-1", *words), capture_output=True, env=environment(), check=True
    )
    assert done.stdout == CORE + bytes(HOLE)


def test_dump_refuses_a_terminal(store: Store) -> None:
    status, shown = on_terminal(store.command("dump", "-1"), environment())
    assert status == 2
    assert shown.startswith("crashctl: dump: refusing to write a core to a terminal\n")


def test_dump_replaces_only_by_force(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "core"
    target.write_text("mine")
    assert store.run("dump", "-1", "-o", str(target)).returncode == 2
    assert target.read_text() == "mine"
    assert store.run("dump", "-1", "--force", "-o", str(target)).returncode == 0
    assert target.stat().st_size == len(CORE) + HOLE
    assert list(tmp_path.iterdir()) == [target]


def test_dump_of_a_truncated_core_warns(store: Store, tmp_path: Path) -> None:
    done = store.run("-q", "dump", store.ids["cut"], "-o", str(tmp_path / "core"))
    assert done.returncode == 0
    assert done.stderr == f"crashctl: warning: the core of {store.ids['cut']} is truncated\n"


def test_dump_without_core_says_why(store: Store, tmp_path: Path) -> None:
    done = store.run("dump", store.ids["none"], "-o", str(tmp_path / "core"))
    assert done.returncode == 1
    assert "has no core: RLIMIT_CORE is 0" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_dump_of_a_damaged_core_leaves_nothing(store: Store, tmp_path: Path) -> None:
    file = store.paths.crashes / store.ids["new"] / "core.zst"
    data = bytearray(file.read_bytes())
    data[5000:5100] = bytes(100)
    file.write_bytes(data)
    done = store.run("dump", store.ids["new"], "-o", str(tmp_path / "core"))
    assert done.returncode == 1
    assert f"crashctl: crash {store.ids['new']}: stored core " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_dump_out_of_space_leaves_nothing(store: Store, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    done = store.run("dump", "-1", "-o", str(tmp_path / "core"), preexec_fn=limit)
    assert done.returncode == 1
    assert f"crashctl: cannot write {tmp_path}/core: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


# ---- debug ----

DEBUGGER = """#!/bin/sh
printf '%s\\n' "$(id -u)" "$@"
for core; do :; done
head -c 4 "$core" | tail -c 3
echo
case " $* " in *" wait "*) exec sleep 60;; esac
exit 7
"""


@pytest.fixture
def debugger(short_tmp: Path) -> Iterator[dict[str, str]]:
    """An environment with a debugger that tells what it was given."""
    short_tmp.chmod(0o755)
    directory = short_tmp / "bin"
    directory.mkdir()
    for name in ("gdb", "drgn"):
        (directory / name).write_text(DEBUGGER)
        (directory / name).chmod(0o755)
    temporary = short_tmp / "tmp"
    temporary.mkdir()
    yield {"PATH": f"{directory}:{os.environ['PATH']}", "TMPDIR": str(temporary)}
    assert list(temporary.iterdir()) == []


def test_debug_runs_the_debugger_and_passes_its_status_on(
    store: Store, debugger: dict[str, str]
) -> None:
    done = store.run("debug", "-1", "-A", "-batch -ex 'bt 1'", env=debugger)
    assert done.returncode == 7, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1:5] == ["-nx", "-nh", "-iex", "set auto-load off"]
    assert lines[5:7] == ["-iex", "set debuginfod enabled off"]
    assert lines[13:16] == ["-batch", "-ex", "bt 1"]
    assert "core does not begin with a sound ELF header: no symbols" in done.stderr
    assert lines[-1] == "ELF"


def test_debug_as_root_is_not_root(store: Store, debugger: dict[str, str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has privileges to drop")
    uid = int(store.run("debug", "-1", env=debugger).stdout.split()[0])
    assert uid in IDS
    sudo = {**debugger, "SUDO_UID": "12345", "SUDO_GID": "12345"}
    assert store.run("debug", "-1", env=sudo).stdout.split()[0] == "12345"
    assert store.run("debug", "-1", "--as-root", env=debugger).stdout.split()[0] == "0"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_debug_terminated_ends_the_debugger_and_cleans_up(
    store: Store, debugger: dict[str, str], number: signal.Signals
) -> None:
    with subprocess.Popen(
        store.command("debug", "-1", "--debugger", "drgn", "-A", "wait"),
        stdout=subprocess.PIPE,
        env=environment(debugger),
    ) as process:
        assert process.stdout is not None
        assert b"ELF\n" in iter(process.stdout.readline, b"")
        process.send_signal(number)
        assert process.wait(30) == 128 + number


def test_debug_without_debugger_names_the_package(store: Store) -> None:
    env = {"PATH": "/nonexistent"}
    done = store.run("debug", "-1", "--debugger", "crash", env=env)
    assert done.returncode == 2
    assert done.stderr == "crashctl: debugger crash is not installed\n  apt-get install crash\n"


# ---- pin, delete, verify, reindex ----


def test_pin_protects_from_delete(store: Store) -> None:
    short = store.ids["new"][-8:]
    assert store.run("pin", short).returncode == 0
    assert store.json("info", short)["pinned"] is True
    done = store.run("delete", short, store.ids["old"][-8:])
    assert (done.returncode, done.stdout) == (1, "")
    assert "is pinned; nothing was deleted" in done.stderr
    assert len(store.json("list")) == 5
    assert store.run("unpin", short).returncode == 0
    assert store.run("delete", short).returncode == 0
    assert len(store.json("list")) == 4


def test_pin_of_several_is_refused_unless_named_by_id(store: Store) -> None:
    done = store.run("pin", "redis")
    assert done.returncode == 2
    assert store.ids["none"] in done.stderr
    assert store.ids["cut"] in done.stderr
    assert store.run("pin", store.ids["none"], store.ids["cut"]).returncode == 0


def test_delete_of_several_needs_yes_without_a_terminal(store: Store) -> None:
    done = store.run("delete", "redis")
    assert done.returncode == 2
    assert len(store.json("list")) == 5
    assert store.run("delete", "--yes", "redis").stdout.count("deleted ") == 2
    assert len(store.json("list")) == 3
    assert len(os.listdir(store.paths.crashes)) == 3
    assert store.json("verify") == []


@pytest.mark.parametrize(
    ("answer", "status", "left"), [(b"y\n", 0, 3), (b"\n", 1, 5), (b"\4", 1, 5)]
)
def test_delete_of_several_asks_on_a_terminal(
    store: Store, answer: bytes, status: int, left: int
) -> None:
    found, shown = on_terminal(store.command("delete", "redis"), environment(), answer)
    assert found == status
    assert "Delete these 2 crashes? [y/N]" in shown
    assert len(store.json("list")) == left


def test_delete_of_a_pid_that_begins_ids_asks_before_it_deletes_more(store: Store) -> None:
    with Index.open(store.paths.index) as index:
        index.put([add_crash(store.paths, 9, pid=2026)])
    done = store.run("delete", "2026")
    assert done.returncode in (0, 2)
    assert len(store.json("list")) >= 5


def test_delete_of_nothing_is_status_1(store: Store) -> None:
    assert store.run("delete", "nosuch").returncode == 1


def test_verify_finds_and_reindex_mends(store: Store) -> None:
    with Index.open(store.paths.index) as index:
        index.remove([store.ids["old"]])
    (store.paths.crashes / store.ids["cut"] / "core.zst").unlink()
    done = store.run("verify")
    assert done.returncode == 1
    assert f"no-row: {store.ids['old']}: " in done.stdout
    assert f"no-core: {store.ids['cut']}: " in done.stdout
    assert store.run("reindex").stdout == "5 crashes indexed\n"
    assert [f["kind"] for f in json.loads(store.run("verify", "--json").stdout)] == ["no-core"]
    assert len(store.json("list")) == 5


def test_reindex_replaces_a_damaged_index(store: Store) -> None:
    before = store.json("list")
    store.paths.index.write_bytes(b"garbage" * 4096)
    done = store.run("list")
    assert done.returncode == 4
    assert "crashctl reindex" in done.stderr
    assert store.run("reindex").returncode == 0
    assert store.json("list") == before


# ---- the daemon's socket ----

STATUS = {"version": "0.1.0", "pid": 1, "ready": True, "registered": True, "store": {}}


@pytest.fixture
def analyses() -> list[str]:
    """The crashes whose analysis was asked for."""
    return []


@pytest.fixture
def server(store: Store, analyses: list[str]) -> Iterator[Callable[..., ControlServer]]:
    """Start the daemon's control server on the store, with a status of choice; of several the one
    before is stopped.
    """
    started: list[ControlServer] = []

    def analyze(crash_id: str) -> bool:
        analyses.append(crash_id)
        return True

    def start(**changes: Any) -> ControlServer:
        while started:
            started.pop().stop()
        store.paths.runtime_dir.mkdir(parents=True, exist_ok=True)
        listener = listen_unix(store.paths.control_socket, socket.SOCK_STREAM, 0o666)
        status = {**STATUS, **changes}
        server = ControlServer(
            listener,
            store.paths,
            SimpleNamespace(describe=lambda: status),
            SimpleNamespace(
                analyze=analyze,
                vacuum=lambda *_, **_kwargs: Outcome(),
            ),
            Exporter("0"),
        )
        server.start()
        started.append(server)
        return server

    yield start
    for one in started:
        one.stop()


@pytest.mark.parametrize(
    ("changes", "status"), [({}, 0), ({"ready": False}, 1), ({"registered": False}, 1)]
)
def test_status_tells_whether_all_is_well(
    store: Store, server: Callable[..., ControlServer], changes: dict[str, Any], status: int
) -> None:
    server(**changes)
    done = store.run("status")
    assert done.returncode == status
    assert done.stdout.startswith("crashd 0.1.0\n")
    assert json.loads(store.run("status", "--json").stdout) == {**STATUS, **changes}


def test_analyze_of_a_crash_without_core_is_told_at_once(
    store: Store, server: Callable[..., ControlServer]
) -> None:
    server()
    done = store.run("analyze", store.ids["none"])
    assert done.returncode == 1
    assert "has no core to analyse" in done.stderr


def test_analyze_ends_when_the_core_is_deleted_meanwhile(
    store: Store, server: Callable[..., ControlServer], analyses: list[str]
) -> None:
    server()
    crash_id = store.ids["new"]
    waiting = start_analyze(store, crash_id, analyses)
    with open_entry(store.paths, crash_id) as entry:
        entry.write(replace(entry.read(), state=State.EVICTED, core=Core()), sync=False)
    assert "has no core" in waiting.communicate(timeout=20)[1]
    assert waiting.returncode == 1


def test_analyze_ends_when_the_daemon_is_another_by_now(
    store: Store, server: Callable[..., ControlServer], analyses: list[str]
) -> None:
    server()
    waiting = start_analyze(store, store.ids["new"], analyses)
    server(pid=2)
    assert "crashd was restarted" in waiting.communicate(timeout=20)[1]
    assert waiting.returncode == 4


def start_analyze(store: Store, crash_id: str, analyses: list[str]) -> subprocess.Popen[str]:
    """Have a crash analysed by a daemon that never will."""
    waiting = subprocess.Popen(
        store.command("analyze", crash_id), env=environment(), stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: crash_id in analyses, what="the analysis is asked for")
    time.sleep(0.5)  # it waits for what never comes
    assert waiting.poll() is None
    return waiting


def test_status_of_a_stale_socket_is_status_4(store: Store) -> None:
    store.paths.runtime_dir.mkdir(parents=True)
    listen_unix(store.paths.control_socket, socket.SOCK_STREAM, 0o666).close()
    done = store.run("status")
    assert done.returncode == 4
    assert "no crashd answers at" in done.stderr


def test_daemon_source_gives_what_the_disk_has(
    store: Store, server: Callable[..., ControlServer]
) -> None:
    server()
    asked, direct = (
        DaemonSource(ControlClient(store.paths.control_socket)),
        open_direct(context(store)),
    )
    query = Query(terms=("redis",))
    assert asked.select(query) == direct.select(query) != []
    assert asked.info(store.ids["hostile"]) == direct.info(store.ids["hostile"])
    fds = [asked.open_core(store.ids["new"]), direct.open_core(store.ids["new"])]
    assert os.fstat(fds[0]).st_nlink == 0, "a copy"
    assert os.pread(fds[0], 1 << 20, 0) == os.pread(fds[1], 1 << 20, 0) != b""
    assert not os.get_inheritable(fds[0])
    for fd in fds:
        os.close(fd)
    with pytest.raises(NotFoundError):
        asked.open_core(store.ids["none"])
    with pytest.raises(NotFoundError):
        asked.info("nosuch")
    direct.close()


@pytest.mark.parametrize(
    "answer", [b"", b"\1", b"\xff\xff\xff\xff", b"\4\0\0\0nope", b"\2\0\0\0[]", b"\0\0\0\0"]
)
def test_control_client_nonsense_is_unavailable(short_tmp: Path, answer: bytes) -> None:
    listener = listen_unix(short_tmp / "s", socket.SOCK_STREAM, 0o600)
    listener.setblocking(True)

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(100)
            peer.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(UnavailableError):
        ControlClient(short_tmp / "s", 10).ask({"verb": "status"})
    thread.join()
    listener.close()


def test_other_users_see_their_own_through_the_daemon(
    store: Store, server: Callable[..., ControlServer]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    reachable = subprocess.run([sys.executable, "-c", "import crashd"], user=33, check=False)
    if reachable.returncode:  # tests/system has this with everything imported before
        pytest.skip("other users cannot reach this environment")
    with Index.open(store.paths.index) as index:
        index.put([add_crash(store.paths, 5, owner_uid=None)])
    server()
    store.paths.root.chmod(0o755)

    def as_owner() -> None:
        os.setgroups([])
        os.setresgid(33, 33, 33)
        os.setresuid(33, 33, 33)

    listed = store.run("list", "--json", preexec_fn=as_owner)
    assert listed.returncode == 0, listed.stderr
    assert [crash["id"] for crash in json.loads(listed.stdout)] == list(store.ids.values())
    hidden = store.run("info", "1005", preexec_fn=as_owner)
    unknown = store.run("info", "1006", preexec_fn=as_owner)
    assert hidden.returncode == unknown.returncode == 1
    assert hidden.stderr.replace("1005", "1006") == unknown.stderr
    for verb in ("delete", "pin", "unpin"):
        assert store.run(verb, store.ids["new"], preexec_fn=as_owner).returncode == 3
    for verb in ("verify", "reindex", "install", "uninstall"):
        assert store.run(verb, preexec_fn=as_owner).returncode == 3


def test_follow_prints_crashes_as_they_happen(
    store: Store, server: Callable[..., ControlServer]
) -> None:
    control = server()
    with subprocess.Popen(
        store.command("follow", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        wait_until(lambda: bool(control._followers), what="follow is there")
        crash = store.json("info", store.ids["hostile"])
        for _ in range(2):
            control.publish("crash", crash, 33)
            line = process.stdout.readline()
            assert line.decode().rstrip("\n").isprintable()
            assert json.loads(line)["id"] == store.ids["hostile"]
        control.publish("explained", {**crash, "explanation": "now known"}, 33)
        assert json.loads(process.stdout.readline())["explanation"] == "now known"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_follow_prints_the_explanation_below_the_crash(
    store: Store, server: Callable[..., ControlServer]
) -> None:
    control = server()
    with subprocess.Popen(
        store.command("follow"), stdout=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        wait_until(lambda: bool(control._followers), what="follow is there")
        crash = store.json("info", store.ids["new"])
        control.publish("crash", {**crash, "title": "SIGSEGV in nginx"}, 33)
        control.publish("explained", {**crash, "title": "SIGSEGV in nginx, f(): NULL read"}, 33)
        legend, line, note = (process.stdout.readline().decode() for _ in range(3))
        assert note[legend.index("ID") :] == f"{store.ids['new'][-8:]} NULL read, in f()\n"
        assert store.ids["new"][-8:] in line
        process.send_signal(signal.SIGINT)


def test_info_says_that_the_analysis_is_pending(
    store: Store, server: Callable[..., ControlServer]
) -> None:
    assert "Analysis: pending" not in store.run("info").stdout  # nobody will analyse it
    server(analyses_waiting=3)
    assert "Analysis: pending" in store.run("info").stdout
    assert store.json("info")["analysis"] == {"state": "pending"}
    assert "Analysis:" not in store.run("info", "1002").stdout  # without a core


def test_info_and_list_take_a_signature(store: Store) -> None:
    signature = "p2-0123456789abcdef"
    crash = add_crash(store.paths, 9, signature=signature, analysis={"state": "done"})
    with Index.open(store.paths.index) as index:
        index.put([crash])
    assert crash.id in store.run("info", signature).stdout
    assert [row["id"] for row in store.json("list", signature)] == [crash.id]
    assert crash.id[-8:] in store.run("top").stdout


def test_follow_ends_with_status_4_when_the_daemon_does(
    store: Store, server: Callable[..., ControlServer]
) -> None:
    control = server()
    with subprocess.Popen(
        store.command("follow"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"TIME")
        control._stopping.set()
        assert process.wait(30) == 4
        assert b"closed the connection" in process.stderr.read()


# ---- doctor ----


def test_doctor_reads_whether_core_limits_count(store: Store) -> None:
    store.paths.config_file.parent.mkdir(parents=True)
    store.paths.config_file.write_text('[capture]\nrlimit = "ignore"\n')
    limited = lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # noqa: E731
    done = store.run("doctor", "--json", preexec_fn=limited)
    found = {check["name"]: check for check in json.loads(done.stdout)}
    assert "ulimit -c" not in found
    assert 'capture.rlimit is "ignore"' in found["core limits"]["text"]
    store.paths.config_file.write_text("")
    done = store.run("doctor", "--json", preexec_fn=limited)
    found = {check["name"]: check for check in json.loads(done.stdout)}
    assert found["ulimit -c"]["level"] == "warning"


def test_doctor_checks_everything_and_crashes_nothing_elsewhere(store: Store) -> None:
    done = store.run("doctor", "--crash", "--json")
    assert done.returncode == 1
    found = {check["name"]: check for check in json.loads(done.stdout)}
    assert found["daemon"]["level"] == "problem"
    assert (found["index"]["level"], found["index"]["text"]) == ("ok", "5 crashes")
    assert all(set(check) == {"name", "level", "text", "why", "hint"} for check in found.values())
    assert all(check["hint"] for check in found.values() if check["level"] != "ok")
    assert found["test crash"]["text"] == "not tried: core_pattern does not name crashd's handler"
    lines = store.run("doctor").stdout.splitlines()
    (at,) = [n for n, line in enumerate(lines) if line.startswith("problem  daemon ")]
    assert lines[at + 1 : at + 3] == [
        f"{'':26}{found['daemon']['why']}",
        f"{'':26}-> systemctl start crashd",
    ]


def test_crash_and_look_waits_until_the_crash_is_whole(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash_child() -> int:
        seconds = time.time_ns() // 10**9 - TIME_NS // 10**9 + 1
        with Index.open(store.paths.index) as index:
            index.put([add_crash(store.paths, seconds, pid=4242)])
        return 4242

    store.paths.config_file.parent.mkdir(parents=True)
    store.paths.config_file.write_text("[analysis]\nenabled = false\n")
    monkeypatch.setattr(doctor, "crash_child", crash_child)
    check = doctor.crash_and_look(context(store), registered=True)
    assert check.level is Level.OK
    assert "pid 4242 was captured completely" in check.text


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        (
            {"capture": Capture(disposition=Disposition.MINI, reason="a loop")},
            Level.WARNING,
            "only mini: a loop",
        ),
        ({"state": State.TRUNCATED}, Level.PROBLEM, "its state is truncated"),
    ],
)
def test_crash_and_look_tells_what_was_not_kept(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    level: Level,
    text: str,
) -> None:
    monkeypatch.setattr(doctor, "crash_child", lambda: put_test_crash(store, **changes))
    check = doctor.crash_and_look(context(store), registered=True)
    assert (check.level, text in check.text) == (level, True), check


def put_test_crash(store: Store, **changes: Any) -> int:
    """Put the crash of pid 4242 into store and index, as if it had just been."""
    seconds = time.time_ns() // 10**9 - TIME_NS // 10**9 + 1
    core = "capture" not in changes
    with Index.open(store.paths.index) as index:
        if not core:
            changes["state"] = State.METADATA_ONLY
        index.put([add_crash(store.paths, seconds, pid=4242, core=core, **changes)])
    return 4242


@pytest.mark.parametrize(
    ("frames", "analysis", "level", "text"),
    [
        (
            ({"function": "third"}, {"function": None}, {"function": "main"}),
            {"state": "done"},
            "ok",
            "its stack: third < main",
        ),
        (({"function": None, "pc": "0x1"},), {"state": "done"}, "problem", "no names: gone"),
        ((), {"state": "failed", "reason": "killed"}, "problem", "no names: killed"),
        ((), None, "problem", "did not finish within 0 s"),
    ],
)
def test_crash_and_look_follows_the_analysis_to_a_stack_with_names(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    frames: tuple[dict[str, Any], ...],
    analysis: dict[str, Any] | None,
    level: str,
    text: str,
) -> None:
    assert doctor.analysis_seconds(store.paths) == 60 + doctor.QUEUE_SECONDS
    monkeypatch.setattr(doctor, "analysis_seconds", lambda _: 0.2)
    more = {"frames": frames, "analysis": analysis, "warnings": ("gone",)}
    monkeypatch.setattr(doctor, "crash_child", lambda: put_test_crash(store, **more))
    check = doctor.crash_and_look(context(store), registered=True)
    assert (check.level, text in check.text) == (level, True), check


def test_crash_and_look_tells_what_was_seen_instead(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "crash_child", lambda: 4242)
    monkeypatch.setattr(doctor, "CRASH_SECONDS", 0.2)
    check = doctor.crash_and_look(context(store), registered=True)
    assert check.level is Level.PROBLEM
    assert check.text.endswith("it is not listed")


# ---- stats and report ----


def since(seconds: int) -> str:
    return f"@{TIME_NS // 10**9 + seconds}"


def test_stats_draws_what_is_in_the_store(store: Store) -> None:
    times = ("--since", since(-3600), "--until", since(3600))
    done = store.run("stats", *times)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("5 crashes, 2026-11-23 04:0")
    assert all(line.isprintable() and len(line) <= 80 for line in lines)
    assert any("nginx.service" in line and "█" in line for line in lines)
    ascii_only = store.run("stats", *times, env={"PYTHONIOENCODING": "ascii"})
    assert ascii_only.stdout.isascii()
    assert "####" in ascii_only.stdout
    found = store.json("stats", *times)
    assert found["total"] == sum(column["process"] for column in found["timeline"]) == 5


def test_stats_of_nothing_is_1(store: Store) -> None:
    done = store.run("stats", "--until", "2001-01-01")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no crashes found" in done.stderr
    done = store.run("stats", "--since", "now", "--until", "-1h")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--since is not before --until" in done.stderr


def test_report_writes_a_page_that_is_whole_or_not_there(store: Store, tmp_path: Path) -> None:
    times = ("--since", since(-3600), "--until", since(3600))
    target = tmp_path / "page.html"
    done = store.run("report", *times, "-o", str(target))
    assert done.returncode == 0, done.stderr
    assert "5 crashes" in done.stderr
    page = target.read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert page.endswith("</body></html>\n")
    assert target.stat().st_mode & 0o777 == 0o600
    again = store.run("report", *times, "-o", str(target))
    assert (again.returncode, "exists" in again.stderr) == (2, True)
    assert store.run("report", *times, "-f", "-o", str(target)).returncode == 0
    piped = store.run("report", *times)
    assert piped.stdout.startswith("<!DOCTYPE html>")
    assert store.run("report", "--force").returncode == 2
    assert store.run("report", "-o", str(tmp_path / "no/page.html")).returncode == 1
