import pytest

from crashd.domain.host.sysctld import BootSetting, find_setting, order_files

KEY = "kernel.core_pattern"


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        ([], None),
        (["kernel.core_pattern = a\n"], "a"),
        (["kernel.core_pattern=|/x %p = %e"], "|/x %p = %e"),
        (["kernel/core_pattern=a"], "a"),
        (["-kernel.core_pattern=a"], "a"),
        (["# kernel.core_pattern=a\n;kernel.core_pattern=b"], None),
        (["kernel.core_pattern=a", "kernel/core_pattern=b"], "b"),
        (["kernel.core_pattern_x=a\nkernel.core_uses_pid=1"], None),
        (["kernel.core_*=a"], "a"),
        (["kernel.core_pattern=a", "kernel.core_*=b"], "a"),
        (["kernel.core_*=b\n-kernel.core_pattern\n"], None),
        (["-kernel.core_pattern", "kernel.core_pattern=b"], "b"),
        (["kernel.core_pattern"], None),
        (["\0\xff=\n=\n==\n-\n-=x"], None),
    ],
)
def test_find_setting_is_that_of_systemd(texts: list[str], value: str | None) -> None:
    files = [(f"/etc/sysctl.d/{n}.conf", text) for n, text in enumerate(texts)]
    found = find_setting(files, KEY)
    assert (found.value if found else None) == value


def test_find_setting_names_the_file_that_wins() -> None:
    files = [("/a", f"{KEY}=1"), ("/b", f"{KEY}=2"), ("/c", "x=1")]
    assert find_setting(files, KEY) == BootSetting("/b", "2")


def test_order_files_goes_by_name_and_the_first_directory_hides_others() -> None:
    etc, run, usr = ["60-a.conf", "README"], ["10-b.conf"], ["60-a.conf", "50-c.conf"]
    assert order_files([etc, run, usr]) == [(1, "10-b.conf"), (2, "50-c.conf"), (0, "60-a.conf")]
