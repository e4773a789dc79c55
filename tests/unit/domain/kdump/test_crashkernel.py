import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.kdump.crashkernel import CrashKernel, MemoryRange, parse_crashkernel

MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"512M", CrashKernel((MemoryRange(0, None, 512 * MIB),))),
        (b"512m@16M", CrashKernel((MemoryRange(0, None, 512 * MIB),), 16 * MIB)),
        (b"0x10000000@0", CrashKernel((MemoryRange(0, None, 256 * MIB),), 0)),
        (b"01000000", CrashKernel((MemoryRange(0, None, 2**18),))),
        (b"384M-:128M", CrashKernel((MemoryRange(384 * MIB, None, 128 * MIB),))),
        (
            b"512M-2G:64M,2G-:128M@32M",
            CrashKernel(
                (MemoryRange(512 * MIB, 2 * GIB, 64 * MIB), MemoryRange(2 * GIB, None, 128 * MIB)),
                32 * MIB,
            ),
        ),
        (b"1G,high", CrashKernel(high_bytes=GIB)),
    ],
)
def test_parse_crashkernel_every_form_is_understood(value: bytes, expected: CrashKernel) -> None:
    assert parse_crashkernel(b"root=/dev/vda crashkernel=" + value + b" quiet\n") == expected


def test_parse_crashkernel_several_the_last_of_each_kind_counts() -> None:
    cmdline = b"crashkernel=1M crashkernel=1G,high crashkernel=9M,low crashkernel=2M "
    cmdline += b"crashkernel=256M,low crashkernel=3G,cma xcrashkernel=7M crashkernel"
    assert parse_crashkernel(cmdline) == CrashKernel(
        (MemoryRange(0, None, 2 * MIB),), None, GIB, 256 * MIB, 3 * GIB
    )


@pytest.mark.parametrize("cmdline", [b"", b"quiet", b"crashkernel", b"x -- crashkernel=1M"])
def test_parse_crashkernel_none_is_none(cmdline: bytes) -> None:
    assert parse_crashkernel(cmdline) is None


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"", "no size, or one of 0"),
        (b"0M", "no size, or one of 0"),
        (b"512X", "no size, or one of 0"),
        (b"08M", "no size, or one of 0"),
        (b"99999999999999999999E", "no size, or one of 0"),
        (b"auto", "'auto' is understood by the kernels of RHEL 8 and before only"),
        (b"1M@", "no address after @"),
        (b"2G-1G:64M", "a range is not START-[END]:SIZE"),
        (b"1G:64M", "a range is not START-[END]:SIZE"),
        (b"-:64M", "a range is not START-[END]:SIZE"),
        (b"1G-:", "a range is not START-[END]:SIZE"),
        (b",high", "no size before ,high"),
        (b"1M,low", "neither a plain size nor ,high: nothing is reserved"),
        (b"1M,medium", "no size, or one of 0"),
    ],
)
def test_parse_crashkernel_refused_by_the_kernel_is_a_problem(value: bytes, problem: str) -> None:
    found = parse_crashkernel(b"crashkernel=" + value)
    assert found is not None
    assert problem in found.problems
    assert found.wanted_bytes(8 * GIB) == 0


@pytest.mark.parametrize(
    ("value", "ram", "wanted"),
    [
        (b"512M", GIB, 512 * MIB),
        (b"384M-:128M", 256 * MIB, 0),
        (b"384M-:128M", 383 * MIB, 128 * MIB),  # rounded up to 384M
        (b"512M-2G:64M,2G-:128M", 2 * GIB - 200 * MIB, 64 * MIB),
        (b"512M-2G:64M,2G-:128M", 2 * GIB, 128 * MIB),
        (b"1G,high crashkernel=256M,low", 8 * GIB, GIB + 256 * MIB),
        (b"256M crashkernel=1G,cma", 8 * GIB, 256 * MIB),
        (b"1G-2G:64M,nonsense", GIB, 64 * MIB),
    ],
)
def test_wanted_bytes_is_what_the_kernel_reserves(value: bytes, ram: int, wanted: int) -> None:
    found = parse_crashkernel(b"crashkernel=" + value)
    assert found is not None
    assert found.wanted_bytes(ram) == wanted


@given(st.text("0123456789xkMG-:,@high lowcma=crashkernel", max_size=80), st.integers(0, 2**50))
def test_parse_crashkernel_any_text_raises_nothing(text: str, ram: int) -> None:
    found = parse_crashkernel(b"crashkernel=" + text.encode())
    assert found is not None
    assert 0 <= found.wanted_bytes(ram) < 2**65
