from dataclasses import replace

import pytest

from crashd.domain.kdump.conf import parse_kdump_conf, parse_kdump_tools, parse_sysconfig
from crashd.domain.kdump.ready import Facts, Target, assess, dump_paths

GIB = 1 << 30
GOOD = Facts(
    loaded=True,
    reserved_bytes=256 << 20,
    cmdline=b"root=/dev/vda crashkernel=256M quiet",
    ram_bytes=4 * GIB,
    sysctls={"panic_on_oops": 1, "panic": 10},
    tools=parse_kdump_tools(b"USE_KDUMP=1\n"),
    installed=("kdump-tools",),
    targets=(Target("/var/crash", True, 10 * GIB, 20 * GIB),),
)


def codes(facts: Facts) -> list[str]:
    return [finding.code for finding in assess(facts).findings]


def test_assess_of_a_host_that_is_set_up_finds_nothing() -> None:
    verdict = assess(GOOD)
    assert verdict.ready
    assert verdict.findings == ()
    assert verdict.crashkernel_bytes == 256 << 20


@pytest.mark.parametrize(
    ("facts", "code", "ready"),
    [
        (replace(GOOD, loaded=False), "not-loaded", False),
        (replace(GOOD, loaded=None), "no-kexec", False),
        (replace(GOOD, loaded=False, installed=()), "no-tool", False),
        (replace(GOOD, cmdline=b"quiet"), "no-crashkernel", False),
        (replace(GOOD, reserved_bytes=0), "crashkernel-refused", False),
        (replace(GOOD, reserved_bytes=96 << 20), "crashkernel-small", True),
        (replace(GOOD, sysctls={"panic_on_oops": 0}), "panic-on-oops", True),
        (
            replace(GOOD, tools=parse_kdump_tools(b'USE_KDUMP=1\nMAKEDUMP_ARGS="-c --dump-dmesg"')),
            "dump-dmesg",
            False,
        ),
        (replace(GOOD, tools=parse_kdump_tools(b"USE_KDUMP=0")), "kdump-off", False),
        (replace(GOOD, targets=(Target("/var/crash", True, 1 << 20, GIB),)), "no-space", False),
        (replace(GOOD, targets=(Target("/var/crash", True, 200 << 20, GIB),)), "no-space", True),
        (replace(GOOD, targets=(Target("/var/crash", False),)), "no-target", True),
        (
            replace(GOOD, targets=(Target("/var/crash", True, 9 * GIB, 9 * GIB, "belongs to x"),)),
            "target-open",
            True,
        ),
        (replace(GOOD, apport_cleans=True), "other-cleaner", True),
        (
            replace(GOOD, tools=parse_kdump_tools(b"USE_KDUMP=1\nKDUMP_NUM_DUMPS=3")),
            "other-cleaner",
            True,
        ),
        (replace(GOOD, problems=("/etc/kdump.conf cannot be read",)), "unreadable", True),
        (replace(GOOD, loaded=False, pstore="efi_pstore"), "pstore", False),
        (replace(GOOD, loaded=False, sysctls={"panic": 0}), "panic-halts", False),
    ],
)
def test_assess_trap_is_named_with_what_to_do(facts: Facts, code: str, ready: bool) -> None:
    verdict = assess(facts)
    assert code in [finding.code for finding in verdict.findings]
    assert verdict.ready is ready


def test_assess_faults_come_first() -> None:
    facts = replace(GOOD, loaded=False, sysctls={"panic_on_oops": 0}, apport_cleans=True)
    severities = [finding.severity for finding in assess(facts).findings]
    assert severities == sorted(severities, key=["fault", "warning", "notice"].index)


def test_assess_settings_of_a_tool_that_is_not_installed_are_no_fault() -> None:
    off = parse_kdump_tools(b"USE_KDUMP=0")
    assert assess(replace(GOOD, tools=off, installed=("kdump-utils",))).ready


def test_dump_paths_are_the_makers_own() -> None:
    facts = replace(
        GOOD,
        tools=parse_kdump_tools(b"KDUMP_COREDIR=/srv/dumps/\n"),
        conf=parse_kdump_conf(b"path /mnt/crash\n"),
        sysconfig=parse_sysconfig(b'KDUMP_SAVEDIR="file:///var/log/dump"\n'),
    )
    assert dump_paths(facts) == ("/var/crash", "/srv/dumps", "/mnt/crash", "/var/log/dump")


@pytest.mark.parametrize("path", [b"/", b"relative", b"/a/../etc", b"$(id)"])
def test_dump_paths_strange_one_is_left_out(path: bytes) -> None:
    facts = replace(GOOD, tools=parse_kdump_tools(b"KDUMP_COREDIR=" + path))
    assert dump_paths(facts) == ("/var/crash",)


def test_tool_count_is_none_where_no_tool_limits() -> None:
    assert GOOD.tool_count is None
    counted = replace(GOOD, tools=parse_kdump_tools(b"KDUMP_NUM_DUMPS=4"))
    assert counted.tool_count == 4
    suse = replace(GOOD, sysconfig=parse_sysconfig(b"KDUMP_KEEP_OLD_DUMPS=5"))
    assert suse.tool_count == 5
