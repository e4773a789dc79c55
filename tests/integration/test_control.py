"""The control socket: real peers, honest and not."""

import contextlib
import json
import os
import re
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crashd.base import messages
from crashd.cli.control import ControlClient
from crashd.daemon import answers, control
from crashd.daemon.after.retention import Spectator
from crashd.daemon.control import ControlServer
from crashd.domain.crash.model import Crash, from_json
from crashd.domain.crash.viewer import Viewer
from crashd.edge.capture.handoff import listen_unix
from crashd.edge.web.exporter import Exporter
from crashd.store import entry as entries
from crashd.store.index import Index
from crashd.store.paths import Paths
from crashd.store.retention import Outcome
from tests.builders.crashes import build_crash
from tests.running import wait_until

NOBODY = 65534
CORE = b"a stored core"
REPOSITORY = Path(__file__).parents[2]

MINE, ROOTS = build_crash(1, owner_uid=NOBODY, gid=NOBODY), build_crash(2)
UNKNOWN = build_crash(3)
NO_IDS = (
    "",
    "../../etc/passwd",
    "%2e%2e",
    "/etc/passwd",
    "a\0b",
    "id\n",
    "\ud800",
    f"{ROOTS.id}\n",
)


class Peer:
    """One connection."""

    def __init__(self, paths: Paths) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(20)
        self.socket.connect(str(paths.control_socket))

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, document: dict[str, Any]) -> "Peer":
        self.socket.sendall(messages.pack(document))
        return self

    def hear(self) -> dict[str, Any]:
        (size,) = struct.unpack("<I", self._exactly(4))
        return messages.parse(self._exactly(size))

    def is_closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:  # it left something of ours unread
            return True

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self.socket.recv(size - len(data))
            assert chunk, "it was closed"
            data += chunk
        return data


@pytest.fixture
def paths(short_tmp: Path) -> Paths:
    found = Paths(short_tmp)
    entries.prepare(found)
    found.runtime_dir.mkdir(parents=True)
    with Index.open(found.index) as index:
        for crash in (MINE, ROOTS):
            keep(found, index, crash)
    return found


def keep(paths: Paths, index: Index, crash: Crash) -> None:
    with entries.create(paths, crash) as entry:
        fd = entry.create_core()
        os.write(fd, CORE)
        os.close(fd)
        entry.commit_core()
    index.put([crash])


class Asked(list[str]):
    """Takes the ids of crashes that are to be analysed; has room for one."""

    def analyze(self, crash_id: str) -> bool:
        self.append(crash_id)
        return len(self) == 1

    def vacuum(self, spectator: Spectator, *, dry_run: bool) -> Outcome:
        """Delete one crash of two, the other is in use."""
        spectator.planned(
            [{"id": MINE.id, "reason": "max_use"}, {"id": ROOTS.id, "reason": "max_use"}]
        )
        if dry_run:
            return Outcome()
        spectator.progress(1, 2)
        return Outcome(freed_bytes=9, count=1, kept={ROOTS.id})


