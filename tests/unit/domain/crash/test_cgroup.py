import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.crash.cgroup import Placement, parse_cgroup

ID = "0123456789abcdef" * 4
OTHER_ID = "f" * 64
UID = "12345678-1234-abcd-9876-0123456789ab"
UID_ = UID.replace("-", "_")


def place(path: str) -> Placement:
    """Parse a version 2 path."""
    placement = parse_cgroup(f"0::{path}\n".encode())
    assert placement.cgroup == path
    return placement


@pytest.mark.parametrize(
    ("path", "unit", "user_unit", "slice_", "session"),
    [
        ("/system.slice/nginx.service", "nginx.service", None, "system.slice", None),
        ("/system.slice/nginx.service/sub/x.service", "nginx.service", None, "system.slice", None),
        ("/init.scope", "init.scope", None, "-.slice", None),
        ("/", None, None, None, None),
        ("/a.slice/a-b.slice/a-b-c.slice/x.service", "x.service", None, "a-b-c.slice", None),
        ("/a.slice/a-b.slice", None, None, "a-b.slice", None),
        (
            "/system.slice/system-getty.slice/getty@tty1.service",
            "getty@tty1.service",
            None,
            "system-getty.slice",
            None,
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service",
            "user@1000.service",
            "foo.service",
            "user-1000.slice",
            None,
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-a.slice/x@1.service/y",
            "user@1000.service",
            "x@1.service",
            "user-1000.slice",
            None,
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/init.scope",
            "user@1000.service",
            "init.scope",
            "user-1000.slice",
            None,
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service",
            "user@1000.service",
            None,
            "user-1000.slice",
            None,
        ),
        (
            "/user.slice/user-0.slice/session-3.scope",
            "session-3.scope",
            None,
            "user-0.slice",
            "3",
        ),
        (
            "/user.slice/user-0.slice/session-c12.scope/x.service",
            "session-c12.scope",
            "x.service",
            "user-0.slice",
            "c12",
        ),
        (
            "/user.slice/user-0.slice/session-a_b.scope",
            "session-a_b.scope",
            None,
            "user-0.slice",
            None,
        ),
        # A name like a kernel file's is escaped by a leading _.
        ("/system.slice/_cgroup.service", "cgroup.service", None, "system.slice", None),
        ("/_cpu.slice/_memory.mount", "memory.mount", None, "cpu.slice", None),
        # Not a unit: no suffix, unknown suffix, template, bad character, too long, no name.
        ("/system.slice/nginx", None, None, "system.slice", None),
        ("/system.slice/nginx.conf", None, None, "system.slice", None),
        ("/system.slice/getty@.service", None, None, "system.slice", None),
        ("/system.slice/@tty1.service", None, None, "system.slice", None),
        ("/system.slice/a b.service", None, None, "system.slice", None),
        ("/system.slice/é.service", None, None, "system.slice", None),
        ("/system.slice/.service", None, None, "system.slice", None),
        (f"/system.slice/{'a' * 247}.service", f"{'a' * 247}.service", None, "system.slice", None),
        (f"/system.slice/{'a' * 248}.service", None, None, "system.slice", None),
        ("/user@1000.service/foo.service", "user@1000.service", "foo.service", "-.slice", None),
        ("/user@x.service/foo.service", "user@x.service", None, "-.slice", None),
        (
            "/system.slice/x.service/user@1.service/y.service",
            "x.service",
            None,
            "system.slice",
            None,
        ),
        ("/system.slice/dev-hugepages.mount", "dev-hugepages.mount", None, "system.slice", None),
        ("/system.slice/a\\x2db.service", "a\\x2db.service", None, "system.slice", None),
        ("/foo@bar.slice/x.service", None, None, None, None),
    ],
)
def test_parse_cgroup_systemd_path_is_placed_as_systemd_does(
    path: str, unit: str | None, user_unit: str | None, slice_: str | None, session: str | None
) -> None:
    placement = place(path)
    assert (placement.unit, placement.user_unit, placement.session) == (unit, user_unit, session)
    assert placement.slice == slice_
    assert placement.container_id is None


