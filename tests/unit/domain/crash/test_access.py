import pytest

from crashd.domain.crash.access import READ, SEARCH, Credentials, crash_credentials, is_permitted

STATUS = b"Name:\tx\nGroups:\t4 27 65534 \nCapEff:\t%s\nEnd:\t\n"
ALL, NONE = b"000001ffffffffff", b"0000000000000000"


@pytest.mark.parametrize(
    ("uid", "status", "credentials"),
    [
        (7, STATUS % NONE, Credentials(7, 7, frozenset({4, 27}))),
        (7, STATUS % ALL, Credentials(7, 7, frozenset({4, 27}))),  # a setuid program's
        (0, STATUS % ALL, Credentials(0, 7, frozenset({4, 27}), overrides=True)),
        (0, STATUS % b"0000000000000004", Credentials(0, 7, frozenset({4, 27}), overrides=True)),
        (0, STATUS % b"fffffffffffffff9", Credentials(0, 7, frozenset({4, 27}))),
        (0, STATUS % b"x", Credentials(0, 7, frozenset({4, 27}))),
        (0, None, Credentials(0, 7)),  # a record without it
        (7, b"Groups:\t4 x -1\nE:\n", Credentials(7, 7, frozenset({4}))),
        (7, b"Groups:\t4 2", Credentials(7, 7)),  # cut: it may have been 27
        (None, STATUS % ALL, Credentials(None)),
    ],
)
def test_crash_credentials_are_the_records(
    uid: int | None, status: bytes | None, credentials: Credentials
) -> None:
    assert crash_credentials(uid, 7, status) == credentials
    assert Credentials.from_json(credentials.to_json()) == credentials


@pytest.mark.parametrize(
    "acl",
    [b"", b"\2\0\0\0", b"\1\0\0\0" + bytes(8), b"\2\0\0\0" + bytes(7), b"\2\0\0\0" + bytes(8)],
)
def test_is_permitted_by_a_list_that_is_none_is_false(acl: bytes) -> None:
    for wanted in (READ, SEARCH):
        assert not is_permitted(Credentials(7, 7), 0o777, 0, 0, acl, wanted)
        assert not is_permitted(Credentials(0, 0), 0o777, 0, 0, acl, wanted)
        assert is_permitted(Credentials(0, 0, overrides=True), 0, 7, 7, acl, wanted)
