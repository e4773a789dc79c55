"""A real kernel panic with its own vmlinux: what the record has, and what debuggers see."""

import hashlib
import http.server
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from crashd.analyzers import kernel_core
from crashd.analyzers.kernel_log import open_dump
from crashd.daemon.after.analysis import AnalysisOptions
from crashd.daemon.kernel import dumpfiles
from crashd.daemon.kernel.symbols import ModuleFinder, VmlinuxFinder, WantedKernel, read_symbols
from crashd.domain.kdump.diskdump import parse_diskdump
from crashd.domain.kdump.symbols import Symbols
from crashd.errors import FormatError
from crashd.store.kerneldumps import DumpRoot
from tests.builders.kdumps import kernel_log, make_old
from tests.builders.kernel import (
    BUILD_ID,
    DATA,
    PACKAGE,
    RELEASE,
    STAMP,
    TITLE,
    find_real_vmlinux,
    put_dump,
    put_module,
    put_vmcore,
    put_vmlinux,
    unpack,
)
from tests.running import PLAIN_CONFIG, Daemon, wait_until
from tests.yardstick import slowness

DOWNLOAD_VARIABLE = "CRASHD_TEST_DBG"
"""With "1" the package with the whole vmlinux is downloaded where it is not installed."""
CONFIG = PLAIN_CONFIG + '[kdump]\nrescan = "1s"\nvmlinux_dirs = ["/srv/vmlinux"]\n'
WANTED = WantedKernel(RELEASE, None, BUILD_ID)
LOG = kernel_log("sysrq")
STACK = [
    ("crash_setup_regs", "arch/x86/include/asm/kexec.h", 115, True),
    ("__crash_kexec", "kernel/kexec_core.c", 974, False),
    ("panic", "kernel/panic.c", 358, False),
    ("sysrq_handle_crash", "drivers/tty/sysrq.c", 155, False),
    ("__handle_sysrq", "drivers/tty/sysrq.c", 603, False),
    ("write_sysrq_trigger", "drivers/tty/sysrq.c", 1164, False),
    ("pde_write", "fs/proc/inode.c", 340, True),
    ("proc_reg_write", "fs/proc/inode.c", 352, False),
    ("vfs_write", "fs/read_write.c", 582, False),
    ("ksys_write", "fs/read_write.c", 637, False),
    ("do_syscall_x64", "arch/x86/entry/common.c", 46, True),
    ("do_syscall_64", "arch/x86/entry/common.c", 76, False),
]
"""What drgn and crash(8) say with the whole vmlinux; after it comes entry_SYSCALL_64."""


@pytest.fixture
def dumps(short_tmp: Path) -> Path:
    directory = short_tmp / "var/crash"
    directory.mkdir(parents=True)
    return directory


@pytest.fixture(scope="module")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_vmlinux(tmp_path_factory.mktemp("vmlinux") / "vmlinux")


@pytest.fixture
def daemon(short_tmp: Path, dumps: Path) -> Iterator[Daemon]:
    with Daemon(short_tmp, "--no-register", config=CONFIG) as running:
        yield running


def info(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.crashctl("info", "kind=kernel", "--json").stdout)
    return found


def symbol_state(daemon: Daemon) -> str | None:
    crashes = daemon.seen("kernel")
    if not crashes:
        return None
    state: str | None = (crashes[0]["kernel"].get("symbols") or {}).get("state")
    return state


def place(root: Path, vmlinux: Path, at: str = f"usr/lib/debug/boot/vmlinux-{RELEASE}") -> Path:
    path = root / at
    path.parent.mkdir(parents=True, exist_ok=True)
    os.link(vmlinux, path) if _same_device(vmlinux, path.parent) else shutil.copy(vmlinux, path)
    return path


