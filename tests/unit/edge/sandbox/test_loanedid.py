"""Which ids are lent, and for how long."""

import fcntl
import os
from pathlib import Path

import pytest

from crashd.edge.sandbox.loanedid import (
    IDS,
    LoanedId,
    Places,
    loan,
    parse_accounts,
    parse_ids,
    parse_ranges,
)
from crashd.errors import CrashdError

STATUS = b"Name:\tx\nUid:\t1\t%d\t2\t3\nGid:\t4\t5\t6\t7\nGroups:\t8 9 \nVmPeak:\t10 kB\n"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    for name in ("etc", "proc"):
        (tmp_path / name).mkdir()
    return Places(tmp_path / "etc", tmp_path / "proc", tmp_path / "run/ids")


@pytest.fixture(autouse=True)
def _run_exists(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(exist_ok=True)


def fill(directory: Path, free: int) -> None:
    """Reserve all ids but one for an account each."""
    lines = [f"u{n}:x:{n}:0::/:/bin/sh" for n in IDS if n != free]
    (directory / "passwd").write_text("\n".join(lines))


def test_loan_is_of_the_range_that_nothing_else_assigns(places: Places) -> None:
    loaned = loan(places)
    os.close(loaned.fd)
    assert loaned.number in IDS
    assert IDS.start > 60577, "accounts, systemd-homed's, and mapped users"
    assert IDS.stop <= 61184, "systemd's DynamicUser=; containers have theirs from 524288 on"


def test_loan_two_at_a_time_are_never_the_same(places: Places) -> None:
    loans = [loan(places) for _ in IDS]
    assert {loaned.number for loaned in loans} == set(IDS)
    with pytest.raises(CrashdError, match="no free user id"):
        loan(places)
    os.close(loans[7].fd)
    again = loan(places)
    assert again.number == loans[7].number
    for loaned in (*loans[:7], *loans[8:], again):
        os.close(loaned.fd)


def test_loan_lasts_as_long_as_any_copy_of_its_descriptor(places: Places) -> None:
    fill(places.etc, 60700)
    loaned = loan(places)
    copy = os.dup(loaned.fd)
    os.close(loaned.fd)
    with pytest.raises(CrashdError):
        loan(places)
    os.close(copy)
    os.close(loan(places).fd)


def test_loan_fd_cannot_write(places: Places) -> None:
    loaned = loan(places)
    assert fcntl.fcntl(loaned.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    os.close(loaned.fd)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("passwd", "a:x:1:60700::/:/bin/sh"),
        ("group", "g:x:60700:"),
        ("subuid", "u:60690:11"),
        ("subgid", "u:0:4294967295"),
    ],
)
def test_loan_leaves_out_what_is_assigned(places: Places, name: str, text: str) -> None:
    fill(places.etc, 60700)
    with (places.etc / name).open("a") as file:
        file.write("\n" + text)
    with pytest.raises(CrashdError, match="no free user id"):
        loan(places)


def test_loan_leaves_out_the_id_of_a_process_that_was_left_behind(places: Places) -> None:
    fill(places.etc, 60700)
    (places.proc / "12").mkdir()
    (places.proc / "12/status").write_bytes(STATUS % 60700)
    with pytest.raises(CrashdError, match="no free user id"):
        loan(places)
    (places.proc / "12/status").write_bytes(STATUS % 60701)
    loaned = loan(places)
    assert loaned == LoanedId(60700, loaned.fd)
    os.close(loaned.fd)


def test_loan_where_others_may_write_is_refused(places: Places) -> None:
    places.reserved.mkdir()
    places.reserved.chmod(0o770)
    with pytest.raises(CrashdError, match="is not private to root"):
        loan(places)
    places.reserved.rmdir()
    places.reserved.symlink_to("/tmp")
    with pytest.raises(CrashdError, match="cannot reserve a user id"):
        loan(places)


@pytest.mark.parametrize("raw", [b"", b"\xff", b"a:b", b"a:x:-1:2", b"::::", b"a:x:" + b"9" * 99])
def test_parse_accounts_nonsense_is_left_out(raw: bytes) -> None:
    assert parse_accounts(raw, (2, 3)) <= {2}
    assert parse_ranges(raw) == set()


def test_parse_ids_are_all_that_a_process_has() -> None:
    assert parse_ids(STATUS % 60) == {1, 60, 2, 3, 4, 5, 6, 7, 8, 9}
    assert parse_ids(b"Uid:\nGid\n\xff") == set()
