from pathlib import Path

from crashd.edge.capture.podnames import read_pod

ID = "0123456789abcdef" * 4
UID = "0a1b2c3d-1111-2222-3333-444455556666"


def test_read_pod_prefers_the_container_and_adds_the_node(tmp_path: Path) -> None:
    node = {"CRASHD_NODE_NAME": "node-1"}
    assert read_pod(ID, UID, node, tmp_path) is None
    (tmp_path / "pods" / f"shop_api_{UID}").mkdir(parents=True)
    pod = {"namespace": "shop", "name": "api"}
    assert read_pod(ID, UID, {}, tmp_path) == pod
    assert read_pod(None, UID, node, tmp_path) == {**pod, "node": "node-1"}
    (tmp_path / "containers").mkdir()
    (tmp_path / "containers" / f"api_shop_web-{ID}.log").symlink_to("/nonexistent")
    assert read_pod(ID, UID, {"CRASHD_NODE_NAME": "a b"}, tmp_path) == {**pod, "container": "web"}
