import pytest

from crashd.domain.crash.access import Credentials
from crashd.domain.crash.cgroup import is_in_roots_container
from crashd.domain.crash.filesearch import FileSearch, Root
from crashd.domain.crash.searchplan import crash_credentials, plan_search
from tests.builders.crashes import build_crash

ID = "a1" * 32
STATUS = b"Name:\tx\nGroups:\t4 27 65534 \nCapEff:\t%s\nEnd:\t\n"
ALL, NONE = b"000001ffffffffff", b"0000000000000000"


@pytest.mark.parametrize(
    ("cgroup", "is_roots"),
    [
        (None, False),
        ("/", False),
        ("/system.slice/cron.service", False),
        (f"/system.slice/docker-{ID}.scope", True),
        (f"/docker/{ID}", True),
        (f"/user.slice/user-7.slice/user@7.service/docker-{ID}.scope", False),
        (f"/user.slice/docker-{ID}.scope", False),
        (f"/system.slice/theirs.service/docker-{ID}.scope", False),
    ],
)
def test_is_in_roots_container_trusts_no_delegated_name(cgroup: str | None, is_roots: bool) -> None:
    assert is_in_roots_container(cgroup) is is_roots


def test_plan_search_goes_to_the_worker_and_back_unchanged() -> None:
    crash = build_crash(
        uid=7,
        gid=8,
        root=b"/srv/\xff",
        mountinfo=None,
        cgroup=f"/docker/{ID}",
        status=b"Groups:\t4\nEnd:\t\n",
    )
    search = plan_search(crash, [b"/ids"])
    assert search.credentials == Credentials(7, 8, frozenset({4}))
    assert search.roots == (Root(b"/srv/\xff", entered=True), Root(b"/"))
    assert FileSearch.from_json(search.to_json()) == search


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
