import pytest

from crashd.domain.host.denials import Denials, check_denials, find_denials
from crashd.domain.host.doctor import Level

NOW = 1_800_000_000 * 10**9
AVC = (
    b'type=AVC msg=audit(1799999999.123:42): avc:  denied  { write } for  pid=7 comm="crashd-core" '
    b'name="spool" dev="sda1" ino=5 scontext=system_u:system_r:crashd_core_t:s0 '
    b"tcontext=system_u:object_r:var_lib_t:s0 tclass=dir permissive=0"
)
KERNEL = AVC.replace(b"crashd_core_t", b"kernel_t").replace(b"type=AVC msg=", b"audit: type=1400 ")
APPARMOR = (
    b'audit: type=1400 audit(1799999999.123:42): apparmor="DENIED" operation="open" class="file" '
    b'profile="crashd-core" name="/etc/shadow" pid=7 comm="crashd-core" requested_mask="r"'
)


def count(*lines: bytes) -> tuple[int, int]:
    found = find_denials(("SELinux",), lines, NOW)
    return found.enforced, found.permitted


def test_find_denials_of_the_handlers_domain_and_of_the_kernels() -> None:
    assert count(AVC, KERNEL, APPARMOR) == (3, 0)
    found = find_denials(("SELinux",), [AVC], NOW)
    assert found.last == "crashd_core_t may not write dir of var_lib_t"
    found = find_denials(("AppArmor",), [APPARMOR], NOW)
    assert found.last == "the handler's profile forbids open /etc/shadow"


def test_find_denials_that_are_only_logged_are_apart() -> None:
    assert count(AVC.replace(b"permissive=0", b"permissive=1")) == (0, 1)
    assert count(APPARMOR.replace(b"DENIED", b"ALLOWED")) == (0, 1)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"avc:  denied  { write } for",
        AVC.replace(b"crashd_core_t", b"user_t"),  # a user's program with the handler's name
        KERNEL.replace(b"crashd-core", b"modprobe"),
        AVC.replace(b"1799999999", b"1799900000"),  # older than a day
        AVC.replace(b"denied", b"granted"),
        APPARMOR.replace(b'profile="crashd-core"', b'profile="firefox"'),
        *(AVC[:cut] for cut in range(0, len(AVC) - len(b" permissive=0") - 2, 7)),
    ],
)
def test_find_denials_of_others_do_not_count(line: bytes) -> None:
    assert count(line) == (0, 0)


@pytest.mark.parametrize(
    ("denials", "level", "text"),
    [
        (Denials(("SELinux",)), Level.WARNING, "no log can be read"),
        (Denials(("SELinux",), True), Level.OK, "SELinux: nothing denied"),
        (Denials(("AppArmor",), True, 2, 1, "x"), Level.PROBLEM, "2 in the last day, the last: x"),
        (Denials(("SELinux",), True, 0, 1, "x"), Level.WARNING, "1 would be"),
    ],
)
def test_check_denials_judges(denials: Denials, level: Level, text: str) -> None:
    (check,) = check_denials(denials)
    assert check.level is level
    assert text in check.text
    assert check.why


def test_check_denials_says_nothing_without_either() -> None:
    assert list(check_denials(find_denials((), None, NOW))) == []
