import pytest

from crashd.domain.kernellog.signature import build_signature, normal_name, normal_words


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("f", "f"),
        ("f.isra.0", "f"),
        ("f.constprop.0.isra.12.cold", "f"),
        ("f.part.3.cold.7", "f"),
        ("f.llvm.123456", "f"),
        ("__pfx_f", "f"),
        (".f", "f"),
        ("__f", "__f"),
        (".isra.0", "isra.0"),
    ],
)
def test_normal_name_loses_what_the_compiler_added(name: str, normal: str) -> None:
    assert normal_name(name) == normal


@pytest.mark.parametrize(
    ("words", "normal"),
    [
        ("softlockup: hung tasks", "softlockup: hung tasks"),
        ("Watchdog detected hard LOCKUP on cpu 12", "Watchdog detected hard LOCKUP on cpu N"),
        ("unknown-block(0,0)", "unknown-block(N,N)"),
        ("bad pointer ffff888012345678 here", "bad pointer ADDR here"),
        ("bad pointer 0xffff888012345678", "bad pointer ADDR"),
        ("in f+0x12/0x34", "in f"),
        ("ext4 and nf_tables, md0, sha256", "ext4 and nf_tables, md0, sha256"),
        ("deadbeefcafe is hex, accessed is not", "ADDR is hex, accessed is not"),
        ("  a   b ", "a b"),
    ],
)
def test_normal_words_loses_what_differs_between_boots(words: str, normal: str) -> None:
    assert normal_words(words) == normal


def test_build_signature_parts_are_framed() -> None:
    assert build_signature("a", "b", ["cd", "e"]) != build_signature("a", "b", ["c", "de"])
    assert build_signature("a", "bc", []) != build_signature("ab", "c", [])


def test_build_signature_is_of_a_fixed_version() -> None:
    assert build_signature("oops", "kernel oops in f", ["f", "g"]) == "k4-9272168f17cc53ac"
