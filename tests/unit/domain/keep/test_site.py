import pytest

from crashd.domain.crash.record import add_process
from crashd.domain.keep.site import account_of, place_of
from tests.builders.crashes import build_crash

HOST = b"mnt:[4026531832]"
OWN = b"mnt:[4026532200]"
USERS = b"user:[4026531837]"
ID = "c" * 64


def place_and_account(
    *, mount_ns: bytes = OWN, user_ns: bytes = USERS, cgroup: str = "/"
) -> tuple[str | None, str | None]:
    snapshot = {
        "comm": b"x",
        "mount_ns": mount_ns,
        "user_ns": user_ns,
        "init_mount_ns": b"",  # hidden by a security module
        "kthreadd_mount_ns": HOST,
        "cgroup": b"0::" + cgroup.encode() + b"\n",
    }
    crash = build_crash(uid=1000, unit=None)
    crash = add_process(crash, snapshot, None, environ_mode="scrub", patterns=())
    return place_of(crash), account_of(crash)


@pytest.mark.parametrize(
    ("cgroup", "place"),
    [
        ("/", "mnt:4026532200"),
        ("/user.slice/user-1000.slice/session-3.scope", "mnt:4026532200"),
        (f"/system.slice/docker-{ID}.scope", ID),
        (f"/system.slice/docker-{ID}.scope/system.slice/ssh.service", ID),
        ("/lxc.payload.web/system.slice/ssh.service", "web"),
        ("/machine.slice/machine-web.scope/payload/system.slice/ssh.service", "web"),
        ("/system.slice/ssh.service", None),  # PrivateTmp= is no container
    ],
)
def test_place_of_what_has_a_mount_namespace_of_its_own(cgroup: str, place: str | None) -> None:
    account = "1000" if place is None else f"1000@{place}"
    assert place_and_account(cgroup=cgroup) == (place, account)


def test_place_of_the_hosts_own_namespace_is_the_host_whatever_its_cgroup_is_called() -> None:
    cgroup = f"/user.slice/user-1000.slice/user@1000.service/docker-{ID}.scope"
    assert place_and_account(mount_ns=HOST, cgroup=cgroup) == (None, "1000")


@pytest.mark.parametrize("mount_ns", [b"", b"mnt:[", b"mnt:[x]", b"mnt:[1]\n"])
def test_place_of_what_is_not_known_is_the_host(mount_ns: bytes) -> None:
    assert place_and_account(mount_ns=mount_ns) == (None, "1000")


def test_account_of_a_user_namespace_is_the_users() -> None:
    found = place_and_account(user_ns=b"user:[4026532201]")
    assert found == ("mnt:4026532200", "1000")


def test_account_of_a_subordinate_uid_is_its_users() -> None:
    crash = build_crash(uid=100_005)
    assert account_of(crash) == "100005"
    assert account_of(crash, lambda uid: 1000) == "1000"
