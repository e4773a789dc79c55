"""Who is told of a crash: the journal's socket, hooks and a webhook, real ones all."""

import json
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from crashd.daemon.after.notices import Notices, NoticeSettings
from crashd.domain.crash.model import Capture, Disposition, DropReason, Kind, State, to_json
from crashd.domain.keep.alertbudget import AlertRates
from crashd.edge.host import journal
from crashd.edge.host.hooks import HookError, Webhook, list_hooks, post, run_hook
from crashd.edge.web.exporter import Exporter
from crashd.errors import UnavailableError
from crashd.store.paths import Paths
from crashd.store.users import Users
from tests.builders.crashes import build_crash
from tests.running import wait_until

Told = tuple[Notices, Callable[[], list[dict[str, Any]]], list[int]]
"""Notices whose hook writes all down, what it wrote, and a 1 for each that was not given."""


class Counted(Exporter):
    """Counts the notices that were not given."""

    def __init__(self, failures: list[int]) -> None:
        super().__init__("0")
        self.failures = failures

    def dropped(self, reason: DropReason) -> None:
        """Note one."""
        assert reason is DropReason.NOTICE
        self.failures.append(1)


def receive(server: socket.socket) -> dict[str, bytes]:
    """Receive one entry as journald does."""
    raw, fds, _, _ = socket.recv_fds(server, 1 << 20, 1)
    if fds:
        with open(fds[0], "rb") as file:
            file.seek(0)
            raw = file.read()
    fields: dict[str, bytes] = {}
    while raw:
        line, _, rest = raw.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack_from("<Q", rest)
            value, rest = rest[8 : 8 + size], rest[9 + size :]
        fields[name.decode()] = value
        raw = rest
    return fields


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[tuple[Path, socket.socket]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        path = tmp_path / "j"
        server.bind(str(path))
        server.settimeout(5)
        yield path, server


def test_entry_has_systemd_coredumps_fields_and_ours(journald: tuple[Path, socket.socket]) -> None:
    path, server = journald
    crash = build_crash(3, signature="p1-aa", explanation="NULL pointer", state=State.COMPLETE)
    crash = replace(crash, si_code=1, thread_comm=b"CPU 0/KVM")
    journal.send(journal.build_fields(crash, Path("/s/core.zst")), path)
    fields = receive(server)
    assert fields["MESSAGE_ID"] == b"fc2e22bc6ee647b6b90729ab34a250b1"
    assert fields["COREDUMP_PID"] == str(crash.pid).encode()
    assert fields["COREDUMP_TID"] == str(crash.tid).encode()
    assert fields["COREDUMP_THREAD_NAME"] == crash.thread_comm
    assert fields["COREDUMP_CODE"] == b"1"
    assert fields["COREDUMP_TIMESTAMP"] == str(crash.time_ns // 1000).encode()
    assert fields["COREDUMP_FILENAME"] == b"/s/core.zst"
    assert fields["COREDUMP_EXE"] == crash.exe
    assert fields["CRASHD_ID"] == crash.id.encode()
    assert fields["CRASHD_SIGNATURE"] == b"p1-aa"
    assert b"NULL pointer" in fields["MESSAGE"]
    assert b"dumped core" in fields["MESSAGE"]  # what people grep for


def test_entry_hostile_names_forge_no_field(journald: tuple[Path, socket.socket]) -> None:
    path, server = journald
    evil = b"x\nMESSAGE=forged\nPRIORITY=0\n\x1b[2J"
    crash = build_crash(1, comm=evil[:15], exe=evil, argv=(evil,), cwd=evil)
    journal.send(journal.build_fields(crash, None), path)
    fields = receive(server)
    assert fields["COREDUMP_EXE"] == evil
    assert fields["PRIORITY"] == b"2"
    assert not fields["MESSAGE"].startswith(b"forged")
    assert b"\x1b" not in fields["MESSAGE"]


def test_entry_too_large_for_a_datagram_is_passed_as_a_file(
    journald: tuple[Path, socket.socket],
) -> None:
    path, server = journald
    crash = build_crash(1, maps=b"m" * (8 << 20), mountinfo=b"i" * (8 << 20))
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    fields = {f"F{n}": b"v" * journal.FIELD_MAX for n in range(8)}
    journal.send(journal.build_fields(crash, None) | fields, path)
    assert len(receive(server)["F7"]) == journal.FIELD_MAX


def test_fault_23_journal_that_nobody_reads_holds_nothing_up(
    journald: tuple[Path, socket.socket],
) -> None:
    path, _ = journald
    with pytest.raises(UnavailableError, match="does not accept entries"):
        for _ in range(10_000):
            began = time.monotonic()
            journal.send({"MESSAGE": b"x"}, path)
    assert time.monotonic() - began < 5 * journal.SEND_SECONDS
    with pytest.raises(UnavailableError, match="No such file"):
        journal.send({"MESSAGE": b"x"}, path.with_name("none"))


def test_fault_23_full_journal_is_waited_for_once(
    journald: tuple[Path, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, server = journald
    with pytest.raises(UnavailableError):
        while True:
            journal.send({"MESSAGE": b"x"}, path, 0)
    monkeypatch.setattr(journal, "SOCKET", path)
    hook(tmp_path / "etc/crashd/hooks.d", "a", f"echo >>{tmp_path}/told\n")
    failed: list[int] = []
    notices = Notices(Paths(tmp_path), Counted(failed), Users())
    notices.start()
    began = time.monotonic()
    for number in range(20):
        notices.captured(build_crash(number))
        notices.notify(build_crash(number))
    try:
        wait_until(lambda: len(lines_of(tmp_path / "told")) == 20, 60, "hooks are told of all")
        assert time.monotonic() - began < 10 * journal.SEND_SECONDS, "waited for once"
        wait_until(lambda: len(failed) == 20, 60, "each that was not told is counted")
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                server.recv(4096)
        notices.captured(build_crash(21))  # it is read again
        notices.notify(build_crash(21))
        wait_until(lambda: len(lines_of(tmp_path / "told")) == 21, 60, "the last is told too")
        assert len(failed) == 20
    finally:
        notices.stop()


def test_journal_has_each_crash_at_once_in_order_and_explanations_apart(
    journald: tuple[Path, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, server = journald
    monkeypatch.setattr(journal, "SOCKET", path)
    notices = Notices(Paths(tmp_path), Counted([]), Users())
    notices.start()
    crashes = [build_crash(number, uid=1000 + number % 3) for number in range(32)]
    reader = threading.Thread(target=lambda: got.extend(receive(server) for _ in range(33)))
    got: list[dict[str, bytes]] = []
    reader.start()
    began = time.monotonic()
    for crash in crashes:
        notices.captured(crash)
        notices.expect(crash)  # hooks wait for the analysis
    explained = replace(
        crashes[5],
        signature="p2-0123456789abcdef",
        explanation="NULL read",
        package_name="web",
        package_version="1.2-3",
        frames=({"function": "parse", "module": "web"},),
    )
    notices.explained(explained)
    reader.join(30)
    try:
        assert time.monotonic() - began < 5, "nothing waits for hooks.wait"
        assert [one["CRASHD_ID"].decode() for one in got[:32]] == [crash.id for crash in crashes]
        times = [int(one["COREDUMP_TIMESTAMP"]) for one in got[:32]]
        assert times == [crash.time_ns // 1000 for crash in crashes]
        assert {one["MESSAGE_ID"] for one in got[:32]} == {journal.MESSAGE_ID.encode()}
        assert got[32]["MESSAGE_ID"] == journal.EXPLAINED_ID.encode()
        assert got[32]["CRASHD_ID"].decode() == crashes[5].id
        assert got[32]["COREDUMP_PACKAGE_NAME"] == b"web"
        assert got[32]["COREDUMP_PACKAGE_VERSION"] == b"1.2-3"
        assert b"NULL read" in got[32]["MESSAGE"]
        assert b"#0  parse (web)" in got[32]["MESSAGE"]
        assert got[32]["OBJECT_SYSTEMD_UNIT"].decode() == crashes[5].unit
    finally:
        notices.stop()


def test_journal_that_is_full_for_a_moment_gets_all_in_order(
    journald: tuple[Path, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, server = journald
    with pytest.raises(UnavailableError):
        while True:
            journal.send({"MESSAGE": b"x"}, path, 0)
    monkeypatch.setattr(journal, "SOCKET", path)
    failed: list[int] = []
    notices = Notices(Paths(tmp_path), Counted(failed), Users())
    notices.start()
    crashes = [build_crash(number, uid=1000) for number in range(8)]
    for crash in crashes:
        notices.captured(crash)
    got: list[bytes] = []
    while len(got) < 8:
        fields = receive(server)
        got += [fields["CRASHD_ID"]] if "CRASHD_ID" in fields else []
    notices.stop()
    assert [crash_id.decode() for crash_id in got] == [crash.id for crash in crashes]
    assert failed == []


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def hook(directory: Path, name: str, body: str, mode: int = 0o755) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(mode)
    return path


def test_list_hooks_takes_only_what_is_roots_own(tmp_path: Path) -> None:
    good = hook(tmp_path / "h", "10-good", "")
    hook(tmp_path / "h", "20-open", "", 0o777)
    hook(tmp_path / "h", "30-not-executable", "", 0o644)
    hook(tmp_path / "h", ".hidden", "")
    hook(tmp_path / "h", "40-backup~", "")
    found, wrong = list_hooks(tmp_path / "h")
    assert found == [good]
    assert wrong == [f"{tmp_path}/h/20-open: can be written by others"]
    (tmp_path / "h").chmod(0o777)
    assert list_hooks(tmp_path / "h")[0] == []
    assert list_hooks(tmp_path / "none") == ([], [])


def test_run_hook_has_the_json_a_clean_environment_and_no_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "1")
    out = tmp_path / "out"
    secret = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(secret, True)
    path = hook(tmp_path / "h", "a", f"cat >{out}; env >>{out}; ls /proc/self/fd >>{out}\n")
    try:
        run_hook(path, b'{"id": "x"}\n', 5)
    finally:
        os.close(secret)
    lines = out.read_text().splitlines()
    assert lines[0] == '{"id": "x"}'
    assert not any("SECRET" in line for line in lines)
    assert len([line for line in lines if line.isdigit()]) <= 4


def test_run_hook_that_hangs_or_fails_is_ended_with_all_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    slow = hook(tmp_path / "h", "slow", f"sleep 600 & echo $! >{mark}; wait\n")
    with pytest.raises(HookError, match=r"slow did not end within 0\.5 s"):
        run_hook(slow, b"x" * (1 << 20), 0.5)
    child = int(mark.read_text())
    wait_until(lambda: not Path(f"/proc/{child}").exists() or is_zombie(child), 20, "it is killed")
    with pytest.raises(HookError, match="ended with status 3"):
        run_hook(hook(tmp_path / "h", "bad", "exit 3\n"), b"", 5)
    with pytest.raises(HookError, match="cannot be started"):
        run_hook(tmp_path / "h" / "none", b"", 5)


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


class Receiver(BaseHTTPRequestHandler):
    """Takes what is posted."""

    got: list[bytes]
    headers_got: list[dict[str, str]]
    answer = 200

    def do_POST(self) -> None:
        self.headers_got.append(dict(self.headers))
        self.got.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(self.answer)
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[tuple[str, type[Receiver]]]:
    kind = type("One", (Receiver,), {"got": [], "headers_got": []})
    with HTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/crash", kind
        server.shutdown()
        thread.join()


def test_post_sends_the_json_and_follows_no_redirect(
    receiver: tuple[str, type[Receiver]],
) -> None:
    url, kind = receiver
    post(Webhook(url), b'{"id": 1}', 5)
    assert kind.got == [b'{"id": 1}']
    for answer in (302, 500):
        kind.answer = answer
        with pytest.raises(HookError, match=str(answer)):
            post(Webhook(url), b"{}", 5)
    with pytest.raises(HookError, match="refused"):
        post(Webhook("http://127.0.0.1:1/"), b"{}", 5)


def test_post_sends_headers_of_a_file_that_only_root_can_read(
    tmp_path: Path, receiver: tuple[str, type[Receiver]]
) -> None:
    url, kind = receiver
    file = tmp_path / "headers"
    webhook = Webhook(url, "pagerduty", str(file))
    with pytest.raises(HookError, match="headers: cannot be read: No such file"):
        post(webhook, b"{}", 5)
    file.write_text("# of the alerts team\nAuthorization: Bearer s3cret\nX-Routing-Key: abc\n")
    file.chmod(0o644)
    with pytest.raises(HookError, match="everybody can read its secrets"):
        post(webhook, b"{}", 5)
    file.chmod(0o600)
    post(webhook, b'{"title": "SIGSEGV in web"}', 5)
    ((body, sent),) = zip(kind.got, kind.headers_got, strict=True)
    assert json.loads(body)["routing_key"] == "abc"
    assert sent["Authorization"] == "Bearer s3cret"
    assert sent["Content-Type"] == "application/json"
    assert "X-Routing-Key" not in sent
    file.write_text("Authorization s3cret\n")
    with pytest.raises(HookError, match=r"line 1 is not a header") as caught:
        post(webhook, b"{}", 5)
    assert "s3cret" not in str(caught.value)


class LogReceiver(BaseHTTPRequestHandler):
    """An OTLP/HTTP receiver of logs that keeps the records, or rejects them all."""

    records: ClassVar[list[dict[str, Any]]] = []
    rejects: ClassVar[bool] = False

    def do_POST(self) -> None:
        """Take a request as the specification wants it; answer 400 to any other."""
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        status, answer = 200, b"{}"
        try:
            assert (self.path, self.headers["Content-Type"]) == ("/v1/logs", "application/json")
            taken = [
                {**record, "resource": logs["resource"]["attributes"]}
                for logs in json.loads(raw)["resourceLogs"]
                for scope in logs["scopeLogs"]
                for record in scope["logRecords"]
            ]
            assert all(record["timeUnixNano"].isdigit() for record in taken)
        except (AssertionError, KeyError, ValueError):
            status = 400
        else:
            self.records.extend(taken)
        if self.rejects:
            partial = {"rejectedLogRecords": "1", "errorMessage": "quota exceeded"}
            answer = json.dumps({"partialSuccess": partial}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_post_sends_a_log_record_to_an_otlp_receiver_and_hears_its_refusal() -> None:
    kind = LogReceiver
    document = json.dumps(to_json(build_crash(3, explanation="NULL pointer"))).encode()
    with HTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            post(Webhook(f"{url}/v1/logs", "otlp"), document, 5)
            kind.rejects = True
            with pytest.raises(HookError, match="rejected: quota exceeded"):
                post(Webhook(f"{url}/v1/logs", "otlp"), document, 5)
            with pytest.raises(HookError, match="400"):
                post(Webhook(f"{url}/v1/traces", "otlp"), document, 5)
        finally:
            server.shutdown()
            thread.join()
    assert len(kind.records) == 2
    first = kind.records[0]
    assert first["body"] == {"stringValue": "SIGSEGV in prog3"}
    assert {"key": "service.name", "value": {"stringValue": "crashd"}} in first["resource"]


def test_notices_run_hooks_within_their_rate_and_count_what_failed(
    tmp_path: Path, receiver: tuple[str, type[Receiver]]
) -> None:
    url, kind = receiver
    paths, failures = Paths(tmp_path), list[int]()
    out = tmp_path / "ran"
    hook(paths.hooks, "10-note", f"cat >>{out}\n")
    hook(paths.hooks, "20-bad", "exit 1\n")
    notices = Notices(paths, Counted(failures), Users())
    notices.configure(NoticeSettings(Webhook(url), 5, AlertRates(4, 5)))
    notices.start()
    crash = replace(build_crash(1), maps=b"long")
    for _ in range(3):
        notices.notify(crash)
    wait_until(lambda: len(failures) == 3, 30, "two hooks failed, one crash was too many")
    notices.stop()
    assert len(kind.got) == 2
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [crash.id] * 2
    assert "maps" not in rows[0]
    assert stat.S_IMODE(out.stat().st_mode) & 0o111 == 0


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    out, failures = tmp_path / "ran", list[int]()
    hook(tmp_path / "etc/crashd/hooks.d", "10-note", f"cat >>{out}\n")
    notices = Notices(Paths(tmp_path), Counted(failures), Users())
    notices.configure(NoticeSettings(wait_seconds=0.5))
    yield notices, lambda: [json.loads(line) for line in lines_of(out)], failures
    notices.stop()


def test_sec_84_alert_waits_for_its_analysis_only_so_long(told: Told) -> None:
    notices, rows, _ = told
    notices.start()
    slow, quick = build_crash(1, uid=1000), build_crash(2, uid=1001)
    notices.expect(slow)
    notices.expect(quick)
    explained = replace(quick, explanation="why", analysis={"state": "done"})
    notices.notify(explained)
    wait_until(lambda: len(rows()) == 2, 30, "both are told of")
    assert [row["id"] for row in rows()] == [quick.id, slow.id]
    assert rows()[0]["analysis"] == {"state": "done"}
    assert rows()[1]["analysis"] == {"state": "pending"}
    notices.notify(replace(slow, analysis={"state": "done"}))  # it is there at last
    last = build_crash(3)
    notices.notify(last)
    wait_until(lambda: len(rows()) == 3, 30, "the last is told of")
    assert rows()[2]["id"] == last.id, "and none twice"


def test_sec_84_crash_that_is_only_counted_runs_no_hook(told: Told) -> None:
    notices, rows, failures = told
    notices.start()
    reason = "limiter.site: more crashes than 5 full and 20 mini cores in 1h"
    capture = Capture(disposition=Disposition.METADATA, reason=reason)
    for number in range(100):
        notices.notify(build_crash(number, uid=1000, capture=capture))
    by_rule = Capture(disposition=Disposition.METADATA, reason="capture.keep is metadata")
    last = build_crash(101, uid=1000, capture=by_rule)
    notices.notify(last)
    wait_until(lambda: len(rows()) == 1, 30, "what a rule keeps no core of is told of")
    assert rows()[0]["id"] == last.id
    assert failures == [], "the limiter has counted them"


def test_sec_84_flood_drops_nobody_elses_notice_and_none_of_the_kernels(told: Told) -> None:
    notices, rows, failures = told
    first, kernel = build_crash(9001, uid=1001), build_crash(9002, kind=Kind.KERNEL, uid=None)
    for number in range(1000):
        notices.notify(build_crash(number, uid=1000))
    notices.notify(first)
    notices.notify(kernel)
    notices.start()
    wait_until(lambda: len(rows()) >= 3, 30, "hooks ran")
    ids = [row["id"] for row in rows()]
    assert ids[0] == kernel.id
    assert ids.index(first.id) <= 2, "others' first is before the flood's second"
    assert len(failures) >= 501