@pytest.mark.parametrize(
    ("path", "container_id", "runtime"),
    [
        (f"/system.slice/docker-{ID}.scope", ID, "docker"),
        (f"/docker/{ID}", ID, "docker"),
        (f"/docker/{ID}/init.scope", ID, "docker"),
        (f"/machine.slice/libpod-{ID}.scope", ID, "podman"),
        (f"/machine.slice/libpod-{ID}.scope/container", ID, "podman"),
        (
            f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container",
            ID,
            "podman",
        ),
        (f"/system.slice/web.service/libpod-payload-{ID}", ID, "podman"),
        (f"/libpod_parent/libpod-{ID}", ID, "podman"),
        (f"/machine.slice/libpod-conmon-{ID}.scope", None, None),
        (f"/kubepods.slice/crio-conmon-{ID}.scope", None, None),
        (f"/system.slice/cri-containerd-{ID}.scope", ID, "containerd"),
        (f"/system.slice/x.service/a.slice:cri-containerd:{ID}", ID, "containerd"),
        (f"/kubepods/burstable/pod{UID}/{ID}", ID, "containerd"),
        (f"/kubepods/burstable/{ID}", None, None),
        (f"/kubepods.slice/crio-{ID}.scope", ID, "cri-o"),
        (f"/docker/{ID}/docker/{OTHER_ID}", OTHER_ID, "docker"),
        (f"/docker/{ID[:-1]}", None, None),
        (f"/docker/{ID}0", None, None),
        (f"/docker/{ID.upper()}", None, None),
        (f"/system.slice/docker-{ID[1:]}.scope", None, None),
        (f"/system.slice/docker-{ID}.service", None, None),
        (f"/system.slice/xdocker-{ID}.scope", None, None),
        ("/system.slice/docker-../../x.scope", None, None),
        (f"/{ID}", None, None),
        ("/lxc/web1", "web1", "lxc"),
        ("/lxc/web1/system.slice/nginx.service", "web1", "lxc"),
        ("/lxc.payload.web1/init.scope", "web1", "lxc"),
        ("/lxc.payload/web1", "web1", "lxc"),
        ("/lxc.monitor.web1", None, None),
        ("/lxc/..", None, None),
        ("/lxc/a b", None, None),
        ("/lxc.payload.", None, None),
        ("/machine.slice/machine-deb\\x2d12.scope/payload/init.scope", "deb-12", "systemd-nspawn"),
        ("/machine.slice/machine-deb.scope", "deb", "systemd-nspawn"),
        (
            "/machine.slice/systemd-nspawn@my\\x2dbox.service/payload/system.slice/a.service",
            "my-box",
            "systemd-nspawn",
        ),
        ("/machine.slice/systemd-nspawn@box.service/supervisor", None, None),
        ("/machine.slice/machine-qemu\\x2d1\\x2dvm.scope", None, None),
        ("/machine.slice/machine-a\\x2f..\\x2fb.scope", None, None),
        ("/machine.slice/machine-\\x00.scope", None, None),
        ("/system.slice/nginx.service", None, None),
    ],
)
def test_parse_cgroup_container_is_found(
    path: str, container_id: str | None, runtime: str | None
) -> None:
    placement = place(path)
    assert placement.container_id == container_id
    assert placement.container_runtime == runtime


@pytest.mark.parametrize(
    ("path", "pod_uid", "runtime"),
    [
        (
            "/kubepods.slice/kubepods-burstable.slice/"
            f"kubepods-burstable-pod{UID_}.slice/cri-containerd-{ID}.scope",
            UID,
            "containerd",
        ),
        (f"/kubepods.slice/kubepods-pod{UID_}.slice/crio-{ID}.scope", UID, "cri-o"),
        (
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/"
            f"kubelet-kubepods-besteffort-pod{UID_}.slice/docker-{ID}.scope",
            UID,
            "docker",
        ),
        (f"/kubepods/besteffort/pod{UID}/{ID}", UID, "containerd"),
        (f"/kubepods/pod{'ab' * 16}/{ID}", "ab" * 16, "containerd"),
        (f"/kubepods.slice/kubepods-pod{UID_}.slice", UID, None),
        (f"/system.slice/pod{UID}/x", None, None),
        ("/kubepods/besteffort/podx/y", None, None),
        (f"/kubepods/pod{UID}0", None, None),
        (f"/docker/{ID}/kubepods/pod{UID}/{OTHER_ID}", UID, "containerd"),
    ],
)
def test_parse_cgroup_pod_uid_has_dashes(
    path: str, pod_uid: str | None, runtime: str | None
) -> None:
    placement = place(path)
    assert placement.pod_uid == pod_uid
    assert placement.container_runtime == runtime


