"""Names of Rust's functions, by the RFC's own examples and the kernel's symbols."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashd.domain.kernellog.rustname import LENGTH_MAX, demangle


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("_RNvCsdfZWD8DztAw_6kernel5panic", "kernel::panic"),
        ("_RNvNtCs1234567890a_4core9panicking9panic_fmt", "core::panicking::panic_fmt"),
        (
            "_RNvMs3_NtCsabcdefghijk_9demo_rust4nodeNtB5_4Node6update",
            "demo_rust::node::Node::update",
        ),
        (
            "_RNvXs_Cs1_4demoNtB4_3FooNtNtCs2_4core3fmt5Debug3fmt",
            "<demo::Foo as core::fmt::Debug>::fmt",
        ),
        ("_RINvNtC3std3mem8align_ofjdE", "std::mem::align_of"),
        ("_RNCNvC4demo3run0", "demo::run::{closure}"),
        ("_RNvYNtC4demo3FooNtC4demo3Bar3baz", "<demo::Foo as demo::Bar>::baz"),
        ("_RNvMC4demoRSNtB2_3Foo3len", "&[demo::Foo]::len"),
        ("_RNvMC4demoAhj10_3len", "[u8; _]::len"),
        ("_RNvMC4demoTmbE3len", "(u32, bool)::len"),
        ("vfs_read", "vfs_read"),
        ("_R", "_R"),
        ("_Rxx", "_Rxx"),
        ("_RNvB_B_", "_RNvB_B_"),
        ("_RNvC4demo99short", "_RNvC4demo99short"),
        ("_RNv" + "N" * LENGTH_MAX, "_RNv" + "N" * LENGTH_MAX),
    ],
)
def test_demangle_gives_the_path(symbol: str, name: str) -> None:
    assert demangle(symbol) == name


@given(st.text(alphabet="NvMXCBsT_0123456789abYIKE", max_size=400))
def test_demangle_of_any_symbol_is_bounded(tail: str) -> None:
    assert 0 < len(demangle("_R" + tail)) < 100_000
