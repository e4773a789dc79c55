"""Kernel dumps with the real daemon: makers at work, hostile directories, retention, deletion."""

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crashd.cli.main import main
from crashd.domain.kdump.directory import DumpDirectory
from crashd.domain.keep.kernel import KernelDump, KernelPolicy, plan_retention
from crashd.errors import FormatError, NotFoundError
from crashd.store.kerneldumps import DumpRoot
from tests.builders.kdumpdir import KdumpFormat, flatten
from tests.builders.kdumps import MAKERS, capture, kernel_log, make_old, put, save
from tests.integration.test_daemon import metric
from tests.running import DEFAULT_CONFIG, Daemon, wait_until
from tests.yardstick import slowness

GPF = "general protection fault in provoke_gpf"


@pytest.fixture
def dumps(short_tmp: Path) -> Path:
    directory = short_tmp / "var/crash"
    directory.mkdir(parents=True)
    return directory


def start(root: Path, config: str = "") -> Daemon:
    return Daemon(root, "--no-register", config=DEFAULT_CONFIG + config)


@pytest.fixture
def daemon(short_tmp: Path, dumps: Path) -> Iterator[Daemon]:
    with start(short_tmp) as running:
        yield running


def states(daemon: Daemon) -> list[str]:
    return [crash["state"] for crash in daemon.seen("kernel")]


@pytest.mark.parametrize("name", MAKERS)
def test_fault_16_simulated_capture_is_seen_capturing_then_complete(
    daemon: Daemon, dumps: Path, name: str
) -> None:
    steps = capture(dumps, MAKERS[name], kernel_log())
    assert next(steps) == "begun"
    wait_until(lambda: states(daemon) == ["capturing"], 20, "it is seen")
    assert next(steps) == "half"
    time.sleep(1)
    assert states(daemon) == ["capturing"]
    assert next(steps) == "done"
    done_s = time.monotonic()
    wait_until(lambda: states(daemon) == ["complete"], 20, "it is complete")
    wait_until(lambda: bool(daemon.seen()[0]["signature"]), 20, "its log is read")
    took_s = time.monotonic() - done_s
    (crash,) = daemon.crashes()
    assert crash["title"] == GPF
    assert crash["kernel"]["maker"] == name
    assert crash["kernel"]["panic_kind"] == "gpf"
    # crashctl itself takes some 0.2 s each time it is asked
    assert took_s < 2 * slowness()
    assert daemon.crashctl("verify").stdout == ""
    assert metric(daemon, 'crashd_kdump_dumps{state="complete"}') == 1
    assert metric(daemon, 'crashd_crashes_total{disposition="full",kind="kernel"}') == 1


def test_daemon_started_later_finds_what_is_there_and_records_it_once(
    short_tmp: Path, dumps: Path
) -> None:
    save(dumps, "202601010101")
    save(dumps, "202601010102", cut=True)
    (dumps / "kexec_cmd").write_text("kexec")
    with start(short_tmp) as daemon:
        wait_until(lambda: states(daemon) == ["complete", "incomplete"], 20, "both are there")
        before = daemon.crashes()
    with start(short_tmp) as daemon:
        time.sleep(1)
        assert daemon.crashes() == before
        daemon.crashctl("reindex")
        assert daemon.crashes() == before
        reason = before[-1]["capture"]["reason"]
        assert reason == "dump.202601010102: no end marker of the flattened format"


def test_thousand_known_dumps_cost_little_and_a_new_one_is_found_at_once(
    short_tmp: Path, dumps: Path
) -> None:
    for number in range(1000):
        month, day = number // 900 + 1, number // 40 % 25 + 1
        hour, minute = number % 40 // 10, number % 10
        save(dumps, f"2025{month:02}{day:02}{hour:02}{minute:02}", b"x\n")
    assert len(os.listdir(dumps)) == 1000
    with start(short_tmp) as daemon:
        begun = os.times()
        wait_until(lambda: len(states(daemon)) == 1000, 100, "all are recorded")
        cpu_s = cpu_seconds(daemon.pid)
        assert cpu_s < 10 * slowness(), begun  # a second for each hundred
    save(dumps, "202601010101")
    with start(short_tmp) as daemon:
        wait_until(lambda: len(states(daemon)) == 1001, 15, "the new one is recorded")
        used_s = cpu_seconds(daemon.pid)
        assert used_s < 5 * slowness()
        daemon.stop()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_fault_17_directory_that_is_deleted_by_others_is_missing_and_comes_back(
    daemon: Daemon, dumps: Path, tmp_path: Path
) -> None:
    directory = save(dumps, "202601010101")
    wait_until(lambda: states(daemon) == ["complete"], 20, "it is there")
    (before,) = daemon.crashes()
    shutil.copytree(directory, tmp_path / "backup")
    shutil.rmtree(directory)
    # what is deleted tells no event of the directory above: the scan at the daemon's start does
    (dumps / "poke").mkdir()
    wait_until(lambda: states(daemon) == ["missing"], 20, "it is missing")
    shutil.copytree(tmp_path / "backup", directory)
    make_old(directory)
    wait_until(lambda: states(daemon) == ["complete"], 20, "it is back")
    assert [crash["id"] for crash in daemon.crashes()] == [before["id"]]