def test_parse_cgroup_kubernetes_unit_and_slice_are_systemds() -> None:
    pod = f"kubepods-burstable-pod{UID_}.slice"
    placement = place(f"/kubepods.slice/kubepods-burstable.slice/{pod}/crio-{ID}.scope")
    assert (placement.unit, placement.slice) == (f"crio-{ID}.scope", pod)


@pytest.mark.parametrize(
    ("raw", "cgroup"),
    [
        (b"12:pids:/p\n5:cpu,cpuacct:/c\n1:name=systemd:/system.slice/a.service\n0::/v2\n", "/s"),
        (b"0::/v2\n12:pids:/p\n", "/v2"),
        (b"12:pids:/p\n11:memory:/m\n", "/p"),
        (b"1:name=systemd:/\n0::/\n4:memory:/docker/x\n", "/docker/x"),
        (b"1:name=systemd:/\n0::/v2\n", "/v2"),
        (b"1:name=systemd:/\n0::/\n", "/"),
        (b"0::/a:b:c\n", "/a:b:c"),
        (b"0::/gone.service (deleted)\n", "/gone.service"),
        (b"0::/x", "/x"),
        (b"0::\n", None),
        (b"0::x\n", None),
        (b"x::/y\n", None),
        (b"::/y\n", None),
        (b"0:/y\n", None),
        (b"", None),
        (b"\n\n", None),
    ],
)
def test_parse_cgroup_hierarchy_is_chosen(raw: bytes, cgroup: str | None) -> None:
    want = "/system.slice/a.service" if cgroup == "/s" else cgroup
    placement = parse_cgroup(raw)
    assert placement.cgroup == want
    if cgroup is None:
        assert placement == Placement()


def test_parse_cgroup_deleted_unit_is_still_named() -> None:
    placement = parse_cgroup(b"0::/system.slice/a.service (deleted)\n")
    assert placement.unit == "a.service"


def test_parse_cgroup_not_utf8_is_escaped() -> None:
    placement = parse_cgroup(b"0::/system.slice/a.service/\xff\xc3\xa9\n")
    assert placement.cgroup == "/system.slice/a.service/\\xffé"
    assert placement.unit == "a.service"


def test_parse_cgroup_long_path_is_cut() -> None:
    placement = parse_cgroup(b"0::/" + b"a/" * 100_000)
    assert placement.cgroup is not None
    assert len(placement.cgroup) == 4096


def test_parse_cgroup_lines_are_capped() -> None:
    assert parse_cgroup(b"1:x:/\n" * 64 + b"0::/late\n").cgroup == "/"
    assert parse_cgroup(b"1:x:/\n" * 63 + b"0::/late\n").cgroup == "/late"


def test_parse_cgroup_truncated_at_every_length_is_a_prefix() -> None:
    raw = f"0::/user.slice/user@1000.service/app.slice/docker-{ID}.scope/kubepods/pod{UID}".encode()
    for size in range(len(raw)):
        placement = parse_cgroup(raw[:size])
        assert (placement.cgroup is None) == (size < 4)
        assert placement.container_id in (None, ID)
        assert placement.user_unit in (None, f"docker-{ID}.scope")
        assert placement.pod_uid is None


@given(st.binary(max_size=100))
def test_parse_cgroup_any_bytes_give_encodable_text(tail: bytes) -> None:
    for head in (b"0::/", b"0::/machine-", b"1:name=systemd:/system.slice/"):
        placement = parse_cgroup(head + tail)
        for value in (placement.cgroup, placement.unit, placement.slice, placement.container_id):
            assert value is None or value.encode()
