from dataclasses import replace

import pytest

from crashd.domain.kdump.conf import parse_kdump_conf, parse_kdump_tools, parse_sysconfig
from crashd.domain.kdump.ready import KdumpFacts, Target, assess, dump_paths

GIB = 1 << 30
GOOD = KdumpFacts(
    loaded=True,
    reserved_bytes=256 << 20,
    cmdline=b"root=/dev/vda crashkernel=256M quiet",
    ram_bytes=4 * GIB,
    sysctls={"panic_on_oops": 1, "panic": 10},
    tools=parse_kdump_tools(b"USE_KDUMP=1\n"),
    installed=("kdump-tools",),
    targets=(Target("/var/crash", True, 10 * GIB, 20 * GIB),),
)


def codes(facts: KdumpFacts) -> list[str]:
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
def test_assess_trap_is_named_with_what_to_do(facts: KdumpFacts, code: str, ready: bool) -> None:
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


def tools(arguments: str) -> KdumpFacts:
    conf = parse_kdump_tools(f'USE_KDUMP=1\nMAKEDUMP_ARGS="{arguments}"\n'.encode())
    return replace(GOOD, tools=conf)


def fedora(conf: bytes) -> KdumpFacts:
    return replace(GOOD, tools=None, conf=parse_kdump_conf(conf), installed=("kdump-utils",))


LARGE = replace(GOOD, ram_bytes=768 * GIB, targets=(Target("/var/crash", True, 999 * GIB, 999),))


@pytest.mark.parametrize(
    ("facts", "code", "found"),
    [
        # 10 GiB are free, 64 of memory: a level of 31 fits, all of it does not
        (replace(tools("-c -d 31"), ram_bytes=64 * GIB), "no-space", False),
        (replace(tools("-c -d 0"), ram_bytes=64 * GIB), "no-space", True),
        (replace(tools("-c -d0"), ram_bytes=64 * GIB), "no-space", True),
        (replace(tools("-cd 0"), ram_bytes=64 * GIB), "no-space", True),
        (replace(tools("-c -d 1"), ram_bytes=64 * GIB), "no-space", True),
        (replace(tools("-c"), ram_bytes=64 * GIB), "no-space", True),
        (replace(fedora(b"core_collector cp\n"), ram_bytes=64 * GIB), "no-space", True),
        (replace(fedora(b"core_collector /usr/bin/scp\n"), ram_bytes=64 * GIB), "no-space", True),
        (replace(fedora(b"path /var/crash\n"), ram_bytes=64 * GIB), "no-space", False),
        (fedora(b"core_collector cp\n"), "copies-all", True),
        (fedora(b"core_collector makedumpfile -l -d 31\n"), "copies-all", False),
        # dumps that are there tell more than the memory
        (replace(GOOD, dump_bytes=8 * GIB, ram_bytes=64 * GIB), "no-space", True),
        (replace(GOOD, dump_bytes=2 * GIB, ram_bytes=512 * GIB), "no-space", False),
        (replace(LARGE, reserved_bytes=219 << 20), "crashkernel-small", True),
        (replace(LARGE, reserved_bytes=512 << 20), "crashkernel-small", False),
        (replace(GOOD, reserved_bytes=192 << 20, initrd_bytes=60 << 20), "initramfs-large", True),
        (replace(GOOD, reserved_bytes=192 << 20, initrd_bytes=12 << 20), "initramfs-large", False),
        (replace(GOOD, reserved_bytes=512 << 20, initrd_bytes=60 << 20), "initramfs-large", False),
        (tools("-z -d 31"), "compression-ignored", True),
        (
            replace(tools("-z -d 31"), compressions=frozenset({"zstd"})),
            "compression-ignored",
            False,
        ),
        (replace(tools("-p -d 31"), compressions=frozenset({"zstd"})), "compression-ignored", True),
        (replace(GOOD, denied=("/data/crash",)), "deletion-denied", True),
        (replace(GOOD, plain_dumps=("/var/crash/vmcore",)), "plain-dump", True),
    ],
)
def test_assess_warns_where_it_should_and_nowhere_else(
    facts: KdumpFacts, code: str, found: bool
) -> None:
    verdict = assess(facts)
    assert (code in codes(facts)) is found
    assert verdict.ready


FADUMP = replace(
    GOOD, loaded=False, reserved_bytes=0, cmdline=b"root=/dev/vda fadump=on", fadump=True
)


def test_assess_of_a_dump_by_the_firmware_is_ready_without_crashkernel() -> None:
    verdict = assess(FADUMP)
    assert (verdict.ready, verdict.findings) == (True, ())
    assert codes(replace(FADUMP, fadump=False))[0] == "fadump-not-registered"
    assert not assess(replace(FADUMP, fadump=False)).ready


def test_expected_size_learns_from_the_dumps_that_are_there() -> None:
    assert assess(GOOD).needed_bytes == 4 * GIB // 10
    assert assess(replace(GOOD, dump_bytes=GIB)).needed_bytes == GIB * 3 // 2
    assert assess(replace(GOOD, dump_bytes=9 * GIB)).needed_bytes == 4 * GIB
    assert assess(replace(tools("-d 0"), dump_bytes=GIB)).needed_bytes == 4 * GIB
