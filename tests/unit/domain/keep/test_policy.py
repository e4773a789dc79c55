"""The administrator's rules."""

from dataclasses import replace

import pytest

from crashd.domain.crash.model import Disposition
from crashd.domain.keep.policy import most_of, parse_rule
from crashd.domain.keep.site import Site

SITE = Site(1000, "web.service", "/usr/bin/x", "x", None, 11, None)


@pytest.mark.parametrize(
    "text",
    ["", "mini", "small exe=/x", "mini exe", "mini =x", "mini exe=", "mini path=/x", "x" * 2000],
)
def test_parse_rule_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"rule|condition"):
        parse_rule(text)


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        ("mini exe=/usr/bin/*", True),
        ("mini exe=/usr/bin/* uid=1000 unit=web.* signal=SIGSEGV comm=x", True),
        ("mini exe=/usr/bin/* uid=0", False),
        ("mini signal=11", False),
        ("mini comm=X", False),
    ],
)
def test_most_of_all_conditions_must_hold(rule: str, fits: bool) -> None:
    found, why = most_of(SITE, [parse_rule(rule)], Disposition.FULL)
    assert (found is Disposition.MINI) is fits
    assert why.startswith("capture.rules" if fits else "capture.keep")


def test_most_of_the_first_rule_counts() -> None:
    rules = [parse_rule("full uid=1000"), parse_rule("metadata exe=*")]
    assert most_of(SITE, rules, Disposition.MINI)[0] is Disposition.FULL
    assert most_of(replace(SITE, uid=1), rules, Disposition.MINI)[0] is Disposition.METADATA


def test_most_of_hostile_names_match_as_they_are() -> None:
    site = replace(SITE, exe="/tmp/\udcff\n*[" + "a" * 4000)
    assert most_of(site, [parse_rule("mini exe=/tmp/*" + "a*" * 20)], Disposition.FULL)[0] == "mini"
    assert most_of(site, [parse_rule("mini exe=*b*" * 1)], Disposition.FULL)[0] == "full"