@pytest.fixture
def serve(paths: Paths) -> Iterator[Callable[..., ControlServer]]:
    started: list[ControlServer] = []
    asked = Asked()

    def start(status: Callable[[], dict[str, Any]] = lambda: {"ready": True}) -> ControlServer:
        told = SimpleNamespace(describe=status)
        listener = listen_unix(paths.control_socket, socket.SOCK_STREAM, 0o666)
        server = ControlServer(listener, paths, told, asked, Exporter("0"))
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def server(serve: Callable[..., ControlServer]) -> ControlServer:
    return serve()


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Give the lines logged, after checking that none is a traceback or more than a line."""

    def lines() -> list[str]:
        for record in caplog.records:
            assert record.exc_info is None, caplog.text
            assert record.getMessage().isprintable()
        return [record.getMessage() for record in caplog.records]

    return lines


def ask(paths: Paths, document: dict[str, Any]) -> dict[str, Any]:
    with Peer(paths) as peer:
        answer = peer.say(document).hear()
        assert peer.is_closed(), "one request, one answer"
    return answer


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---- what it answers ----


def test_analyze_refused_where_too_many_wait(
    serve: Callable[..., ControlServer], paths: Paths
) -> None:
    serve()
    request = {"verb": "analyze", "id": MINE.id}
    assert ask(paths, request) == {"ok": True}
    assert ask(paths, request)["error"].startswith("too many analyses are waiting")
    assert ask(paths, {"verb": "analyze", "id": "no such"})["exit_code"] == 1
    assert ask(paths, {"verb": "analyze"})["error"] == "analyze needs an id"


def test_top_of_crashes_without_signature_is_empty(
    serve: Callable[..., ControlServer], paths: Paths
) -> None:
    serve()
    assert ask(paths, {"verb": "top"}) == {"ok": True, "signatures": []}
    assert not ask(paths, {"verb": "top", "query": {"limit": "x"}})["ok"]


def test_verbs_answer(paths: Paths, server: ControlServer) -> None:
    assert ask(paths, {"verb": "status"}) == {"ok": True, "status": {"ready": True}}
    listed = ask(paths, {"verb": "list", "query": {"limit": 5}})["crashes"]
    assert [row["id"] for row in listed] == [ROOTS.id, MINE.id]
    assert ask(paths, {"verb": "info", "id": MINE.id})["crash"]["owner_uid"] == NOBODY


def test_open_core_sends_its_bytes_and_no_descriptor(paths: Paths, server: ControlServer) -> None:
    with Peer(paths) as peer:
        peer.say({"verb": "open-core", "id": MINE.id})
        assert peer.hear() == {"ok": True, "size_bytes": len(CORE)}
        data, fds, _, _ = socket.recv_fds(peer.socket, 1000, 4)
        assert (data, fds) == (CORE, [])
        assert peer.is_closed()


def test_fetched_core_is_a_private_copy(paths: Paths, server: ControlServer) -> None:
    fd = ControlClient(paths.control_socket).fetch({"verb": "open-core", "id": MINE.id})
    try:
        status = os.fstat(fd)
        assert (status.st_nlink, stat.S_IMODE(status.st_mode)) == (0, 0o600)
        assert os.read(fd, 100) == CORE
    finally:
        os.close(fd)


def test_info_is_the_record_as_it_is_stored(paths: Paths, server: ControlServer) -> None:
    record = paths.crashes / MINE.id / "crash.json"
    record.write_bytes(record.read_bytes() + b"\n")  # by an editor
    found = ask(paths, {"verb": "info", "id": MINE.id})["crash"]
    assert from_json(found) == MINE
    assert found["count_of_signature"] is None


def test_list_of_more_than_an_answer_holds_is_refused(
    paths: Paths, server: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "LIST_BYTES", 100)
    answer = ask(paths, {"verb": "list"})
    assert (answer["ok"], answer["exit_code"]) == (False, 2)
    assert "-n" in answer["hint"]


# ---- nonsense ----


@pytest.mark.parametrize(
    "message",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<I", 0),
        struct.pack("<I", messages.REQUEST_MAX + 1),
        struct.pack("<I", 10) + b"not json!!",
        struct.pack("<I", 4) + b"\xff\xfe\0\0",
        struct.pack("<I", 2) + b"[]",
        struct.pack("<I", 60_000) + b"[" * 60_000,
        struct.pack("<I", 5000) + b"9" * 5000,
        struct.pack("<I", 100) + b"cut",
        b"\1",
    ],
)
def test_nonsense_is_answered_once_logged_and_counted(
    paths: Paths, server: ControlServer, quiet: Callable[[], list[str]], message: bytes
) -> None:
    with Peer(paths) as peer:
        peer.socket.sendall(message)
        peer.socket.shutdown(socket.SHUT_WR)
        answer = peer.hear()
        assert (answer["ok"], answer["exit_code"]) == (False, 2)
        assert peer.is_closed()
    wait_until(lambda: server.refused == 1 and quiet() != [], what="it is counted and logged")
    (line,) = quiet()
    assert re.fullmatch(r"uid \d+ on the control socket: .*, ignoring", line)
    assert ask(paths, {"verb": "status"})["ok"]


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"verb": "drop all"},
        {"verb": ["list"]},
        {"verb": {}},
        {"verb": "info"},
        {"verb": "info", "id": 5},
        {"verb": "open-core", "id": None},
        {"verb": "list", "query": []},
        {"verb": "list", "query": {"limit": "x"}},
        {"verb": "list", "query": {"kind": []}},
        {"verb": "list", "query": {"since_ns": 1 << 70}},
        {"verb": "list", "query": {"terms": ["PID=x"]}},
        *({"verb": verb, "id": name} for verb in ("info", "open-core") for name in NO_IDS),
    ],
    ids=repr,
)
def test_request_that_makes_no_sense_is_refused(
    paths: Paths, server: ControlServer, quiet: Callable[[], list[str]], request_: dict[str, Any]
) -> None:
    answer = ask(paths, request_)
    assert answer["ok"] is False
    assert answer["exit_code"] in (1, 2)
    assert quiet() == []


@pytest.mark.parametrize("term", ["\ud800", "\udcff" * 8, "UNIT=\udcff", "' OR 1=1 --", "%", "\0"])
def test_list_of_hostile_words_finds_nothing(
    paths: Paths, server: ControlServer, quiet: Callable[[], list[str]], term: str
) -> None:
    assert ask(paths, {"verb": "list", "query": {"terms": [term]}}) == {"ok": True, "crashes": []}
    assert ask(paths, {"verb": "list", "query": {"signature": term}})["crashes"] == []
    assert quiet() == []


def test_much_nonsense_is_one_line_that_counts_the_rest(
    paths: Paths,
    server: ControlServer,
    quiet: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def shout(times: int) -> None:
        for _ in range(times):
            with Peer(paths) as peer:
                peer.socket.sendall(bytes(4))
                peer.hear()

    shout(20)
    wait_until(lambda: server.refused == 20, what="all are counted")
    assert len(quiet()) == 1
    monkeypatch.setattr(control, "_LOG_EVERY_SECONDS", 0)
    shout(1)
    wait_until(lambda: len(quiet()) == 2, what="the last is counted and logged")
    assert "(and 19 more since the last such line)" in quiet()[1]


def test_descriptors_that_come_along_are_not_kept(paths: Paths, server: ControlServer) -> None:
    with Peer(paths) as first:  # by now the accepting thread has all descriptors of its own
        first.socket.sendall(messages.pack({"verb": "status"}))
        assert first.hear()["ok"]
        assert first.is_closed()
    before = descriptors()
    for _ in range(5):
        with Peer(paths) as peer:
            socket.send_fds(peer.socket, [messages.pack({"verb": "status"})], [0, 1, 2])
            assert peer.hear()["ok"]
    wait_until(lambda: descriptors() <= before, what="no descriptor is kept")


# ---- peers that are slow, or many ----


def test_peer_that_says_nothing_is_dropped(
    paths: Paths,
    server: ControlServer,
    quiet: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control, "REQUEST_SECONDS", 0.1)
    with Peer(paths) as silent, Peer(paths) as half:
        half.socket.sendall(b"\x10\0")
        assert silent.is_closed()
        assert half.is_closed()
    assert quiet() == []


def test_peer_that_does_not_read_is_dropped(
    paths: Paths, serve: Callable[..., ControlServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "ANSWER_SECONDS", 0.1)
    server = serve(lambda: {"much": "x" * (8 << 20)})
    with Peer(paths) as peer:
        peer.say({"verb": "status"})
        wait_until(lambda: server._open.total() == 1, what="it is asked")
        wait_until(lambda: not server._open, what="it is given up")
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while chunk := peer.socket.recv(1 << 20):
                received += len(chunk)
        assert received < 8 << 20
    wait_until(lambda: server.refused == 1, what="it is counted")


def test_connections_are_bounded_for_each_user_and_root_gets_in(server: ControlServer) -> None:
    mine, others = 4242, range(5000, 5100)
    assert [server._admit(mine) for _ in range(9)] == [True] * 8 + [False]
    assert sum(server._admit(uid) for uid in others) == control.CONNECTIONS_FOR_OTHERS - 8
    assert sum(server._admit(0) for _ in range(100)) == 16
    server._leave(0)
    assert not server._admit(mine)
    assert server._admit(0)


def test_thread_that_cannot_start_costs_one_connection_only(
    paths: Paths,
    server: ControlServer,
    quiet: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("crashd.daemon.control.threading.Thread", NoThread)
        with Peer(paths) as peer:
            assert peer.is_closed()
        wait_until(lambda: server.refused == 1, what="it is counted")
    assert "can't start new thread" in quiet()[0]
    assert ask(paths, {"verb": "status"})["ok"]
    wait_until(lambda: not server._open, what="its place is free again")


# ---- a store in trouble ----


def test_damaged_index_is_one_refusal(
    paths: Paths, server: ControlServer, quiet: Callable[[], list[str]]
) -> None:
    for path in paths.state_dir.glob("index.sqlite-*"):
        path.unlink()
    paths.index.write_bytes(b"garbage" * 1000)
    answer = ask(paths, {"verb": "list"})
    assert (answer["ok"], answer["exit_code"]) == (False, 4)
    assert "reindex" in answer["hint"]
    assert quiet() == []


def test_disk_that_fails_is_a_refusal(
    paths: Paths, serve: Callable[..., ControlServer], quiet: Callable[[], list[str]]
) -> None:
    def broken() -> dict[str, Any]:
        raise OSError(5, "Input/output error")

    serve(broken)
    answer = ask(paths, {"verb": "status"})
    assert (answer["ok"], answer["exit_code"]) == (False, 4)
    assert "Input/output error" in answer["error"]
    assert quiet() == []


# ---- follow ----


def followers(server: ControlServer, count: int) -> None:
    wait_until(lambda: len(server._followers) == count, what=f"{count} follow")


def test_follow_shows_each_his_own(paths: Paths, server: ControlServer) -> None:
    with Peer(paths) as peer:
        assert peer.say({"verb": "follow"}).hear() == {"ok": True}
        followers(server, 1)
        (follower,) = server._followers
        follower.viewer = Viewer(NOBODY, NOBODY)
        server.publish("crash", {"id": "another's", "gid": NOBODY}, 1000)
        server.publish("crash", {"id": "root's", "gid": NOBODY}, None)
        server.publish("crash", {"id": "of a group of others", "gid": 1000}, NOBODY)
        server.publish("crash", {"id": "theirs", "gid": NOBODY}, NOBODY)
        assert peer.hear() == {"crash": {"id": "theirs", "gid": NOBODY}}


def test_follow_tells_how_many_a_slow_reader_missed(
    paths: Paths, server: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "FOLLOW_QUEUE", 2)
    with Peer(paths) as peer:
        peer.say({"verb": "follow"}).hear()
        followers(server, 1)
        sent = 0
        (follower,) = server._followers
        while follower.dropped < 3:  # it fills the socket's buffer first, then the queue
            server.publish("crash", {"n": sent, "x": "x" * 200_000}, None)
            sent += 1
        heard, dropped = 0, 0
        while heard + dropped < sent:
            event = peer.hear()
            dropped += event.get("dropped", 0)
            heard += "crash" in event
            if heard + dropped < sent and not follower.queue.qsize():
                server.publish(
                    "crash", {"last": True}, None
                )  # what was missed is told with the next
                sent += 1
        assert dropped >= 3


def test_follow_ends_with_its_peer_and_with_the_server(
    paths: Paths, serve: Callable[..., ControlServer]
) -> None:
    server = serve()
    with Peer(paths) as peer:
        peer.say({"verb": "follow"}).hear()
        followers(server, 1)
    followers(server, 0)
    with Peer(paths) as peer:
        peer.say({"verb": "follow"}).hear()
        server._stopping.set()
        assert peer.is_closed()


# ---- other users ----

_AS_NOBODY = """
import json, os, socket, struct, sys
from crashd.cli.control import ControlClient
from crashd.errors import CrashdError
from pathlib import Path
path, limit, *ids = sys.argv[1:]
client = ControlClient(Path(path))
def told(request, ask):
    try:
        return ask(request)
    except CrashdError as e:
        return f"{type(e).__name__}: {e}"