def test_dump_that_grows_long_after_it_was_judged_is_judged_again(
    daemon: Daemon, dumps: Path
) -> None:
    directory = save(dumps, "202601010101", cut=True)
    wait_until(lambda: states(daemon) == ["incomplete"], 20, "it is cut")
    with (directory / "dump.202601010101").open("ab") as file:
        file.write(b"\xff" * 16)  # changes the file's stamp alone
    (dumps / "anything").touch()  # rather than wait for the next scan
    wait_until(lambda: states(daemon) == ["complete"], 20, "its copy went on")


def test_delete_by_hand_says_that_files_of_others_stay(daemon: Daemon, dumps: Path) -> None:
    directory = save(dumps, "202601010101")
    wait_until(lambda: states(daemon) == ["complete"], 20, "it is there")
    (directory / "CASE-notes.txt").write_text("mine")
    done = daemon.crashctl("delete", "--yes", "kind=kernel")
    assert "was kept: it holds files that no dump tool wrote" in done.stderr
    assert os.listdir(directory) == ["CASE-notes.txt"]


def test_hostile_directory_is_not_opened_not_followed_and_does_not_block(
    short_tmp: Path, dumps: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "dmesg.202501010101").write_text("secret")
    os.symlink(canary, dumps / "202501010101")
    os.mkfifo(dumps / "202501010102")
    (dumps / "202501010103").write_text("a file")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(dumps / "202501010104"))
    inside = dumps / "202501010105"
    inside.mkdir()
    os.symlink("/etc/shadow", inside / "dmesg.202501010105")
    os.mkfifo(inside / "dump.202501010105")
    linked = dumps / "202501010106"
    linked.mkdir()
    os.link(canary / "dmesg.202501010101", linked / "dmesg.202501010106")
    open_to_all = dumps / "202501010107"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (dumps / "new\nline").mkdir()
    good = save(dumps, "202601010101")
    with start(short_tmp, "[retention.kernel]\nmax_count = 1\n") as daemon:
        wait_until(lambda: len(states(daemon)) == 1, 20, "the good one is recorded")
        assert daemon.crashes()[0]["kernel"]["path"] == str(good)
        told = [
            line
            for line in daemon.log.read_text().splitlines()
            if "is not a trusted kernel dump" in line
        ]
        assert len(told) == 7
        assert "secret" not in daemon.log.read_text()
        assert metric(daemon, 'crashd_kdump_dumps{state="foreign"}') == 7
    assert sorted(os.listdir(canary)) == ["dmesg.202501010101"]
    assert len(os.listdir(dumps)) == 9


def test_retention_keeps_the_newest_as_kdump_tools_is_set_to(short_tmp: Path, dumps: Path) -> None:
    conf = short_tmp / "etc/default/kdump-tools"
    conf.parent.mkdir(parents=True)
    conf.write_text('USE_KDUMP=1\nKDUMP_NUM_DUMPS="3"\n')
    for number in range(6):
        save(dumps, f"20260101010{number}")
    save(dumps, "202601010110", cut=True)
    with start(short_tmp) as daemon:
        wait_until(lambda: len(os.listdir(dumps)) == 4, 30, "the oldest are deleted")
        wait_until(lambda: states(daemon).count("evicted") == 3, 20, "and told of")
        left = ["202601010103", "202601010104", "202601010105", "202601010110"]
        assert sorted(os.listdir(dumps)) == left
        evicted = [c for c in daemon.crashes() if c["state"] == "evicted"]
        assert evicted[0]["title"] == GPF
        assert "older than the newest 3 complete dumps" in evicted[0]["capture"]["reason"]
        labels = '{kind="kernel",reason="max_count"}'
        assert metric(daemon, f"crashd_retention_deleted_total{labels}") == 3
        conf.write_text("KDUMP_NUM_DUMPS=2\n")  # a changed setting is noticed at the next scan
        (dumps / "poke").mkdir()
        wait_until(lambda: "202601010103" not in os.listdir(dumps), 30, "the fourth goes too")


