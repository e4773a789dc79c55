import pytest

from crashd.domain.crash.podnames import find_container, find_pod, node_name

ID = "0123456789abcdef" * 4
UID = "0a1b2c3d-1111-2222-3333-444455556666"


def test_find_container_by_its_id() -> None:
    names = ["x", f"api-7f9c.v2_shop_web-1-{ID[::-1]}.log", f"api-7f9c.v2_shop_web-1-{ID}.log"]
    expected = {"namespace": "shop", "name": "api-7f9c.v2", "container": "web-1"}
    assert find_container(names, ID) == expected
    assert find_container(names[:2], ID) is None


@pytest.mark.parametrize(
    "name",
    [
        f"a_b_c-{ID}.log.gz",
        f"../a_b_c-{ID}.log",
        f"a\x1b_b_c-{ID}.log",
        f"A_b_c-{ID}.log",
        f"a_b.c_c-{ID}.log",
        f"-a_b_c-{ID}.log",
        f"a_{'b' * 64}_c-{ID}.log",
        f"{'a' * 64}_b_c-{ID}.log",
        f"{'.'.join(['a' * 60] * 5)}_b_c-{ID}.log",
        f"a_b_c{ID}.log",
        f"a_b-{ID}.log",
        f"a_b_c_d-{ID}.log",
    ],
)
def test_find_container_takes_only_names_that_kubernetes_has(name: str) -> None:
    assert find_container([name], ID) is None


def test_find_pod_by_its_uid() -> None:
    names = ["lost+found", f"kube-system_etcd-node1_{ID[:32]}", f"shop_api-7f9c_{UID}"]
    assert find_pod(names, UID) == {"namespace": "shop", "name": "api-7f9c"}
    assert find_pod(names, ID[:32]) == {"namespace": "kube-system", "name": "etcd-node1"}
    assert find_pod([f"shop_api_x{UID}", f"SHOP_api_{UID}", f"shop_{UID}"], UID) is None


def test_node_name_is_one_or_none() -> None:
    assert node_name("ip-10-0-0-1.eu-west-1.compute.internal") is not None
    for wrong in ("", "a b", "a_b", "-a", "A", "a" * 254, "a\n"):
        assert node_name(wrong) is None
