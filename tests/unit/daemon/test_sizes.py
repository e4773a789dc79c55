"""What is written, or sent, is no larger than what is read."""

import json
import os
import socket
from pathlib import Path

import pytest

from crashd.base.messages import PACKET_MAX, receive_message, send_message
from crashd.daemon.after.queue import RESULT_MAX, encode_result
from crashd.daemon.intake.ingest import identified
from crashd.domain.cause.analysis import Analysis, AnalysisState
from crashd.domain.crash.model import Disposition, from_json
from crashd.domain.keep.limiter import BUCKETS_MAX, Limiter, Rate, Scope
from crashd.store.statefile import STATE_MAX, read_state, write_state
from tests.builders.crashes import build_crash


def test_message_of_a_crash_with_a_long_record_arrives() -> None:
    crash = build_crash(maps=b"\xff" * (1 << 20), exe="ä".encode() * 2048, nodename=b"\xff" * 4096)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        send_message(ours, {"job": "import", "crash": identified(crash)})
        message, _ = receive_message(theirs)
    assert message is not None
    told = from_json(message["crash"])
    assert (told.id, told.token, told.pid) == (crash.id, crash.token, crash.pid)


def test_message_that_is_too_large_is_an_error_and_no_half_message() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = len(os.listdir("/proc/self/fd"))
    with ours, theirs:
        send_message(ours, {"x": "x" * PACKET_MAX}, (0,))
        with pytest.raises(OSError, match="Message too long"):
            receive_message(theirs)
        assert len(os.listdir("/proc/self/fd")) == before


def test_limiter_that_knows_the_worst_names_is_read_again(tmp_path: Path) -> None:
    limiter = Limiter({Scope.UNIT: Rate(1, 1, 10**9)})
    for number in range(BUCKETS_MAX):
        key = f"{number}/" + "\U0001f600" * 390
        limiter.decide({Scope.UNIT: key}, Disposition.FULL, 10**18)
    assert len(json.dumps(limiter.to_json())) > STATE_MAX, "escaped, it would not be"
    write_state(tmp_path / "state", limiter.to_json())
    assert Limiter({}).load_json(read_state(tmp_path / "state"))


def test_state_that_could_not_be_read_again_leaves_the_old_one(tmp_path: Path) -> None:
    write_state(tmp_path / "state", {"a": 1})
    with pytest.raises(OSError, match="File too large"):
        write_state(tmp_path / "state", {"a": "x" * STATE_MAX})
    assert read_state(tmp_path / "state") == {"a": 1}


def test_result_of_an_analysis_is_kept_in_its_own_letters() -> None:
    done = Analysis(AnalysisState.DONE, title="\U0001f600" * (RESULT_MAX // 5))
    analysis, raw = encode_result(done)
    assert analysis == done
    assert json.loads(raw)["title"] == done.title
    assert len(json.dumps(done.title)) > RESULT_MAX, "escaped, it would not be read"


def test_result_of_an_analysis_that_is_too_large_is_a_failure() -> None:
    analysis, raw = encode_result(Analysis(AnalysisState.DONE, title="x" * RESULT_MAX))
    assert analysis.state is AnalysisState.FAILED
    assert "bytes" in (analysis.reason or "")
    assert json.loads(raw)["state"] == "failed"
