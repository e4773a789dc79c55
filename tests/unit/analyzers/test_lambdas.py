"""Names of inlined lambdas."""

from typing import Any

import pytest

from crashd.analyzers.lambdas import name_lambdas


def frame(function: str | None, *, inline: bool = True) -> dict[str, Any]:
    return {"function": function, "inline": inline}


@pytest.mark.parametrize(
    ("callers", "name"),
    [
        (["__invoke<work()::<lambda()> >"], "work::{lambda}::operator()"),
        (["f<void, app::Pool::start(int)::<lambda(int)> >"],
         "app::Pool::start::{lambda}::operator()"),
        (["std::thread::_State_impl<std::tuple<work::{lambda()#2}> >::_M_run()"],
         "work::{lambda}::operator()"),
        (["void* std::__thread_proxy<std::tuple<work::$_0> >(void*)"],
         "work::{lambda}::operator()"),
        (["start_thread"], "operator()"),
        (["__invoke<(lambda at a.cc:82:39) &>", "work"], "work::{lambda}::operator()"),
        ([None], "operator()"),
        (["work", "f<other()::<lambda()> >"], "operator()"),
        ([], "operator()"),
    ],
)  # fmt: skip
def test_name_lambdas_takes_the_function_that_holds_it(
    callers: list[str | None], name: str
) -> None:
    frames = [frame("operator()"), *(frame(n, inline="<" in (n or "")) for n in callers)]
    name_lambdas(frames)
    assert frames[0]["function"] == name
    assert [one["function"] for one in frames[1:]] == callers


def test_name_lambdas_leaves_functions_that_are_not_inlined() -> None:
    frames = [frame("operator()", inline=False), frame("f<work()::<lambda()> >")]
    name_lambdas(frames)
    assert frames[0]["function"] == "operator()"


def test_name_lambdas_of_one_called_where_it_is_made() -> None:
    """gcc tells a lambda by the name of its hidden parameter, even without a template around it."""
    frames = [frame("{lambda}::operator()"), frame("app::Pool::go(int*) [.constprop.0]")]
    name_lambdas(frames)
    assert frames[0]["function"] == "app::Pool::go::{lambda}::operator()"
    frames = [frame("{lambda}::operator()")]
    name_lambdas(frames)
    assert frames[0]["function"] == "{lambda}::operator()"
