import pytest

from crashd.domain.crash.access import Credentials
from crashd.domain.crash.cgroup import is_in_roots_container
from crashd.domain.crash.filesearch import FileSearch, Root, plan_search
from tests.builders.crashes import build_crash

ID = "a1" * 32


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