def test_pinned_dump_is_kept_and_unpinned_goes(short_tmp: Path, dumps: Path) -> None:
    save(dumps, "202601010101")
    with start(short_tmp) as daemon:
        wait_until(lambda: states(daemon) == ["complete"], 20, "it is there")
        daemon.crashctl("pin", daemon.crashes()[0]["id"])
    save(dumps, "202601010102")
    save(dumps, "202601010103")
    with start(short_tmp, "[retention.kernel]\nmax_count = 1\n") as daemon:
        wait_until(lambda: not (dumps / "202601010102").exists(), 20, "the other one is deleted")
        assert sorted(os.listdir(dumps)) == ["202601010101", "202601010103"]


def test_dump_that_is_pinned_while_it_grows_stays_pinned(daemon: Daemon, dumps: Path) -> None:
    """Who looks at a dump writes its record again and again: never over a pin."""
    for maker in MAKERS.values():
        steps = capture(dumps, maker, kernel_log())
        next(steps)
        wait_until(lambda: "capturing" in states(daemon), 20, "it is seen")
        newest = next(c["id"] for c in daemon.crashes() if c["state"] == "capturing")
        pinning = threading.Thread(target=daemon.crashctl, args=("pin", newest))
        pinning.start()
        list(steps)
        pinning.join()
        wait_until(lambda: "capturing" not in states(daemon), 30, "it is complete")
    assert [c["pinned"] for c in daemon.crashes()] == [True] * len(MAKERS)
    assert daemon.crashctl("verify").stdout == ""


def test_delete_removes_record_and_dump(daemon: Daemon, dumps: Path) -> None:
    save(dumps, "202601010101")
    wait_until(lambda: states(daemon) == ["complete"], 20, "it is there")
    daemon.crashctl("delete", "-y", daemon.crashes()[0]["id"])
    assert os.listdir(dumps) == []
    assert daemon.crashes() == []


def test_sec_25_delete_of_a_dump_that_is_being_written_is_refused(
    daemon: Daemon, dumps: Path
) -> None:
    steps = capture(dumps, MAKERS["kdump-tools"], kernel_log())
    next(steps)
    wait_until(lambda: states(daemon) == ["capturing"], 20, "it is seen")
    done = daemon.crashctl("delete", "-y", daemon.crashes()[0]["id"], check=False)
    assert done.returncode == 4
    assert "is still being captured" in done.stderr
    assert os.listdir(dumps) == ["202601020304"]


