import pytest

from crashd.domain.host.unittimes import (
    NEVER,
    UnitTimes,
    drop_in_directories,
    fragment_names,
    parse_defaults,
    parse_times,
)

S = 10**9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", UnitTimes()),
        ("TimeoutStopSec=5\n", UnitTimes()),  # in no section
        ("[Unit]\nTimeoutStopSec=5\n", UnitTimes()),
        ("[Service]\nTimeoutStopSec=5min 20s\n", UnitTimes(stop_ns=320 * S)),
        ("[Service]\nTimeoutStopSec=5\n[Install]\nTimeoutStopSec=6", UnitTimes(stop_ns=5 * S)),
        ("[Service]\n TimeoutSec = 7 \n", UnitTimes(stop_ns=7 * S)),
        ("[Service]\nTimeoutStopSec=infinity\n", UnitTimes(stop_ns=NEVER)),
        ("[Service]\nTimeoutStopSec=0\n", UnitTimes(stop_ns=NEVER)),
        ("[Service]\nTimeoutStopSec=7\nTimeoutStopSec=\n", UnitTimes()),
        ("[Service]\nTimeoutStopSec=nonsense\n", UnitTimes()),
        ("[Service]\nTimeoutStopSec=\\\n# a comment\n 9\n", UnitTimes(stop_ns=9 * S)),
        ("[Service]\nTimeoutAbortSec=3\nWatchdogSec=30\n", UnitTimes(90 * S, 3 * S, 30 * S)),
        ("[Service]\nWatchdogSec=0\n", UnitTimes()),
        ("[Service]\nWatchdogSec=30\nWatchdogSec=\n", UnitTimes()),
    ],
)
def test_parse_times_is_that_of_systemd(text: str, expected: UnitTimes) -> None:
    assert parse_times([text], UnitTimes()) == expected


def test_parse_times_the_last_text_counts() -> None:
    texts = ["[Service]\nTimeoutStopSec=5\nWatchdogSec=3", "[Service]\nTimeoutStopSec=6"]
    assert parse_times(texts, UnitTimes()) == UnitTimes(stop_ns=6 * S, watchdog_ns=3 * S)


def test_parse_defaults_are_those_of_units_without_their_own() -> None:
    defaults = parse_defaults(["[Manager]\nDefaultTimeoutStopSec=20\nDefaultTimeoutAbortSec=9"])
    assert defaults == UnitTimes(20 * S, 9 * S)
    assert parse_times(["[Service]\nTimeoutStopSec=\nTimeoutAbortSec=\n"], defaults) == defaults


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (UnitTimes(90, 5, NEVER), (90, "TimeoutStopSec")),
        (UnitTimes(90, 5, 1), (5, "TimeoutAbortSec")),
        (UnitTimes(90, None, 1), (90, "TimeoutAbortSec")),
        (UnitTimes(90, 100, 1), (90, "TimeoutStopSec")),
    ],
)
def test_dump_ns_is_what_ends_a_dump_first(times: UnitTimes, expected: tuple[int, str]) -> None:
    assert times.dump_ns == expected


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("a.service", ["service.d", "a.service.d"]),
        (
            "a-b-c.service",
            ["service.d", "a-.service.d", "a-b-.service.d", "a-b-c.service.d"],
        ),
        ("a@b-c.service", ["service.d", "a@.service.d", "a@b-c.service.d"]),
    ],
)
def test_drop_in_directories_are_those_of_systemd(unit: str, expected: list[str]) -> None:
    assert list(drop_in_directories(unit)) == expected


def test_fragment_names_of_an_instance_has_its_template() -> None:
    assert fragment_names("a@b.service") == ("a@b.service", "a@.service")
    assert fragment_names("a.service") == ("a.service",)
