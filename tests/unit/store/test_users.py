import os
from pathlib import Path

import pytest

from crashd.corehandler import RANGES_MAX, parse_subuids, user_of
from crashd.store import users
from crashd.store.users import Users

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbad:x:y:1::/:/\n"


def test_parse_subuids_of_names_and_uids_gives_their_users() -> None:
    ranges = parse_subuids(b"ann:100000:65536\n1001:165536:10\nann:500000:1\n", PASSWD)
    assert [user_of(uid, ranges) for uid in (100000, 165535, 500000)] == [1000] * 3
    assert [user_of(uid, ranges) for uid in (165536, 165545, 165546)] == [1001, 1001, 165546]
    assert [user_of(uid, ranges) for uid in (0, 1000, 99999)] == [0, 1000, 99999]


def test_parse_subuids_of_root_and_of_the_unknown_are_one_user_each() -> None:
    text = b"root:100000:10\nroot:200000:10\nghost:300000:10\nghost:400000:10\nbad:500000:10\n"
    ranges = parse_subuids(text, PASSWD)
    found = [user_of(uid, ranges) for uid in (100005, 200005, 300005, 400005, 500005)]
    assert found == [100000, 100000, 300000, 300000, 500000]


@pytest.mark.parametrize(
    "line", [b"", b":1:2", b"ann", b"ann:1", b"ann:x:2", b"ann:1:2:3", b"ann:-1:5", b"ann:1:" * 99]
)
def test_parse_subuids_leaves_out_what_makes_no_sense(line: bytes) -> None:
    assert parse_subuids(line + b"\nann:7:1\n", PASSWD) == [(7, 8, 1000)]


def test_parse_subuids_takes_root_from_nobody_and_no_more_than_so_many() -> None:
    assert user_of(0, parse_subuids(b"ann:0:1000\n", PASSWD)) == 0
    assert len(parse_subuids(b"ann:1:1\n" * (RANGES_MAX + 5), PASSWD)) == RANGES_MAX


def test_users_read_the_files_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "LOOK_SECONDS", 0)
    (tmp_path / "passwd").write_bytes(PASSWD)
    known = Users(tmp_path)
    assert known.user_of(100000) == 100000, "there is no subuid(5)"
    (tmp_path / "subuid").write_bytes(b"ann:100000:65536\n")
    assert known.user_of(100000) == 1000
    (tmp_path / "subuid").write_bytes(b"1001:100000:65536\n")
    os.utime(tmp_path / "subuid", ns=(1, 1))
    assert known.user_of(100000) == 1001