def test_pstore_records_are_put_together_and_recorded_once(short_tmp: Path, dumps: Path) -> None:
    pstore = short_tmp / "sys/fs/pstore"
    pstore.mkdir(parents=True)
    words = kernel_log("bug")
    half = words.rfind(b"\n", 0, len(words) // 2) + 1
    (pstore / "dmesg-efi_pstore-170000000001001").write_bytes(b"Panic#1 Part1\n" + words[half:])
    (pstore / "dmesg-efi_pstore-170000000002001").write_bytes(b"Panic#1 Part2\n" + words[:half])
    (pstore / "console-ramoops-0").write_bytes(b"not a crash")
    with start(short_tmp) as daemon:
        wait_until(lambda: states(daemon) == ["metadata-only"], 20, "it is recorded")
        (crash,) = daemon.crashes()
        assert crash["title"].startswith("kernel BUG")
        assert crash["kernel"]["source"] == "pstore (efi, 2 parts)"
    moved = short_tmp / "var/lib/systemd/pstore/1700000000/001"
    moved.mkdir(parents=True)
    for name in list(pstore.iterdir()):
        name.rename(moved / name.name)
    with start(short_tmp) as daemon:
        time.sleep(1)
        assert [found["id"] for found in daemon.crashes()] == [crash["id"]]


def test_pstore_of_a_crash_that_has_a_dump_is_no_second_crash(short_tmp: Path, dumps: Path) -> None:
    save(dumps, "202601010101", kernel_log("bug"))
    with start(short_tmp) as daemon:
        wait_until(lambda: states(daemon) == ["complete"], 20, "the dump is recorded")
        time_s = daemon.crashes()[0]["kernel"]["crash_time"]
    record = short_tmp / "sys/fs/pstore/dmesg-erst-7000000001"
    record.parent.mkdir(parents=True)
    record.write_bytes(b"Panic#1 Part1\n" + kernel_log("bug"))
    os.utime(record, (time_s, time_s))
    with start(short_tmp) as daemon:
        wait_until(lambda: "which has a dump" in daemon.log.read_text(), 20, "the twin is known")
        assert states(daemon) == ["complete"]


def put_pstore(root: Path, name: str, data: bytes, time_s: int = 1_700_000_000) -> Path:
    record = root / "sys/fs/pstore" / name
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_bytes(data)
    os.utime(record, (time_s, time_s))
    return record


def test_newest_pstore_records_are_read_however_many_there_are(
    short_tmp: Path, dumps: Path
) -> None:
    """systemd-pstore never empties its directory."""
    archive = short_tmp / "var/lib/systemd/pstore"
    for event in range(40):
        directory = archive / str(1_600_000_000 + event * 1000)
        directory.mkdir(parents=True)
        for part in range(1, 17):
            path = directory / f"dmesg-efi-{1_600_000_000 + event * 1000:010}{part:02}001"
            path.write_bytes(b"Shutdown#1 Part%d\nbye %d\n" % (part, event))
            os.utime(path, (1_600_000_000 + event * 1000,) * 2)
    put_pstore(short_tmp, "dmesg-efi-170000000001001", b"Panic#1 Part1\n" + kernel_log("bug"))
    with start(short_tmp) as daemon:
        wait_until(lambda: states(daemon) == ["metadata-only"], 20, "the newest is recorded")
        assert daemon.crashes()[0]["title"].startswith("kernel BUG")


@pytest.mark.parametrize(
    ("name", "data", "title"),
    [
        ("dmesg-efi-1700000000", b"Panic#1\n" + kernel_log("bug"), "kernel BUG"),
        ("dmesg-efi-1700000000", b"Panic#1", "kernel crash: "),
        ("dmesg-efi-1700000000.enc.z", b"\x13 lzo", "kernel crash: its records in pstore are"),
        ("console-ramoops-0", kernel_log("bug"), "kernel BUG"),
    ],
)
def test_pstore_record_of_any_form_is_recorded(
    short_tmp: Path, dumps: Path, name: str, data: bytes, title: str
) -> None:
    put_pstore(short_tmp, name, data)
    with start(short_tmp) as daemon:
        wait_until(lambda: states(daemon) == ["metadata-only"], 20, "it is recorded")
        assert daemon.crashes()[0]["title"].startswith(title)


def test_oops_panic_and_console_of_one_crash_are_one_record_that_stays_deleted(
    short_tmp: Path, dumps: Path
) -> None:
    words = kernel_log("bug")
    half = words.rfind(b"\n", 0, len(words) * 3 // 4) + 1
    put_pstore(short_tmp, "dmesg-ramoops-0", b"Oops#1 Part1\n" + words[:half])
    put_pstore(short_tmp, "dmesg-ramoops-1", b"Panic#2 Part1\n" + words[1000:], 1_700_000_002)
    put_pstore(short_tmp, "console-ramoops-0", words, 1_700_090_000)
    with start(short_tmp) as daemon:
        wait_until(lambda: states(daemon) == ["metadata-only"], 20, "it is recorded")
        (crash,) = daemon.crashes()
        assert crash["kernel"]["source"] == "pstore (ramoops, 2 parts)"
        daemon.crashctl("delete", "-y", crash["id"])
    with start(short_tmp) as daemon:
        time.sleep(1)
        assert daemon.crashes() == []
        assert daemon.crashctl("verify", "--strict").stdout == ""


def test_dump_without_a_log_gets_that_of_pstore_and_keeps_it(short_tmp: Path, dumps: Path) -> None:
    directory = save(dumps, "202601010101")
    (directory / "dmesg.202601010101").unlink()
    make_old(directory)
    crashed_s = 1_500_000_000 + 202601010101 % 10**8
    put_pstore(short_tmp, "dmesg-efi-1", b"Panic#1 Part1\n" + kernel_log("bug"), crashed_s + 3)
    for _ in range(2):
        with start(short_tmp) as daemon:
            wait_until(lambda: any(c["signature"] for c in daemon.seen()), 20, "it has a title")
            (crash,) = daemon.crashes()
            assert crash["title"].startswith("kernel BUG")
            assert crash["state"] == "complete"
            assert crash["kernel"]["log_source"] == "pstore (efi, 1 parts)"
        os.chmod(directory / "dump.202601010101", 0o644)  # looked at again
        (directory / "dump.202601010101").touch()


def build_vmlinux(
    path: Path, build_id: str, release: str = "6.1.0-test", debug: str = "-g"
) -> None:
    """Compile what tells of itself as a vmlinux does."""
    banner = f'const char linux_banner[] = "Linux version {release} (a@b) #1\\n";'
    command = ["gcc", debug, "-nostdlib", "-shared", f"-Wl,{build_id}", "-o", str(path), "-xc", "-"]
    subprocess.run(command, input=banner.encode(), check=True)


def fake_crash(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a crash(8) first in PATH that prints its arguments: no vmlinux of a dump is here."""
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    script = directory / "crash"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    script.chmod(0o755)


def test_debug_opens_the_dump_with_its_own_vmlinux_and_refuses_another(
    short_tmp: Path, dumps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_crash(tmp_path, monkeypatch)
    directory = save(dumps, "202601010101")
    own_id, other_id = "00112233445566778899aabbccddeeff00112233", "ab" * 20
    own, other = tmp_path / "own", tmp_path / "other"
    for path, build_id in ((own, own_id), (other, other_id)):
        build_vmlinux(path, f"--build-id=0x{build_id}")
    with start(short_tmp) as daemon:
        wait_until(lambda: states(daemon) == ["complete"], 20, "it is there")
    none = daemon.crashctl("debug", "kind=kernel", check=False)
    assert none.returncode == 1
    assert "no vmlinux for 6.1.0-test with build-id 00112233" in none.stderr
    assert "apt-get install linux-image-6.1.0-test-dbg" in none.stderr
    wrong = daemon.crashctl("debug", "--vmlinux", str(other), "kind=kernel", check=False)
    assert wrong.returncode == 1
    assert other_id in wrong.stderr and own_id in wrong.stderr
    place = short_tmp / "usr/lib/debug/boot/vmlinux-6.1.0-test"
    place.parent.mkdir(parents=True)
    shutil.copy(other, place)
    passed_over = daemon.crashctl("debug", "kind=kernel", check=False)
    assert f"{place} is of another kernel: its build-id is {other_id}" in passed_over.stderr
    shutil.copy(own, place)
    done = daemon.crashctl("debug", "-A", "-s", "kind=kernel")
    assert done.stdout.splitlines() == [str(place), f"{directory}/dump.202601010101", "-s"]


def test_debug_of_a_kernel_without_build_id_compares_releases_and_says_so(
    short_tmp: Path, dumps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_crash(tmp_path, monkeypatch)
    info = b"OSRELEASE=4.18.0-test\nPAGESIZE=4096\n"
    directory = save(dumps, "202601010101")
    (directory / "dump.202601010101").write_bytes(flatten(KdumpFormat(vmcoreinfo=info).build()))
    with start(short_tmp) as daemon:
        wait_until(lambda: states(daemon) == ["complete"], 20, "it is there")
    own, other = tmp_path / "own", tmp_path / "other"
    build_vmlinux(own, "--build-id=none", "4.18.0-test", "-g0")
    build_vmlinux(other, "--build-id=none", "4.18.0-other")
    done = daemon.crashctl("debug", "--vmlinux", str(own), "kind=kernel")
    assert done.stdout.splitlines() == [str(own), f"{directory}/dump.202601010101"]
    assert "only the release 4.18.0-test: the vmlinux may not match it" in done.stderr
    assert "has no debug information" in done.stderr
    wrong = daemon.crashctl("debug", "--vmlinux", str(other), "kind=kernel", check=False)
    assert wrong.returncode == 1
    assert "Linux 4.18.0-other, the dump's is 4.18.0-test" in wrong.stderr
    for place, data in (("usr/lib/debug/boot", b"\x1f\x8bgz"), ("boot", own.read_bytes())):
        (short_tmp / place).mkdir(parents=True)
        (short_tmp / place / "vmlinux-4.18.0-test").write_bytes(data)
    none = daemon.crashctl("debug", "kind=kernel", check=False)
    assert none.returncode == 1
    assert "debug/boot/vmlinux-4.18.0-test is not an ELF file" in none.stderr
    assert f"{short_tmp}/boot/vmlinux-4.18.0-test has no debug information" in none.stderr


def to_fifo(dump: Path) -> None:
    dump.unlink()
    os.mkfifo(dump)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda dump: dump.chmod(0o666), "is not a trusted kernel dump"),
        (lambda dump: os.link(dump, dump.parents[1] / "other"), "is not a trusted kernel dump"),
        (lambda dump: (dump.rename(f"{dump}.x"), dump.symlink_to(f"{dump}.x")), "is not a trusted"),
        (to_fifo, "is not a trusted kernel dump"),
        (lambda dump: dump.unlink(), "No such file"),
        (lambda dump: shutil.rmtree(dump.parent), "No such file"),
    ],
)
def test_debug_does_not_open_what_is_no_longer_the_dump(
    short_tmp: Path,
    dumps: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
    said: str,
) -> None:
    fake_crash(tmp_path, monkeypatch)
    directory = save(dumps, "202601010101")
    with start(short_tmp) as daemon:
        wait_until(lambda: states(daemon) == ["complete"], 20, "it is there")
    change(directory / "dump.202601010101")
    refused = daemon.crashctl("debug", "kind=kernel", check=False)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert len(refused.stderr.splitlines()) <= 2


def test_remove_of_what_is_not_ours_leaves_it(dumps: Path) -> None:
    directory = save(dumps, "202601010101")
    inode = directory.stat().st_ino
    directory.chmod(0o777)
    with DumpRoot(dumps) as root:
        with pytest.raises(FormatError, match="writable by others"):
            root.remove(b"202601010101", inode)
        directory.chmod(0o755)
        with pytest.raises(NotFoundError, match="another directory"):
            root.remove(b"202601010101", inode + 1)
        (directory / "sub").mkdir()
        (directory / "CASE-notes.txt").write_text("mine")
        (directory / "vmcore").write_text("put together by hand")
        freed, left = root.remove(b"202601010101", inode)
        assert freed
        assert left == (b"CASE-notes.txt", b"sub", b"vmcore")
        assert sorted(os.listdir(directory)) == ["CASE-notes.txt", "sub", "vmcore"]
    directory = save(dumps, "202601010102")
    with DumpRoot(dumps) as root:
        assert root.remove(b"202601010102", directory.stat().st_ino)[1] == ()
    assert os.listdir(dumps) == ["202601010101"]


SWAPPER = """
import ctypes, os, random, sys
exchange = ctypes.CDLL(None, use_errno=True).renameat2
names = [os.fsencode(name) for name in sys.argv[1:]]
print("ready", flush=True)
while os.getppid() == %d:
    exchange(-100, names[0], -100, names[1], 2)  # RENAME_EXCHANGE
    for _ in range(random.randrange(600)): pass
"""


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_sec_22_removal_races_with_a_renamer_and_touches_nothing_else(
    dumps: Path, tmp_path: Path, kind: str
) -> None:
    """Another process swaps the dump for one that must stay, all the time: as itself, by a link."""
    precious = dumps / "precious" if kind == "directory" else tmp_path / "precious"
    precious.mkdir(mode=0o755)
    files = {name: name.encode() for name in ("dump.202601010101", "dmesg.202601010101")}
    for name, data in files.items():
        put(precious / name, data)
    kept = os.open(precious, os.O_RDONLY | os.O_DIRECTORY)
    other = precious
    if kind == "link":
        other = dumps / "link"
        other.symlink_to(precious)
    target = dumps / "202601010101"
    target.mkdir(mode=0o755)
    loose = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    code = SWAPPER % os.getpid()
    removed = swapped = 0
    with (
        subprocess.Popen([sys.executable, "-c", code, target, other], stdout=subprocess.PIPE) as p,
        DumpRoot(dumps) as root,
    ):
        try:
            assert p.stdout is not None
            p.stdout.readline()
            for _ in range(20_000):
                try:
                    flags = os.O_CREAT | os.O_WRONLY
                    fd = os.open("dump.202601010101", flags, 0o600, dir_fd=loose)
                except FileNotFoundError:  # this one is gone: the next, whose name is free
                    os.close(loose)
                    (dumps / "fresh").mkdir(mode=0o755)
                    loose = os.open(dumps / "fresh", os.O_RDONLY | os.O_DIRECTORY)
                    free = other if os.path.lexists(target) else target
                    os.rename(dumps / "fresh", free)
                    removed += 1
                    continue
                os.close(fd)
                try:
                    root.remove(os.fsencode(target.name), os.fstat(loose).st_ino)
                except (FormatError, NotFoundError, OSError):
                    swapped += 1
        finally:
            p.kill()
    assert removed > 10
    assert swapped > 10
    assert {name: (Path(f"/proc/self/fd/{kept}") / name).read_bytes() for name in files} == files
    os.close(loose)
    os.close(kept)


def tiny(dumps: Path, stamp: int) -> None:
    """Save a dump of a few bytes as kdump-tools does: unfinished first, then renamed."""
    directory = dumps / str(stamp)
    directory.mkdir(mode=0o755)
    put(directory / "dump-incomplete", b"x" * 16)
    os.rename(directory / "dump-incomplete", directory / f"dump.{stamp}")


def look_at(root: DumpRoot) -> list[tuple[KernelDump, int]]:
    """Tell what there is, as a plan wants it, and each directory's inode."""
    found = []
    for seen in root.list():
        with contextlib.suppress(OSError):
            told = root.classify(seen)
            if told is not None and not told.faults:
                stamp_ns = int(told.name) * 10**9
                dump = KernelDump(
                    key=told.name.decode(),
                    time_ns=stamp_ns,
                    seen_ns=stamp_ns,
                    size_bytes=told.size_bytes,
                    complete=not told.unfinished,
                    capturing=told.unfinished,
                )
                found.append((dump, seen.inode))
    return found


def test_retention_racing_with_a_writer_leaves_the_newest_10000_times(dumps: Path) -> None:
    stop, saved = threading.Event(), [0]
    allowed = threading.Semaphore(3)  # or the slower a round, the more there is for the next

    def write() -> None:
        stamps = (  # valid minutes of a calendar, growing
            year * 10**8 + month * 10**6 + day * 10**4 + hour * 100 + minute
            for year in range(2001, 2099)
            for month in range(1, 13)
            for day in range(1, 29)
            for hour in range(24)
            for minute in range(60)
        )
        while not stop.is_set():
            if allowed.acquire(timeout=0.1):
                tiny(dumps, next(stamps))
                saved[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    deleted = 0
    try:
        with DumpRoot(dumps) as root:
            for _ in range(10_000):
                allowed.release()
                found = look_at(root)
                newest = sorted(d.key for d, _ in found if d.complete)[-3:]
                plan = plan_retention([d for d, _ in found], 0, KernelPolicy(max_count=3), 1)
                inodes = {d.key: inode for d, inode in found}
                for deletion in plan:
                    root.remove(deletion.key.encode(), inodes[deletion.key])
                    deleted += 1
                assert all((dumps / key / f"dump.{key}").exists() for key in newest)
    finally:
        stop.set()
        writer.join()
    with DumpRoot(dumps) as root:
        found = look_at(root)
        for deletion in plan_retention([d for d, _ in found], 0, KernelPolicy(max_count=3), 1):
            root.remove(deletion.key.encode(), {d.key: i for d, i in found}[deletion.key])
            deleted += 1
    assert len(os.listdir(dumps)) == 3
    assert deleted == saved[0] - 3 > 1000


def test_classify_of_names_that_change_meanwhile_never_raises_more_than_oserror(
    dumps: Path,
) -> None:
    stop = threading.Event()

    def churn() -> None:
        generator = random.Random(1)
        while not stop.is_set():
            path = dumps / f"20260101010{generator.randrange(4)}"
            try:
                if path.exists():
                    shutil.rmtree(path)
                else:
                    save(dumps, path.name, b"log\n")
            except OSError:
                continue

    writer = threading.Thread(target=churn)
    writer.start()
    seen = 0
    try:
        with DumpRoot(dumps) as root:
            for _ in range(2000):
                for found in root.list():
                    try:
                        seen += isinstance(root.classify(found), DumpDirectory)
                    except OSError:
                        continue
    finally:
        stop.set()
        writer.join()
    assert seen > 100


def test_kdump_verb_tells_the_trap_that_leaves_no_image(short_tmp: Path) -> None:
    conf = short_tmp / "etc/default/kdump-tools"
    conf.parent.mkdir(parents=True)
    conf.write_text('USE_KDUMP=1\nMAKEDUMP_ARGS="-c -d 31 --dump-dmesg"\nKDUMP_NUM_DUMPS=2\n')
    with start(short_tmp) as daemon:
        done = daemon.crashctl("kdump", check=False)
        assert done.returncode == 1
        assert "MAKEDUMP_ARGS has --dump-dmesg" in done.stdout
        assert "-> take it out of MAKEDUMP_ARGS" in done.stdout
        document = json.loads(daemon.crashctl("kdump", "--json", check=False).stdout)
        assert document["ready"] is False
        assert document["tool_keeps"] == 2
        assert "dump-dmesg" in [finding["code"] for finding in document["findings"]]
        assert metric(daemon, "crashd_kdump_ready") == 0


def test_dump_that_was_copied_with_its_times_is_judged_soon(daemon: Daemon, dumps: Path) -> None:
    directory = dumps / "202601020304"
    directory.mkdir()
    put(directory / "dump-incomplete", KdumpFormat().build()[:9000])
    wait_until(lambda: states(daemon) == ["capturing"], 30, "it is seen while it is copied")
    make_old(directory)
    # it takes SETTLE_NS, 10 s, and took 300 s
    wait_until(lambda: states(daemon) == ["incomplete"], 60, "it is judged")


def test_capture_kernels_own_log_says_why_there_is_no_dump(daemon: Daemon, dumps: Path) -> None:
    directory = dumps / "127.0.0.1-2026-01-02-03:04:05"
    directory.mkdir()
    put(directory / "vmcore-incomplete", KdumpFormat().build()[:9000])
    put(directory / "vmcore-dmesg.txt", kernel_log())
    put(
        directory / "kexec-dmesg.log",
        b"[ 3.0] kdump.sh[3]: makedumpfile: No space left on device\n",
    )
    make_old(directory)
    wait_until(lambda: states(daemon) == ["incomplete"], 90, "it is judged")
    said = "kexec-dmesg.log: [ 3.0] kdump.sh[3]: makedumpfile: No space left"
    wait_until(
        lambda: said in daemon.crashctl("info", daemon.seen()[0]["id"]).stdout,
        20,  # a look amid the writing of the files above is followed by another
        "the log's words are shown",
    )


def test_kdump_allows_deletion_where_the_unit_does_not(
    short_tmp: Path, dumps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, text in (
        (
            "usr/lib/systemd/system/crashd.service",
            "ProtectSystem=strict\nReadWritePaths=-/var/crash",
        ),
        ("etc/default/kdump-tools", "USE_KDUMP=1\nKDUMP_COREDIR='/srv/my dumps'"),
        ("etc/crashd/crashd.toml", '[kdump]\npaths = ["/data/a", "/srv/b"]'),
    ):
        (short_tmp / path).parent.mkdir(parents=True, exist_ok=True)
        (short_tmp / path).write_text(text + "\n")
    for path in ("srv/my dumps", "data/a", "srv/b"):
        (short_tmp / path).mkdir(parents=True)

    def kdump(*arguments: str) -> str:
        main(["--root", str(short_tmp), "kdump", *arguments])
        return capsys.readouterr().out

    denied = json.loads(kdump("--json"))["deletion_denied"]
    assert sorted(denied) == ["/data/a", "/srv/b", "/srv/my dumps"]
    assert "crashd.service may not write to /srv/my dumps" in kdump()
    said = kdump("--allow-deletion")
    assert "systemctl daemon-reload && systemctl restart crashd.service" in said
    drop_in = short_tmp / "etc/systemd/system/crashd.service.d/50-kernel-dumps.conf"
    assert 'ReadWritePaths="-/srv/my dumps"' in drop_in.read_text().splitlines()
    assert drop_in.stat().st_mode & 0o777 == 0o644
    assert json.loads(kdump("--json"))["deletion_denied"] == []
    assert "nothing to do" in kdump("--allow-deletion")
    # a directory more: what was allowed before stays allowed
    (short_tmp / "etc/crashd/crashd.toml").write_text('[kdump]\npaths = ["/data/a", "/srv"]\n')
    kdump("--allow-deletion")
    assert json.loads(kdump("--json"))["deletion_denied"] == []
