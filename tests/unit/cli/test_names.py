import pytest

from crashd.cli.names import numbered
from crashd.errors import UsageError


def test_numbered_puts_ids_for_names() -> None:
    assert numbered(["uid=root", "COREDUMP_GID=root", "_UID=root", "owner_uid=root"]) == [
        "uid=0",
        "COREDUMP_GID=0",
        "_UID=0",
        "owner_uid=0",
    ]


def test_numbered_leaves_everything_else() -> None:
    terms = ["uid=0", "uid=-1", "comm=uid=root", "root", "title=x", "uid="]
    assert numbered(terms) == terms


@pytest.mark.parametrize("term", ["uid=nobody-of-that-name", "gid=\x00"])
def test_numbered_unknown_name_is_a_usage_error(term: str) -> None:
    with pytest.raises(UsageError, match=r"no (user|group)"):
        numbered([term])
