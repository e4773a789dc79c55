"""Names as people wrote them."""

import pytest

from crashd.analyzers.demangle import Demangler

DEMANGLER = Demangler()


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("main", "main"),
        ("strlen_null.constprop.0", "strlen_null.constprop.0"),
        ("_ZN3app3runEi", "app::run(int)"),
        ("_ZN3app3runEi.cold", "app::run(int) [.cold]"),
        ("_ZN3app3runEi@@V1", "app::run(int)"),
        # a coroutine's frame, whose name has a dot within
        (
            "_Z6workerPZ6workerPiE17_Z6workerPi.Frame.actor",
            "worker(worker(int*)::_Z6workerPi.Frame*) [.actor]",
        ),
        (
            "_ZN4core3ops8function6FnOnce40call_once$u7b$$u7b$vtable.shim$u7d$$u7d$17h862a2774283b"
            "0c71E",
            "core::ops::function::FnOnce::call_once{{vtable.shim}}",
        ),
        ("_ZN3foo3bar17h0123456789abcdefE.llvm.77", "foo::bar"),
        (
            "_ZN3app3run28_$u7b$$u7b$closure$u7d$$u7d$17h0123456789abcdefE",
            "app::run::{{closure}}",
        ),
        ("_Znonsense", "_Znonsense"),
        ("_D2n93nulFCQj1CZi", "n9.nul"),
        ("_D3app5Store3getMFiZi", "app.Store.get"),
        ("_Dmain", "_Dmain"),
        ("P$PROGRAM_$$_WORK", "PROGRAM.WORK"),
        ("SHOP_$$_SELL$LONGINT$$BOOLEAN", "SHOP.SELL"),
        ("SHOP$_$TSTORE_$__$$_GET$$LONGINT", "SHOP$_$TSTORE_$__$$_GET$$LONGINT"),
        ("_D9999cut", "_D9999cut"),
        ("_D3app__T3mapVii1ZQiFZv", "app"),
        ("_Z" + "." * 50, "_Z" + "." * 50),
        ("runtime.raise.abi0", "runtime.raise.abi0"),
    ],
)
def test_name(symbol: str, name: str) -> None:
    assert DEMANGLER.name(symbol) == name


def test_name_of_long_templates_is_whole_but_for_its_arguments() -> None:
    symbol = "_ZN3app5StoreI" + "St4pairIiS_IilEE" * 60 + "E3getEv"
    name = DEMANGLER.name(symbol)
    assert len(name) <= 400
    assert name == "app::Store<\N{HORIZONTAL ELLIPSIS}>::get()"


def test_name_is_bounded_whatever_it_is() -> None:
    for symbol in (
        "x" * 10000,
        "_Z" + "x" * 10000,
        "_R" + "x" * 10000,
        "_Z1fI" + "i" * 3000 + "Ev",
    ):
        assert len(DEMANGLER.name(symbol)) <= 400


def test_type() -> None:
    assert DEMANGLER.type("St13runtime_error") == "std::runtime_error"
    assert DEMANGLER.type("*3Err") == "Err"
