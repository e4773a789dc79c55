import pytest

from crashd.daemon.capture import capture
from crashd.daemon.capture.options import Options
from crashd.domain.crash.model import to_json
from tests.builders.crashes import build_crash

OPTIONS = Options("auto", None, True, 0, 3, 1, 10**9, 10**9, "scrub", ())
ID = "0123456789abcdef" * 4
UID = "0a1b2c3d-1111-2222-3333-444455556666"
POD = f"kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-{ID}.scope"


@pytest.mark.parametrize(
    ("cgroup", "known"),
    [
        (f"/{POD}", True),
        (f"/user.slice/user-1000.slice/user@1000.service/{POD}", False),  # a user named it so
        (f"/system.slice/kubepods-{UID}.service", False),
    ],
)
def test_describe_names_the_pod_of_a_container_that_root_created(
    monkeypatch: pytest.MonkeyPatch, cgroup: str, known: bool
) -> None:
    pod = {"namespace": "shop", "name": "api", "container": "web"}
    monkeypatch.setattr(capture, "read_pod", lambda container, uid, environ: pod)
    seen = capture._Seen({"cgroup": f"0::{cgroup}\n".encode()}, None, None)
    crash = seen.add_to(build_crash(1), OPTIONS)
    assert to_json(crash)["pod"] == (pod if known else None)
