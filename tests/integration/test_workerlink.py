"""What passes between the daemon and an analysis worker that systemd started."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crashd.base.messages import pack
from crashd.domain.crash.access import Credentials
from crashd.domain.crash.filesearch import FileSearch, Root
from crashd.domain.elf.modules import Module
from crashd.edge.sandbox import workerlink
from crashd.errors import FormatError
from tests.builders.elfcore import build_image

IMAGE = build_image()
BUILD_ID = bytes(range(20)).hex()
PATIENCE_SECONDS = 20.0
Ends = tuple[socket.socket, socket.socket]


@pytest.fixture(name="ends")
def make_ends() -> Iterator[Ends]:
    daemon, worker = socket.socketpair()
    with daemon, worker:
        daemon.settimeout(PATIENCE_SECONDS)
        worker.settimeout(PATIENCE_SECONDS)
        yield daemon, worker


def request_for(root: Path) -> dict[str, Any]:
    who = Credentials(0, 0, overrides=True)
    search = FileSearch(who, (Root(os.fsencode(root), entered=True),))
    return {"core_fd": None, "search": search.to_json()}


def test_request_arrives_with_the_core(ends: Ends, tmp_path: Path) -> None:
    daemon, worker = ends
    (tmp_path / "core").write_bytes(b"the core")
    with (tmp_path / "core").open("rb") as core:
        workerlink.send_request(daemon, {"limit": 5, "text": "ü" * 10_000}, [core.fileno()])
    found = workerlink.receive_request(worker)
    assert (found["limit"], found["text"]) == (5, "ü" * 10_000)
    with open(found["core_fd"], "rb") as core:
        assert core.read() == b"the core"


def test_request_without_a_core_has_none(ends: Ends) -> None:
    daemon, worker = ends
    workerlink.send_request(daemon, {"task": "probe"}, ())
    assert workerlink.receive_request(worker) == {
        "task": "probe",
        "core_fd": None,
        "extra_fds": [],
    }


def test_receive_request_of_a_daemon_that_has_gone_ends(ends: Ends) -> None:
    daemon, worker = ends
    daemon.close()
    with pytest.raises(EOFError):
        workerlink.receive_request(worker)


def test_modules_are_opened_for_the_worker_in_batches(
    ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workerlink, "_BATCH_MAX", 2)
    daemon, worker = ends
    wanted = []
    for number in range(5):
        if number != 3:
            (tmp_path / f"{number}.so").write_bytes(IMAGE + b"%d" % number)
        wanted.append(Module(b"/%d.so" % number, 0, 0, BUILD_ID, b"", False))
    thread = threading.Thread(
        target=workerlink.answer_modules, args=(daemon, request_for(tmp_path))
    )
    thread.start()
    found = workerlink.ask_for_modules(worker, wanted)
    thread.join()
    for number, file in enumerate(found):
        if number == 3:
            assert (file.fd, file.problem) == (None, "file is gone")
            continue
        assert file.fd is not None
        with open(file.fd, "rb") as opened:
            assert opened.read()[len(IMAGE) :] == b"%d" % number


@pytest.mark.parametrize(
    "said",
    [
        pack({"no": "list"}),
        pack([{"name": "!"}]),
        pack([1] * 5),
        (workerlink.MESSAGE_MAX + 1).to_bytes(4, "little"),
        bytes(4),
    ],
)
def test_answer_modules_of_a_hostile_worker_is_refused(
    ends: Ends, tmp_path: Path, said: bytes
) -> None:
    daemon, worker = ends
    worker.sendall(said)
    with pytest.raises(FormatError):
        workerlink.answer_modules(daemon, request_for(tmp_path))


def test_answer_modules_of_a_worker_that_died_ends(ends: Ends, tmp_path: Path) -> None:
    daemon, worker = ends
    worker.close()
    with pytest.raises(EOFError):
        workerlink.answer_modules(daemon, request_for(tmp_path))
