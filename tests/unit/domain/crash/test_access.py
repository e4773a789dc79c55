import pytest

from crashd.domain.crash.access import READ, SEARCH, Credentials, is_permitted


@pytest.mark.parametrize(
    "acl",
    [b"", b"\2\0\0\0", b"\1\0\0\0" + bytes(8), b"\2\0\0\0" + bytes(7), b"\2\0\0\0" + bytes(8)],
)
def test_is_permitted_by_a_list_that_is_none_is_false(acl: bytes) -> None:
    for wanted in (READ, SEARCH):
        assert not is_permitted(Credentials(7, 7), 0o777, 0, 0, acl, wanted)
        assert not is_permitted(Credentials(0, 0), 0o777, 0, 0, acl, wanted)
        assert is_permitted(Credentials(0, 0, overrides=True), 0, 7, 7, acl, wanted)
