"""The whole daemon on a private root, fed by the real handler; core_pattern is left alone."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import struct
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crashd.configuration.keys import CaptureSection
from crashd.store import spool
from crashd.store.entry import change
from crashd.store.handlerfile import install_handler
from tests.builders.elfcore import CoreSegment, build_core
from tests.integration.handler import start_handler
from tests.running import DEFAULT_CONFIG, PLAIN_CONFIG, Daemon, crashctl, wait_until

CORE = build_core(
    segments=[CoreSegment(0x400000, os.urandom(200_000)), CoreSegment(0x800000, bytes(2 << 20))]
)
SHORT = ["7", "prog", "11", "1800000000"]


@pytest.fixture
def daemon(short_tmp: Path) -> Iterator[Daemon]:
    with Daemon(short_tmp, "--no-register") as running:
        install_handler(running.paths)
        yield running


def crash(daemon: Daemon, count: int = 1) -> None:
    """Feed crashes through the real handler."""
    runs = [start_handler(daemon.paths, SHORT) for _ in range(count)]
    for run in runs:
        run.feed(CORE)
    assert [run.wait() for run in runs] == [0] * count


def metric(daemon: Daemon, line: str) -> float:
    with urllib.request.urlopen(daemon.metrics_url(), timeout=5) as answer:
        text = answer.read().decode()
    return float(next(found for found in text.splitlines() if found.startswith(line)).split()[-1])


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_crash_comes_through_whole(daemon: Daemon) -> None:
    crash(daemon, 5)
    found = daemon.wait_for(5)
    assert {c["state"] for c in found} == {"complete"}
    assert {c["core"]["size_bytes"] for c in found} == {len(CORE)}
    assert metric(daemon, 'crashd_crashes_total{disposition="full",kind="process"}') == 5
    daemon.crashctl("verify", "--deep")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0",
        b"garbage",
        b"p=1",
        b"p=1\0p=2\0",
        b"token=../../etc\0p=1\0",
        b"x" * 60_000,
        b"=".join([b"\0"] * 500),
        b"token=a-b\0p=\xff\xfe\0s=99999999999999999999\0P=-4\0",
    ],
)
@pytest.mark.parametrize("fds", [0, 1, 2, 3])
def test_sec_42_nonsense_on_the_hand_over_socket_is_refused_or_recorded(
    daemon: Daemon, message: bytes, fds: int
) -> None:
    crash(daemon)
    daemon.wait_for(1)  # from here on the daemon has all open that it keeps
    before = descriptors(daemon.pid)
    times = 8  # more than the first crash may still have open
    null = os.open("/dev/null", os.O_RDONLY)
    for _ in range(times):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.settimeout(10)
            peer.connect(str(daemon.paths.handoff_socket))
            if message or fds:
                socket.send_fds(peer, [message or b" "], [null] * fds)
            else:
                peer.shutdown(socket.SHUT_WR)
            assert peer.recv(1) == b"", "no receipt for nonsense"
    os.close(null)
    crash(daemon)
    assert len(daemon.wait_for(2)) == 2
    wait_until(lambda: descriptors(daemon.pid) <= before, 30, "no descriptor is leaked")
    assert metric(daemon, 'crashd_dropped_total{reason="malformed_handoff"}') == times
    assert "Traceback" not in daemon.log.read_text()


def test_peer_that_connects_and_says_nothing_holds_nobody_up(daemon: Daemon) -> None:
    silent = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(20)]
    for peer in silent:
        peer.connect(str(daemon.paths.handoff_socket))
    crash(daemon)
    daemon.wait_for(1)
    for peer in silent:
        peer.close()
    crash(daemon)
    daemon.wait_for(2)


@pytest.mark.parametrize(
    "message",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<I", 0),
        struct.pack("<I", 0xFFFFFFFF),
        struct.pack("<I", 10) + b"not json!!",
        struct.pack("<I", 2) + b"[]",
        struct.pack("<I", 20) + b'{"verb": "drop all"}',
        struct.pack("<I", 60_000) + b"[" * 60_000,
        struct.pack("<I", 34) + b'{"verb":"info","id":"../../../etc"}',
        struct.pack("<I", 100) + b"cut",
    ],
)
def test_nonsense_on_the_control_socket_is_answered_once(daemon: Daemon, message: bytes) -> None:
    crash(daemon)
    daemon.wait_for(1)
    before = descriptors(daemon.pid)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(15)
        peer.connect(str(daemon.paths.control_socket))
        peer.sendall(message)
        peer.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # what it did not read of us
            while chunk := peer.recv(65536):
                answer += chunk
    if answer:
        assert json.loads(answer[4:])["ok"] is False
    assert daemon.crashctl("status", check=False).returncode == 1
    wait_until(lambda: descriptors(daemon.pid) <= before, 30, "no descriptor is leaked")
    assert "Traceback" not in daemon.log.read_text()


def test_control_connection_that_is_refused_is_counted(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(15)
        peer.connect(str(daemon.paths.control_socket))
        peer.sendall(struct.pack("<I", 0xFFFFFFFF))
        assert peer.recv(65536)
    wait_until(lambda: metric(daemon, "crashd_control_refused_total") == 1, what="it is counted")


def test_counters_do_not_shrink_when_crashes_are_deleted(daemon: Daemon) -> None:
    """Prometheus would take what is left at the next start for so many new crashes."""
    crash(daemon, 3)
    first = daemon.wait_for(3)[0]["id"]
    daemon.crashctl("delete", first)
    daemon.stop()
    daemon.start()
    assert metric(daemon, 'crashd_crashes_total{disposition="full",kind="process"}') == 3
    assert metric(daemon, 'crashd_unit_crashes_total{unit="other"}') == 3
    assert metric(daemon, 'crashd_store_entries{kind="process"}') == 2


def test_fault_04_store_that_cannot_be_written_makes_the_handler_spool_until_it_can(
    daemon: Daemon,
) -> None:
    crashes, aside = daemon.paths.crashes, daemon.paths.state_dir / "aside"
    crashes.rename(aside)
    crashes.write_text("a file in the way")
    crash(daemon, 3)
    wait_until(lambda: len(spool.ready_names(daemon.paths, 0)) == 3, 30, "spooled")
    crashes.unlink()
    aside.rename(crashes)
    daemon.stop()
    daemon.start()
    found = daemon.wait_for(3)
    assert {c["state"] for c in found} == {"complete"}
    assert "cannot be recorded" in daemon.log.read_text()


@pytest.mark.parametrize("damage", ["garbage", "empty", "newer", "not ours", "page"])
def test_fault_05_index_that_cannot_be_read_is_rebuilt(daemon: Daemon, damage: str) -> None:
    crash(daemon, 3)
    before = sorted(c["id"] for c in daemon.wait_for(3))
    daemon.stop()
    index = daemon.paths.index
    if damage == "garbage":
        index.write_bytes(os.urandom(8192))
    elif damage == "empty":
        index.write_bytes(b"")
    elif damage == "page":
        with index.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 8192)
    else:
        with sqlite3.connect(index) as db:
            db.execute("PRAGMA user_version = 99" if damage == "newer" else "DROP TABLE crash")
        db.close()
    daemon.start()
    assert sorted(c["id"] for c in daemon.wait_for(3)) == before
    daemon.crashctl("verify")
    kept = [p.name for p in daemon.paths.state_dir.iterdir() if ".corrupt-" in p.name]
    assert len(kept) == (0 if damage == "empty" else 1)


def test_index_of_an_older_version_is_rebuilt_at_start(daemon: Daemon) -> None:
    crash(daemon, 2)
    before = sorted(c["id"] for c in daemon.wait_for(2))
    daemon.stop()
    with sqlite3.connect(daemon.paths.index) as db:  # as one that had other tables
        db.execute("DROP TRIGGER crash_past")
        db.execute("DROP TABLE past")
        db.execute("ALTER TABLE crash DROP COLUMN fault_address")
        db.execute("PRAGMA user_version = 1")
    db.close()
    told = daemon.crashctl("list", check=False)
    assert told.returncode == 4
    assert "version 1, older than" in told.stderr
    daemon.start()
    assert sorted(c["id"] for c in daemon.wait_for(2)) == before
    assert metric(daemon, 'crashd_crashes_total{disposition="full",kind="process"}') == 2
    assert daemon.crashctl("verify", "--strict").stdout == ""
    assert [p.name for p in daemon.paths.state_dir.iterdir() if ".corrupt-" in p.name] == []


def test_row_older_than_its_record_is_made_anew_at_start(daemon: Daemon) -> None:
    """Whoever changed the record was killed before the index knew."""
    crash(daemon, 2)
    first = daemon.wait_for(2)[0]["id"]
    daemon.stop(signal.SIGKILL)
    change(daemon.paths, first, lambda crash: replace(crash, pinned=True))
    assert [c["pinned"] for c in daemon.crashes() if c["id"] == first] == [False]
    daemon.start()
    wait_until(
        lambda: [c["pinned"] for c in daemon.seen() if c["id"] == first] == [True], 30, "its row"
    )
    assert daemon.crashctl("verify").stdout == ""
    assert metric(daemon, 'crashd_crashes_total{disposition="full",kind="process"}') == 2


def test_foreign_and_damaged_entries_do_no_harm(daemon: Daemon) -> None:
    crash(daemon, 2)
    first = daemon.wait_for(2)[0]["id"]
    daemon.stop()
    (daemon.paths.crashes / "lost+found").mkdir()
    (daemon.paths.crashes / first / "crash.json").write_bytes(b"{")
    bare = daemon.paths.crashes / "20260101t000000-00000000-1-aaaaaaaa"
    bare.mkdir()
    staged = daemon.paths.crashes / ".new-20260101t000000-00000000-3-aaaaaaaa"
    staged.mkdir()
    (daemon.paths.crashes / "20260101t000000-00000000-2-aaaaaaaa").symlink_to("/etc")
    (daemon.paths.spool / "1800000000000000000-1-0123abcd").mkdir()
    daemon.paths.index.unlink()
    daemon.start()
    found = {c["id"]: c["state"] for c in daemon.wait_for(3)}
    assert found[bare.name] == "lost", "an entry that a power cut left without its record"
    assert not staged.exists(), "its handler had no answer, and spooled the crash"
    assert found[first] == "complete", "its record is made again, of its id and its core"
    assert daemon.crashctl("verify", check=False).returncode == 1
    crash(daemon)
    daemon.wait_for(4)
    assert "Traceback" not in daemon.log.read_text()
    wait_until(
        lambda: [p.name for p in daemon.paths.spool.iterdir() if p.name.endswith(".bad")] != [],
        10,
        "a spool entry of nonsense is set aside",
    )


def test_hup_reloads_and_a_wrong_configuration_keeps_the_old_one(daemon: Daemon) -> None:
    def reload(text: str, expected: str) -> None:
        position = daemon.log.stat().st_size
        daemon.paths.config_file.write_text(text)
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: expected in daemon.log.read_text()[position:], 30, expected)

    reload(DEFAULT_CONFIG + '[capture]\nmax_core = "64K"\n', "configuration reloaded")
    assert metric(daemon, "crashd_config_last_reload_successful") == 1
    assert metric(daemon, 'crashd_configured_limit_bytes{limit="max_core"}') == 65536
    loaded = metric(daemon, "crashd_config_last_reload_success_timestamp_seconds")
    reload(DEFAULT_CONFIG + "[capture]\nmax_cor = 5\n", "did you mean 'capture.max_core'")
    assert metric(daemon, "crashd_config_last_reload_successful") == 0
    assert metric(daemon, "crashd_config_last_reload_success_timestamp_seconds") == loaded
    assert metric(daemon, "process_open_fds") > 3
    crash(daemon)
    (found,) = daemon.wait_for(1)
    assert found["state"] == "truncated"
    assert found["core"]["size_bytes"] == 65536
    assert found["capture"]["reason"] == "capture.max_core is 65536 bytes"


def test_wrong_configuration_at_the_start_is_one_line_and_status_2(short_tmp: Path) -> None:
    daemon = Daemon(short_tmp, "--no-register", config="[capture]\nworkers = 0\n")
    with pytest.raises(AssertionError, match=r"crashd\.toml:2: capture\.workers"):
        daemon.start()
    assert daemon.stop() == 2
    assert "Traceback" not in daemon.log.read_text()


def test_second_daemon_on_one_root_is_refused(daemon: Daemon) -> None:
    second = Daemon(daemon.paths.root, "--no-register")
    with pytest.raises(AssertionError, match=f"another crashd .pid {daemon.pid}. runs"):
        second.start()
    assert second.stop() == 4
    crash(daemon)
    daemon.wait_for(1)


def test_fault_29_worker_that_hangs_before_proc_is_read_is_replaced(daemon: Daemon) -> None:
    def workers() -> list[int]:
        return [c for nursery in children(daemon.pid) for c in children(nursery)]

    count = CaptureSection().worker_count(len(os.sched_getaffinity(0)))
    wait_until(lambda: len(workers()) == count, 30, "all workers are forked")
    hung = workers()
    for worker in hung:
        os.kill(worker, signal.SIGSTOP)
    crash(daemon)
    (found,) = daemon.wait_for(1)
    assert found["state"] == "complete"
    info = json.loads(daemon.crashctl("info", found["id"], "--json").stdout)
    assert "reading /proc took too long and was given up" in info["warnings"]
    assert metric(daemon, 'crashd_dropped_total{reason="deadline"}') == 1
    for worker in hung:  # one that is stopped cannot end when it is one too many
        if worker in workers():
            os.kill(worker, signal.SIGCONT)
    wait_until(lambda: len(workers()) == count, 60, "the killed worker is replaced")


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_systemd_is_told_how_things_go(short_tmp: Path) -> None:
    daemon = Daemon(short_tmp / "r", "--no-register")
    told: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(short_tmp / "notify"))
        listener = threading.Thread(
            target=lambda: told.extend(iter(lambda: notify.recv(4096), b"end"))
        )
        listener.start()
        daemon.start({"NOTIFY_SOCKET": str(short_tmp / "notify"), "WATCHDOG_USEC": "200000"})
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: any(b"RELOADING=1" in t for t in told), 30, "RELOADING")
        wait_until(lambda: sum(b"WATCHDOG=1" in t for t in told) >= 3, 30, "WATCHDOG")
        assert daemon.stop() == 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"end", str(short_tmp / "notify"))
        listener.join(10)
    assert b"READY=1" in told[0]
    assert b"STATUS=" in told[0]
    assert b"MONOTONIC_USEC=" in next(t for t in told if b"RELOADING=1" in t)
    assert b"STOPPING=1" in told[-1]


def test_stored_crashes_are_there_without_the_daemon(daemon: Daemon) -> None:
    crash(daemon, 2)
    found = daemon.wait_for(2)
    daemon.stop()
    assert [c["id"] for c in daemon.crashes()] == [c["id"] for c in found]
    out = daemon.paths.root / "core"
    daemon.crashctl("dump", found[0]["id"], "-o", str(out))
    assert out.read_bytes() == CORE
    assert crashctl(daemon.paths.root, "status", check=False).returncode == 4
    daemon.crashctl("reindex")
    assert [c["id"] for c in daemon.crashes()] == [c["id"] for c in found]


def test_limit_that_the_handler_kept_is_not_counted_again(short_tmp: Path) -> None:
    """The daemon counts by blocks in which a page of data makes 128 KiB: once it cut such a core
    near its end, where the stacks are.
    """
    config = DEFAULT_CONFIG + '[capture]\nmax_core = "5M"\n'
    pages = (b"\1" * 4096 + bytes(4096)) * 1024
    core = build_core(segments=[CoreSegment(0x400000, pages)])
    with Daemon(short_tmp, "--no-register", config=config) as daemon:
        install_handler(daemon.paths)
        daemon.stop()
        run = start_handler(daemon.paths, SHORT)
        run.feed(core)
        assert run.wait() == 0
        daemon.start()
        (c,) = daemon.wait_for(1)
    assert c["capture"]["mode"] == "spool"
    assert (c["state"], c["core"]["size_bytes"]) == ("complete", len(core)), c


def test_full_queue_makes_the_handler_spool(short_tmp: Path) -> None:
    config = DEFAULT_CONFIG + "[capture]\nqueue = 1\nworkers = 1\n"
    with Daemon(short_tmp, "--no-register", config=config) as daemon:
        install_handler(daemon.paths)
        (nursery,) = children(daemon.pid)
        (worker,) = children(nursery)
        for pid in (nursery, worker):  # no other one is forked
            os.kill(pid, signal.SIGSTOP)
        runs = [start_handler(daemon.paths, SHORT) for _ in range(4)]
        for run in runs:
            threading.Thread(target=run.feed, args=(CORE,)).start()
        wait_until(
            lambda: metric(daemon, 'crashd_dropped_total{reason="queue_full"}') >= 2,
            10,
            "queue is full",
        )
        for pid in (nursery, worker):
            os.kill(pid, signal.SIGCONT)
        assert [run.wait() for run in runs] == [0] * 4
        found = daemon.wait_for(4)
        assert {c["state"] for c in found} == {"complete"}
        assert {c["capture"]["mode"] for c in found} == {"pipe", "spool"}


def test_without_drgn_crashes_are_kept_and_doctor_says_what_is_missing(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short_tmp / "sitecustomize.py").write_text("import sys\nsys.modules['drgn'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(short_tmp))
    with Daemon(short_tmp, "--no-register", config=PLAIN_CONFIG) as daemon:
        install_handler(daemon.paths)
        crash(daemon)
        (found,) = daemon.wait_for(1)
        assert (found["state"], found.get("analysis")) == ("complete", None)
        assert "not installed: drgn: crashes are kept" in daemon.log.read_text()
        checks = json.loads(daemon.crashctl("doctor", "--json", check=False).stdout)
        (check,) = [one for one in checks if one["name"] == "analysis"]
        assert (check["level"], "python3-drgn" in check["hint"]) == ("warning", True)