found = {"list": [row["id"] for row in client.ask({"verb": "list"})["crashes"]]}
for verb, ask in (("info", client.ask), ("open-core", client.fetch)):
    found[verb] = [told({"verb": verb, "id": name}, ask) for name in ids]
found["open-core"][0] = os.pread(found["open-core"][0], 100, 0).decode()
found["info"][0] = found["info"][0]["crash"]["id"]
def is_open(peer):
    try:
        return peer.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionResetError:
        return False
for _ in range(10):
    held = []
    for _ in range(12):
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(0.5)
        peer.connect(path)
        held.append(peer)
    found["open"] = sum(is_open(peer) for peer in held)
    if found["open"] >= int(limit):
        break
    for peer in held:  # one of those before was still being closed
        peer.close()
print(json.dumps(found))
"""


def test_another_user_sees_his_own_and_no_trace_of_the_rest(
    paths: Paths, server: ControlServer, quiet: Callable[[], list[str]]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    paths.root.chmod(0o755)
    done = subprocess.run(
        [
            *(sys.executable, "-c", _AS_NOBODY, paths.control_socket),
            *(str(control.CONNECTIONS_PER_UID), MINE.id, ROOTS.id, UNKNOWN.id),
        ],
        env={"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["list"] == [MINE.id]
    assert found["info"][0] == MINE.id
    assert found["open-core"][0] == CORE.decode()
    for verb in ("info", "open-core"):
        hidden, unknown = found[verb][1:]
        assert hidden.startswith("NotFoundError")
        assert hidden.replace(ROOTS.id, UNKNOWN.id) == unknown, "no oracle"
    assert found["open"] == control.CONNECTIONS_PER_UID
    assert all("too many connections" in line for line in quiet())


def test_vacuum_streams_plan_progress_and_result(server: ControlServer, paths: Paths) -> None:
    del server
    client = ControlClient(paths.control_socket)
    with client.stream({"verb": "vacuum", "dry_run": False}) as events:
        planned, progress, result = (next(events) for _ in range(3))
    assert [row["id"] for row in planned["plan"]] == [MINE.id, ROOTS.id]
    assert (planned["count"], progress) == (2, {"done": 1, "total": 2})
    assert result == {"result": {"deleted": 1, "freed_bytes": 9, "kept": [ROOTS.id]}}


def test_vacuum_goes_on_when_nobody_listens_any_more(server: ControlServer, paths: Paths) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.connect(os.fspath(paths.control_socket))
        peer.sendall(messages.pack({"verb": "vacuum"}))
    client = ControlClient(paths.control_socket)
    with client.stream({"verb": "vacuum", "dry_run": True}) as events:
        assert next(events)["count"] == 2
    assert server.refused == 0