def _same_device(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def stack_of(doc: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [tuple(f[key] for key in ("function", "file", "line", "inline")) for f in doc["frames"]]


def test_vmlinux_that_arrives_later_gives_the_record_its_stack_and_no_other_title(
    short_tmp: Path, dumps: Path, daemon: Daemon, vmlinux: Path
) -> None:
    put_dump(dumps, log=LOG)
    wait_until(lambda: symbol_state(daemon) == "none", 20, "no vmlinux is known of")
    before = info(daemon)
    page = daemon.crashctl("info", "kind=kernel").stdout
    assert f"symbols: none (build-id {BUILD_ID}; install {PACKAGE})" in page
    place(short_tmp, vmlinux)
    wait_until(lambda: symbol_state(daemon) == "done", 20, "the scan finds it")
    after = info(daemon)
    for key in ("id", "title", "signature", "explanation", "comm", "pid", "report"):
        assert after[key] == before[key], key
    assert after["title"] == TITLE
    assert stack_of(after)[: len(STACK)] == STACK
    values = {v["name"]: v["value"] for f in after["frames"] for v in f["locals"]}
    assert values["buf"] != "" and values["orig_log_level"] == "(int)7"
    (panic,) = [f for f in after["frames"] if f["function"] == "panic"]
    assert {"name": "buf", "value": '(char [1024])"sysrq triggered crash"'} in panic["locals"]
    assert [(t["cpu"], t["tid"], t["name"], t["crashed"]) for t in after["threads"]] == [
        (0, 396, "bash", True),
        (1, 0, "swapper/1", False),
    ]
    page = daemon.crashctl("info", "kind=kernel").stdout
    assert "#3   sysrq_handle_crash+0x16 at drivers/tty/sysrq.c:155" in page
    assert "symbols: by " in page and "swapper/1[0]" in page
    assert daemon.crashctl("verify").stdout == ""


def test_analyze_finds_it_in_a_configured_directory_and_keeps_what_it_found(
    short_tmp: Path, dumps: Path, vmlinux: Path
) -> None:
    put_dump(dumps, log=LOG)
    config = CONFIG.replace('"1s"', '"1h"')
    with Daemon(short_tmp, "--no-register", config=config) as daemon:
        wait_until(lambda: symbol_state(daemon) == "none", 20, "no vmlinux is known of")
        none = daemon.crashctl("analyze", "kind=kernel", check=False)
        assert none.returncode == 1 and f"install {PACKAGE}" in none.stderr
        path = place(short_tmp, vmlinux, f"srv/vmlinux/vmlinux-{RELEASE}")
        found = daemon.crashctl("analyze", "kind=kernel")
        assert "at drivers/tty/sysrq.c:155" in found.stdout
        path.unlink()
        kept = daemon.crashctl("analyze", "kind=kernel")
        assert "no vmlinux any more" in kept.stderr
        assert "at drivers/tty/sysrq.c:155" in kept.stdout
    with Daemon(short_tmp, "--no-register", config=config) as daemon:
        assert stack_of(info(daemon))[: len(STACK)] == STACK
        daemon.crashctl("reindex")
        assert symbol_state(daemon) == "done"


def test_analyze_of_a_dump_that_was_compressed_just_now_reads_what_is_there(
    short_tmp: Path, dumps: Path, vmlinux: Path
) -> None:
    directory = put_dump(dumps, log=LOG)
    place(short_tmp, vmlinux)
    config = CONFIG.replace('"1s"', '"1h"')
    with Daemon(short_tmp, "--no-register", config=config) as daemon:
        wait_until(lambda: symbol_state(daemon) == "done", 20, "the stack is read")
        (dump,) = directory.glob("dump.*")
        subprocess.run(["gzip", "-1", dump], check=True)
        make_old(directory)  # as if nothing had written to it for a while
        found = daemon.crashctl("analyze", "kind=kernel")
        assert "at drivers/tty/sysrq.c:155" in found.stdout
        assert "cannot be opened" not in found.stderr
        assert info(daemon)["kernel"]["dump"].endswith(".gz")


def test_vmlinux_of_another_kernel_or_another_user_is_refused_and_named(
    short_tmp: Path, dumps: Path, daemon: Daemon, vmlinux: Path
) -> None:
    other = short_tmp / f"usr/lib/debug/boot/vmlinux-{RELEASE}"
    other.parent.mkdir(parents=True)
    command = ["gcc", "-g", "-nostdlib", "-shared", f"-Wl,--build-id=0x{'ab' * 20}", "-xc", "-"]
    subprocess.run([*command, "-o", str(other)], input=b"int x;", check=True)
    put_dump(dumps, log=LOG)
    wait_until(lambda: symbol_state(daemon) == "none", 20, "it is looked for")
    said = info(daemon)["kernel"]["symbols"]
    assert f"{other}: is of another kernel: its build-id is {'ab' * 20}" in said["reason"]
    if os.geteuid() == 0:
        theirs = short_tmp / f"usr/lib/debug/lib/modules/{RELEASE}/vmlinux"
        theirs.parent.mkdir(parents=True)
        shutil.copy(vmlinux, theirs)
        os.chown(theirs, 12345, 12345)
        failed = daemon.crashctl("analyze", "kind=kernel", check=False)
        assert failed.returncode == 1 and "belongs to uid 12345" in failed.stderr


def test_dump_of_a_hypervisor_gets_log_build_id_and_symbols_from_its_memory(
    short_tmp: Path, dumps: Path, daemon: Daemon, vmlinux: Path, drgn_in_path: None
) -> None:
    place(short_tmp, vmlinux)
    directory = put_dump(dumps, note=False)
    wait_until(lambda: symbol_state(daemon) == "done", 30, "its memory has VMCOREINFO")
    doc = info(daemon)
    assert (doc["title"], doc["kernel"]["build_id"]) == (TITLE, BUILD_ID)
    assert stack_of(doc)[: len(STACK)] == STACK
    before = hashlib.sha256((directory / f"dump.{STAMP}").read_bytes()).digest()
    # no more: a hypervisor's own notes have the registers, and this dump has none of them
    done = debug_by_drgn(daemon, "print(prog.crashed_thread().object.comm.string_())")
    assert done.stdout.strip() == "b'bash'", done.stderr
    assert hashlib.sha256((directory / f"dump.{STAMP}").read_bytes()).digest() == before


@pytest.fixture
def drgn_in_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `debug` find the drgn that crashd itself uses."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def debug_by_drgn(
    daemon: Daemon, code: str, match: str = "kind=kernel"
) -> "subprocess.CompletedProcess[str]":
    return daemon.crashctl(
        "debug",
        "--debugger",
        "drgn",
        f"--debugger-arguments=-q -e {shlex.quote(code)}",
        match,
    )


WRAP = {"gz": ["gzip", "-c"], "zst": ["zstd", "-qc"], "lz4": ["lz4", "-qc"]}
"""By the programs of kdump-tools; the others are in tests/unit/cli/open/test_kerneldump.py."""


@pytest.mark.parametrize("ending", WRAP)
def test_wrapped_dump_is_unpacked_for_the_debugger_and_for_dump(
    short_tmp: Path, dumps: Path, vmlinux: Path, tmp_path: Path, ending: str, drgn_in_path: None
) -> None:
    if shutil.which(WRAP[ending][0]) is None:
        pytest.skip(f"{WRAP[ending][0]} is not installed")
    directory = put_dump(dumps, log=LOG)
    dump = directory / f"dump.{STAMP}"
    plain = dump.read_bytes()
    packed = subprocess.run([*WRAP[ending], str(dump)], check=True, capture_output=True).stdout
    (directory / f"dump.{STAMP}.{ending}").write_bytes(packed)
    dump.unlink()
    make_old(directory)
    place(short_tmp, vmlinux)
    target = tmp_path / "out"
    with Daemon(short_tmp, "--no-register", config=CONFIG) as daemon:
        wait_until(lambda: symbol_state(daemon) == "done", 30, "it is unpacked and read")
        assert stack_of(info(daemon))[: len(STACK)] == STACK
        done = debug_by_drgn(daemon, "print(prog.crashed_thread().tid)")
        daemon.crashctl("dump", "kind=kernel", "-o", str(target))
    assert done.stdout.strip() == "396", done.stderr
    assert target.read_bytes() == plain


@pytest.mark.skipif(shutil.which("makedumpfile") is None, reason="makedumpfile is not installed")
def test_log_and_symbols_of_a_split_dump_are_read_from_all_of_its_parts(
    short_tmp: Path, dumps: Path, vmlinux: Path, drgn_in_path: None
) -> None:
    memory = put_vmcore(short_tmp / "memory")
    directory = dumps / "127.0.0.1-2026-11-22-22:05:00"
    directory.mkdir()
    parts = [directory / f"vmcore.{number}" for number in range(1, 5)]
    command = ["makedumpfile", "--split", "-c", "-d", "31", *map(str, (memory, *parts))]
    subprocess.run(command, check=True, capture_output=True)
    memory.unlink()
    for part in parts[1:3]:  # the administrator saves room
        subprocess.run(["gzip", "-1", part], check=True)
    make_old(directory)
    place(short_tmp, vmlinux)
    with Daemon(short_tmp, "--no-register", config=CONFIG) as daemon:
        wait_until(lambda: symbol_state(daemon) == "done", 60, "all parts are read")
        doc = info(daemon)
        assert (doc["state"], doc["title"], doc["kernel"]["log_source"]) == (
            "complete",
            TITLE,
            "dump",
        )
        assert len(doc["kernel"]["dump_parts"]) == 4
        assert stack_of(doc)[: len(STACK)] == STACK
        assert [t["name"] for t in doc["threads"]] == ["bash", "swapper/1"]
        done = debug_by_drgn(daemon, "print(prog.crashed_thread().tid)")
        assert done.stdout.strip() == "396", done.stderr
        bundle, whole = short_tmp / "x.tar.zst", short_tmp / "whole"
        daemon.crashctl("dump", "kind=kernel", "-o", str(whole))
        assert parse_diskdump(whole.read_bytes()[: 1 << 20]).split is None
        daemon.crashctl("bundle", "kind=kernel", "-o", str(bundle))
        let_others_read(short_tmp, vmlinux)
        done = debug_by_drgn(daemon, "print(prog.crashed_thread().tid)", str(bundle))
        assert done.stdout.strip() == "396", done.stderr
        assert "putting the 4 parts of the dump together" in done.stderr


def let_others_read(root: Path, vmlinux: Path) -> None:
    """Do as a package does: the debugger of a bundle is not root."""
    root.chmod(0o711)
    vmlinux.chmod(0o644)


def test_bundle_of_a_kernel_crash_is_debugged_on_another_host_with_its_vmlinux(
    short_tmp: Path, dumps: Path, daemon: Daemon, vmlinux: Path, drgn_in_path: None
) -> None:
    put_dump(dumps, log=LOG)
    wait_until(lambda: symbol_state(daemon) == "none", 20, "it is known")
    bundle = short_tmp / "x.tar.zst"
    daemon.crashctl("bundle", "kind=kernel", "-o", str(bundle))
    shutil.rmtree(dumps / STAMP)  # on the other host there is only the bundle
    code = "print(prog.crashed_thread().object.comm.string_())"
    refused = daemon.crashctl("debug", "--debugger", "drgn", str(bundle), check=False)
    assert refused.returncode == 1 and f"install {PACKAGE}" in refused.stderr
    let_others_read(short_tmp, place(short_tmp, vmlinux))
    done = debug_by_drgn(daemon, code, str(bundle))
    assert done.stdout.strip() == "b'bash'", done.stderr
    raw = bytearray(bundle.read_bytes())
    raw[len(raw) // 2] ^= 1
    bundle.write_bytes(raw)
    damaged = daemon.crashctl("debug", "--debugger", "drgn", str(bundle), check=False)
    assert damaged.returncode == 1 and "is not a bundle, or is damaged" in damaged.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may write to the cache")
def test_vmlinux_is_fetched_from_debuginfod_only_if_that_is_allowed(
    short_tmp: Path, dumps: Path, vmlinux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_dump(dumps, log=LOG)
    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            is_right = self.server.server_address == servers[1].server_address
            self.send_response(200)
            self.end_headers()
            self.wfile.write(vmlinux.read_bytes() if is_right else b"\x7fELF of another kernel")

        def log_message(self, *arguments: object) -> None:
            pass

    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    urls = " ".join(f"http://127.0.0.1:{server.server_port}/" for server in servers)
    monkeypatch.setenv("DEBUGINFOD_URLS", urls)
    try:
        config = CONFIG.replace('"1s"', '"1h"')
        with Daemon(short_tmp, "--no-register", config=config) as daemon:
            wait_until(lambda: symbol_state(daemon) == "none", 20, "no vmlinux is known of")
            refused = daemon.crashctl("analyze", "kind=kernel", check=False)
            assert refused.returncode == 1 and asked == []
        config += "[analysis]\ndebuginfod = true\n"
        with Daemon(short_tmp, "--no-register", config=config) as daemon:
            found = daemon.crashctl("analyze", "kind=kernel")
            assert "at drivers/tty/sysrq.c:155" in found.stdout
            assert asked == [f"/buildid/{BUILD_ID}/debuginfo"] * 2
            assert "is not an ELF file" in found.stderr or "another file" in found.stderr
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
    kept = short_tmp / f"var/cache/crashd/debug/.build-id/{BUILD_ID[:2]}/{BUILD_ID[2:]}.debug"
    assert kept.stat().st_size == vmlinux.stat().st_size


def test_bundle_with_no_dump_says_so(dumps: Path, daemon: Daemon, tmp_path: Path) -> None:
    directory = dumps / STAMP
    directory.mkdir()
    (directory / f"dmesg.{STAMP}").write_bytes(LOG)
    make_old(directory)
    wait_until(lambda: len(daemon.seen()) == 1, 20, "it is known")
    bundle = tmp_path / "x.tar.zst"
    daemon.crashctl("bundle", "kind=kernel", "-o", str(bundle))
    failed = daemon.crashctl("debug", "--debugger", "gdb", str(bundle), check=False)
    assert failed.returncode == 1 and "the bundle has no dump" in failed.stderr


def test_wrapped_dump_without_room_to_unpack_it_says_so(
    short_tmp: Path, dumps: Path, vmlinux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = put_dump(dumps)
    subprocess.run(["gzip", "-1", directory / f"dump.{STAMP}"], check=True)
    make_old(directory)
    root = DumpRoot(dumps)
    monkeypatch.setattr(dumpfiles, "UNPACKED_MAX", 100_000)  # the dump has 245760 bytes
    with root, root.open(root.look(os.fsencode(STAMP))) as opened:
        names = [os.fsencode(f"dump.{STAMP}.gz")]
        with (
            pytest.raises(FormatError, match="cannot be unpacked: it has more than 100000 bytes"),
            dumpfiles.opened_files(opened, names, AnalysisOptions(), short_tmp),
        ):
            pass
    assert sorted(path.name for path in short_tmp.iterdir()) == ["var"]


def test_dump_and_bundle_of_a_kernel_crash(dumps: Path, daemon: Daemon, tmp_path: Path) -> None:
    directory = put_dump(dumps, log=b"[    1.000000] Linux version 6.1.0\n")
    wait_until(lambda: symbol_state(daemon) == "none", 20, "it is known")
    dump = (directory / f"dump.{STAMP}").read_bytes()
    target = tmp_path / "out"
    daemon.crashctl("dump", "kind=kernel", "-o", str(target))
    assert target.read_bytes() == dump
    bundle = tmp_path / "x.tar.zst"
    daemon.crashctl("bundle", "kind=kernel", "-o", str(bundle))
    members = read_bundle(bundle)
    about = json.loads(members["kernel.json"])
    assert (about["build_id"], about["package"]) == (BUILD_ID, PACKAGE)
    assert about["members"] == [f"dump/0/dump.{STAMP}", f"log/dmesg.{STAMP}"]
    assert members[f"dump/0/dump.{STAMP}"] == dump
    assert members[f"log/dmesg.{STAMP}"].startswith(b"[    1.000000] Linux")
    sums = set(members.pop("SHA256SUMS").decode().splitlines())
    assert sums == {f"{hashlib.sha256(data).hexdigest()}  {n}" for n, data in members.items()}


def test_dump_and_bundle_without_a_memory_image_say_what_there_is(
    dumps: Path, daemon: Daemon, tmp_path: Path
) -> None:
    directory = dumps / STAMP
    directory.mkdir()
    (directory / f"dmesg.{STAMP}").write_bytes(LOG)
    make_old(directory)
    wait_until(lambda: len(daemon.seen()) == 1, 20, "it is known")
    wait_until(lambda: daemon.seen()[0]["state"] == "incomplete", 30, "it settles")
    failed = daemon.crashctl("dump", "kind=kernel", "-o", str(tmp_path / "out"), check=False)
    assert failed.returncode == 1
    assert f"its log is {directory}/dmesg.{STAMP}" in failed.stderr
    bundle = tmp_path / "x.tar.zst"
    daemon.crashctl("bundle", "kind=kernel", "-o", str(bundle))
    assert f"log/dmesg.{STAMP}" in read_bundle(bundle)


def read_bundle(path: Path) -> dict[str, bytes]:
    raw = zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        return {m.name: f.read() for m in tar if (f := tar.extractfile(m)) is not None}


# -- the worker alone ------------------------------------------------------------------------------


def symbols_of(dump: Path, root: Path, options: AnalysisOptions | None = None) -> Symbols:
    fd = os.open(dump, os.O_RDONLY)
    try:
        search = VmlinuxFinder(root, ()).find(WANTED)
        return read_symbols([fd], WANTED, search, options or AnalysisOptions())
    finally:
        os.close(fd)


def test_frame_in_a_module_has_its_name_and_with_the_modules_file_its_line(
    short_tmp: Path, vmlinux: Path
) -> None:
    place(short_tmp, vmlinux)
    dump = os.open(unpack(DATA / "softdog-elf.zst", short_tmp / "dump"), os.O_RDONLY)
    modules = ModuleFinder(short_tmp, ["/srv/symbols"])

    def frame(likely: list[str]) -> dict[str, Any]:
        search = VmlinuxFinder(short_tmp, ()).find(WANTED)
        facts = read_symbols([dump], WANTED, search, AnalysisOptions(), modules, likely).facts
        assert facts is not None
        (found,) = [frame for frame in facts.frames if frame.module == "softdog"]
        return {"function": found.function, "offset": found.symbol_offset, "line": found.line}

    try:
        # by the symbol table that the kernel itself has in memory
        assert frame([]) == {"function": "softdog_fire", "offset": 33, "line": None}
        put_module(short_tmp / f"srv/symbols/{RELEASE}/kernel/drivers/watchdog/softdog.ko")
        whole = {"function": "softdog_fire", "offset": 33, "line": 87}
        assert frame([]) == whole  # the first reading shows which module
        assert frame(["softdog", "no_such"]) == whole
    finally:
        os.close(dump)


class SlowProgram:
    """A drgn program that takes a minute to read the vmlinux, before its first module."""

    def __init__(self, program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.program, self.now = program, 0.0
        monkeypatch.setattr("time.process_time", lambda: self.now)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.program, name)

    def loaded_modules(self) -> Iterator[Any]:
        for number, found in enumerate(self.program.loaded_modules()):
            self.now += 60.0 if number == 1 else 0.01
            yield found


def test_slow_machine_reads_the_modules_after_a_vmlinux_that_took_it_a_minute(
    short_tmp: Path, vmlinux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_slow(*arguments: Any) -> Any:
        opened = open_dump(*arguments)
        return replace(opened, program=SlowProgram(opened.program, monkeypatch))

    monkeypatch.setattr(kernel_core, "open_dump", open_slow)
    module = put_module(short_tmp / "softdog.ko")
    dump = unpack(DATA / "softdog-elf.zst", short_tmp / "dump")
    with dump.open("rb") as core, vmlinux.open("rb") as kernel, module.open("rb") as file:
        files = kernel_core.KernelFiles(
            [core.fileno()], kernel.fileno(), {"softdog": file.fileno()}
        )
        found = kernel_core.analyse(files, BUILD_ID)
    assert [p for p in found["problems"] if "modules" in p] == []
    assert [f["line"] for f in found["frames"] if f["module"] == "softdog"] == [87]


def test_hostile_dumps_cost_a_bounded_time_and_never_more_than_a_reason(
    short_tmp: Path, dumps: Path, vmlinux: Path
) -> None:
    place(short_tmp, vmlinux)
    dump = put_dump(dumps) / f"dump.{STAMP}"
    whole = dump.read_bytes()
    options = AnalysisOptions(timeout_seconds=10)
    for number in range(3):
        raw = bytearray(whole)
        for at in range(0x2000 + 64 * number, len(raw) - 8, 4096):
            raw[at : at + 8] = (0xFFFF_FFFF_8000_0000 + at * (number + 1)).to_bytes(8, "little")
        dump.write_bytes(raw)
        symbols = symbols_of(dump, short_tmp, options)
        assert symbols.seconds < 15
        assert symbols.facts is not None or symbols.reason
    for size in (100, len(whole) // 2):
        dump.write_bytes(whole[:size])
        symbols = symbols_of(dump, short_tmp, options)
        assert symbols.facts is not None or symbols.reason


def test_vmlinux_that_lies_about_itself_is_only_a_reason(short_tmp: Path, dumps: Path) -> None:
    path = short_tmp / f"usr/lib/debug/boot/vmlinux-{RELEASE}"
    path.parent.mkdir(parents=True)
    command = ["gcc", "-g", "-nostdlib", "-shared", f"-Wl,--build-id=0x{BUILD_ID}", "-xc", "-"]
    subprocess.run([*command, "-o", str(path)], input=b"int x;", check=True)
    symbols = symbols_of(put_dump(dumps) / f"dump.{STAMP}", short_tmp)
    assert symbols.state == "failed" and symbols.reason


def test_whole_vmlinux_gives_the_same_within_two_seconds_of_cpu_and_264_mib(
    short_tmp: Path, dumps: Path, vmlinux: Path, tmp_path: Path
) -> None:
    real = find_real_vmlinux() or download(tmp_path)
    if real is None:
        pytest.skip(f"{PACKAGE} is not installed, and {DOWNLOAD_VARIABLE} is not 1")
    dump = put_dump(dumps) / f"dump.{STAMP}"
    place(short_tmp, vmlinux)
    reduced = symbols_of(dump, short_tmp)
    shutil.rmtree(short_tmp / "usr")
    path = short_tmp / f"usr/lib/debug/boot/vmlinux-{RELEASE}"
    path.parent.mkdir(parents=True)
    path.symlink_to(real)
    whole = symbols_of(dump, short_tmp)
    assert whole.facts is not None and reduced.facts is not None
    assert whole.facts.frames == reduced.facts.frames
    assert whole.facts.cpus == reduced.facts.cpus
    assert whole.cpu_seconds < 2 * slowness()
    assert whole.peak_bytes < 264 << 20


def download(directory: Path) -> Path | None:
    """Download the package from the distribution's own archive, and unpack the vmlinux."""
    if os.environ.get(DOWNLOAD_VARIABLE) != "1":
        return None
    subprocess.run(["apt-get", "-q", "download", PACKAGE], cwd=directory, check=True)
    (package,) = directory.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", str(package), str(directory)], check=True)
    package.unlink()
    return find_real_vmlinux(directory)
